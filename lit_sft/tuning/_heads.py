"""A head of one number for each position: the score of a reward model, the value of a policy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_sft.errors import CheckpointError


class ScalarHead(nn.Module):
    """Hidden states [N, H] -> numbers [N], in float32 whatever the network computes in.

    Args:
        hidden_size: H.
        is_zero: Begin with zeros; otherwise with N(0, 1 / (H + 1)), so that scores begin near 0 and are not all alike
            (Stiennon et al. 2020, arXiv:2009.01325, appendix B.1).
    """

    def __init__(self, hidden_size: int, *, is_zero: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))
        if not is_zero:
            nn.init.normal_(self.weight, std=math.sqrt(1 / (hidden_size + 1)))

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, H] -> [N]."""
        with torch.autocast(hidden.device.type, enabled=False):
            return (hidden.float() @ self.weight.T).squeeze(1)

    @staticmethod
    def save(weight: Tensor, file: Path) -> None:
        """Write the weight [1, H]."""
        save_file({"weight": weight.detach().cpu().float().contiguous()}, file)

    @classmethod
    def load(cls, file: Path, hidden_size: int) -> ScalarHead:
        """The head of a file.

        Raises:
            CheckpointError: If the file is damaged, not finite, or of a network of another width.
        """
        try:
            weight = load_file(file)["weight"]
        except (OSError, SafetensorError, KeyError) as error:
            raise CheckpointError(f"{file} is not a head of a reward model: {error}") from None
        if tuple(weight.shape) != (1, hidden_size):
            raise CheckpointError(f"{file} is {list(weight.shape)}; the model needs {[1, hidden_size]}")
        if not weight.isfinite().all():
            raise CheckpointError(f"{file} holds numbers that are not finite, and would score nothing")
        head = cls(hidden_size, is_zero=True)
        head.weight.data = weight.float()
        return head


def hidden_size_of(network: Any) -> int:
    """H of a network, also of one whose weights are shared out or not there."""
    size: int = network.get_input_embeddings().embedding_dim
    return size
