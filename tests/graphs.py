"""Exports for tests: each network is traced once, for all types and both forms, in all test processes."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from filelock import FileLock

from lit_sft.export import graph, text_side


@contextmanager
def traced_once(folder: Path) -> Iterator[None]:
    """While it is open traces are kept in a folder, one of a network and a type: to trace takes most of an export."""
    trace = graph.trace

    def from_folder(family: Any, network: Any, dtype: torch.dtype) -> Any:
        config = (family.folder / "config.json").read_bytes()
        kind = str(dtype).removeprefix("torch.")
        file = folder / f"{family.name}-{kind}-{hashlib.sha256(config).hexdigest()}.onnx"
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                model = trace(family, network, dtype)
                leave_weights_out(model.graph, {f"network.{name}" for name, _ in network.named_parameters()})
                ir.save(model, file)
        return ir.load(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", from_folder)
        yield


@contextmanager
def without_text_side() -> Iterator[None]:
    """It has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_side, "write_text_side", lambda *_: {})
        yield


def leave_weights_out(traced: Any, names: set[str]) -> None:
    """They are fake, and only their sizes count."""
    for name in names & {*traced.initializers}:
        value = traced.initializers[name]
        value.const_value = ir.ExternalTensor("nowhere", 0, 0, value.dtype, shape=value.shape, name=name)
