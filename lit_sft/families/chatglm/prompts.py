"""How ChatGLM-6B reads a conversation: bare question or numbered rounds, then [gMASK] <sop> and the answer."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from lit_sft.conversation import IGNORE_INDEX, Conversation, EncodedTurn, Message, PromptFormat
from lit_sft.families.shared.prompt_pieces import text, token


class ChatGLMFormat(PromptFormat):
    r"""The form of the original `chat` and of its fine-tuning script: `prompt [gMASK] <sop> answer <eop>`.

    The prompt is the bare question, or with a history `[Round 0]\n问：...\n答：...\n[Round 1]\n问：...\n答：`. The
    history is part of the prompt, which sees itself in both directions, so only the last answer is trained: an
    earlier one would be seen before it is predicted. <sop>, the answer and <eop> are supervised.

    The original has no system message; one stands before the first question, on a line of its own. The oldest rounds
    of a history that does not fit the context together with the answer are dropped, and the rest counted from 0;
    the original lets such a history overflow.

    Args:
        context_length: Tokens of prompt and answer together.
        always_rounds: Write `[Round 0]` for a first question too, as the fine-tuning script does when the data have a
            history column. The original asks without it then, all the same; here training and asking agree.
    """

    def __init__(self, context_length: int, always_rounds: bool = False) -> None:
        self.context_length = context_length
        self.always_rounds = always_rounds

    def encode_turns(self, conversation: Conversation, tokenizer: Any) -> list[EncodedTurn]:
        """One turn for the whole conversation: all but the last answer is its prompt."""
        rounds = conversation.turns()
        if not rounds:
            return []
        answer = rounds[-1][1]
        reply_ids = [] if answer is None else self._reply_ids(answer, tokenizer)
        prompt_ids = self._prompt_ids(rounds, len(reply_ids), tokenizer)
        labels = [IGNORE_INDEX] * (len(prompt_ids) - 1) + prompt_ids[-1:]
        is_supervised = answer is None or answer.is_supervised
        return [EncodedTurn(prompt_ids, reply_ids, labels, is_supervised=is_supervised)]

    def encode_answers(
        self, prompt: Sequence[Message], answers: Sequence[Message], tokenizer: Any
    ) -> tuple[list[int], list[list[int]]]:
        """One prompt, which leaves room for the longest answer."""
        replies = [self._reply_ids(answer, tokenizer) for answer in answers]
        rounds = Conversation(prompt).turns()
        return self._prompt_ids(rounds, max(map(len, replies)), tokenizer), replies

    def _reply_ids(self, answer: Message, tokenizer: Any) -> list[int]:
        return [*tokenizer.encode_text(answer.content), tokenizer.eos_token_id]

    def _prompt_ids(
        self, rounds: Sequence[tuple[list[Message], Message | None]], reply_length: int, tokenizer: Any
    ) -> list[int]:
        """Ids of all but the last answer, without the oldest rounds that leave no room for it."""
        first = rounds[0][0]
        system = [message for message in first if message.role == "system"]
        asked = [[message for message in first if message.role != "system"], *(read for read, _ in rounds[1:])]
        answers = [given.content if given else "" for _, given in rounds]
        room = self.context_length - max(1, reply_length)

        def encode(dropped: int) -> list[int]:
            questions = [_lines([*system, *asked[dropped]]), *map(_lines, asked[dropped + 1 :])]
            text = self.prompt(list(zip(questions[:-1], answers[dropped:], strict=False)), questions[-1])
            ids: list[int] = tokenizer.build_inputs_with_special_tokens(tokenizer.encode_text(text))
            return ids

        prompt_ids = encode(0)
        if len(prompt_ids) > room:
            # Bisection: encoding again for every round dropped would take minutes for a thousand of them.
            prompt_ids = encode(
                bisect_left(range(len(asked) - 1), True, key=lambda dropped: len(encode(dropped)) <= room)
            )
        return prompt_ids

    def whole_prompt(self, conversation: Conversation, tokenizer: Any) -> list[int]:
        """Ids with all rounds."""
        return type(self)(sys.maxsize, self.always_rounds).encode_prompt(conversation, tokenizer)

    def describe(self, tokenizer: Any) -> dict[str, Any]:
        """All that stands before [gMASK] is one text; a system message is a line of the first question that is kept."""
        ask = [text("[Round {n}]\n问：{asked}\n答：")]
        return {
            "unit": "turn",
            "whole": True,
            "first_number": 0,
            "alone": ask if self.always_rounds else [text("{asked}")],
            "ask": ask,
            "answer": [text("{content}\n")],
            "end": [token(tokenizer.gmask_token_id), token(tokenizer.bos_token_id)],
            "answered": [text("{content}"), token(tokenizer.eos_token_id)],
            # Without an answer the prompt leaves room for one token.
            "fit": {"most": self.context_length - 1, "most_answered": self.context_length, "drop": "turns"},
        }

    def prompt(self, history: Sequence[tuple[str, str]], question: str) -> str:
        """The text of a question after rounds of (question, answer)."""
        if not history and not self.always_rounds:
            return question
        past = "".join(f"[Round {index}]\n问：{asked}\n答：{answer}\n" for index, (asked, answer) in enumerate(history))
        return f"{past}[Round {len(history)}]\n问：{question}\n答："

    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        """Only <eop>."""
        return [tokenizer.eos_token_id]


def _lines(messages: Sequence[Message]) -> str:
    return "\n".join(message.content for message in messages)
