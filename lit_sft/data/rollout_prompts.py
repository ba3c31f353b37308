"""PromptData: prompts in, for a policy that learns from its own answers to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lit_sft.conversation import IGNORE_INDEX, Batch, Example, Prompt, PromptBatch, Record, TextInterface
from lit_sft.corpora._base import Corpus
from lit_sft.data._asking import AskingData
from lit_sft.data.encode import ConversationEncoding, with_best_answer
from lit_sft.data.encoder import Encoding, TokenizedCorpus
from lit_sft.data.order import Batching, MicroBatch
from lit_sft.data.prepared import Prepared
from lit_sft.data.split import all_good
from lit_sft.errors import BadRecord, ConfigError


@dataclass(frozen=True)
class PromptEncoding(Encoding):
    """Prompts without their last answer, none of which carries loss.

    Args:
        max_new_tokens: What must fit behind the prompt.
    """

    max_new_tokens: int

    def encode_record(self, record: Record) -> Example:
        """Ids of the prompt.

        Raises:
            BadRecord: `prompt-too-long`, also where the format would leave some of the prompt out.
        """
        asked = with_best_answer(record).prompt()
        if len(self.prompt_format.whole_prompt(asked, self.tokenizer)) + self.max_new_tokens > self.max_length:
            raise BadRecord("prompt-too-long")
        ids = self.prompt_format.encode_prompt(asked, self.tokenizer)
        return Example(ids, [IGNORE_INDEX] * len(ids), record.source)


@dataclass(frozen=True)
class PromptBatching(Batching):
    """Whole batches of so many prompts, in the order of the epoch: rollouts of another size would be other steps.

    Args:
        num_ranks: Processes that train together; what does not make a batch for each is left out.
        num_parts: Parts of a rollout that are trained on one after the other: the turns of its batch of prompts.
    """

    num_ranks: int
    num_parts: int = 1

    @property
    def num_turns(self) -> int:
        """A turn for each part."""
        return self.num_parts

    @property
    def num_blocks(self) -> int:
        """A prompt is a block."""
        return self.num_rows

    def cut(self, lengths: NDArray[np.int64], *, seed: int, epoch: int, window: int) -> list[list[NDArray[np.int64]]]:
        """Blocks of one row of one prompt; those of length 0 were left out."""
        kept = np.flatnonzero(lengths)
        num_whole = len(kept) - len(kept) % (self.num_rows * self.num_ranks)
        return [[kept[place : place + 1]] for place in range(num_whole)]


class PreparedPrompts(Prepared):
    """Batches of prompts, with what was said and the answers that are known."""

    def __getitem__(self, micro_batch: MicroBatch) -> PromptBatch:
        places = [place for row in micro_batch.rows for place in row]
        prompts = [_prompt(self.corpora[number], record) for number, record in places]
        return PromptBatch(**vars(super().__getitem__(micro_batch)), prompts=prompts, turn=micro_batch.turn)


def _prompt(corpus: TokenizedCorpus, record: int) -> Prompt:
    conversation = with_best_answer(corpus.scanned.record(record))
    asked = conversation.prompt()
    return Prompt(
        input_ids=list(map(int, corpus.example(record).input_ids)),
        text="\n".join(message.content for message in asked.messages),
        reference=conversation.reference(),
        source=conversation.source,
        category=conversation.category,
        messages=asked.messages,
    )


class PromptData(AskingData):
    """Prompts to answer, of corpora of any kind: the last answer, or the best of several, is kept as the reference.

    `batch` is a `PromptBatch`. In training it has `micro_batch_size` prompts, always; what is left at the end of an
    epoch, or of 4,096 prompts, has its turn in another. A prompt is left out if it and `max_new_tokens` more do not fit
    into `max_length`. A batch comes again for each part of its rollout that a stage trains on.

    Args:
        text: How the model reads text; linked to the checkpoint of the model.
        corpora: Where the prompts come from.
        max_new_tokens: Tokens of an answer at most.
        micro_batch_size: Prompts that a device answers in a rollout.
        kwargs: What every data module takes whose prompts can be asked.
    """

    prepared_class: ClassVar[type[Prepared]] = PreparedPrompts

    def __init__(
        self,
        text: TextInterface,
        corpora: list[Corpus],
        *,
        max_new_tokens: int = 256,
        micro_batch_size: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(text, corpora, micro_batch_size=micro_batch_size, **kwargs)
        self.max_new_tokens = max_new_tokens
        text.prompt_format.check_answers()
        if self.packing:
            raise ConfigError("data.packing is true, but prompts stand in rows of their own. Set it to false")
        if not 0 < max_new_tokens < self.max_length:
            raise ConfigError(
                f"data.max_new_tokens is {max_new_tokens}; it must be at least 1 and below data.max_length, "
                f"which is {self.max_length}"
            )

    @property
    def encoding(self) -> PromptEncoding:
        """How prompts become tokens."""
        return PromptEncoding(self.text.prompt_format, self.tokenizer, self.max_length, self.max_new_tokens)

    @property
    def batching(self) -> PromptBatching:
        """How prompts become batches."""
        stage = self.trainer.lightning_module if self.trainer else None
        num_parts = getattr(stage, "parts_of_rollout", 1)
        return PromptBatching(self.max_length, self.micro_batch_size, False, self._ranks()["num_ranks"], num_parts)

    def forgetting_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Conversations with the loss on their last answers; nothing where none are named."""
        if not self.forgetting:
            return []
        scanned = self._scan(self.forgetting)
        answered = ConversationEncoding(self.text.prompt_format, self.tokenizer, self.max_length, "last")
        return self._held_out_loader(self._prepare(scanned, answered), all_good(scanned))

    def _check_examples(self) -> None:
        super()._check_examples()
        if not self.order.num_batches_estimated():
            num_prompts, num_ranks = len(self.split.train[0]), self._ranks()["num_ranks"]
            raise ConfigError(
                f"data.corpora has {num_prompts} prompts to train on ({self.quarantine}), which makes no whole batch "
                f"of data.micro_batch_size {self.micro_batch_size} for {num_ranks} device(s). Lower it"
            )
