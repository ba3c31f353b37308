"""Exports for tests: each network is traced once in a process, for both forms and all types that compute alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.export import graph, text_side

TRACED: dict[tuple[Path, torch.dtype], Any] = {}


@contextmanager
def traced_once(*, has_text: bool = False) -> Iterator[None]:
    """Tracing takes most of the time of an export; the text side, which is left out unless `has_text`, comes next.

    Folders of checkpoints must stay as they are and have names that no other gets.
    """
    trace = graph.trace

    def from_memory(family: Any, network: Any, dtype: torch.dtype) -> Any:
        key = (family.folder, dtype)
        if key not in TRACED:
            TRACED[key] = trace(family, network, dtype)
        return TRACED[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", from_memory)
        if not has_text:
            patch.setattr(text_side, "write_text_side", lambda *_: {})
        yield
