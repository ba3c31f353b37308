"""The weights of a traced graph: read from the data file, multiplied in the form that they have there.

Matrices that multiply the same input, as those of query, key and value do, become one product, cut apart behind it,
where they are kept in blocks: threads wait less often for each other, and a token is answered faster.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from lit_sft.errors import ConfigError
from lit_sft.export.editing import Editor
from lit_sft.export.weights import Stored, WeightStore

TYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16, torch.uint8: ir.DataType.UINT8}

INTEGERS: dict[int | None, ir.DataType] = {8: ir.DataType.INT8, 4: ir.DataType.INT4}
"""By their bits, for DequantizeLinear."""

MICROSOFT = "com.microsoft"


class Weights:
    """The weights of a graph.

    Args:
        editor: Of the graph.
        store: Holds them, and writes each when it is placed.
    """

    def __init__(self, editor: Editor, store: WeightStore) -> None:
        self.editor = editor
        self.store = store

    def place(self) -> None:
        """Put what is stored in the place of the weights that were traced.

        Raises:
            ConfigError: If a weight is used otherwise than by a linear layer or by looking up rows.
            CheckpointError: If one holds a number that is not finite, or too large for the type.
        """
        graph = self.editor.graph
        values = {value: value.name.removeprefix("network.") for value in graph.initializers.values()}
        linear = [value for value, name in values.items() if name in self.store.linear]
        names = {product: values[value] for value in linear for product in self._products(value, values[value])}
        for nodes in self._groups(names):
            self._multiply(nodes, [names[node] for node in nodes])
        for value in linear:
            for transpose, _ in [*value.uses()]:
                graph.remove(transpose, safe=True)
            del graph.initializers[value.name]
        for value, name in values.items():
            if value not in linear and name in self.store.originals:
                self._place_plain(value, name)

    def plain(self, name: str) -> ir.Value:
        """A weight as it is."""
        return self._initializer(name, self.store.export(name).parts[0])

    def product(self, given: Any, *names: str) -> Any:
        """`given` [..., K] times a matrix, or times several, one result behind the other."""
        weight = self.store.export(*names)
        name = "+".join(names)
        stored, *rest = weight.parts
        scales = [self._initializer(f"{name}.scales", each) for each in rest]
        precision, node = self.store.precision, self.editor.node
        if weight.is_quantized and weight.is_transposed:
            shape = weight.num_inputs, rest[0].shape[1]
            integers = self.editor.register(self._external(f"{name}.stored", stored, INTEGERS[precision.bits], shape))
            found = node("DequantizeLinear", integers, *scales, axis=0, block_size=precision.block)
            return node("MatMul", given, found)
        part = self._initializer(name, stored)
        if not weight.is_quantized:
            return node("MatMul", given, part)
        sizes: dict[str, Any] = {"K": weight.num_inputs, "N": stored.shape[0]}
        sizes |= {"bits": precision.bits, "block_size": precision.block}
        return node("MatMulNBits", given, part, *scales, domain=MICROSOFT, **sizes)

    def _products(self, value: Any, name: str) -> Iterator[Any]:
        """The products behind Transpose(weight)."""
        for transpose, _ in value.uses():
            for product, place in transpose.outputs[0].uses():
                if transpose.op_type != "Transpose" or product.op_type != "MatMul" or place != 1:
                    raise ConfigError(f"weight {name} is used otherwise than by a linear layer: it cannot be exported")
                yield product

    def _groups(self, names: Mapping[Any, str]) -> Iterable[list[Any]]:
        """Products that become one, each alone where nothing shares its input."""
        uses = Counter(names.values())
        groups: dict[Any, list[Any]] = defaultdict(list)
        for node in self.editor.graph:  # in this order, so what the first of a group has is there for all of them
            if node in names:
                is_merged = self.store.precision.is_merged and uses[names[node]] == 1
                groups[node.inputs[0] if is_merged else node].append(node)
        return groups.values()

    def _multiply(self, nodes: Sequence[Any], names: Sequence[str]) -> None:
        """One product in the place of some of the same input."""
        self.editor.anchor = nodes[0]
        results = [self.product(nodes[0].inputs[0], *names)]
        if len(nodes) > 1:
            sizes = self.editor.ints([self.store.originals[name].shape[0] for name in names])
            results = self.editor.node("Split", *results, sizes, outputs=len(nodes), axis=-1)
        for node, result in zip(nodes, results, strict=True):
            self.editor.replace(node, result)

    def _place_plain(self, value: Any, name: str) -> None:
        """As it is; what is kept in another type than the graph computes in is converted after looking it up."""
        wanted = value.dtype
        (stored,) = self.store.export(name).parts
        value.const_value = self._external(value.name, stored)
        if TYPES[stored.dtype] == wanted:
            return
        value.type = ir.TensorType(TYPES[stored.dtype])
        for gather, _ in [*value.uses()]:
            if gather.op_type != "Gather":
                raise ConfigError(f"weight {name} is used by {gather.op_type}: it must stay in full precision")
            self.editor.anchor = gather
            found = self.editor.node("Gather", *gather.inputs, axis=gather.attributes["axis"].as_int())
            found.dtype, found.shape = value.dtype, gather.outputs[0].shape
            self.editor.replace(gather, self.editor.node("Cast", found, to=int(wanted)))

    def _initializer(self, name: str, stored: Stored) -> ir.Value:
        return self.editor.register(self._external(f"{name}.stored", stored))

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
