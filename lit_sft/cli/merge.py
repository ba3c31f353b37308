"""The verb merge: the adapter of a run into the weights of its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_sft.cli._stopping import removing_on_sigterm
from lit_sft.configuration import stage_and_data
from lit_sft.display import visible
from lit_sft.errors import ConfigError
from lit_sft.export.merge import FIGURES, merge_adapter, refuse_existing, write_original_adapter
from lit_sft.runs.folder import read_config

if TYPE_CHECKING:
    from lit_sft.data._base import CorpusData
    from lit_sft.stages._base import Stage
    from lit_sft.tuning._base import Tuning

MAX_PROMPTS = 16


def merge(
    run: str,
    output: str,
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    prompts: str | None = None,
    original_names: bool = False,
) -> None:
    """Merge the adapter of a LoRA or QLoRA run into its base, and write the result in the base's original layout.

    The adapter of a QLoRA run goes into the base that is not quantized, which it was not trained on: merge.json in
    the output folder says how far the merged model is from the one that was trained.

    Args:
        run: Run folder.
        output: Folder to make; must not exist.
        dtype: Type of the merged weights; that in which the run computed with its base if not given.
        prompts: What to measure on, in one of the forms that predict takes; the run's held-out prompts if not given.
        original_names: Merge the parts of the adapter instead: write a PEFT adapter of the modules of the original
            code (W_pack, query_key_value, qkv_proj), for those who serve with that; refused where it is not exact.

    Raises:
        UserError: If the run has no adapter, or that of a reward model, which goes with its head; if the output
            folder exists, or nothing is there to measure on.
    """
    folder = Path(run)
    refuse_existing(Path(output))
    config = read_config(folder)
    from lit_sft.cli.quiet import quieten_loading
    from lit_sft.rewards.trained import refuse_reward_model

    quieten_loading()
    if prompts:
        config["data"]["init_args"]["prompts"] = prompts
    stage, data = stage_and_data(config)
    checkpoint = stage.checkpoint
    adapter = _adapter(folder, stage.tuning)
    refuse_reward_model(adapter, "a merged checkpoint would lose its head. predict and compare --reward take the run")
    if original_names:
        if dtype or prompts:
            raise ConfigError("--original_names writes the adapter as it is: leave out --dtype and --prompts")
        with removing_on_sigterm():
            write_original_adapter(checkpoint, adapter, Path(output))
        print(f"{output}: adapter of the original modules of {checkpoint.family.name}")  # noqa: T201
        return
    prompt_ids = _prompt_ids(run, data, is_given=bool(prompts))
    figures = _merged(stage, adapter, Path(output), dtype, str(config["trainer"]["precision"] or "32-true"), prompt_ids)
    _tell(figures)
    print(f"{visible(output)}: {checkpoint.family.name} in {figures['dtype']}; figures in {FIGURES}")  # noqa: T201


def _prompt_ids(run: str, data: CorpusData, *, is_given: bool) -> list[list[int]]:
    """What to measure on."""
    from lit_sft.data._asking import AskingData

    if not isinstance(data, AskingData):
        raise ConfigError(f"{run} has no prompts to measure on: its data is {type(data).__name__}")
    if not (is_given or data.validation_fraction or data.test_corpora):
        raise ConfigError(f"{run} held nothing out to measure on: give --prompts FILE")
    data.setup("predict")
    return [prompt.input_ids for prompt in data.predict_prompts[:MAX_PROMPTS]]


def _merged(
    stage: Stage, adapter: Path, output: Path, dtype: str | None, precision: str, prompts: list[list[int]]
) -> dict[str, Any]:
    """Write the merged model; the figures of how far it is from what was trained."""
    import torch

    from lit_sft.tuning._base import half_or_full

    checkpoint, tuning = stage.checkpoint, stage.tuning
    with removing_on_sigterm():
        return merge_adapter(
            checkpoint,
            adapter,
            output,
            dtype=getattr(torch, dtype) if dtype else half_or_full(precision),
            prompts=prompts,
            load_quantized=(lambda: tuning.load_base(checkpoint, precision)) if tuning.quantizes_base else None,
        )


def _adapter(run: Path, tuning: Tuning) -> Path:
    """The PEFT folder that a run left."""
    exported = run / tuning.export_name
    if tuning.stands_on_base and not tuning.exports_adapter:
        raise ConfigError(
            f"{exported} is a prefix, which no weights can take in: give it beside its base, as --adapter of chat, "
            "serve or evaluate"
        )
    if not tuning.exports_adapter:
        raise ConfigError(
            f"{run} tuned by {type(tuning).__name__}, not by an adapter, so there is nothing to merge: "
            f"{exported} is a checkpoint as it is"
        )
    if not exported.is_dir():
        raise ConfigError(f"{run} holds no {tuning.export_name}/: it did not finish. Resume it: fit --resume {run}")
    return exported


def _tell(figures: dict[str, Any]) -> None:
    for name, key in (("base", "from_adapter_on_base"), ("quantized base", "from_adapter_on_quantized_base")):
        if found := figures.get(key):
            differs = (
                f"KL divergence {found['kl_divergence']:.2g} nats, logits differ by {found['max_logit_difference']:.2g}"
            )
            print(f"against the adapter on the {name}: {differs}")  # noqa: T201
