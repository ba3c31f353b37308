"""Continuous batching: all requests are answered together, token by token; each joins and leaves when it likes."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lit_sft.chat.network import Network
from lit_sft.generation.reading import Reading
from lit_sft.generation.strategies import Strategy

if TYPE_CHECKING:
    from transformers import LogitsProcessor

log = logging.getLogger(__name__)

End = Literal["stop", "length", "failed"]


class QueueFullError(Exception):
    """As many requests wait as may."""


@dataclass(eq=False)
class Request:
    """A prompt to answer.

    Args:
        prompt_ids: It.
        strategy: How tokens are chosen; `max_new_tokens` fits into the context.
        is_tuned: Whether the adapter, or the base alone, answers.
        emit: Called in the engine's thread with each token, and at the end with the reason; a token that ends the
            answer is not handed out.
    """

    prompt_ids: Sequence[int]
    strategy: Strategy
    is_tuned: bool
    emit: Callable[[int | None, End | None], None]
    is_canceled: bool = False
    """Whoever asked is gone: the answer ends before its next token."""


@dataclass(eq=False)
class _Row:
    request: Request
    processors: list[LogitsProcessor]
    ids: list[int]
    num_new: int = 0


@dataclass(eq=False)
class _Batch:
    """Requests that the same weights answer."""

    rows: list[_Row] = field(default_factory=list)
    reading: Reading | None = None


class Engine:
    """Answers requests in a thread of its own.

    Args:
        network: Who answers.
        max_rows: Requests answered at once; one where layers see a window only.
        max_waiting: Requests that may wait beside them.
    """

    def __init__(self, network: Network, max_rows: int, max_waiting: int) -> None:
        self.network = network
        self.max_rows = max_rows if _keeps_all(network) else 1
        self.max_waiting = max_waiting
        self.stop_ids = list(network.checkpoint.prompt_format.stop_token_ids(network.tokenizer))
        self._waiting: deque[Request] = deque()
        self._batches = {is_tuned: _Batch() for is_tuned in (True, False)}
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests, answer those there are, and end."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, request: Request) -> None:
        """Have a request answered.

        Raises:
            QueueFullError: If too many wait, or the engine is stopping.
        """
        with self._changed:
            if self._is_stopping or len(self._waiting) >= self.max_waiting:
                raise QueueFullError
            self._waiting.append(request)
            self._changed.notify()

    @property
    def num_running(self) -> int:
        """Requests that are being answered."""
        return sum(len(batch.rows) for batch in self._batches.values())

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self.num_running or self._is_stopping)
                if not self._waiting and not self.num_running:
                    return
                taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._num_free))]
            for request in taken:
                self._attempt(lambda request=request: self._begin(request), [request])  # type: ignore[misc]
            for is_tuned, batch in self._batches.items():
                if batch.rows:
                    self._attempt(lambda b=batch, t=is_tuned: self._step(b, t), [row.request for row in batch.rows])  # type: ignore[misc]

    @property
    def _num_free(self) -> int:
        return self.max_rows - self.num_running

    def _attempt(self, work: Callable[[], None], requests: list[Request]) -> None:
        """Whatever goes wrong ends these requests and no others."""
        try:
            with torch.no_grad():
                work()
        except Exception:
            log.exception("answers failed")
            for batch in self._batches.values():
                if any(row.request in requests for row in batch.rows):
                    batch.rows, batch.reading = [], None
            for request in requests:
                request.emit(None, "failed")

    def _begin(self, request: Request) -> None:
        """Read a prompt, and let it join those that are being answered."""
        if request.is_canceled:
            return
        row = _Row(request, request.strategy.processors([0], [request.prompt_ids]), list(request.prompt_ids))
        ids = torch.tensor([row.ids])
        with self.network.adapter(request.is_tuned):
            reading = Reading(self.network.model, ids, torch.ones_like(ids), self.stop_ids[0])
        batch = self._batches[request.is_tuned]
        if batch.reading is None:
            batch.reading = reading
        else:
            batch.reading.join(reading)
        batch.rows.append(row)

    def _step(self, batch: _Batch, is_tuned: bool) -> None:
        """A token of each row; rows that end leave."""
        assert batch.reading is not None
        tokens = [_choose(row, batch.reading.logits[place : place + 1]) for place, row in enumerate(batch.rows)]
        staying = [place for place, row in enumerate(batch.rows) if self._goes_on(row, tokens[place])]
        if not staying:
            batch.rows, batch.reading = [], None
            return
        if len(staying) < len(batch.rows):
            batch.rows = [batch.rows[place] for place in staying]
            batch.reading.keep(staying)
            batch.reading.trim()
        with self.network.adapter(is_tuned):
            batch.reading.go_on(torch.tensor([tokens[place] for place in staying]))

    def _goes_on(self, row: _Row, token: int) -> bool:
        """Hand a token out; whether more follow."""
        if row.request.is_canceled:
            return False
        if token in self.stop_ids:
            row.request.emit(None, "stop")
            return False
        row.ids.append(token)
        row.num_new += 1
        is_last = row.num_new == row.request.strategy.max_new_tokens
        row.request.emit(token, "length" if is_last else None)
        return not is_last


def _keeps_all(network: Network) -> bool:
    """Whether every layer remembers all tokens; windows that slide would count the padding of rows that join."""
    return set(getattr(network.model.config, "layer_types", None) or ["full_attention"]) == {"full_attention"}


def _choose(row: _Row, logits: Tensor) -> int:
    """The token that the strategy takes, from logits [1, V]; what draws leaves one."""
    scores: Any = logits.float()
    ids = torch.tensor([row.ids], device=logits.device)
    for processor in row.processors:
        scores = processor(ids, scores)
    return int(scores.argmax(-1))
