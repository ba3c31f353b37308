"""A graph, changed node by node."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir


class Editor:
    """Puts nodes and constants into a graph, and takes nodes out of it.

    Args:
        graph: Changed.
    """

    def __init__(self, graph: Any) -> None:
        self.graph = graph
        self.anchor: Any = None
        """Node before which new ones stand."""
        self.numbers = count()

    def node(self, op: str, *inputs: ir.Value | None, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """A new node before the anchor, at the end without one; returns its output, or all if there are several."""
        made = ir.node(op, inputs, attributes, domain=domain, num_outputs=outputs)
        if self.anchor is None:
            self.graph.append(made)
        else:
            self.graph.insert_before(self.anchor, made)
        return made.outputs[0] if outputs == 1 else made.outputs

    def constant(self, array: Any, name: str = "") -> ir.Value:
        """A small tensor in the graph itself."""
        return self.register(ir.tensor(array, name=name or f"constant_{next(self.numbers)}"))

    def ints(self, numbers: Sequence[int] | int) -> ir.Value:
        """Axes, shapes and the like."""
        return self.constant(np.array(numbers, np.int64))

    def register(self, tensor: Any) -> ir.Value:
        """A tensor as an initializer, once under its name."""
        value = self.graph.initializers.get(tensor.name)
        if value is None:
            value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            self.graph.register_initializer(value)
        return value  # type: ignore[no-any-return]

    def replace(self, node: Any, value: ir.Value) -> None:
        """Give what used the only output of a node another value, and take the node out."""
        old = node.outputs[0]
        if value.dtype is None and old.dtype is not None:
            value.dtype = old.dtype
        value.shape = value.shape or old.shape
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
