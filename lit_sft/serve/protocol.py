"""Requests and answers in the form of OpenAI's API; what is not offered is refused, not ignored."""

from __future__ import annotations

import copy
import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lit_sft.conversation import Message
from lit_sft.errors import ConfigError
from lit_sft.generation.strategies import Greedy, Strategy, TopK, TopP


class StreamOptions(BaseModel):
    """What a stream ends with."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Choice(BaseModel):
    """What both kinds of requests say of the answer."""

    model_config = ConfigDict(extra="forbid")

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    # Many clients send these with the value that changes nothing.
    presence_penalty: float | None = Field(None, ge=0, le=0)
    frequency_penalty: float | None = Field(None, ge=0, le=0)
    # What does not change an answer.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None

    @property
    def stop_strings(self) -> list[str]:
        """Texts that end an answer, and do not belong to it."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in given if text]

    def strategy(self, default: Strategy) -> Strategy:
        """How tokens are chosen: what the request says, else what the model was told to do.

        Raises:
            ConfigError: For numbers that no strategy takes.
        """
        common: dict[str, Any] = {"max_new_tokens": self.max_tokens or default.max_new_tokens}
        if self.repetition_penalty is not None:
            common["repetition_penalty"] = self.repetition_penalty
        if (self.temperature, self.top_p, self.top_k) == (None, None, None):
            chosen = copy.copy(default) if default.num_beams == 1 else Greedy()
            vars(chosen).update(common)
            if self.seed is not None and "seed" in vars(chosen):
                vars(chosen)["seed"] = self.seed
            return chosen
        if self.temperature == 0:
            return Greedy(**common)
        drawn = {"temperature": 1.0 if self.temperature is None else self.temperature, "seed": self.seed or 0, **common}
        if self.top_k is not None:
            if self.top_p not in {None, 1.0}:
                raise ConfigError("top_k and top_p are both given: give one of them")
            return TopK(top_k=self.top_k, **drawn)
        return TopP(top_p=1.0 if self.top_p is None else self.top_p, **drawn)


class ChatMessage(BaseModel):
    """A message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]]
    name: str | None = None

    def message(self) -> Message:
        """As prompt formats read it.

        Raises:
            ConfigError: If a part of it is not text.
        """
        content = self.content
        if not isinstance(content, str):
            if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in content):
                raise ConfigError("messages: content is text, or a list of parts of the type text")
            content = "".join(part["text"] for part in content)
        return Message("system" if self.role == "developer" else self.role, content)


class ChatRequest(Choice):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class CompletionRequest(Choice):
    """POST /v1/completions."""

    prompt: str


class Usage(BaseModel):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int

    def as_dict(self) -> dict[str, int]:
        """With their sum."""
        return {**self.model_dump(), "total_tokens": self.prompt_tokens + self.completion_tokens}


class Writer:
    """Writes what is sent for one request.

    Args:
        model: As it was asked for.
        is_chat: Whether it is a conversation, or plain text that goes on.
    """

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self.is_chat = is_chat
        self._common = {
            "id": f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, reason: str, usage: Usage) -> dict[str, Any]:
        """An answer that was not streamed."""
        said = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        return {
            **self._common,
            "object": "chat.completion" if self.is_chat else "text_completion",
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": reason}],
            "usage": usage.as_dict(),
        }

    def piece(self, text: str | None, reason: str | None = None, *, is_first: bool = False) -> dict[str, Any]:
        """A part of a streamed answer, or its end."""
        role = {"role": "assistant"} if is_first else {}
        said = {"delta": role | ({} if text is None else {"content": text})} if self.is_chat else {"text": text or ""}
        return {**self._chunk(), "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": reason}]}

    def usage(self, usage: Usage) -> dict[str, Any]:
        """The last part, where it was asked for."""
        return {**self._chunk(), "choices": [], "usage": usage.as_dict()}

    def _chunk(self) -> dict[str, Any]:
        return {**self._common, "object": "chat.completion.chunk" if self.is_chat else "text_completion"}
