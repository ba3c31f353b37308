"""SFTData: conversations in, batches with the loss on the answers out."""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import TextInterface
from lit_sft.corpora._base import Corpus
from lit_sft.data._asking import AskingData
from lit_sft.data.encode import ConversationEncoding, LossOn


class SFTData(AskingData):
    """Conversations of one or more corpora, tokenized, with the loss on the answers.

    Args:
        text: How the model reads text; linked to the checkpoint of the model.
        corpora: What to train on.
        loss_on: `assistant`: every answer; `last`: the last answer only; `all`: prompts too.
        kwargs: What every data module takes whose prompts can be asked.
    """

    def __init__(
        self, text: TextInterface, corpora: list[Corpus], *, loss_on: LossOn = "assistant", **kwargs: Any
    ) -> None:
        super().__init__(text, corpora, **kwargs)
        self.loss_on: LossOn = loss_on

    @property
    def encoding(self) -> ConversationEncoding:
        """How conversations become tokens."""
        return ConversationEncoding(self.text.prompt_format, self.tokenizer, self.max_length, self.loss_on)
