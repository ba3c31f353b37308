"""Exports for tests: each network is traced once, for all types and both forms."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.export import graph, text_side


@contextmanager
def traced_once() -> Iterator[None]:
    """Tracing takes most of the time of an export; the text side has tests of its own."""
    found: dict[Path, Any] = {}
    trace = graph.trace

    def from_memory(family: Any, network: Any, dtype: torch.dtype) -> Any:
        if family.folder not in found:
            found[family.folder] = trace(family, network, dtype)
        return found[family.folder].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", from_memory)
        patch.setattr(text_side, "write_text_side", lambda *_: {})
        yield
