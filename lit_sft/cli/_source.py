"""The model that one talks to, as the options of a verb name it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lit_sft.checkpoint.files import is_exported
from lit_sft.errors import ConfigError
from lit_sft.runs.folder import newest_run

if TYPE_CHECKING:
    from lit_sft.chat.network import Source

DType = Literal["bfloat16", "float16", "float32"]
QuantType = Literal["nf4", "fp4", "int8"]


def open_source(
    checkpoint: str | None,
    adapter: str | None,
    run: str | None,
    dtype: DType | None,
    quantization: QuantType | None,
    family: str,
    prompt_format: str | None,
) -> tuple[Source, str]:
    """What to load, and what it was named by.

    Raises:
        UserError: If the options do not go together or the model cannot be loaded.
    """
    if checkpoint and run:
        raise ConfigError("give --checkpoint or --run, not both")
    if not checkpoint and (adapter or prompt_format or family != "auto"):
        raise ConfigError("--adapter, --family and --prompt_format go with --checkpoint; a run has its own")
    folder = None if checkpoint else Path(run) if run else newest_run(Path("runs"))

    import torch

    from lit_sft.chat.network import Source, source_of_run
    from lit_sft.checkpoint.opening import open_checkpoint
    from lit_sft.cli.quiet import quieten_loading
    from lit_sft.rewards.trained import refuse_reward_model
    from lit_sft.tuning.qlora import QLoRA

    quieten_loading()
    chosen = getattr(torch, dtype) if dtype else None
    quantized = QLoRA(quant_type=quantization) if quantization else None
    if folder:
        return source_of_run(folder, chosen, quantized), str(folder)
    for given in filter(None, (checkpoint, adapter)):
        refuse_reward_model(Path(given), "score answers with predict --run")
    opened = open_checkpoint(str(checkpoint), family, prompt_format)
    if is_exported(opened.path) and (dtype or quantization):
        raise ConfigError(
            f"{opened.path} is an exported graph, whose weights have the type that it was exported in: leave out "
            "--dtype and --quantization"
        )
    return Source(opened, Path(adapter) if adapter else None, chosen, quantized), str(checkpoint)
