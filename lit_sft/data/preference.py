"""PreferenceData: ranked or judged answers in, batches of pairs out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

from torch.utils.data import DataLoader

from lit_sft.conversation import Conversation, Judged, Preference, TextInterface
from lit_sft.corpora._base import Corpus
from lit_sft.data._asking import AskingData
from lit_sft.data.answer_notes import answer_notes
from lit_sft.data.batch import Batch, PairBatch
from lit_sft.data.collate import collate, collate_pairs
from lit_sft.data.encode import ConversationEncoding
from lit_sft.data.encode_answers import SEQUENCES_IN_ROW, AnswerEncoding
from lit_sft.data.encoder import Selection
from lit_sft.data.order import MicroBatch
from lit_sft.data.prepared import records_of
from lit_sft.data.scan import ScannedCorpus
from lit_sft.data.split import all_good, is_first, split_keys
from lit_sft.errors import ConfigError


class PreferenceData(AskingData):
    """Answers to the same prompts that are ranked, or single ones that are judged, tokenized, in batches of pairs.

    All answers of a record stand in one row, each behind a copy of the prompt; they do not see each other. Only answers
    carry loss. Records of one prompt are held out together. A record whose prompt or longest answer does not fit
    `max_length` is left out, for an answer that is cut is another answer. Rows have twice `max_length` tokens, so two
    answers fit always; a longer ranking loses the longest answers between the best and the worst if need be.

    `batch` is a `PairBatch`.

    Args:
        text: How the model reads text; linked to the checkpoint of the model.
        corpora: What to train on, of corpora of preferences.
        kwargs: What every data module takes whose prompts can be asked.
    """

    sequences_in_row: ClassVar[int] = SEQUENCES_IN_ROW

    collate = staticmethod(collate_pairs)

    def __init__(self, text: TextInterface, corpora: list[Corpus], **kwargs: Any) -> None:
        super().__init__(text, corpora, **kwargs)
        text.prompt_format.check_answers()

    @property
    def encoding(self) -> AnswerEncoding:
        """How answers become tokens."""
        return AnswerEncoding(self.text.prompt_format, self.tokenizer, self.max_length)

    def notes(self) -> list[str]:
        """Whether the longer answer wins, and which records contradict each other."""
        return answer_notes(self.scanned, self.split.train)

    def forgetting_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """As in tuning on conversations: a good answer to each prompt, not a pair."""
        scanned = self._scan(self.forgetting) if self.forgetting else self.scanned
        records = all_good(scanned) if self.forgetting else self.split.validation
        answered = ConversationEncoding(self.text.prompt_format, self.tokenizer, self.max_length, "last")
        return self._held_out_loader(self._prepare(scanned, answered, collate), records) if len(records[0]) else []

    def sample_pairs(self, count: int) -> list[tuple[Preference | Judged, PairBatch]]:
        """The first records of the validation split, those that fit, each with the batch of its answers."""
        corpus_of, records = selection = (self.split.validation[0][:count], self.split.validation[1][:count])
        encoder = self.prepared.encoder
        encoder.need(selection)
        found = zip(records_of(self.scanned, selection), corpus_of.tolist(), records.tolist(), strict=True)
        batches = [
            (record, self.prepared[MicroBatch([[(corpus, number)]], epoch_progress=0.0)])
            for (record, corpus, number), length in zip(found, encoder.num_tokens(selection), strict=True)
            if length
        ]
        return cast(list[tuple[Preference | Judged, PairBatch]], batches)

    def _held_out(self) -> tuple[Sequence[ScannedCorpus], Selection]:
        """Each prompt once, however many answers to it were compared."""
        scanned, (corpus_of, records) = super()._held_out()
        first = is_first(split_keys(scanned, (corpus_of, records)))
        return scanned, (corpus_of[first], records[first])

    def _check_options(self) -> None:
        super()._check_options()
        for corpus in (*self.corpora, *self.test_corpora):
            if corpus.record_type is Conversation:
                raise ConfigError(
                    f"{type(corpus).__name__} reads conversations, and PreferenceData needs answers that are compared. "
                    f"Name a corpus of preferences for {corpus.path}, or set data.class_path to SFTData"
                )
