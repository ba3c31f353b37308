"""The verb export: a model, or what a run made of it, as a graph or a plain class for other programs."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_sft.checkpoint.exported import MANIFEST
from lit_sft.checkpoint.files import is_exported
from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint
from lit_sft.cli._stopping import removing_on_sigterm
from lit_sft.configuration import stage_and_data
from lit_sft.display import visible
from lit_sft.errors import ConfigError
from lit_sft.export.folder import Form, Source, check_request, export_onnx
from lit_sft.export.merge import refuse_existing
from lit_sft.rewards.trained import REWARD_FILE
from lit_sft.runs.folder import read_config

if TYPE_CHECKING:
    from lit_sft.export.check import Sample

MAX_PROMPTS = 8

BLOCK = 128


def export(
    output: str,
    run: str | None = None,
    checkpoint: str | None = None,
    adapter: str | None = None,
    family: str = "auto",
    prompt_format: str | None = None,
    format: Literal["onnx", "native"] = "onnx",
    dtype: Literal["float32", "float16", "bfloat16", "int8", "int4"] = "float32",
    block: int = BLOCK,
    exact: bool = False,
    portable: bool = False,
    prompts: str | None = None,
) -> None:
    """Write a model as an ONNX graph with its tokenizer and prompt format as data, compared with the model in torch.

    With --format native it is a folder of a plain class of transformers instead, where there is one: Llama for
    Baichuan-7B and Baichuan2-7B, GLM for ChatGLM2-6B and ChatGLM3-6B; docs/sharing.md says who loads that.

    Give --run, or --checkpoint with or without --adapter. Weights stream: the memory is that of a few of the largest
    matrices. A reward model is exported with its head. docs/export.md says more.

    Args:
        output: Folder to make; must not exist.
        run: Run folder; what it trained is exported, an adapter merged into its base.
        checkpoint: Model folder.
        adapter: PEFT folder of an adapter of the checkpoint.
        family: Of the checkpoint, where its folder does not say it.
        prompt_format: Of the checkpoint; the first of its family if not given.
        format: An ONNX graph, or a plain class of transformers.
        dtype: Of the weights; int8 and int4 are those of linear layers in blocks with a scale. bfloat16 is for native.
        block: Weights that share a scale: 16, 32, 64, 128 or 256.
        exact: Multiply int8 and int4 with activations in float32: slower, and only the weights are rounded.
        portable: Operators of the ONNX standard only, for any runtime; slower where the answer is long.
        prompts: What the graph is compared on, in one of the forms that predict takes, best with answers; what the run
            held out, or the held-out demo records, if not given.

    Raises:
        UserError: If the output folder exists, packages are missing, the network cannot be exported, or the graph does
            not compute what the network does.
    """
    form = None if format == "native" else _form(dtype, block, exact, portable)
    if form is None:
        refuse_existing(Path(output))
        if dtype in {"int8", "int4"} or exact or portable or block != BLOCK:
            raise ConfigError("--format native has weights in float32, float16 or bfloat16, and no options of a graph")
    else:
        check_request(Path(output), form)
    if (run is None) == (checkpoint is None):
        raise ConfigError("give either --run or --checkpoint")
    from lit_sft.cli.quiet import quieten_loading

    quieten_loading()
    if run is None:
        source = _of_checkpoint(open_checkpoint(str(checkpoint), family, prompt_format), adapter, prompts)
    elif adapter is None and family == "auto" and prompt_format is None:
        source = _of_run(Path(run), prompts)
    else:
        raise ConfigError("--run says itself which adapter, family and prompt format: leave them out")
    with removing_on_sigterm():
        if form is None:
            _write_native(source, output, dtype)
        else:
            _tell(output, source.checkpoint.family.name, form, export_onnx(source, Path(output), form))


def _write_native(source: Source, output: str, dtype: str) -> None:
    import torch

    from lit_sft.export.native import export_native

    figures = export_native(source, Path(output), getattr(torch, dtype))
    with_tokenizer = "with" if figures["has_tokenizer"] else "without"
    print(  # noqa: T201
        f"{visible(output)}: {figures['architecture']} in {dtype} {with_tokenizer} tokenizer; logits differ by "
        f"{figures['max_logit_difference']:.2g} at most over {figures['num_positions']} positions"
    )


def _form(dtype: str, block: int, is_exact: bool, is_portable: bool) -> Form:
    if dtype == "bfloat16":
        raise ConfigError("onnxruntime has no bfloat16 on a CPU: take --dtype float32 or float16, or --format native")
    return Form(dtype, block, is_exact, is_portable)


def _of_checkpoint(checkpoint: Checkpoint, adapter: str | None, prompts: str | None) -> Source:
    if is_exported(checkpoint.path):
        raise ConfigError(f"{checkpoint.path} is exported already; give the checkpoint that it was made of")
    folders = [Path(adapter)] if adapter else [checkpoint.path]
    reward = next((folder for folder in folders if (folder / REWARD_FILE).is_file()), None)
    return Source(checkpoint, _samples(checkpoint, prompts), Path(adapter) if adapter else None, reward)


def _of_run(folder: Path, prompts: str | None) -> Source:
    """What a run left: an adapter and its base, or a checkpoint."""
    stage, data = stage_and_data(read_config(folder))
    trained = folder / stage.tuning.export_name
    if not trained.is_dir():
        raise ConfigError(f"{folder} holds no {trained.name}/: it did not finish. Resume it: fit --resume {folder}")
    checkpoint = stage.checkpoint
    if stage.tuning.stands_on_base and not stage.tuning.exports_adapter:
        raise ConfigError(f"{trained} is a prefix, which no exported model can hold: chat and serve take the run")
    if not stage.tuning.exports_adapter:
        checkpoint = open_checkpoint(trained, checkpoint.family.name, checkpoint.family.prompt_format_name)
    strategies = [*getattr(stage, "strategies", {}).values()]
    return Source(
        checkpoint,
        _samples(checkpoint, prompts, data),
        adapter=trained if stage.tuning.exports_adapter else None,
        reward=trained if (trained / REWARD_FILE).is_file() else None,
        strategy=strategies[0] if strategies else None,
    )


def _samples(checkpoint: Checkpoint, prompts: str | None, data: Any = None) -> list[Sample]:
    """Conversations that the model has not learned from."""
    from lit_sft.data._asking import AskingData
    from lit_sft.data.prompts import encode_prompts, read_prompts
    from lit_sft.export.check import Sample

    if prompts is None and isinstance(data, AskingData) and (data.validation_fraction or data.test_corpora):
        data.setup("predict")
        found = data.predict_prompts[:MAX_PROMPTS]
    else:
        with resources.as_file(resources.files("lit_sft.demo") / "belle_heldout.json") as demo:
            asked = read_prompts(prompts or demo)[:MAX_PROMPTS]
        found = [*encode_prompts(asked, checkpoint.prompt_format, checkpoint.load_tokenizer())]
    return [
        Sample(
            [*prompt.input_ids, *prompt.reference_ids][: checkpoint.context_length],
            [*[-100] * len(prompt.input_ids), *prompt.reference_ids][: checkpoint.context_length],
        )
        for prompt in found
    ]


def _tell(output: str, family: str, form: Form, manifest: dict[str, Any]) -> None:
    parity = manifest["parity"]
    print(  # noqa: T201
        f"{parity['num_positions']} positions of {parity['num_prompts']} prompts in onnxruntime and torch: "
        f"logits differ by {parity['max_logit_difference']:.2g} at most"
    )
    if quality := manifest.get("quality"):
        print(  # noqa: T201
            f"against the model that it was made of, on {quality['num_tokens']} tokens of answers: perplexity "
            f"{quality['perplexity']:.4g} ({quality['perplexity_of_original']:.4g}), KL divergence "
            f"{quality['kl_divergence']:.2g} nats, same first choice {quality['top_1_agreement']:.1%}"
        )
    elif "quality" in manifest:
        print("perplexity and KL divergence were not measured: the prompts have no answers")  # noqa: T201
    kind = "portable" if form.is_portable else "fused"
    print(f"{visible(output)}: {family} as a {kind} graph in {form.dtype}; figures in {MANIFEST}")  # noqa: T201
