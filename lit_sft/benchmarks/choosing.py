"""Which option a model holds for the likeliest, read off its logits where the letter of the answer stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lit_sft.benchmarks.multiple_choice import LETTERS, MultipleChoice, Question
from lit_sft.conversation import Message
from lit_sft.errors import ConfigError

if TYPE_CHECKING:
    from lit_sft.chat.network import Network

Form = Literal["chat", "plain"]


@dataclass(frozen=True)
class Asked:
    """A question as the model reads it.

    Args:
        question: It.
        ids: Up to where the letter stands.
        letters: The id of each letter there.
        num_shots: Examples before it, fewer than wanted where the context is too short.
    """

    question: Question
    ids: Sequence[int]
    letters: Sequence[int]
    num_shots: int


def ask(benchmark: MultipleChoice, shots: list[Question], question: Question, network: Network, form: Form) -> Asked:
    """A question after as many of the examples as fit into the context, the last ones left out first.

    Raises:
        ConfigError: If the question alone is too long, or letters are not one token each.
    """
    for num_shots in range(len(shots), -1, -1):
        ids, letters = _encode(benchmark, shots[:num_shots], question, network, form)
        if len(ids) < network.checkpoint.context_length:
            return Asked(question, ids, letters, num_shots)
    raise ConfigError(
        f"{benchmark.name}: question {question.id} of {question.subject} has {len(ids)} tokens, and the model reads "
        f"{network.checkpoint.context_length}"
    )


def _encode(
    benchmark: MultipleChoice, shots: list[Question], question: Question, network: Network, form: Form
) -> tuple[list[int], list[int]]:
    tokenizer: Any = network.tokenizer
    if form == "plain":
        # As the repository of CMMLU has it: the last token of a letter alone.
        letters = [tokenizer.encode_text(letter)[-1] for letter in LETTERS]
        return list(tokenizer(benchmark.plain(question.subject, shots, question))["input_ids"]), letters
    messages = benchmark.messages(question.subject, shots, question)
    answers = [Message("assistant", letter) for letter in LETTERS]
    prompt, replies = network.checkpoint.prompt_format.encode_answers(messages, answers, tokenizer)
    # What all begin with, a blank perhaps, stands before the letter.
    place = next(place for place, tokens in enumerate(zip(*replies, strict=False)) if len(set(tokens)) > 1)
    letters = [reply[place] for reply in replies]
    if len(set(letters)) < len(LETTERS):
        raise ConfigError(f"{network.checkpoint.path} writes some of A, B, C and D with the same token")
    return [*prompt, *replies[0][:place]], letters


def log_likelihoods(network: Network, asked: Sequence[Asked], *, is_tuned: bool = True) -> list[list[float]]:
    """Of each question the log-probabilities of the letters, all read in one batch."""
    import torch

    from lit_sft.generation.generate import pad_left
    from lit_sft.generation.reading import Reading

    padding = network.checkpoint.prompt_format.stop_token_ids(network.tokenizer)[0]
    with torch.no_grad(), network.adapter(is_tuned):
        logits = Reading(network.model, *pad_left([each.ids for each in asked], padding), padding).logits
    letters = torch.tensor([list(each.letters) for each in asked], device=logits.device)
    found: list[list[float]] = logits.float().log_softmax(-1).gather(1, letters).tolist()
    return found


def batches(asked: Sequence[Asked], token_budget: int) -> Iterator[list[Asked]]:
    """Questions to read together, the longest first: what does not fit into memory shows at once."""
    batch: list[Asked] = []
    for each in sorted(asked, key=lambda each: -len(each.ids)):
        if batch and len(batch[0].ids) * (len(batch) + 1) > token_budget:
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch
