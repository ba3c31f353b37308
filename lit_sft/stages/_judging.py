"""A stage that learns from answers that are compared, and gives each a number."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from lit_sft.data.batch import PairBatch
from lit_sft.stages._base import Stage


class Judging(Stage):
    """A stage by whose number the better of two answers can be told."""

    judgment: str
    """What the number is called."""

    @abstractmethod
    def judge(self, batch: PairBatch) -> Tensor:
        """Of each answer, without a graph [S]."""
