"""A chat template of transformers as a prompt format: the ids of `apply_chat_template`, turn by turn.

The template is rendered for each growing prefix of the conversation. Each rendering must continue the one before, so
what it adds is a turn's prompt or reply; the ids of the addition are appended. Before rendering, control tokens that
somebody wrote into a message are marked (transformers' own `mark_control_tokens`), so that they are encoded as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from lit_sft.conversation import Conversation, EncodedTurn, Message, PromptFormat
from lit_sft.errors import BadRecord
from lit_sft.families.native.template_data import describe_template
from lit_sft.families.shared.history import truncate_history

PROBE = "probe"
"""An answer that is looked for in a rendering."""


@dataclass(frozen=True)
class ChatTemplateFormat(PromptFormat):
    """The checkpoint's own chat template.

    An answer ends with the control token that the template sets after it, or with the end-of-text token if it sets
    none; what follows that token belongs to the next prompt and carries no loss. Of a prompt that does not fit the
    context the oldest rounds are dropped; a system message at the beginning stays.

    Args:
        context_length: Tokens the network can read at once.
        eos_ids: Ids at which the released model stops, beside those that are known from tokenizer and template.
    """

    context_length: int
    eos_ids: tuple[int, ...] = ()

    def encode_turns(self, conversation: Conversation, tokenizer: Any) -> list[EncodedTurn]:
        """A turn for each assistant message.

        Raises:
            BadRecord: If the template refuses the conversation (its roles, say) or changes an earlier part of it.
        """
        marks = template_marks(tokenizer)
        chat = [_written(message, marks) for message in conversation.messages]
        transcript = _Transcript(tokenizer, marks)
        turns: list[EncodedTurn] = []
        for position, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            prompt_ids = transcript.extend(_render(tokenizer, chat[:position], is_prompt=True))
            said = _render(tokenizer, chat[: position + 1])
            if not said.endswith(marks.after_answer):
                raise BadRecord("chat-template-rewrites-answer")
            end = len(said) - len(marks.after_answer) + len(marks.end_of_turn)
            reply_ids = transcript.extend(said[:end])
            if not marks.end_of_turn:
                reply_ids = [*reply_ids, tokenizer.eos_token_id]
            turns.append(EncodedTurn(prompt_ids, reply_ids, is_supervised=message.is_supervised))
        if chat and conversation.messages[-1].role != "assistant":
            turns.append(EncodedTurn(transcript.extend(_render(tokenizer, chat, is_prompt=True)), []))
        return turns

    def encode_prompt(self, conversation: Conversation, tokenizer: Any) -> list[int]:
        """Ids that end where the template lets the assistant speak."""
        return truncate_history(conversation, super().encode_prompt, tokenizer, self.context_length)

    def describe(self, tokenizer: Any) -> dict[str, Any]:
        """What the template writes around the messages, found out by rendering it.

        Raises:
            ConfigError: If that is not regular.
        """
        marks = template_marks(tokenizer)
        added = tokenizer.added_tokens_decoder
        controls = {token.content: index for index, token in added.items() if marks.control.fullmatch(token.content)}

        def render(messages: list[tuple[str, str]], *, is_prompt: bool = False) -> str:
            chat = [{"role": role, "content": content} for role, content in messages]
            return _render(tokenizer, chat, is_prompt=is_prompt)

        return describe_template(render, marks.end_of_turn, controls, self.context_length - 1)

    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        """The end of a turn, and what else ends a text."""
        end = template_marks(tokenizer).end_of_turn
        # The token stands at the end; a template may set text before it.
        ids = tokenizer(end, add_special_tokens=False)["input_ids"][-1:]
        return list(dict.fromkeys([*ids, tokenizer.eos_token_id, *self.eos_ids]))


@dataclass(frozen=True)
class TemplateMarks:
    """What a tokenizer and its template use as marks.

    Args:
        control: Matches special tokens, and other added tokens that the template writes.
        control_in_answers: The same for answers, which may write the others (`<think>`).
        after_answer: What the template sets after the last answer.
        end_of_turn: The part of it that ends with its first control token; empty if there is none.
    """

    control: re.Pattern[str]
    control_in_answers: re.Pattern[str]
    after_answer: str = ""
    end_of_turn: str = ""


@lru_cache(maxsize=8)
def template_marks(tokenizer: PreTrainedTokenizerBase) -> TemplateMarks:
    """The marks of a tokenizer; those of its template if it has one."""
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | {*tokenizer.all_special_tokens}
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    written = {token.content for token in added if token.content in template and not token.content.isspace()}
    control = _any_of(special | written)
    if not template:
        return TemplateMarks(control, control)
    probe = _render(tokenizer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}])
    after_answer = probe.rpartition(PROBE)[2]
    found = control.search(after_answer)
    end_of_turn = after_answer[: found.end()] if found else ""
    in_answers = _any_of(special | ({found.group()} if found else set()))
    return TemplateMarks(control, in_answers, after_answer, end_of_turn)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of text that somebody wrote: control tokens in it stay ordinary characters."""
    return _encode(tokenizer, mark_control_tokens(text, template_marks(tokenizer).control))


class _Transcript:
    """Text so far, and the ids that more of it adds."""

    def __init__(self, tokenizer: Any, marks: TemplateMarks) -> None:
        self._tokenizer = tokenizer
        # With a marked token before it, a match is what somebody wrote.
        self._control = re.compile(f"(?<!{START})(?:{marks.control.pattern})")
        self._text = ""
        self._context = ""

    def extend(self, text: str) -> list[int]:
        """Ids of what `text` adds to the text so far; ids never cross the border."""
        if not text.startswith(self._text):
            raise BadRecord("chat-template-rewrites-history")
        added = text[len(self._text) :]
        # Blanks before and after a control token can depend on it, so it is encoded again with what follows.
        before, after = (_encode(self._tokenizer, part) for part in (self._context, self._context + added))
        ids = after[len(before) :] if after[: len(before)] == before else _encode(self._tokenizer, added)
        last = max((match.start() for match in self._control.finditer(added)), default=None)
        self._context = self._context + added if last is None else added[last:]
        self._text = text
        return ids


START, _, END = mark_control_tokens("x", re.compile("x"))
"""The characters that transformers sets before and behind a marked token."""


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _written(message: Message, marks: TemplateMarks) -> dict[str, str]:
    control = marks.control_in_answers if message.role == "assistant" else marks.control
    written = {"role": message.role, "content": message.content, **({"name": message.name} if message.name else {})}
    return {key: mark_control_tokens(value, control) for key, value in written.items()}


def _render(tokenizer: Any, chat: list[dict[str, str]], *, is_prompt: bool = False) -> str:
    if not chat:
        raise BadRecord("assistant-speaks-first")
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=is_prompt))
    except TemplateError as error:
        raise BadRecord("chat-template-refuses", str(error)) from None


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text whose control tokens count unless they are marked."""
    if START in text:
        return list(encode_marked_chat(tokenizer, text))
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"])
