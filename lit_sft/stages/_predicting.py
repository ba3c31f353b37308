"""A stage that `predict` can run: rows for each prompt, answers or scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import Any, ClassVar

from lit_sft.conversation import Prompt
from lit_sft.distributed.fsdp2 import num_shares
from lit_sft.distributed.processes import gather
from lit_sft.stages._base import Stage


class Predicting(Stage):
    """A stage with something to say on each prompt."""

    scores_answers: ClassVar[bool] = False
    """Whether it says what an answer is worth, and so is asked about every answer of what is held out."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts on which there is nothing to say, before any weight is loaded.

        Raises:
            UserError: Naming the first of them.
        """
        return

    @abstractmethod
    def group_prompts(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        """Numbers of the prompts to take together, the longest first.

        Args:
            lengths: Tokens of each prompt.
            token_budget: Tokens that a device holds in memory at once.
        """

    @abstractmethod
    def rows(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """As many rows for each prompt, in their order, each with at least `source`, `prompt` and `answer`."""

    @abstractmethod
    def row_settings(self) -> dict[str, Any]:
        """What rows depend on, beside prompts, weights and precision."""

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> list[dict[str, Any]]:
        """The rows of the prompts of all processes, one after the other."""
        rows = self.rows(batch)
        return rows if num_shares(self.trainer) == 1 else list(chain.from_iterable(gather(rows)))
