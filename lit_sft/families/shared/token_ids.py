"""Ids of single tokens, looked up once."""

from __future__ import annotations

from typing import Any


class TokenIdCache:
    """Mixed in before a tokenizer class of transformers.

    Prompt formats ask for the same few control tokens with every record, and the way through transformers takes as
    long as encoding a short text.
    """

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or those of several."""
        if not isinstance(tokens, str):
            return super().convert_tokens_to_ids(tokens)  # type: ignore[misc]
        known: dict[str, int] = self.__dict__.setdefault("_known_ids", {})
        if tokens not in known:
            known[tokens] = super().convert_tokens_to_ids(tokens)  # type: ignore[misc]
        return known[tokens]

    def _add_tokens(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__.pop("_known_ids", None)
        return super()._add_tokens(*args, **kwargs)  # type: ignore[misc]
