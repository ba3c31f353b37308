"""Matrices that multiply the same input stand side by side in the file, and are one product in the graph."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from goldens import golden_checkpoint
from graphs import traced_once
from safetensors.torch import load_file, save_file

from lit_sft import open_checkpoint
from lit_sft.checkpoint.onnx_session import GraphSession
from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.export import check
from lit_sft.export.blocks import dequantize, quantize
from lit_sft.export.check import Sample
from lit_sft.export.editing import Editor
from lit_sft.export.folder import Form, Source, export_onnx
from lit_sft.export.placement import Weights
from lit_sft.export.weights import PRECISIONS, DataFile, Precision, WeightStore

GATED = ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"]

PRODUCTS = {
    "baichuan-7b": GATED,
    "baichuan-13b": GATED,
    "baichuan2-13b": GATED,
    "chatglm-6b": ["q_proj k_proj v_proj", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "chatglm2-6b": ["q_proj k_proj v_proj", "o_proj", "gate_up_proj", "down_proj"],
    "moss-16b": ["q_proj k_proj v_proj fc_in", "out_proj", "fc_out"],  # its two halves read the same norm
    "native": GATED,
}
"""Of each layer, in the order in which they are computed."""

ROWS = [list(range(20, 44)), list(range(50, 59))]
Tiny = Callable[[str], Path]


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks are traced once, and graphs compared with each other here instead of with torch."""
    for name in ("check", "quality"):
        monkeypatch.setattr(check.Gate, name, lambda *_: {})
    with traced_once():
        yield


def export(checkpoint: Checkpoint, folder: Path, **options: Any) -> Path:
    export_onnx(Source(checkpoint, [Sample(ROWS[0], ROWS[0])]), folder, Form(**{"block": 16, **options}))
    return folder


def products_of(folder: Path) -> dict[str, Any]:
    """Names of the matrices of each product -> its node."""
    return {matrices_of(node): node for node in ir.load(folder / "model.onnx").graph if node.op_type == "MatMulNBits"}


def matrices_of(node: Any) -> str:
    """Their names, with + between them."""
    name: str = node.inputs[1].name
    return name.removesuffix(".stored")


def logits_of(folder: Path) -> list[Any]:
    """Of both rows, read, and continued for some tokens."""
    session = GraphSession(folder, threads=1)
    cache = session.new_cache(2)
    return [session.forward(ROWS, cache, keep=5), *(session.forward([[n], [n + 9]], cache) for n in range(30, 34))]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_one_input_are_one_and_compute_the_same(
    name: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(tiny("native")) if name == "native" else golden_checkpoint(name)
    merged = export(checkpoint, tmp_path / "merged", dtype="int4", is_exact=True)
    model = checkpoint.load_model(dtype=torch.float32)
    num_layers = checkpoint.family.network_config.get_text_config().num_hidden_layers
    found = products_of(merged)
    assert [short(names) for names in found] == [*PRODUCTS[name] * num_layers, "lm_head"]
    for names, node in [*found.items()][:-1]:  # the head may be normed
        weights = [model.get_parameter(each) for each in names.split("+")]
        blocks, scales = (torch.from_numpy(node.inputs[place].const_value.numpy().copy()) for place in (1, 2))
        width = weights[0].shape[1]
        expected = [dequantize(*quantize(weight.detach(), 4, 16), 4, width) for weight in weights]
        assert torch.equal(dequantize(blocks, scales, 4, width), torch.cat(expected))
    monkeypatch.setattr(Precision, "is_merged", False)
    single = export(checkpoint, tmp_path / "single", dtype="int4", is_exact=True)
    assert len(products_of(single)) == 1 + num_layers * len(" ".join(PRODUCTS[name]).split())
    for one, other in zip(logits_of(merged), logits_of(single), strict=True):
        np.testing.assert_array_equal(one, other)


def short(names: str) -> str:
    """The modules' own names."""
    return " ".join(name.split(".")[-2] for name in names.split("+"))


def test_shards_in_any_order_give_the_same_files(tiny: Tiny, tmp_path: Path) -> None:
    source = tiny("native")
    (file,) = source.glob("*.safetensors")
    tensors = load_file(file)
    last = [name for name in reversed(tensors) if "q_proj" in name or "gate_proj" in name]
    shards = [[name for name in reversed(tensors) if name not in last], last]
    other = tmp_path / "shards"
    other.mkdir()
    for each in source.iterdir():
        if each != file:
            (other / each.name).write_bytes(each.read_bytes())
    places: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        shard = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, other / shard, metadata={"format": "pt"})
        places |= dict.fromkeys(names, shard)
    (other / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    folders = [export(open_checkpoint(each), tmp_path / f"from-{each.name}", dtype="int8") for each in (source, other)]
    assert [short(names) for names in products_of(folders[0])] == [*PRODUCTS["native"] * 2, "lm_head"]
    for name in ("model.onnx", "model.onnx.data"):
        assert folders[0].joinpath(name).read_bytes() == folders[1].joinpath(name).read_bytes()


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"dtype": "int8", "is_portable": True}], ids=str)
def test_matrices_that_are_not_kept_for_one_operator_stay_apart(
    options: dict[str, Any], tiny: Tiny, tmp_path: Path
) -> None:
    graph = ir.load(export(open_checkpoint(tiny("native")), tmp_path / "out", **options) / "model.onnx").graph
    kept = [name for name in graph.initializers if "proj.weight" in name]
    assert kept
    assert not [name for name in kept if "+" in name]


Products = list[tuple[str, str]]


class Small:
    """A graph whose values are products with named matrices [3, 32], and the weights for it."""

    def __init__(self, data: DataFile, original: DataFile, products: Products) -> None:
        linear = frozenset(name for _, name in products)
        precision = PRECISIONS["int8"]._replace(block=16)
        self.store = WeightStore(data, original, precision, linear, "head", "embedding", False, lambda rows: rows)
        values = {name: value(name) for name in ("x", "y")}
        nodes: list[Any] = []
        initializers: dict[str, Any] = {}
        for given, name in products:
            if name not in initializers:
                self.store.take(name, torch.randn(3, 32))
                initializers[name] = ir.Value(
                    name=f"network.{name}", const_value=ir.tensor(np.zeros((3, 32), np.float32), name=f"network.{name}")
                )
            turned = ir.node("Transpose", [initializers[name]], {"perm": [1, 0]})
            nodes += [turned, ir.node("MatMul", [values[given], turned.outputs[0]])]
        outputs = [node.outputs[0] for node in nodes if node.op_type == "MatMul"]
        self.graph = ir.Graph([*values.values()], outputs, nodes=nodes, initializers=[*initializers.values()])

    def place(self) -> list[str]:
        """Names of the matrices of each product that is left."""
        Weights(Editor(self.graph), self.store).place()
        return [matrices_of(node) for node in self.graph if node.op_type == "MatMulNBits"]


def value(name: str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape([2, 32]), type=ir.TensorType(ir.DataType.FLOAT))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[Products], Small]]:
    with DataFile(tmp_path / "data") as data, DataFile(tmp_path / "original") as original:
        yield partial(Small, data, original)


@pytest.mark.parametrize(
    ("products", "left"),
    [
        ([("x", "a"), ("x", "b"), ("x", "c")], ["a+b+c"]),
        ([("x", "a"), ("y", "b"), ("x", "c"), ("y", "d")], ["a+c", "b+d"]),
        ([("x", "a"), ("y", "b")], ["a", "b"]),
        ([("x", "a"), ("y", "a"), ("x", "b"), ("x", "c")], ["a", "a", "b+c"]),  # one matrix for two inputs
    ],
    ids=str,
)
def test_only_what_shares_its_input_is_merged(
    products: Products, left: list[str], small: Callable[[Products], Small]
) -> None:
    assert small(products).place() == left


def test_a_part_of_a_merged_matrix_is_read_as_it_was_written(small: Callable[[Products], Small]) -> None:
    graph = small([("x", "a"), ("x", "b"), ("x", "c")])
    assert graph.place() == ["a+b+c"]
    for name in "abc":
        expected = dequantize(*quantize(graph.store.as_it_was(name), 8, 16), 8, 32)
        assert torch.equal(graph.store.as_exported(name), expected)


def test_a_matrix_that_is_used_otherwise_is_refused(small: Callable[[Products], Small]) -> None:
    graph = small([("x", "a")])
    transpose = next(iter(graph.graph))
    graph.graph.append(ir.node("Relu", [transpose.outputs[0]]))
    with pytest.raises(ConfigError, match="weight a is used otherwise than by a linear layer"):
        graph.place()


def test_a_number_that_is_not_finite_is_refused_with_the_name_of_its_weight(small: Callable[[Products], Small]) -> None:
    graph = small([("x", "a"), ("x", "b")])
    graph.store.take("b", torch.full((3, 32), torch.inf))
    with pytest.raises(CheckpointError, match="weight b holds a number that is not finite"):
        graph.place()
