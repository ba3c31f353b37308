"""Every key of a record is accounted for: it is read, or known to say nothing of the conversation, or reported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

LOSS_KEYS = ("loss", "loss_scale", "weight", "train", "loss_mask")
"""How ms-swift, OpenAI, Axolotl and ChatGLM3 mark an answer that carries no loss: `loss: false`, `weight: 0`."""

SAYS_NOTHING = frozenset(
    """
    id idx index _id uuid uid hash md5 sha256 conversation_id session_id sample_id num_turns turns
    num_tokens source source_url url link title author dataset dataset_name data_source origin license
    split language lang date time timestamp created created_at updated_at version model model_name
    category kind type class tags domain topic subject task task_type task_name difficulty
    """.split()  # noqa: SIM905 - a list of them would be fifty lines long
)
"""Keys, at any depth, that tell where a record is from or of which kind it is."""


class Fields(dict[str, Any]):
    """An object of a record that remembers which of its keys were read; so do the objects in it.

    A key is read by `[...]` or `get`; `in` and iteration only look.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self._read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        self._read.add(key)
        if isinstance(value, dict | list) and not isinstance(value, Fields):
            value = _remembering(value)
            super().__setitem__(key, value)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """The value under a key, which counts as read."""
        return self[key] if key in self else default  # noqa: SIM401 - that would be this method

    def unused(self, path: str = "") -> Iterator[str]:
        """Paths of the keys that are filled, were not read, and may carry meaning: `messages.tool_calls`."""
        for key, value in super().items():
            if key not in self._read:
                if not is_blank(value) and key not in SAYS_NOTHING:
                    yield path + key
                continue
            inside = f"{path}{re.sub('[0-9]+', 'N', key)}."
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, Fields):
                    yield from child.unused(inside)


def is_filled(fields: dict[str, Any], key: str) -> bool:
    """Whether something stands under a key, which does not count as read."""
    return not is_blank(dict.get(fields, key))


def is_supervised(fields: dict[str, Any]) -> bool:
    """Whether an answer, or all of a record, carries loss; a share such as `weight: 0.5` stays unread."""
    flags = [key for key in LOSS_KEYS if dict.get(fields, key) in (0, 1)]
    return min([bool(fields[key]) for key in flags], default=True)  # reads them all


def _remembering(value: Any) -> Any:
    if isinstance(value, list):
        return [Fields(item) if isinstance(item, dict) else item for item in value]
    return Fields(value)


def is_blank(value: Any) -> bool:
    """Whether a value says nothing: null, no text, no entries."""
    return value is None or value in ("", [], {}) or (isinstance(value, str) and not value.strip())
