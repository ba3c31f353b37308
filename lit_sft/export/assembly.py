"""A traced network and written weights become the graph of a folder: attention with its cache, the head, the data.

`Fused`: com.microsoft.GroupQueryAttention over a cache that is written in place, of a length of its own in every row.
`Portable`: operators of the standard over a cache that is handed in and comes out longer, rows padded on the left.

Shapes: B rows, S new tokens, P cached ones, T = P + S, C tokens that a cache has room for, L positions whose logits
are wanted, N heads, K heads of keys, D and E dimensions of a key and a value, H width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lit_sft.checkpoint.onnx_session import LayerSize
from lit_sft.export.editing import Editor
from lit_sft.export.graph import ATTENTION
from lit_sft.export.placement import MICROSOFT, Weights
from lit_sft.export.shapes import simplify
from lit_sft.export.weights import WeightStore


class Assembly(Editor, ABC):
    """One form of the graph.

    Args:
        model: Of `trace`; changed.
        store: The weights.
    """

    name: ClassVar[str]
    inputs: ClassVar[dict[str, tuple[Any, tuple[str | int, ...]]]]
    """Inputs of this form: type and dimensions."""
    cached: ClassVar[str]
    """What the dimension of the cache that counts tokens is called where it is handed in, and where it comes out."""
    written: ClassVar[str]

    def __init__(self, model: ir.Model, store: WeightStore) -> None:
        super().__init__(model.graph)
        self.model = model
        self.store = store
        self.weights = Weights(self, store)
        self.values: dict[str, ir.Value] = {}
        self.layers: list[LayerSize] = []

    def assemble(self, scores: torch.Tensor | None = None) -> ir.Model:
        """The finished graph, its data in the file of the store.

        Args:
            scores: Weight [1, H] of the head of a reward model, in place of the head of the store.

        Raises:
            ConfigError, CheckpointError: As `Weights.place`.
        """
        import onnxscript.optimizer
        import onnxscript.rewriter.onnx_fusions

        self._name_inputs()
        self.weights.place()
        outputs = self._attend()
        self._head(scores)
        self.graph.outputs.extend(outputs)
        self.model.opset_imports.pop(ATTENTION.partition(":")[0], None)
        self.model.opset_imports[MICROSOFT] = 1
        self.store.data.file.flush()  # what optimizes a graph looks at constants
        onnxscript.optimizer.optimize_ir(self.model)
        onnxscript.rewriter.onnx_fusions.fuse(self.model)
        simplify(self)
        RemoveUnusedNodesPass()(self.model)
        return self.model

    # -- what a form does --------------------------------------------------------------------------------------------

    @abstractmethod
    def mask(self) -> ir.Value | None:
        """What all layers share beside the cache."""

    @abstractmethod
    def attend(
        self, query: ir.Value, key: ir.Value, value: ir.Value, past: Sequence[ir.Value], scale: float
    ) -> tuple[ir.Value, Sequence[Any]]:
        """Mixed values [B, S, N, E], and keys and values of the cache with the new ones."""

    # -- inputs and outputs ------------------------------------------------------------------------------------------

    def _name_inputs(self) -> None:
        """The traced inputs under their names, and those of this form."""
        names = ["input_ids", "position_ids", "prefix_length"]
        renamed: dict[str, str] = {}
        for value, name in zip(self.graph.inputs, names, strict=False):
            own = ("batch", "sequence")[: len(value.shape)]
            renamed |= {str(dim.value): name for dim, name in zip(value.shape, own, strict=True)}
            value.name, self.values[name] = name, value
        for each in (*self.graph.inputs, *(out for node in self.graph for out in node.outputs)):
            if each.shape is not None:
                each.shape = ir.Shape(
                    [renamed.get(str(d.value), d.value) if isinstance(d, ir.SymbolicDim) else d for d in each.shape]
                )
        common = {"logit_positions": (ir.DataType.INT64, ("batch", "outputs"))}
        for name, (dtype, dims) in (common | self.inputs).items():
            self.values[name] = _value(name, dtype, dims)
            self.graph.inputs.append(self.values[name])

    def _attend(self) -> list[ir.Value]:
        """Replace every node of the attention; returns what comes out of the cache."""
        nodes = [node for node in self.graph if f"{node.domain}::{node.op_type}" == ATTENTION]
        outputs: list[ir.Value] = []
        pasts: list[list[Any]] = []
        for layer, node in enumerate(nodes):
            _, key, value = node.inputs
            sizes = LayerSize(int(key.shape[1]), int(key.shape[3]), int(value.shape[3]))
            self.layers.append(sizes)
            past = [
                _value(f"past.{layer}.{part}", key.dtype, ("batch", sizes.num_heads, self.cached, dim))
                for part, dim in (("key", sizes.key_dim), ("value", sizes.value_dim))
            ]
            self.graph.inputs.extend(past)
            pasts.append(past)
        self.anchor = nodes[0]
        self.values |= {"past": pasts[0][0]}
        mask = self.mask()
        if mask is not None:
            self.values["mask"] = mask
        for layer, node in enumerate(nodes):
            self.anchor = node
            query, key, value = node.inputs
            mixed, presents = self.attend(query, key, value, pasts[layer], node.attributes["scale"].as_float())
            for before, present in zip(pasts[layer], presents, strict=True):
                present.name = f"present.{(before.name or '').removeprefix('past.')}"
                present.dtype = before.dtype
                present.shape = ir.Shape(
                    [self.written if dim == self.cached else dim for dim in map(_dim, before.shape)]
                )
                outputs.append(present)
            self.replace(node, mixed)
        return outputs

    def _head(self, scores: torch.Tensor | None) -> None:
        """Logits [B, L, V] or scores [B, L] of the chosen positions, in float32."""
        self.anchor = None
        hidden = self.graph.outputs.pop()
        places = self.node("Unsqueeze", self.values["logit_positions"], self.ints([2]))
        chosen = self.node("GatherND", hidden, places, batch_dims=1)
        if scores is not None:
            weight = self.constant(scores.float().T.contiguous().numpy(), "scores.weight")
            product = self.node("MatMul", self.node("Cast", chosen, to=int(ir.DataType.FLOAT)), weight)
            self._output("scores", self.node("Squeeze", product, self.ints([2])), ("batch", "outputs"))
            return
        logits = self.weights.product(chosen, self.store.head)
        bias = self.store.head.removesuffix("weight") + "bias"
        if bias in self.store.originals:
            logits = self.node("Add", logits, self.weights.plain(bias))
        if self.store.precision.compute != torch.float32:
            logits = self.node("Cast", logits, to=int(ir.DataType.FLOAT))
        self._output("logits", logits, ("batch", "outputs", self.store.num_logits))

    def _output(self, name: str, value: ir.Value, dims: Sequence[str | int]) -> None:
        value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape(dims)
        self.graph.outputs.append(value)

    def with_prefix(self, seen: ir.Value, keys: ir.Value) -> ir.Value:
        """Who is seen, [B, S, T]: also all keys in the prefix, where there is one."""
        if "prefix_length" not in self.values:
            return seen
        ends = self.node("Unsqueeze", self.values["prefix_length"], self.ints([1, 2]))
        return self.node("Or", seen, self.node("Less", keys, ends))  # type: ignore[no-any-return]


class Fused(Assembly):
    """Keys and values go into the buffer that holds the cache, and nothing is copied."""

    name = "fused"
    inputs: ClassVar = {
        "seqlens_k": (ir.DataType.INT32, ("batch",)),
        "total_length": (ir.DataType.INT32, (1,)),
    }
    cached = written = "capacity"

    def mask(self) -> ir.Value | None:
        """Added to the scores [B, 1, S, total_length] where a prefix sees itself; else the operator is causal."""
        if "prefix_length" not in self.values:
            return None
        dtype: Any = self.values["past"].dtype
        total = self.node("Squeeze", self.node("Cast", self.values["total_length"], to=int(ir.DataType.INT64)))
        count = self.node("Range", self.ints(0), total, self.ints(1))
        keys = self.node("Unsqueeze", count, self.ints([0, 1]))
        queries = self.node("Unsqueeze", self.values["position_ids"], self.ints([2]))
        seen = self.with_prefix(self.node("LessOrEqual", keys, queries), keys)
        zero, lowest = (self.constant(np.array(x, dtype.numpy())) for x in (0, np.finfo(dtype.numpy()).min))
        return self.node("Unsqueeze", self.node("Where", seen, zero, lowest), self.ints([1]))  # type: ignore[no-any-return]

    def attend(
        self, query: ir.Value, key: ir.Value, value: ir.Value, past: Sequence[ir.Value], scale: float
    ) -> tuple[ir.Value, Sequence[Any]]:
        """One operator between changes of shape."""
        flat = [
            self.node("Reshape", self.node("Transpose", part, perm=[0, 2, 1, 3]), self.ints([0, 0, -1]))
            for part in (query, key, value)
        ]
        inputs = [*flat, *past, self.values["seqlens_k"], self.values["total_length"]]
        heads, groups = (int(part.shape[1]) for part in (query, key))  # type: ignore[index, arg-type]
        attributes = {"num_heads": heads, "kv_num_heads": groups, "scale": scale}
        if "mask" in self.values:
            # cos_cache, sin_cache and position_ids, which only its own rotation reads.
            inputs += [None, None, None, self.values["mask"]]
            attributes["causal"] = 0
        mixed, *presents = self.node("GroupQueryAttention", *inputs, domain=MICROSOFT, outputs=3, **attributes)
        batch, _, length, width = value.shape  # type: ignore[misc]
        mixed.dtype, mixed.shape = value.dtype, ir.Shape([batch, length, heads * width])
        return self.node("Reshape", mixed, self.ints([0, 0, heads, -1])), presents


class Portable(Assembly):
    """For any runtime."""

    name = "portable"
    inputs: ClassVar = {"padding": (ir.DataType.INT64, ("batch",))}
    cached, written = "past", "total"

    def mask(self) -> ir.Value:
        """Which keys each query sees, [B, 1, S, T] bool."""
        num_past = self.node("Squeeze", self.node("Shape", self.values["past"], start=2, end=3))
        length = self.node("Squeeze", self.node("Shape", self.values["input_ids"], start=1, end=2))
        total = self.node("Add", num_past, length)
        padding = self.node("Unsqueeze", self.values["padding"], self.ints([1, 2]))

        def behind_padding(first: ir.Value, axes: Sequence[int]) -> Any:
            count = self.node("Range", first, total, self.ints(1))
            return self.node("Sub", self.node("Unsqueeze", count, self.ints(axes)), padding)

        keys, queries = behind_padding(self.ints(0), [0, 1]), behind_padding(num_past, [0, 2])
        seen = self.with_prefix(self.node("LessOrEqual", keys, queries), keys)
        seen = self.node("And", seen, self.node("GreaterOrEqual", keys, self.ints(0)))
        return self.node("Unsqueeze", seen, self.ints([1]))  # type: ignore[no-any-return]

    def attend(
        self, query: ir.Value, key: ir.Value, value: ir.Value, past: Sequence[ir.Value], scale: float
    ) -> tuple[ir.Value, Sequence[Any]]:
        """Spelt out, the scores in float32."""
        presents = [self.node("Concat", before, new, axis=2) for before, new in zip(past, (key, value), strict=True)]
        heads = int(query.shape[1])  # type: ignore[index, arg-type]
        keys, values = (self._spread(part, heads, new) for part, new in zip(presents, (key, value), strict=True))
        single = int(ir.DataType.FLOAT)
        scaled = self.node("Mul", self.node("Cast", query, to=single), self.constant(np.array(scale, np.float32)))
        turned = self.node("Transpose", self.node("Cast", keys, to=single), perm=[0, 1, 3, 2])
        lowest = self.constant(np.array(np.finfo(np.float32).min))
        scores = self.node("Where", self.values["mask"], self.node("MatMul", scaled, turned), lowest)
        weights = self.node("Cast", self.node("Softmax", scores, axis=-1), to=int(value.dtype))  # type: ignore[arg-type]
        return self.node("Transpose", self.node("MatMul", weights, values), perm=[0, 2, 1, 3]), presents

    def _spread(self, part: Any, heads: int, new: Any) -> Any:
        """Keys or values [B, N, T, .], each as often as queries share it."""
        groups, width = int(new.shape[1]), int(new.shape[3])
        if groups == heads:
            return part
        repeats = self.ints([1, 1, heads // groups, 1, 1])
        wide = self.node("Expand", self.node("Unsqueeze", part, self.ints([2])), repeats)
        return self.node("Reshape", wide, self.ints([0, heads, -1, width]))


FORMS: dict[str, type[Assembly]] = {form.name: form for form in (Fused, Portable)}


def set_accuracy(model: ir.Model, level: int) -> None:
    """How products with blocks compute: 0 in float32, 4 with activations rounded to 8 bits, which is faster."""
    for node in model.graph:
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)


def _value(name: str, dtype: Any, dims: Sequence[str | int]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))


def _dim(dim: Any) -> str | int:
    return dim if isinstance(dim, int) else str(dim.value)
