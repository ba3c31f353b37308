"""The contract between all layers: what a corpus yields, a prompt format encodes and a network is fed.

record --corpus--> Conversation --prompt format--> EncodedTurn ... --data--> Example --collate--> Batch
                   Preference, Judged --prompt format--> a prompt and its answers --data--> Example --> PairBatch
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

from lit_sft.errors import BadRecord

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    Ids = Sequence[int] | NDArray[np.integer[Any]]

Role = Literal["system", "user", "assistant", "tool"]

IGNORE_INDEX = -100
"""Label of a position that carries no loss."""


class Message(NamedTuple):
    """One utterance.

    `thoughts` and `commands` are what an assistant with tools writes beside its answer (MOSS's inner thoughts and
    plugin calls); a message of role `tool` holds what the tool returned, `name` which tool is meant (ChatGLM3).
    An answer that is not `is_supervised` is read by the model and carries no loss (`loss: false` in a record).
    """

    role: Role
    content: str
    thoughts: str = ""
    commands: str = ""
    name: str = ""
    is_supervised: bool = True


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order; `source` says where they come from, as `file:line`, `category` of which kind they are."""

    messages: Sequence[Message]
    source: str = ""
    category: str = field(default="", compare=False)

    def said(self) -> list[str]:
        """By what it is told from others: what says the same is held out together, and is a duplicate."""
        # Names and answers without loss are rare; without them the texts, and so the split, are what they always were.
        speakers = [(f"{m.role}\1{m.name}" if m.name else m.role) + "\2" * (not m.is_supervised) for m in self.messages]
        return [
            text
            for speaker, m in zip(speakers, self.messages, strict=True)
            for text in (speaker, m.content, m.thoughts, m.commands)
        ]

    def conversations(self) -> list[Conversation]:
        """Itself; of other records several, the best first."""
        return [self]

    def prompt(self) -> Conversation:
        """The same conversation up to where the assistant must speak last."""
        end = len(self.messages)
        if end and self.messages[-1].role == "assistant":
            end -= 1
        return replace(self, messages=self.messages[:end])

    def reference(self) -> str | None:
        """The last answer, if the conversation ends with one."""
        last = self.messages[-1]
        return last.content if last.role == "assistant" else None

    def turns(self) -> list[tuple[list[Message], Message | None]]:
        """Rounds of (messages the model reads, answer it gives); the last answer is None in a prompt."""
        rounds: list[tuple[list[Message], Message | None]] = []
        read: list[Message] = []
        for message in self.messages:
            if message.role == "assistant":
                rounds.append((read, message))
                read = []
            else:
                read.append(message)
        if read:
            rounds.append((read, None))
        return rounds


@dataclass(frozen=True, slots=True)
class Preference:
    """Answers to one prompt, the best first: at least two, of one assistant message each.

    `margin` says by how much the first is better than the second, where that is known (Llama 2, section 3.2.2).
    """

    prompt: Sequence[Message]
    answers: Sequence[Message]
    margin: float | None = None
    source: str = ""
    category: str = field(default="", compare=False)

    def said(self) -> list[str]:
        """By what it is told from others; which answer is the better one belongs to it."""
        return [text for conversation in self.conversations() for text in (*conversation.said(), "\3")]

    def held_out_by(self) -> list[str]:
        """The prompt: two rankings of its answers are never separated by the split."""
        return Conversation(self.prompt).said()

    def conversations(self) -> list[Conversation]:
        """The prompt with each answer, the best first."""
        return [Conversation([*self.prompt, answer], self.source, self.category) for answer in self.answers]


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer to a prompt, and whether it is a good one (unpaired preference data)."""

    prompt: Sequence[Message]
    answer: Message
    is_good: bool
    source: str = ""
    category: str = field(default="", compare=False)

    def said(self) -> list[str]:
        """By what it is told from others, the verdict included."""
        return [*self.conversations()[0].said(), "good" if self.is_good else "bad"]

    def held_out_by(self) -> list[str]:
        """The prompt: two answers to it are never separated by the split."""
        return Conversation(self.prompt).said()

    def conversations(self) -> list[Conversation]:
        """The prompt with the answer."""
        return [Conversation([*self.prompt, self.answer], self.source, self.category)]


Record = Conversation | Preference | Judged
"""What a corpus yields."""


@dataclass(frozen=True, slots=True)
class EncodedTurn:
    """Ids of one round. `reply_ids` ends with the end-of-turn token, and is empty where the model must answer.

    `prompt_labels`, if given, is as long as `prompt_ids`: what the original trains on before the reply begins, -100
    elsewhere (ChatGLM-6B predicts its <sop>, Baichuan2 the end of the previous answer). `ends_previous` says that the
    first of them ends the answer before. A round that is not `is_supervised` carries no loss.
    """

    prompt_ids: list[int]
    reply_ids: list[int]
    prompt_labels: list[int] | None = None
    ends_previous: bool = False
    is_supervised: bool = True

    def labels(self, *, previous: EncodedTurn | None = None) -> list[int]:
        """One label for each id of the round, -100 where no loss.

        Args:
            previous: The round before, whose answer may end in this one.
        """
        labels = (self.prompt_labels or [IGNORE_INDEX] * len(self.prompt_ids)) + self.reply_ids
        if not self.is_supervised:
            labels = [*labels[: self.ends_previous], *[IGNORE_INDEX] * (len(labels) - self.ends_previous)]
        if self.ends_previous and previous is not None and not previous.is_supervised:
            labels = [IGNORE_INDEX, *labels[1:]]
        return labels


@dataclass(frozen=True, slots=True)
class Example:
    """What a record is trained on: `labels[i]` is `input_ids[i]` where supervised, else -100 (not shifted).

    `truncation` names what was left out to fit the row, if anything; `corpus` is the index of its corpus. Sequences
    begin at `starts`: one, or the answers to one prompt, each behind it, which do not see each other. `judgment` is 1.0
    or 0.0 for an answer that is good or bad, of several by how much the first is better than the second, if known.
    """

    input_ids: Ids
    labels: Ids
    source: str = ""
    truncation: Literal["", "turns-dropped", "reply-cut", "answers-dropped"] = ""
    corpus: int = 0
    starts: Sequence[int] = (0,)
    judgment: float | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        ends = [*self.starts[1:], len(self)]
        return [end - start for start, end in zip(self.starts, ends, strict=True)]


@dataclass
class Batch:
    """A micro-batch of rows, each of one or more examples, padded on the right.

    `input_ids` [B, T] int64; `labels` [B, T] int64, -100 where no loss, not shifted; `position_ids` [B, T] int64, from
    0 in each example, None where each row holds one, so that networks count themselves; `segment_ids` [B, T] int32,
    the examples of a row from 1, 0 where padding; `corpus_ids` [B, T] int64, index into `corpora`, which names all
    corpora in each batch. `num_tokens` and `num_supervised` are counted before the transfer to the device, so that
    reading them costs no synchronization. `sources` names the records. `epoch_progress` is the share of the epoch that
    is done with this batch, the same on every rank.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None
    segment_ids: torch.Tensor
    corpus_ids: torch.Tensor
    corpora: list[str]
    num_tokens: int
    num_supervised: int
    sources: list[str]
    epoch_progress: float

    def __getstate__(self) -> dict[str, Any]:
        # From a worker through the pipe, as bytes: shared memory costs a round trip to the busy worker for each tensor.
        return {name: value.numpy() if hasattr(value, "device") else value for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import torch

        for name, value in state.items():
            setattr(self, name, torch.from_numpy(value) if hasattr(value, "dtype") else value)

    def to(self, device: torch.device, **kwargs: Any) -> Self:
        """The batch with its tensors on `device` (Lightning calls this); the host does not wait for pinned ones."""
        # Only there do later operations wait for the copy.
        kwargs.setdefault("non_blocking", str(device).startswith("cuda"))
        return _map_tensors(self, lambda tensor: tensor.to(device, **kwargs))

    def pin_memory(self) -> Self:
        """The batch in page-locked memory (the DataLoader calls this)."""
        return _map_tensors(self, lambda tensor: tensor.pin_memory())


@dataclass
class PairBatch(Batch):
    """A micro-batch of answers that are compared or judged; all answers of a record stand in one row.

    Each answer with its prompt is a segment, numbered over the batch from 0 in the order of the rows; labels are those
    of the answers alone, each with the one token that ends it.

    `sequences` [S] int64 is the place in `sources` of the record of each segment, `sequence_corpora` [S] int64 that in
    `corpora`. `pairs` [P, 2] int64 are segments of one record, the better one first: all pairs of a ranking. `margins`
    [P] float32: by how much, 0 where that is not known. `is_good` [S] bool is the verdict of a judged answer; of a
    ranking the best is good and the others are not.
    """

    sequences: torch.Tensor
    sequence_corpora: torch.Tensor
    pairs: torch.Tensor
    margins: torch.Tensor
    is_good: torch.Tensor


@dataclass(slots=True)  # not frozen: Lightning converts what a batch of prompts holds, if only in a copy
class Prompt:
    """What `predict` answers: the ids the model reads, their text and `messages`, and the answer it is compared with.

    `reference_ids` are those of the reference with its end of turn, none if there is no reference. `is_truncated` says
    that the prompt format left some of the conversation out of `input_ids`, for it was too long.
    """

    input_ids: list[int]
    text: str
    reference: str | None
    source: str
    category: str = ""
    reference_ids: Sequence[int] = ()
    is_truncated: bool = False
    messages: Sequence[Message] = ()


@dataclass
class PromptBatch(Batch):
    """A micro-batch of prompts for a policy to answer, a row each; no label is supervised.

    `prompts` [B] are what the rows hold; their `reference_ids` are not known. A batch comes as many times as a rollout
    has parts to train on; `turn` counts them from 0.
    """

    prompts: list[Prompt]
    turn: int = 0


class PromptFormat(ABC):
    """How a family writes a conversation as token ids.

    Every piece of text is encoded on its own and the ids are appended; text is never tokenized across the
    border of a prompt and its reply, so that labels cannot shift and training equals generation.
    Each `EncodedTurn` takes `is_supervised` from the answer that it holds.
    """

    @abstractmethod
    def encode_turns(self, conversation: Conversation, tokenizer: Any) -> list[EncodedTurn]:
        """Ids round by round; what users and corpora wrote never becomes a control token."""

    @abstractmethod
    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        """Ids that end an answer."""

    def closing_ids(self, tokenizer: Any) -> list[int]:
        """Supervised ids after the last reply of a whole example, for formats without an end of turn in between."""
        return []

    def encode(self, conversation: Conversation, tokenizer: Any) -> Example:
        """Whole conversation with loss on every answer and its end-of-turn token."""
        input_ids: list[int] = []
        labels: list[int] = []
        previous = None
        for turn in self.encode_turns(conversation, tokenizer):
            input_ids += turn.prompt_ids + turn.reply_ids
            labels += turn.labels(previous=previous)
            previous = turn
        closing = self.closing_ids(tokenizer)
        input_ids += closing
        labels += closing if previous is None or previous.is_supervised else [IGNORE_INDEX] * len(closing)
        return Example(input_ids, labels, conversation.source)

    def encode_prompt(self, conversation: Conversation, tokenizer: Any) -> list[int]:
        """Ids that end where the assistant must speak."""
        turns = self.encode_turns(conversation, tokenizer)
        return [token for turn in turns for token in turn.prompt_ids + turn.reply_ids]

    def whole_prompt(self, conversation: Conversation, tokenizer: Any) -> list[int]:
        """What `encode_prompt` would give if a prompt could be of any length."""
        return PromptFormat.encode_prompt(self, conversation, tokenizer)

    def encode_answers(
        self, prompt: Sequence[Message], answers: Sequence[Message], tokenizer: Any
    ) -> tuple[list[int], list[list[int]]]:
        """Ids of a prompt, as the model is asked, and of each answer to it, as the model would write it.

        An answer ends with the first token at which generation stops. It alone is the model's choice: what a format
        trains on before the reply (`prompt_labels`) or behind its end is not.

        Raises:
            BadRecord: `answer-with-thoughts` for what stands before an answer, in no prompt; `answer-changes-prompt` if
                the answers have different prompts; `answer-without-end` if no token ends one.
            ConfigError: As `check_answers`.
        """
        self.check_answers()
        if any(answer.thoughts or answer.commands for answer in answers):
            raise BadRecord("answer-with-thoughts")
        stops, closing = set(self.stop_token_ids(tokenizer)), self.closing_ids(tokenizer)
        prompts: list[list[int]] = []
        replies: list[list[int]] = []
        for answer in answers:
            *before, last = self.encode_turns(Conversation([*prompt, answer]), tokenizer)
            prompts.append([token for turn in before for token in turn.prompt_ids + turn.reply_ids] + last.prompt_ids)
            reply_ids = last.reply_ids + closing
            ends = [place for place, token in enumerate(reply_ids, start=1) if token in stops]
            if not ends or prompts[-1] != prompts[0]:
                raise BadRecord("answer-changes-prompt" if ends else "answer-without-end")
            replies.append(reply_ids[: ends[0]])
        return prompts[0], replies

    def check_answers(self) -> None:
        """Refuse a format in which an answer is not the model's choice alone.

        Raises:
            ConfigError: With the reason.
        """
        return


class TextInterface(ABC):
    """What the data layer needs to know of a checkpoint: how text becomes ids, and how many fit."""

    @property
    @abstractmethod
    def prompt_format(self) -> PromptFormat:
        """The family's way to write a conversation."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """Tokens the network can read at once."""

    @property
    @abstractmethod
    def tokenizer_files(self) -> list[Path]:
        """Files that define the tokenizer, for fingerprints."""

    @abstractmethod
    def load_tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""

    @property
    def deciding_classes(self) -> tuple[type, ...]:
        """Classes whose code makes prompt format and tokenizer what they are, for fingerprints."""
        return (type(self),)


BatchKind = TypeVar("BatchKind", bound=Batch)


def _map_tensors(batch: BatchKind, function: Any) -> BatchKind:
    tensors = {name: function(value) for name, value in vars(batch).items() if hasattr(value, "device")}
    return replace(batch, **tensors)
