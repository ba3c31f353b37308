"""A second data module and a second stage, for whatever must not know the first ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_sft.conversation import Conversation, Example
from lit_sft.data._asking import AskingData
from lit_sft.data.batch import Batch
from lit_sft.data.collate import collate
from lit_sft.data.encoder import Encoding
from lit_sft.losses.cross_entropy import TokenTotals
from lit_sft.stages._answering import Answering
from lit_sft.stages._summed import SummedLoss
from lit_sft.stages.sft import SFT


@dataclass(frozen=True)
class QuestionEncoding(Encoding):
    """What is asked, all of it with loss."""

    def encode_record(self, record: Conversation) -> Example:
        ids = self.prompt_format.encode_prompt(record.prompt(), self.tokenizer)[: self.max_length]
        return Example(ids, ids, record.source)


class Questions(AskingData):
    """Learns to ask; the rows of a batch stand in reverse order."""

    @property
    def encoding(self) -> QuestionEncoding:
        return QuestionEncoding(self.text.prompt_format, self.tokenizer, self.max_length)

    @staticmethod
    def collate(rows: Sequence[Sequence[Example]], pad_token_id: int, **options: Any) -> Batch:
        return collate(rows[::-1], pad_token_id, **options)


class ByExample(SummedLoss, Answering):
    """The loss is a mean over examples and not over tokens; the best has most right tokens an example."""

    measures = ("num_right",)
    best_by = ("val/num_right", "max")

    def forward(self, batch: Batch) -> TokenTotals:
        loss, by_group = self.token_totals(batch)
        is_first = batch.segment_ids.diff(prepend=torch.zeros_like(batch.segment_ids[:, :1])) > 0
        counts = [(is_first & (batch.corpus_ids == corpus)).sum() for corpus in range(len(batch.corpora))]
        by_group[:, 1] = torch.stack(counts)
        return TokenTotals(loss, by_group)

    def check_first_batch(self, batch: Batch) -> str | None:
        return "the first batch is looked at"


class ByHand(SFT):
    """The same as SFT, but the stage steps its optimizer itself."""

    automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss
