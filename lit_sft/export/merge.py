"""An adapter into the weights of its base, and what that changes in the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.errors import ConfigError
from lit_sft.files import whole_folder, write_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lit_sft.checkpoint.opening import Checkpoint

FIGURES = "merge.json"
MAX_POSITIONS = 64
"""Of each prompt, the last ones: together they bound the logits that are kept to be compared, half a GB at most."""


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
    from lit_sft.tuning._adapter_loading import place_adapter

    refuse_existing(output)
    placed = place_adapter(adapter, checkpoint)
    asked = [ids[-checkpoint.context_length :] for ids in prompts]
    on_quantized = _logits(placed.attach(load_quantized(), is_trainable=False), asked) if load_quantized else None
    adapted = placed.attach(checkpoint.load_model(dtype=dtype), is_trainable=False)
    on_base = _logits(adapted, asked)
    merged = placed.merged(adapted)
    figures = {
        "base": str(checkpoint.path.resolve()),
        "adapter": str(adapter.resolve()),
        "dtype": str(dtype).removeprefix("torch."),
        **_compared(_logits(merged, asked), on_base, on_quantized),
    }
    _refuse_broken(figures)

    def write(folder: Path) -> None:
        checkpoint.save_model(merged, folder)
        write_json(folder / FIGURES, figures)

    _write(output, write)
    return figures


def _refuse_broken(figures: dict[str, Any]) -> None:
    if not math.isfinite(figures["from_adapter_on_base"]["kl_divergence"]):
        raise ConfigError(f"the merged weights give no finite logits in {figures['dtype']}; merge into another dtype")


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

    from lit_sft.tuning._adapter_file import ADAPTER_WEIGHTS, PREFIX
    from lit_sft.tuning._adapter_loading import place_adapter

    refuse_existing(output)
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


def _compared(
    merged: list[torch.Tensor], on_base: list[torch.Tensor], on_quantized: list[torch.Tensor] | None
) -> dict[str, Any]:
    """How far the merged network is from its adapter, and on how much that was measured."""
    found: dict[str, Any] = {"num_prompts": len(merged), "num_positions": sum(map(len, merged))}
    found["from_adapter_on_base"] = _difference(on_base, merged)
    if on_quantized is not None:
        found["from_adapter_on_quantized_base"] = _difference(on_quantized, merged)
    return found


def _difference(adapted: list[torch.Tensor], merged: list[torch.Tensor]) -> dict[str, float]:
    """How far the merged network's logits [T, V] are from the adapter's."""
    kl = 0.0
    largest = 0.0
    for ours, theirs in zip(merged, adapted, strict=True):
        expected, given = (logits.double().log_softmax(-1) for logits in (theirs, ours))
        kl += float((expected.exp() * (expected - given)).sum())
        largest = max(largest, float((ours - theirs).abs().max()))
    return {"kl_divergence": kl / sum(map(len, merged)), "max_logit_difference": largest}


def refuse_existing(output: Path) -> None:
    """Nothing is written over."""
    if output.exists() or output.is_symlink():
        raise ConfigError(f"{output} exists; give a folder that does not")
