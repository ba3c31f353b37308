"""Weights from a checkpoint into the data file of a graph, a tensor at a time.

The family's own loading converts each tensor (a fused matrix split, a name changed); here it is taken before it gets
into the network, merged with its part of an adapter, kept in a file as it was, and forgotten. When the graph is known
each is read from there, and written as the graph wants it: some matrices side by side. The first file stays until the
graph was compared with it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.export.blocks import dequantize, pack_signed, quantize, row_chunks, to_signed, unpack_signed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lit_sft.checkpoint.opening import Checkpoint
    from lit_sft.tuning._adapter_loading import PlacedAdapter

ALIGNMENT = 4096
"""Of tensors in a file: a runtime can map what begins on a page."""


class Precision(NamedTuple):
    """What the graph computes in, and how it keeps the weights of linear layers.

    Args:
        name: On the command line.
        compute: Type of activations, cache and all other weights.
        bits: Of each weight of a linear layer, None where they are not quantized.
        block: Weights that share a scale.
        is_standard: Whether integers are kept as DequantizeLinear reads them, and not as MatMulNBits.
    """

    name: str
    compute: torch.dtype
    bits: int | None = None
    block: int = 128
    is_standard: bool = False

    @property
    def is_merged(self) -> bool:
        """Whether matrices that multiply the same input stand side by side, as one."""
        return self.bits is not None and not self.is_standard

    @property
    def embedding(self) -> torch.dtype:
        """Type of the embedding, which is not multiplied, only looked up."""
        return torch.float16 if self.bits else self.compute


PRECISIONS = {
    "float32": Precision("float32", torch.float32),
    "float16": Precision("float16", torch.float16),
    "int8": Precision("int8", torch.float32, bits=8),
    "int4": Precision("int4", torch.float32, bits=4),
}


class Stored(NamedTuple):
    """Where a tensor stands in a file."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, first: int, number: int) -> Stored:
        """Some of its rows."""
        shape = number, *self.shape[1:]
        return Stored(self.offset + first * math.prod(shape[1:]) * self.dtype.itemsize, self.dtype, shape)


class DataFile:
    """Tensors one behind the other in a file, without a header.

    Args:
        path: Written anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, chunks: Iterable[Tensor], shape: Iterable[int], dtype: torch.dtype) -> Stored:
        """Append the chunks, which together are one tensor."""
        self.file.seek(0, 2)
        offset = -(-self.file.tell() // ALIGNMENT) * ALIGNMENT
        self.file.write(b"\0" * (offset - self.file.tell()))
        for chunk in chunks:
            self.file.write(chunk.to(dtype).contiguous().view(torch.uint8).numpy().data)
        stored = Stored(offset, dtype, tuple(shape))
        assert self.file.tell() == offset + stored.num_bytes
        return stored

    def read(self, stored: Stored) -> Tensor:
        """A tensor that was written."""
        self.file.flush()
        content = np.fromfile(self.path, np.uint8, count=stored.num_bytes, offset=stored.offset)
        return torch.from_numpy(content).view(stored.dtype).view(stored.shape)


class Weight(NamedTuple):
    """A parameter as the graph has it: one tensor, [in, out] if `is_transposed`; or integers and scales.

    These are [in, out] and [blocks, out] if `is_transposed`, else [out, blocks, bytes of one] and [out, blocks].
    """

    parts: tuple[Stored, ...]
    is_transposed: bool = False
    num_inputs: int = 0

    @property
    def is_quantized(self) -> bool:
        """Whether it is integers and scales."""
        return len(self.parts) > 1


@dataclass
class WeightStore:
    """All weights of a model, as its graph has them and as they were.

    Args:
        data: File of the graph.
        original: File of the others.
        precision: Of the graph.
        linear: Names of the weights of linear layers.
        head: Name of that of the head.
        embedding: Name of that of the embedding.
        is_tied: Whether the head has the weight of the embedding.
        plain_head: Rows of the head as a plain linear layer has them.
        has_head: Whether the graph has it, and not one of scores.
        merge: Adds to a weight what an adapter has learned.
    """

    data: DataFile
    original: DataFile
    precision: Precision
    linear: frozenset[str]
    head: str
    embedding: str
    is_tied: bool
    plain_head: Callable[[Tensor], Tensor]
    has_head: bool = True
    merge: Callable[[str, Tensor], Tensor] = lambda name, weight: weight
    originals: dict[str, Stored] = field(default_factory=dict)
    exported: dict[str, Weight] = field(default_factory=dict)

    def take(self, name: str, weight: Tensor) -> None:
        """Keep the parameter `name`."""
        if name == self.head and (self.is_tied or not self.has_head):
            return  # the embedding wins over a head that is stored beside it
        kept = self.merge(name, weight)
        self.originals[name] = self._keep(kept)
        if name == self.embedding and self.is_tied and self.has_head:
            # An adapter may have changed one of the two only: then they are tied no longer.
            head = self.merge(self.head, weight)
            self.originals[self.head] = self.originals[name] if head is kept else self._keep(head)

    def _keep(self, weight: Tensor) -> Stored:
        return self.original.write(row_chunks(weight), weight.shape, weight.dtype)

    @property
    def num_logits(self) -> int:
        """Rows of the head."""
        return self.originals[self.head].shape[0]

    def export(self, *names: str) -> Weight:
        """A parameter as the graph has it, or several matrices one below the other; written when first asked for.

        Raises:
            CheckpointError: If one holds a number that is not finite, or too large for the type.
        """
        key = "+".join(names)
        if key not in self.exported:
            if names[0] not in self.linear:
                self.exported[key] = self._plain(*names)
            elif self.precision.bits:
                self.exported[key] = self._quantized(names)
            else:
                self.exported[key] = self._transposed(*names)
        return self.exported[key]

    def as_it_was(self, name: str) -> Tensor:
        """A parameter of the network in float32."""
        return self.original.read(self.originals[name]).float()

    def as_exported(self, name: str) -> Tensor:
        """What stands for it in the graph, in float32 and in its usual shape."""
        weight = self.export(name)
        if weight.is_quantized:
            assert self.precision.bits
            blocks, scales = map(self.data.read, weight.parts)
            if not weight.is_transposed:
                return dequantize(blocks, scales, self.precision.bits, weight.num_inputs)
            multiples = unpack_signed(blocks, self.precision.bits, (weight.num_inputs, scales.shape[1]))
            scale_of_each = scales.repeat_interleave(self.precision.block, 0)[: weight.num_inputs]
            return (multiples * scale_of_each).T.contiguous()
        read = self.data.read(weight.parts[0]).float()
        return read.T.contiguous() if weight.is_transposed else read

    def _plain(self, name: str) -> Weight:
        """In one of the types of the graph."""
        dtype = self.precision.embedding if name == self.embedding else self.precision.compute
        stored = self.originals[name]
        chunks = row_chunks(self.original.read(stored))
        return Weight((self.data.write((_finite(name, chunk.to(dtype)) for chunk in chunks), stored.shape, dtype),))

    def _transposed(self, name: str) -> Weight:
        """A matrix [N, K] as [K, N]."""
        dtype = self.precision.compute
        weight = torch.cat([_finite(name, rows.to(dtype)) for rows in self._rows(name)]).T
        return Weight((self.data.write(row_chunks(weight), weight.shape, dtype),), is_transposed=True)

    def _quantized(self, names: Sequence[str]) -> Weight:
        """Matrices [N, K] one below the other, and each of them as a part of the whole."""
        bits, block = self.precision.bits, self.precision.block
        assert bits
        numbers = [self.originals[name].shape[0] for name in names]
        num_outputs, num_inputs = sum(numbers), self.originals[names[0]].shape[1]
        num_blocks = -(-num_inputs // block)
        scales: list[Tensor] = []

        def chunks() -> Iterator[Tensor]:
            for name in names:
                for rows in self._rows(name):
                    blocks, of_rows = quantize(rows, bits, block)
                    scales.append(_finite(name, of_rows))
                    yield blocks

        if self.precision.is_standard:
            multiples = torch.cat([to_signed(blocks, bits, num_inputs) for blocks in chunks()])
            packed = pack_signed(multiples.T, bits)
            scale = torch.cat(scales).T
            parts = [self.data.write([each], each.shape, each.dtype) for each in (packed, scale)]
            return Weight((*parts,), is_transposed=True, num_inputs=num_inputs)
        stored = self.data.write(chunks(), (num_outputs, num_blocks, block * bits // 8), torch.uint8)
        whole = stored, self.data.write(scales, (num_outputs, num_blocks), torch.float32)
        for name, number, end in zip(names, numbers, accumulate(numbers), strict=True):
            rows = (part.rows(end - number, number) for part in whole)
            self.exported[name] = Weight((*rows,), num_inputs=num_inputs)
        return Weight(whole, num_inputs=num_inputs)

    def _rows(self, name: str) -> Iterator[Tensor]:
        """Some rows of a matrix at a time, as the graph multiplies with them."""
        rows = row_chunks(self.original.read(self.originals[name]))
        return map(self.plain_head, rows) if name == self.head else rows


def _finite(name: str, chunk: Tensor) -> Tensor:
    if not chunk.isfinite().all():
        raise CheckpointError(
            f"weight {name} holds a number that is not finite, or too large for {chunk.dtype}; "
            "export --dtype float32, or download the weights again"
        )
    return chunk


def stream_weights(checkpoint: Checkpoint, take: Callable[[str, Tensor], None]) -> PreTrainedModel:
    """Hand all weights of a checkpoint to `take`, by the names of the network, each in the type it is stored in.

    Returns:
        The network, its parameters on "meta" and its buffers in place.

    Raises:
        CheckpointError: As `load_model`.
    """
    with _diverted(take):
        return checkpoint.load_model(dtype=torch.float32)


@contextmanager
def _diverted(take: Callable[[str, Tensor], None]) -> Iterator[None]:
    """`from_pretrained` has no place to look on; a converted tensor passes through these two functions alone."""
    from transformers import core_model_loading as loading

    materialize, set_parameter = loading.spawn_materialize, loading.set_param_for_module

    def in_turn(thread_pool: Any, tensor: Any, device: Any, dtype: Any, *args: Any, **kwargs: Any) -> Any:
        # Threads would read ahead of what is written.
        return materialize(None, tensor, device, None, *args, **kwargs)

    def taken(model: Any, name: str, value: Tensor, info: Any, quantizer: Any) -> None:
        set_parameter(model, name, value.detach().to("meta"), info, quantizer)
        if all(name != each[0] for each in info.mismatched_keys):
            take(name, value.detach())

    module: Any = loading
    module.spawn_materialize, module.set_param_for_module = in_turn, taken
    try:
        yield
    finally:
        module.spawn_materialize, module.set_param_for_module = materialize, set_parameter


def merging(adapter: PlacedAdapter, skeleton: PreTrainedModel) -> Callable[[str, Tensor], Tensor]:
    """A function that merges an adapter into one weight after the other, as peft does.

    Args:
        adapter: The adapter.
        skeleton: The network on "meta", which is changed.

    Raises:
        ConfigError: If it trained biases, or a module that holds more than weights of the network.
    """
    config = copy.copy(adapter.config)
    whole: dict[str, Any] = {}
    changes: dict[str, Any] = {}
    for name, piece in adapter.pieces.items():
        (changes if "lora_" in name else whole)[name] = piece
    parameters = {name for name, _ in skeleton.named_parameters(remove_duplicate=False)}
    if config.bias != "none" or config.lora_bias or not whole.keys() <= parameters:
        raise ConfigError(
            f"adapter {adapter.file.folder} holds biases, or parts of modules that are not weights of the network: "
            "merge it first, and export the checkpoint"
        )
    trained = replace(adapter, pieces=whole).tensors()
    for module in skeleton.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # peft computes with the weights that it finds: these have a shape, a device, and one number.
            setattr(module, name, nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False))
    config.modules_to_save = None  # peft would copy these modules to put their weights in
    attached = replace(adapter, config=config, pieces=changes).attach(skeleton, is_trainable=False)
    network: Any = attached.base_model.model

    def merge(name: str, weight: Tensor) -> Tensor:
        if name in trained:
            return trained[name]
        path, _, part = name.rpartition(".")
        layer = network.get_submodule(path)
        if part != "weight" or not hasattr(layer, "merge"):
            return weight
        base = layer.get_base_layer()
        before, base.weight = base.weight, nn.Parameter(weight.float(), requires_grad=False)
        layer.merge()
        merged: Tensor = base.weight.detach()
        base.weight = before
        layer.merged_adapters.clear()
        return merged

    return merge
