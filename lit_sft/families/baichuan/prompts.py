"""How the Baichuan models write a conversation.

Chat models mark roles with two reserved tokens, 195 for the user and 196 for the assistant; a system message stands
first and has no mark. Base models have no form of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_sft.conversation import IGNORE_INDEX, Conversation, EncodedTurn, Message, PromptFormat
from lit_sft.errors import BadRecord, ConfigError
from lit_sft.families.shared.history import truncate_history
from lit_sft.families.shared.prompt_pieces import text, token


@dataclass(frozen=True)
class ChatLimits:
    """What the original reads from config.json and generation_config.json.

    Args:
        user_token_id: Stands before what the user says.
        assistant_token_id: Stands before what the assistant says.
        context_length: Tokens of prompt and answer together, `model_max_length`.
        max_new_tokens: Tokens that a prompt leaves for the answer.
    """

    user_token_id: int
    assistant_token_id: int
    context_length: int
    max_new_tokens: int

    def max_input(self) -> int:
        """Tokens of the longest prompt of the current format.

        Raises:
            ConfigError: If the answer takes the whole context.
        """
        if self.max_new_tokens >= self.context_length:
            raise ConfigError(
                f"max_new_tokens {self.max_new_tokens} in generation_config.json leaves no room for a prompt in a "
                f"context of {self.context_length} tokens. Lower it there"
            )
        return self.context_length - self.max_new_tokens


class BaichuanChatFormat(PromptFormat):
    """The current chat format: `[system] <user>question<assistant>answer<user> ...`, with </s> at the very end only.

    Training follows the official script of Baichuan 2: at the mark of a user the label is </s>, so that the model
    learns to stop there although it never reads </s> between turns. (At the first mark the original has that label
    too, where nothing predicts it; behind a system message, which the script does not know, it would teach the model
    to end an answer that it never gave, so there is none.)

    A prompt leaves `max_new_tokens` of the context free: whole rounds are dropped from the oldest on, the newest is
    kept in any case, and what is still too long loses its left end, the system message included.
    """

    def __init__(self, limits: ChatLimits) -> None:
        self.limits = limits

    def encode_turns(self, conversation: Conversation, tokenizer: Any) -> list[EncodedTurn]:
        """Everything from the mark of the user to the mark of the assistant is prompt."""
        _check_roles(conversation)
        turns: list[EncodedTurn] = []
        for read, answer in conversation.turns():
            prompt_ids: list[int] = []
            labels: list[int] = []
            for message in read:
                ids = self._message_ids(message, tokenizer)
                labels += [IGNORE_INDEX] * len(ids)
                if message.role == "user" and read[0].role != "system":
                    labels[-len(ids)] = tokenizer.eos_token_id
                prompt_ids += ids
            prompt_ids.append(self.limits.assistant_token_id)
            labels.append(IGNORE_INDEX)
            reply_ids = [] if answer is None else tokenizer.encode_text(answer.content)
            is_supervised = answer is None or answer.is_supervised
            ends = bool(turns)
            turns.append(EncodedTurn(prompt_ids, reply_ids, labels, ends_previous=ends, is_supervised=is_supervised))
        return turns

    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        """Only </s>."""
        return [tokenizer.eos_token_id]

    def closing_ids(self, tokenizer: Any) -> list[int]:
        """One </s> behind the last answer."""
        return [tokenizer.eos_token_id]

    def encode_prompt(self, conversation: Conversation, tokenizer: Any) -> list[int]:
        """Ids as the original `build_chat_input` gives them, cut to leave room for the answer."""
        _check_roles(conversation)
        messages = list(conversation.messages)
        is_answered = bool(messages) and messages[-1].role == "assistant"
        has_system = bool(messages) and messages[0].role == "system"
        system_ids = tokenizer.encode_text(messages.pop(0).content) if has_system else []
        max_input = self.limits.max_input()
        rounds = [
            [token for message in messages for token in self._message_ids(message, tokenizer)]
            for messages in _rounds(messages)
        ]
        prompt_ids = system_ids + _newest(rounds, max_input - len(system_ids))
        if not is_answered:
            prompt_ids.append(self.limits.assistant_token_id)
        return prompt_ids[-max_input:]

    def describe(self, tokenizer: Any) -> dict[str, Any]:
        """Marks and contents message by message; the mark of the assistant does not count where rounds are dropped."""
        limits, said = self.limits, text("{content}")
        return {
            "unit": "message",
            "refuse": ["tool-message", "system-message-not-first"],
            "system": [said],
            "user": [token(limits.user_token_id), said],
            "assistant": [token(limits.assistant_token_id), said],
            "speak": [token(limits.assistant_token_id)],
            "fit": {"most": limits.max_input(), "drop": "user", "counts_speak": False, "cut_left": "all"},
        }

    def _message_ids(self, message: Message, tokenizer: Any) -> list[int]:
        ids: list[int] = tokenizer.encode_text(message.content)
        if message.role == "system":
            return ids
        limits = self.limits
        return [limits.user_token_id if message.role == "user" else limits.assistant_token_id, *ids]


class FirstReleaseChatFormat(PromptFormat):
    """The format of the first Baichuan-13B-Chat: every answer ends with </s>, and there is no system message.

    A prompt may use half the context in any case. Rounds are dropped as in the current format, and the left end is
    cut before the mark of the assistant is set, so the longest prompt has one token more.
    """

    def __init__(self, limits: ChatLimits) -> None:
        self.limits = limits

    def encode_turns(self, conversation: Conversation, tokenizer: Any) -> list[EncodedTurn]:
        """`<user>question<assistant>answer</s>`."""
        _check_roles(conversation, has_system=False)
        turns = []
        for read, answer in conversation.turns():
            prompt_ids = [token for message in read for token in self._message_ids(message, tokenizer)]
            prompt_ids.append(self.limits.assistant_token_id)
            reply_ids = [] if answer is None else self._message_ids(answer, tokenizer)[1:]
            is_supervised = answer is None or answer.is_supervised
            turns.append(EncodedTurn(prompt_ids, reply_ids, is_supervised=is_supervised))
        return turns

    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        """Only </s>."""
        return [tokenizer.eos_token_id]

    def encode_prompt(self, conversation: Conversation, tokenizer: Any) -> list[int]:
        """Ids as the original gives them: the mark of the assistant follows even an answer."""
        _check_roles(conversation, has_system=False)
        limits = self.limits
        max_input = self._max_input()
        rounds = [
            [token for message in messages for token in self._message_ids(message, tokenizer)]
            for messages in _rounds(conversation.messages)
            # What an assistant says before any user belongs to no round.
            if messages[0].role == "user"
        ]
        return [*_newest(rounds, max_input)[-max_input:], limits.assistant_token_id]

    def describe(self, tokenizer: Any) -> dict[str, Any]:
        """As the current format, but for the ends of answers and the mark of the assistant, which is always set."""
        limits, said = self.limits, text("{content}")
        return {
            "unit": "message",
            "refuse": ["tool-message", "system-message"],
            "needs_user": True,
            "user": [token(limits.user_token_id), said],
            "assistant": [token(limits.assistant_token_id), said, token(tokenizer.eos_token_id)],
            "speak": [token(limits.assistant_token_id)],
            "always_speak": True,
            "fit": {"most": self._max_input(), "drop": "user", "counts_speak": False, "cut_left": "history"},
        }

    def _max_input(self) -> int:
        limits = self.limits
        return max(limits.context_length // 2, limits.context_length - limits.max_new_tokens)

    def _message_ids(self, message: Message, tokenizer: Any) -> list[int]:
        ids = tokenizer.encode_text(message.content)
        if message.role == "user":
            return [self.limits.user_token_id, *ids]
        return [self.limits.assistant_token_id, *ids, tokenizer.eos_token_id]


class HumanAssistantFormat(PromptFormat):
    r"""`Human: ...\n\nAssistant: ...</s>`, the form in which BELLE tuned base models; Baichuan brings none.

    A prompt leaves `max_new_tokens` of the context free: whole rounds are dropped from the oldest on. A system message
    and the newest round are kept in any case, so one question alone may still be too long.

    Args:
        limits: How long a prompt may be; the marks are those of the other formats.
        reply_prefix: The blank after `Assistant:`, if the tokenizer sets none before a text.
    """

    def __init__(self, limits: ChatLimits, reply_prefix: str = "") -> None:
        self.limits = limits
        self.reply_prefix = reply_prefix

    def encode_turns(self, conversation: Conversation, tokenizer: Any) -> list[EncodedTurn]:
        """A system message stands before the first `Human:`; the blank after `Assistant:` belongs to the reply.

        Raises:
            BadRecord: `tool-message`: it has no form for what tools say.
        """
        if any(message.role == "tool" for message in conversation.messages):
            raise BadRecord("tool-message")
        turns = []
        for read, answer in conversation.turns():
            system = "".join(f"{message.content}\n\n" for message in read if message.role == "system")
            asked = "\n".join(message.content for message in read if message.role != "system")
            prompt_ids = tokenizer.encode_text(f"{system}Human: {asked}\n\nAssistant:")
            reply_ids: list[int] = []
            if answer is not None:
                reply_ids = [*tokenizer.encode_text(self.reply_prefix + answer.content), tokenizer.eos_token_id]
            is_supervised = answer is None or answer.is_supervised
            turns.append(EncodedTurn(prompt_ids, reply_ids, is_supervised=is_supervised))
        return turns

    def encode_prompt(self, conversation: Conversation, tokenizer: Any) -> list[int]:
        """Ids that end with `Assistant:`, of as many of the last rounds as leave room for the answer."""
        return truncate_history(conversation, super().encode_prompt, tokenizer, self.limits.max_input() + 1)

    def describe(self, tokenizer: Any) -> dict[str, Any]:
        """A question and an answer are a text each."""
        return {
            "unit": "turn",
            "refuse": ["tool-message"],
            "system_end": "\n\n",
            "ask": [text("{system}Human: {asked}\n\nAssistant:")],
            "answer": [text(f"{self.reply_prefix}{{content}}"), token(tokenizer.eos_token_id)],
            "fit": {"most": self.limits.max_input(), "drop": "rounds"},
        }

    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        """Only </s>."""
        return [tokenizer.eos_token_id]


def _check_roles(conversation: Conversation, *, has_system: bool = True) -> None:
    """Refuse what the original refuses; it knows no tools either."""
    for index, message in enumerate(conversation.messages):
        if message.role == "tool":
            raise BadRecord("tool-message")
        if message.role == "system" and (index or not has_system):
            raise BadRecord("system-message-not-first" if has_system else "system-message")


def _rounds(messages: Sequence[Message]) -> list[list[Message]]:
    """The messages, cut before every one of a user."""
    rounds: list[list[Message]] = []
    for message in messages:
        if message.role == "user" or not rounds:
            rounds.append([])
        rounds[-1].append(message)
    return rounds


def _newest(rounds: list[list[int]], max_length: int) -> list[int]:
    """Ids of the newest rounds that fit together; of the last one in any case."""
    history: list[int] = []
    for ids in reversed(rounds):
        if history and len(history) + len(ids) > max_length:
            break
        history = ids + history
    return history
