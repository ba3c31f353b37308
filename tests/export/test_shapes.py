"""Changes of shape that undo each other leave a graph, and nothing else does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from goldens import golden_checkpoint
from graphs import traced_once

from lit_sft import open_checkpoint
from lit_sft.checkpoint.onnx_session import GraphSession
from lit_sft.export import assembly, check
from lit_sft.export.check import Sample
from lit_sft.export.editing import Editor
from lit_sft.export.folder import Form, Source, export_onnx
from lit_sft.export.shapes import simplify

ROWS = [list(range(20, 44)), list(range(50, 59))]

LAYER = (
    "RMSNormalization MatMulNBits Split RotaryEmbedding RotaryEmbedding GroupQueryAttention MatMulNBits Add "
    "RMSNormalization MatMulNBits Split Sigmoid Mul Mul MatMulNBits Add"
)
"""Of a family that rotates whole heads: nothing stands between a product and what it is for."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["native", "baichuan-7b", "chatglm-6b", "chatglm2-6b", "moss-16b"])
def test_what_a_graph_computes_stays_the_same_to_the_bit(
    name: str, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("check", "quality"):  # graphs are compared with each other here instead of with torch
        monkeypatch.setattr(check.Gate, each, lambda *_: {})
    checkpoint = open_checkpoint(tiny(name)) if name == "native" else golden_checkpoint(name)
    source = Source(checkpoint, [Sample(ROWS[0], ROWS[0])])
    with traced_once():
        export_onnx(source, tmp_path / "simple", Form("int4", block=16))
        monkeypatch.setattr(assembly, "simplify", lambda editor: None)
        export_onnx(source, tmp_path / "whole", Form("int4", block=16))
    for one, other in zip(logits_of(tmp_path / "simple"), logits_of(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(one, other)
    simple, whole = (operators(tmp_path / each) for each in ("simple", "whole"))
    assert len(simple) < len(whole)
    assert (LAYER in " ".join(simple)) == (name in ("native", "baichuan-7b"))


def operators(folder: Path) -> list[str]:
    """In their order, without the angles."""
    graph = ir.load(folder / "model.onnx").graph
    return [node.op_type for node in graph if node.op_type not in ("Cos", "Sin")]


def logits_of(folder: Path) -> list[Any]:
    """Of both rows, read, and continued for a token."""
    session = GraphSession(folder, threads=1)
    cache = session.new_cache(2)
    return [session.forward(ROWS, cache, keep=5), session.forward([[30], [39]], cache)]


class Small:
    """A graph that is built node by node, all of one output."""

    def __init__(self) -> None:
        self.given = value("x", "batch", "sequence", 8)
        self.tables = [value(name, "batch", "sequence", 2) for name in ("cos", "sin")]
        self.editor = Editor(ir.Graph([self.given, *self.tables], [], nodes=[]))

    def add(self, operator: str, *inputs: Any, shape: tuple[Any, ...], **attributes: Any) -> Any:
        made = self.editor.node(operator, *inputs, **attributes)
        made.shape, made.dtype = ir.Shape(shape), ir.DataType.FLOAT
        return made

    def heads(self, perm: tuple[int, ...] = (0, 2, 1, 3)) -> Any:
        """[B, N, S, D]."""
        cut = self.add("Reshape", self.given, self.editor.ints([0, 0, 2, 4]), shape=("batch", "sequence", 2, 4))
        return self.add("Transpose", cut, shape=("batch", 2, "sequence", 4), perm=perm)

    def simplified(self, result: Any) -> list[str]:
        """Operators that the output of the graph is made with."""
        self.editor.graph.outputs.append(result)
        simplify(self.editor)
        (found,) = self.editor.graph.outputs
        left: list[str] = []
        while found.producer() is not None:
            left.append(found.producer().op_type)
            found = found.producer().inputs[0]
        return left[::-1]


def value(name: str, *shape: Any) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


@pytest.fixture
def small() -> Small:
    return Small()


def test_a_rotation_takes_what_the_product_gave(small: Small) -> None:
    turned = small.add("RotaryEmbedding", small.heads(), *small.tables, shape=("batch", 2, "sequence", 4))
    back = small.add("Transpose", turned, shape=("batch", "sequence", 2, 4), perm=(0, 2, 1, 3))
    flat = small.add("Reshape", back, small.editor.ints([0, 0, -1]), shape=("batch", "sequence", 8))
    assert small.simplified(flat) == ["RotaryEmbedding"]
    (rotation,) = [each for each in small.editor.graph if each.outputs[0] is small.editor.graph.outputs[0]]
    assert rotation.attributes["num_heads"].as_int() == 2
    assert rotation.inputs[1:] == (*small.tables,)


def test_a_rotation_whose_heads_are_wanted_in_front_stays(small: Small) -> None:
    turned = small.add("RotaryEmbedding", small.heads(), *small.tables, shape=("batch", 2, "sequence", 4))
    joined = small.add("Concat", turned, axis=2, shape=("batch", 2, "total", 4))
    assert small.simplified(joined) == ["Reshape", "Transpose", "RotaryEmbedding", "Concat"]


@pytest.mark.parametrize("first", [True, False])
def test_a_rotation_between_other_transposes_stays(small: Small, first: bool) -> None:
    other, swap = (0, 2, 3, 1), (0, 2, 1, 3)
    given = small.heads(other if first else swap)
    turned = small.add("RotaryEmbedding", given, *small.tables, shape=("batch", 2, "sequence", 4))
    back = small.add("Transpose", turned, shape=("batch", "sequence", 2, 4), perm=swap if first else other)
    assert small.simplified(back) == ["Reshape", "Transpose", "RotaryEmbedding", "Transpose"]


def test_a_shape_that_is_given_and_taken_again_goes_and_another_stays(small: Small) -> None:
    def cut() -> Any:
        return small.add("Reshape", small.given, small.editor.ints([0, 0, 2, 4]), shape=("batch", "sequence", 2, 4))

    again = small.add("Reshape", cut(), small.editor.ints([0, 0, 8]), shape=("batch", "sequence", 8))
    negated = small.add("Neg", again, shape=("batch", "sequence", 8))
    assert small.simplified(negated) == ["Neg"]
    other = Small()
    halves = other.add("Reshape", other.given, other.editor.ints([0, 0, 2, 4]), shape=("batch", "sequence", 2, 4))
    joined = other.add("Reshape", halves, other.editor.ints([-1, 8]), shape=("tokens", 8))
    assert other.simplified(joined) == ["Reshape", "Reshape"]
