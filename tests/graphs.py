"""Exports for tests: a network is traced once, for both forms, all types that compute alike and all test processes."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from filelock import FileLock

from lit_sft.export import graph, text_side


@contextmanager
def traced_once(*, has_text: bool = False) -> Iterator[None]:
    """Tracing takes most of the time of an export; the text side, which is left out unless `has_text`, comes next.

    Traces are kept in the folder that conftest.py made, by the configuration of the network.
    """
    trace = graph.trace

    def from_folder(family: Any, network: Any, dtype: torch.dtype) -> Any:
        config = hashlib.sha256((family.folder / "config.json").read_bytes()).hexdigest()
        file = Path(os.environ["TRACES"]) / f"{family.name}-{config}-{dtype}.onnx"
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr("torch.onnx._internal.exporter._registration.ONNXRegistry.from_torchlib", operators())
                    model = trace(family, network, dtype)
                leave_weights_out(model.graph, {f"network.{name}" for name, _ in network.named_parameters()})
                ir.save(model, file)
        return ir.load(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", from_folder)
        if not has_text:
            patch.setattr(text_side, "write_text_side", lambda *_: {})
        yield


@cache
def operators() -> Any:
    """In place of what parses the source of 500 functions at every trace, which only reads what comes of it."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return staticmethod(cache(ONNXRegistry.from_torchlib))


def leave_weights_out(traced: Any, names: set[str]) -> None:
    """They are fake, and only their sizes count."""
    for name in names & {*traced.initializers}:
        value = traced.initializers[name]
        value.const_value = ir.ExternalTensor("nowhere", 0, 0, value.dtype, shape=value.shape, name=name)
