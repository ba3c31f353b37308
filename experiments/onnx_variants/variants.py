"""Changes to an exported graph of one attention per layer that promise speed: each gives the graph changed.

Shapes: N outputs of a product, C tokens that a cache has room for, D dimensions of a head.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

MICROSOFT = "com.microsoft"
CAPACITY = 2048
"""Tokens that angles are stored for."""


def merge_products(model: ir.Model) -> ir.Model:
    """Products of one input become one, cut apart behind it: query, key and value; gate and up."""
    groups: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            groups[id(node.inputs[0]), node.attributes["K"].as_int()].append(node)
    for nodes in groups.values():
        if len(nodes) > 1:
            _merge(model.graph, nodes)
    RemoveUnusedNodesPass()(model)
    return model


def _merge(graph: ir.Graph, nodes: list[Any]) -> None:
    first = nodes[0]
    sizes = [node.attributes["N"].as_int() for node in nodes]
    parts = [
        _constant(graph, f"{first.inputs[place].name}.merged", np.concatenate([_array(n.inputs[place]) for n in nodes]))
        for place in (1, 2)
    ]
    attributes = {name: each for name, each in first.attributes.items() if name != "N"}
    product = ir.node("MatMulNBits", [first.inputs[0], *parts], {"N": sum(sizes)}, domain=MICROSOFT)
    product.attributes.update(attributes)
    lengths = _constant(graph, f"{parts[0].name}.sizes", np.array(sizes))
    split = ir.node("Split", [product.outputs[0], lengths], {"axis": -1}, num_outputs=len(nodes))
    graph.insert_before(first, [product, split])
    for node, part in zip(nodes, split.outputs, strict=True):
        ir.convenience.replace_all_uses_with(node.outputs[0], part)
        graph.remove(node, safe=True)


def rotate_inside(model: ir.Model) -> ir.Model:
    """The attention turns queries and keys itself, and takes them in one piece with the values if they come so."""
    graph = model.graph
    inverse = _array(next(v for name, v in graph.initializers.items() if name.endswith("inv_freq")))
    angles = np.arange(CAPACITY)[:, None] * inverse.astype(np.float64)
    tables = [_constant(graph, f"{f.__name__}.table", f(angles).astype(np.float32)) for f in (np.cos, np.sin)]
    positions = next(value for value in graph.inputs if value.name == "position_ids")
    for node in [each for each in graph if each.op_type == "GroupQueryAttention"]:
        turned = [_source(node.inputs[place], "RotaryEmbedding") for place in (0, 1)]
        flat = [_source(each.inputs[0], "MatMulNBits", "Split") for each in turned]
        flat.append(_source(node.inputs[2], "MatMulNBits", "Split"))
        if flat[0].op_type == "Split":  # of the three
            given = [flat[0].inputs[0], None, None]
        else:
            given = [product.outputs[0] for product in flat]
        attributes = dict(node.attributes) | {"do_rotary": ir.AttrInt64("do_rotary", 1)}
        inputs = [*given, *node.inputs[3:7], *tables, positions]
        _exchange(graph, node, ir.Node(MICROSOFT, "GroupQueryAttention", inputs, attributes.values(), num_outputs=3))
    RemoveUnusedNodesPass()(model)
    return model


def small_cache(model: ir.Model, largest: dict[str, float]) -> ir.Model:
    """Keys and values are kept in 8 bits, each layer's on one scale.

    Args:
        model: Changed.
        largest: Magnitude of each `past.` input that the end of the range stands for.
    """
    graph = model.graph
    for node in [each for each in graph if each.op_type == "GroupQueryAttention"]:
        scales = []
        for value in node.inputs[3:5]:
            value.type = ir.TensorType(ir.DataType.INT8)
            scale = np.array([largest[value.name] / 127], np.float32)
            scales.append(_constant(graph, f"{value.name}.scale", scale))
        for value in node.outputs[1:]:
            value.type = ir.TensorType(ir.DataType.INT8)
        kinds = {name: ir.AttrString(name, "PER_TENSOR") for name in ("k_quant_type", "v_quant_type")}
        kinds["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
        inputs = [*node.inputs, *[None] * (12 - len(node.inputs)), *scales]
        attributes = dict(node.attributes) | kinds
        _exchange(graph, node, ir.Node(MICROSOFT, "GroupQueryAttention", inputs, attributes.values(), num_outputs=3))
    return model


def _exchange(graph: ir.Graph, node: Any, by: Any) -> None:
    """One attention for another, what comes out of it under the same names."""
    graph.insert_before(node, by)
    for old, new in zip(node.outputs, by.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _source(value: Any, *kinds: str) -> Any:
    """The node that a value comes from, behind changes of shape."""
    node = value.producer()
    while node.op_type not in kinds:
        node = node.inputs[0].producer()
    return node


def _array(value: Any) -> Any:
    return value.const_value.numpy()


def _constant(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    value = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(array, name=name),
    )
    graph.register_initializer(value)
    return value
