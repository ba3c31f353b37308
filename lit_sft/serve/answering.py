"""From a request to an answer: text in, text out, while the engine works in its own thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from lit_sft.chat.network import Network
from lit_sft.conversation import Conversation, Message
from lit_sft.errors import BadRecord, ConfigError
from lit_sft.generation.generate import decode_answer
from lit_sft.generation.strategies import Strategy
from lit_sft.serve.engine import End, Engine, Request


class AnswerFailedError(Exception):
    """The network could not answer."""


@dataclass(frozen=True)
class Piece:
    """More of an answer; `reason` with the last one. `num_tokens` counts what the network wrote so far."""

    text: str
    reason: str | None
    num_tokens: int


class Answerer:
    """Reads prompts and decodes answers for an engine."""

    def __init__(self, network: Network, engine: Engine) -> None:
        self.engine = engine
        self._checkpoint = network.checkpoint
        self._tokenizer: Any = network.tokenizer

    def conversation_ids(self, messages: Sequence[Message]) -> list[int]:
        """A conversation as the model is asked.

        Raises:
            ConfigError: If the prompt format cannot write it.
        """
        try:
            return self._checkpoint.prompt_format.encode_prompt(Conversation(list(messages)), self._tokenizer)
        except BadRecord as error:
            raise ConfigError(f"messages cannot be written in this model's prompt format: {error}") from None

    def text_ids(self, text: str) -> list[int]:
        """A text that goes on.

        Raises:
            ConfigError: If it is empty.
        """
        ids: list[int] = self._tokenizer.encode_text(text)
        if not ids:
            raise ConfigError("prompt is empty")
        return ids

    async def answer(
        self, prompt_ids: Sequence[int], strategy: Strategy, stop: Sequence[str], *, is_tuned: bool
    ) -> AsyncGenerator[Piece]:
        """The answer in pieces that later ones do not change.

        Raises:
            ConfigError: If the prompt fills the context.
            QueueFullError: If too many requests wait.
            AnswerFailedError: If the network fails.
        """
        room = self._checkpoint.context_length - len(prompt_ids)
        if room < 1:
            raise ConfigError(
                f"the prompt has {len(prompt_ids)} tokens, which leave no room in a context of "
                f"{self._checkpoint.context_length}"
            )
        strategy.max_new_tokens = min(room, strategy.max_new_tokens)
        loop, tokens = asyncio.get_running_loop(), asyncio.Queue[tuple[int | None, End | None]]()

        def emit(token: int | None, end: End | None) -> None:
            loop.call_soon_threadsafe(tokens.put_nowait, (token, end))

        request = Request(prompt_ids, strategy, is_tuned, emit)
        self.engine.submit(request)
        try:
            async for piece in self._decoded(tokens, stop):
                yield piece
        finally:
            request.is_canceled = True  # it may be over: whoever asked went, or a stop string came

    async def _decoded(
        self, tokens: asyncio.Queue[tuple[int | None, End | None]], stop: Sequence[str]
    ) -> AsyncGenerator[Piece]:
        ids: list[int] = []
        sent, end = "", None
        while end is None:
            token, end = await tokens.get()
            if end == "failed":
                raise AnswerFailedError
            if token is not None:
                ids.append(token)
            text = decode_answer(ids, self._tokenizer)
            place = min((found for found in map(text.find, stop) if found >= 0), default=None)
            if place is not None:
                text, end = text[:place], "stop"
            elif end is None:
                # Half a character, and what may be the beginning of a stop string, wait for what follows.
                text = _without_beginning(text.rstrip("\ufffd"), stop)
            if end or (len(text) > len(sent) and text.startswith(sent)):
                yield Piece(text.removeprefix(sent), end, len(ids))
                sent = text


def _without_beginning(text: str, stop: Sequence[str]) -> str:
    """Without an end that a stop string begins with."""
    longest = max((n for string in stop for n in range(1, len(string)) if text.endswith(string[:n])), default=0)
    return text[: len(text) - longest] if longest else text
