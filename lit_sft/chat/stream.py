"""An answer as it is written: whole characters only, no control tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.generation.streamers import BaseStreamer

from lit_sft.display import harmless
from lit_sft.generation.generate import decode_answer


class AnswerStream(BaseStreamer):
    """Decodes what `generate` writes and passes on the part that later tokens cannot change.

    Args:
        tokenizer: Turns ids into text.
        stop_token_ids: Tokens that end an answer.
        polish: What the family makes of an answer.
        held_back: Characters at the end that `polish` may still change.
        write: Receives each new piece.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop_token_ids: list[int],
        polish: Callable[[str], str],
        held_back: int,
        write: Callable[[str], None],
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_token_ids = set(stop_token_ids)
        self.polish = polish
        self.held_back = held_back
        self.write = write
        self.text = ""
        """What was shown."""
        self._ids: list[int] | None = None

    def put(self, value: Any) -> None:
        """New ids [B=1] or [B=1, T]; the first are those of the prompt."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += [token for token in value.flatten().tolist() if token not in self.stop_token_ids]
        whole = self._decoded()
        self._show(whole[: max(0, len(whole) - self.held_back)])

    def end(self) -> None:
        """The rest."""
        self._show(self._decoded())

    def show_text(self, text: str) -> None:
        """An answer that was not streamed."""
        self._show(self._shown(text))

    def _decoded(self) -> str:
        return self._shown(decode_answer(self._ids or [], self.tokenizer))

    def _shown(self, text: str) -> str:
        # Bytes that are not a character yet decode to U+FFFD at the end.
        return self.polish(harmless(text).rstrip("\ufffd"))

    def _show(self, text: str) -> None:
        if len(text) > len(self.text) and text.startswith(self.text):
            self.write(text[len(self.text) :])
            self.text = text
