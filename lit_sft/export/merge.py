"""python -m lit_sft merge: the adapter of a run into the weights of its base, and what that changes in the answers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from lit_sft.configuration import stage_and_data
from lit_sft.display import visible
from lit_sft.errors import ConfigError
from lit_sft.files import whole_folder, write_json
from lit_sft.runs.folder import CONFIG, is_run

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lit_sft.checkpoint.opening import Checkpoint
    from lit_sft.tuning._base import Tuning

FIGURES = "merge.json"
MAX_PROMPTS = 16
MAX_POSITIONS = 64
"""Of each prompt, the last ones: together they bound the logits that are kept to be compared, half a GB at most."""


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
        UserError: If the run has no adapter, the output folder exists, or nothing is there to measure on.
    """
    folder = Path(run)
    _refuse_existing(Path(output))
    if not is_run(folder):
        raise ConfigError(f"{run} is not a run folder: it holds no {CONFIG}")
    import torch

    from lit_sft.data._asking import AskingData
    from lit_sft.tuning._base import half_or_full

    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    if prompts:
        config["data"]["init_args"]["prompts"] = prompts
    stage, data = stage_and_data(config)
    checkpoint, tuning = stage.checkpoint, stage.tuning
    adapter = _adapter(folder, tuning)
    if original_names:
        if dtype or prompts:
            raise ConfigError("--original_names writes the adapter as it is: leave out --dtype and --prompts")
        write_original_adapter(checkpoint, adapter, Path(output))
        print(f"{output}: adapter of the original modules of {checkpoint.family.name}")  # noqa: T201
        return
    if not isinstance(data, AskingData):
        raise ConfigError(f"{run} has no prompts to measure on: its data is {type(data).__name__}")
    if not (prompts or data.validation_fraction or data.test_corpora):
        raise ConfigError(f"{run} held nothing out to measure on: give --prompts FILE")
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft 0.21 on transformers 5.23
    data.setup("predict")
    precision = str(config["trainer"]["precision"] or "32-true")
    figures = merge_adapter(
        checkpoint,
        adapter,
        Path(output),
        dtype=getattr(torch, dtype) if dtype else half_or_full(precision),
        prompts=[prompt.input_ids for prompt in data.predict_prompts[:MAX_PROMPTS]],
        load_quantized=(lambda: tuning.load_base(checkpoint, precision)) if tuning.quantizes_base else None,
    )
    _tell(figures)
    print(f"{visible(output)}: {checkpoint.family.name} in {figures['dtype']}; figures in {FIGURES}")  # noqa: T201


def _adapter(run: Path, tuning: Tuning) -> Path:
    """The PEFT folder that a run left."""
    exported = run / tuning.export_name
    if not tuning.exports_adapter:
        raise ConfigError(
            f"{run} tuned by {type(tuning).__name__}, not by an adapter, so there is nothing to merge: "
            f"{exported} is a checkpoint as it is"
        )
    if not exported.is_dir():
        raise ConfigError(f"{run} holds no {tuning.export_name}/: it did not finish. Resume it: fit --resume {run}")
    return exported


def merge_adapter(
    checkpoint: Checkpoint,
    adapter: Path,
    output: Path,
    *,
    dtype: torch.dtype,
    prompts: Sequence[Sequence[int]],
    load_quantized: Callable[[], PreTrainedModel] | None = None,
) -> dict[str, Any]:
    """Merge a PEFT adapter into a checkpoint, on the CPU, a layer at a time in place.

    Args:
        checkpoint: The base.
        adapter: PEFT folder.
        output: Folder to make, which `open_checkpoint` then opens; must not exist, and does not until it is complete.
        dtype: Type of the merged weights. Sums are rounded to it once.
        prompts: Ids of at least one prompt, on which the merged network is compared with the adapter on its base.
        load_quantized: Loads the quantized base that the adapter was trained on, if it was, to compare with that too.

    Returns:
        What `merge.json` in the folder holds. `kl_divergence` is the mean over positions of KL(adapter || merged) in
        nats, `max_logit_difference` the largest over positions and vocabulary.

    Raises:
        ConfigError: If the adapter does not fit the base to the last tensor, `output` exists or cannot be written, or
            the merged network gives no finite logits.
    """
    from lit_sft.tuning.adapter_loading import place_adapter

    _refuse_existing(output)
    placed = place_adapter(adapter, checkpoint)
    asked = [ids[-checkpoint.context_length :] for ids in prompts]
    on_quantized = _logits(placed.attach(load_quantized(), is_trainable=False), asked) if load_quantized else None
    adapted = placed.attach(checkpoint.load_model(dtype=dtype), is_trainable=False)
    on_base = _logits(adapted, asked)
    merged: Any = adapted.merge_and_unload()
    logits = _logits(merged, asked)
    figures: dict[str, Any] = {
        "base": str(checkpoint.path.resolve()),
        "adapter": str(adapter.resolve()),
        "dtype": str(dtype).removeprefix("torch."),
        "num_prompts": len(asked),
        "num_positions": sum(map(len, logits)),
        "from_adapter_on_base": _difference(on_base, logits),
    }
    if on_quantized is not None:
        figures["from_adapter_on_quantized_base"] = _difference(on_quantized, logits)
    if not math.isfinite(figures["from_adapter_on_base"]["kl_divergence"]):
        raise ConfigError(f"the merged weights give no finite logits in {figures['dtype']}; merge into another dtype")

    def write(folder: Path) -> None:
        checkpoint.save_model(merged, folder)
        write_json(folder / FIGURES, figures)

    _write(output, write)
    return figures


def write_original_adapter(checkpoint: Checkpoint, adapter: Path, output: Path) -> None:
    """Write a PEFT adapter as one of the modules of the family's original code, with the same effect.

    Args:
        checkpoint: The base.
        adapter: PEFT folder.
        output: Folder to make; must not exist, and does not until it is complete.

    Raises:
        ConfigError: If the adapter does not fit the base, none of the original modules has its effect, or `output`
            exists or cannot be written.
    """
    from safetensors.torch import save_file

    from lit_sft.tuning.adapter_file import ADAPTER_WEIGHTS, PREFIX
    from lit_sft.tuning.adapter_loading import place_adapter

    _refuse_existing(output)
    config, tensors = place_adapter(adapter, checkpoint).original(checkpoint)

    def write(folder: Path) -> None:
        config.save_pretrained(str(folder))
        save_file({f"{PREFIX}{k}": v.contiguous() for k, v in tensors.items()}, folder / ADAPTER_WEIGHTS[0])

    _write(output, write)


def _write(output: Path, write: Callable[[Path], None]) -> None:
    try:
        with whole_folder(output) as partial:
            write(partial)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from None


def _logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits [T, V] in float32 of the last positions of each prompt."""
    import torch

    model.eval()
    with torch.inference_mode():
        rows = [torch.tensor([ids], device=model.device) for ids in prompts]
        return [
            model(input_ids=row, use_cache=False, logits_to_keep=MAX_POSITIONS).logits[0].float().cpu() for row in rows
        ]


def _difference(adapted: list[torch.Tensor], merged: list[torch.Tensor]) -> dict[str, float]:
    """How far the merged network's logits [T, V] are from the adapter's."""
    kl = 0.0
    largest = 0.0
    for ours, theirs in zip(merged, adapted, strict=True):
        expected, given = (logits.double().log_softmax(-1) for logits in (theirs, ours))
        kl += float((expected.exp() * (expected - given)).sum())
        largest = max(largest, float((ours - theirs).abs().max()))
    return {"kl_divergence": kl / sum(map(len, merged)), "max_logit_difference": largest}


def _tell(figures: dict[str, Any]) -> None:
    for name, key in (("base", "from_adapter_on_base"), ("quantized base", "from_adapter_on_quantized_base")):
        if found := figures.get(key):
            differs = (
                f"KL divergence {found['kl_divergence']:.2g} nats, logits differ by {found['max_logit_difference']:.2g}"
            )
            print(f"against the adapter on the {name}: {differs}")  # noqa: T201


def _refuse_existing(output: Path) -> None:
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output} exists; give a folder that does not")
