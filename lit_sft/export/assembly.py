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

from lit_sft.checkpoint.onnx_session import LayerSize
from lit_sft.errors import ConfigError
from lit_sft.export.graph import ATTENTION
from lit_sft.export.weights import Stored, Weight, WeightStore

TYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16, torch.uint8: ir.DataType.UINT8}

INTEGERS: dict[int | None, ir.DataType] = {8: ir.DataType.INT8, 4: ir.DataType.INT4}
"""By their bits, for DequantizeLinear."""

MICROSOFT = "com.microsoft"


class Assembly(ABC):
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
        self.model = model
        self.graph: Any = model.graph
        self.store = store
        self.anchor: Any = None
        self.values: dict[str, ir.Value] = {}
        self.layers: list[LayerSize] = []

    def assemble(self, scores: torch.Tensor | None = None) -> ir.Model:
        """The finished graph, its data in the file of the store.

        Args:
            scores: Weight [1, H] of the head of a reward model, in place of the head of the store.

        Raises:
            ConfigError: If a weight is used otherwise than by a linear layer or by looking up rows.
        """
        import onnxscript.optimizer
        import onnxscript.rewriter.onnx_fusions

        self.store.data.file.flush()  # what optimizes a graph looks at constants
        self._name_inputs()
        self._place_weights()
        outputs = self._attend()
        self._head(scores)
        self.graph.outputs.extend(outputs)
        self.model.opset_imports.pop(ATTENTION.partition(":")[0], None)
        self.model.opset_imports[MICROSOFT] = 1
        onnxscript.optimizer.optimize_ir(self.model)
        onnxscript.rewriter.onnx_fusions.fuse(self.model)
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
            self.values[name] = self._value(name, dtype, dims)
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
                self._value(f"past.{layer}.{part}", key.dtype, ("batch", sizes.num_heads, self.cached, dim))
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
            self._replace(node, mixed)
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
        logits = self._product(chosen, self.store.head)
        bias = self.store.head.removesuffix("weight") + "bias"
        if bias in self.store.exported:
            logits = self.node("Add", logits, self._initializer(bias, self.store.exported[bias].parts[0]))
        if self.store.precision.compute != torch.float32:
            logits = self.node("Cast", logits, to=int(ir.DataType.FLOAT))
        self._output("logits", logits, ("batch", "outputs", self.store.num_logits))

    def _output(self, name: str, value: ir.Value, dims: Sequence[str | int]) -> None:
        value.name, value.dtype, value.shape = name, ir.DataType.FLOAT, ir.Shape(dims)
        self.graph.outputs.append(value)

    # -- weights -----------------------------------------------------------------------------------------------------

    def _place_weights(self) -> None:
        """Let the graph read its weights from the file of the store, in the form that they have there."""
        for value in [*self.graph.initializers.values()]:
            name = value.name.removeprefix("network.")
            weight = self.store.exported.get(name)
            if weight is None:
                continue
            if weight.is_quantized or weight.is_transposed:
                self._place_linear(value, name)
            else:
                self._place_plain(value, weight.parts[0])

    def _place_plain(self, value: Any, stored: Stored) -> None:
        """As it is; what is kept in another type than the graph computes in is converted after looking it up."""
        wanted = value.dtype
        value.const_value = self._external(value.name, stored)
        if TYPES[stored.dtype] == wanted:
            return
        value.type = ir.TensorType(TYPES[stored.dtype])
        for gather, _ in [*value.uses()]:
            if gather.op_type != "Gather":
                raise ConfigError(f"weight {value.name} is used by {gather.op_type}: it must stay in full precision")
            self.anchor = gather
            found = self.node("Gather", *gather.inputs, axis=gather.attributes["axis"].as_int())
            found.dtype, found.shape = value.dtype, gather.outputs[0].shape
            self._replace(gather, self.node("Cast", found, to=int(wanted)))

    def _place_linear(self, value: Any, name: str) -> None:
        """Transpose(weight) -> MatMul becomes a product with what is stored."""
        for transpose, _ in [*value.uses()]:
            users = [*transpose.outputs[0].uses()]
            if transpose.op_type != "Transpose" or any(n.op_type != "MatMul" or place != 1 for n, place in users):
                raise ConfigError(f"weight {name} is used otherwise than by a linear layer: it cannot be exported")
            for product, _ in users:
                self.anchor = product
                self._replace(product, self._product(product.inputs[0], name))
            self.graph.remove(transpose, safe=True)
        del self.graph.initializers[value.name]

    def _product(self, given: Any, name: str) -> Any:
        """`given` [..., K] times the weight of the store."""
        weight: Weight = self.store.exported[name]
        stored, *rest = weight.parts
        scales = [self._initializer(f"{name}.scales", each) for each in rest]
        precision = self.store.precision
        if weight.is_quantized and weight.is_transposed:
            shape = weight.num_inputs, rest[0].shape[1]
            integers = self._register(self._external(f"{name}.stored", stored, INTEGERS[precision.bits], shape))
            found = self.node("DequantizeLinear", integers, *scales, axis=0, block_size=precision.block)
            return self.node("MatMul", given, found)
        part = self._initializer(name, stored)
        if not weight.is_quantized:
            return self.node("MatMul", given, part)
        sizes: dict[str, Any] = {"K": weight.num_inputs, "N": stored.shape[0]}
        sizes |= {"bits": precision.bits, "block_size": precision.block}
        return self.node("MatMulNBits", given, part, *scales, domain=MICROSOFT, **sizes)

    def _initializer(self, name: str, stored: Stored) -> ir.Value:
        return self._register(self._external(f"{name}.stored", stored))

    def _external(
        self, name: str, stored: Stored, dtype: ir.DataType | None = None, shape: Sequence[int] = ()
    ) -> ir.ExternalTensor:
        file = self.store.data.path
        return ir.ExternalTensor(
            file.name,
            stored.offset,
            stored.num_bytes,
            dtype or TYPES[stored.dtype],
            shape=ir.Shape(shape or stored.shape),
            name=name,
            base_dir=file.parent,
        )

    # -- nodes -------------------------------------------------------------------------------------------------------

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
        name = name or f"constant_{len(self.graph.initializers)}"
        return self._register(ir.tensor(array, name=name))

    def ints(self, numbers: Sequence[int] | int) -> ir.Value:
        """Axes, shapes and the like."""
        return self.constant(np.array(numbers, np.int64))

    def _register(self, tensor: Any) -> ir.Value:
        value = self.graph.initializers.get(tensor.name)
        if value is None:
            value = ir.Value(name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            self.graph.register_initializer(value)
        return value  # type: ignore[no-any-return]

    def _value(self, name: str, dtype: Any, dims: Sequence[str | int]) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype))

    def _replace(self, node: Any, value: ir.Value) -> None:
        old = node.outputs[0]
        if value.dtype is None and old.dtype is not None:
            value.dtype = old.dtype
        value.shape = value.shape or old.shape
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

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


def _dim(dim: Any) -> str | int:
    return dim if isinstance(dim, int) else str(dim.value)
