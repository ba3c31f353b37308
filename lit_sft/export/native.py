"""A model as a plain class of transformers, for the programs that load such."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lit_sft.errors import ConfigError

if TYPE_CHECKING:
    from lit_sft.export.folder import Source

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.5, torch.float16: 0.05}
"""How far logits may be apart; in half precision the normalized head of Baichuan 2 is rounded once more."""

TEXTS = ("你好，世界", "hello  world\n\n1+1=2 ", " 〇 emoji 😀")
"""On which the tokenizer is compared."""


def export_native(source: Source, output: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Write it, compared with the network here before the folder has its name.

    Args:
        source: Checkpoint, perhaps an adapter that is merged into it, and samples to compare on.
        output: Folder to make; must not exist.
        dtype: Of the weights.

    Returns:
        `max_logit_difference`, the number of positions, the class, and whether a tokenizer was written.

    Raises:
        ConfigError: If no plain class computes this network, or not with the same logits.
    """
    checkpoint = source.checkpoint
    if source.reward is not None:
        raise ConfigError(f"{source.reward} is a reward model, whose head no plain class has: export --format onnx")
    network: Any = checkpoint.load_model(dtype=dtype)
    if source.adapter:
        from lit_sft.tuning._adapter_loading import place_adapter

        placed = place_adapter(source.adapter, checkpoint)
        network = placed.merged(placed.attach(network, is_trainable=False))
    asked = [list(sample.input_ids) for sample in source.samples]
    expected = _logits(network, asked)
    figures: dict[str, Any] = {"num_positions": sum(map(len, asked))}

    def check(folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
        pairs = zip(expected, _logits(plain, asked), strict=True)
        difference = max(float((own - other).abs().max()) for own, other in pairs)
        if not difference <= TOLERANCE[dtype]:
            raise ConfigError(
                f"the plain model gives other logits than {checkpoint.path}, by {difference:.2g}: it is not written"
            )
        figures.update(max_logit_difference=difference, architecture=type(plain).__name__)
        figures["has_tokenizer"] = _compare_tokenizers(checkpoint.load_tokenizer(), folder)

    checkpoint.save_native(network, output, check=check)
    return figures


@torch.no_grad()
def _logits(network: Any, asked: Sequence[list[int]]) -> list[torch.Tensor]:
    return [network(input_ids=torch.tensor([ids])).logits[0].float() for ids in asked]


def _compare_tokenizers(own: Any, folder: Path) -> bool:
    """Whether there is one; it gives the same ids."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        return False
    plain = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in TEXTS:
        if plain(text)["input_ids"] != own(text)["input_ids"]:
            raise ConfigError(f"the plain tokenizer gives other ids of {text!r}: it is not written")
    return True
