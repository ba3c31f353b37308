"""Changes to an exported graph of one attention per layer that promise speed: each gives the graph changed.

Shapes: N outputs of a product, C tokens that a cache has room for, D dimensions of a head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

MICROSOFT = "com.microsoft"
CAPACITY = 2048
"""Tokens that angles are stored for."""


def rotate_inside(model: ir.Model) -> ir.Model:
    """The attention turns queries and keys itself, and takes them with the values as their product leaves them."""
    graph = model.graph
    inverse = _array(next(v for name, v in graph.initializers.items() if name.endswith("inv_freq")))
    angles = np.arange(CAPACITY)[:, None] * inverse.astype(np.float64)
    tables = [_constant(graph, f"{f.__name__}.table", f(angles).astype(np.float32)) for f in (np.cos, np.sin)]
    positions = next(value for value in graph.inputs if value.name == "position_ids")
    for node in [each for each in graph if each.op_type == "GroupQueryAttention"]:
        split = node.inputs[2].producer()
        turned = [value.producer() for value in node.inputs[:2]]
        if [each.inputs[0].producer() for each in turned] != [split, split] or len(split.outputs) != 3:
            raise SystemExit("no family whose queries, keys and values are one product, and which rotates whole heads")
        attributes = dict(node.attributes) | {"do_rotary": ir.AttrInt64("do_rotary", 1)}
        inputs = [split.inputs[0], None, None, *node.inputs[3:7], *tables, positions]
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
