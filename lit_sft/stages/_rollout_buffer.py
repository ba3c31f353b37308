"""A rollout that is trained on: answers, what is known of them, and the parts in which they reach the network.

The parts are fixed when it is made. Log-probabilities that are compared later are computed on the very rows that are
trained, so that before the first step they are equal to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from lit_sft.conversation import IGNORE_INDEX, Batch, Example, PromptBatch
from lit_sft.data.collate import collate
from lit_sft.data.packing import pack
from lit_sft.generation.rollouts import Rollout


class Part(NamedTuple):
    """A micro-batch of the rollout.

    `batch` holds each answer with its prompt as a segment, its labels those of the answer; `members` [R] int64, on the
    CPU, are the numbers of the answers in the order of its segments; `width` is T, that of the whole rollout.
    """

    batch: Batch
    members: Tensor
    width: int


@dataclass
class RolloutBuffer:
    """S = A * K answers, group after group: the K answers to a prompt stand side by side.

    Args:
        number: Of the rollout.
        num_answers: To each prompt, K.
        num_parts: Micro-batches of about equally many tokens, P.
        is_packed: Whether a row of a part holds several answers, which do not see each other.
        ids: Of all answers with their prompts, one behind the other, [N] int32.
        prompt_lengths: Tokens of the prompt of each answer [S] int64.
        answer_lengths: Tokens of each answer, its end included, [S] int64.
        is_ended: Whether it ended by itself [S] bool.
        corpora: Number of the corpus of each [S] int64.
        corpus_names: Of all corpora.
        sources: Records of the prompts [A].
        columns: What is known of each answer [S], or of each of its tokens [S, T] with zeros beyond it, float32 on the
            CPU; T is `width`.
    """

    number: int
    num_answers: int
    num_parts: int
    is_packed: bool
    ids: Tensor
    prompt_lengths: Tensor
    answer_lengths: Tensor
    is_ended: Tensor
    corpora: Tensor
    corpus_names: list[str]
    sources: list[str]
    columns: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, prompts: PromptBatch, answers: Sequence[Sequence[Rollout]], **options: Any) -> Self:
        """From what was drawn.

        Args:
            prompts: [A].
            answers: K to each.
            options: The others by name.
        """
        asked = [prompt.input_ids for prompt in prompts.prompts]
        drawn = [answer for of_prompt in answers for answer in of_prompt]
        num_answers = len(answers[0])
        return cls(
            num_answers=num_answers,
            ids=torch.tensor(
                [token for ids, group in zip(asked, answers, strict=True) for a in group for token in (*ids, *a.ids)],
                dtype=torch.int32,
            ),
            prompt_lengths=torch.tensor([len(ids) for ids in asked]).repeat_interleave(num_answers),
            answer_lengths=torch.tensor([answer.num_tokens for answer in drawn]),
            is_ended=torch.tensor([answer.is_ended for answer in drawn]),
            corpora=prompts.corpus_ids[:, 0].cpu().repeat_interleave(num_answers),
            corpus_names=prompts.corpora,
            sources=prompts.sources,
            **options,
        )

    def __len__(self) -> int:
        return len(self.answer_lengths)

    @property
    def width(self) -> int:
        """Tokens of the longest answer, T."""
        return int(self.answer_lengths.max())

    @property
    def mask(self) -> Tensor:
        """Bool [S, T]: where answers have tokens."""
        return torch.arange(self.width) < self.answer_lengths[:, None]

    def rows_of_parts(self) -> list[list[list[int]]]:
        """Of each part the rows, each the numbers of its answers."""
        lengths = (self.prompt_lengths + self.answer_lengths).numpy()
        order = np.argsort(-lengths, kind="stable")
        longest = int(lengths.max())
        parts = []
        for first in range(self.num_parts):
            dealt = order[first :: self.num_parts]
            rows = pack(lengths[dealt], longest) if self.is_packed else [np.array([n]) for n in range(len(dealt))]
            parts.append([dealt[row].tolist() for row in rows])
        return parts

    def part(self, number: int, device: torch.device) -> Part:
        """A part as the network reads it."""
        ends = (self.prompt_lengths + self.answer_lengths).cumsum(0).tolist()
        ids, asked = self.ids.numpy(), self.prompt_lengths.tolist()

        def example(answer: int) -> Example:
            own = ids[ends[answer - 1] if answer else 0 : ends[answer]]
            labels = np.concatenate([np.full(asked[answer], IGNORE_INDEX, np.int32), own[asked[answer] :]])
            source = self.sources[answer // self.num_answers]
            return Example(own, labels, source, corpus=int(self.corpora[answer]))

        rows = self.rows_of_parts()[number]
        batch = collate([[example(answer) for answer in row] for row in rows], 0, corpora=self.corpus_names)
        members = torch.tensor([answer for row in rows for answer in row])
        return Part(batch.to(device), members, self.width)

    def fill(self, name: str, grid_of: Callable[[Part], Tensor], device: torch.device) -> None:
        """Compute a column of tokens [S, T], part by part; without gradients, and on the rows that are trained.

        Args:
            name: Of the column.
            grid_of: Of each answer of a part, in the order of its `members`, [R, T].
            device: Where the network is.
        """
        column = torch.zeros(len(self), self.width)
        for number in range(self.num_parts):
            part = self.part(number, device)
            column[part.members] = grid_of(part).float().cpu()
        self.columns[name] = column

    def of_part(self, name: str, part: Part) -> Tensor | None:
        """A column's rows of a part, on the device of its batch; None if there is no such column."""
        column = self.columns.get(name)
        return None if column is None else column[part.members].to(part.batch.input_ids.device)

    def state(self) -> dict[str, Any]:
        """All of it in plain types, for a checkpoint."""
        return dict(vars(self))
