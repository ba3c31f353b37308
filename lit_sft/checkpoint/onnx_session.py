"""An exported graph in onnxruntime: rows of tokens in, logits out, the cache beside them.

lit_sft/export/folder.py says what stands in a folder; here it is read with as little trust as any download.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_sft.checkpoint.files import GENERATION, GRAPH
from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.families.shared.settings import read_object

LARGEST = 1 << 20
"""More than any size in a generation.json is."""

FIRST_CAPACITY = 512
"""Tokens that a cache has room for before it grows; then it doubles."""

CHUNK = 256
"""Tokens of a prompt that are read at once: it bounds the memory for scores of attention."""

INSTALL = "onnxruntime is missing: pip install 'lit_sft[export]'"


class LayerSize(NamedTuple):
    """What a token adds to the cache of a layer: heads of keys, dimensions of a key and of a value."""

    num_heads: int
    key_dim: int
    value_dim: int


class Description(NamedTuple):
    """generation.json as far as the graph is concerned."""

    graph: Literal["fused", "portable"]
    output: Literal["logits", "scores"]
    dtype: Literal["float32", "float16"]
    layers: tuple[LayerSize, ...]
    context_length: int
    vocab_size: int
    prefix_end_id: int | None


def read_description(folder: Path) -> Description:
    """What generation.json says, every value checked.

    Raises:
        CheckpointError: Naming the key that is missing or wrong.
    """
    file = folder / GENERATION
    content = read_object(file)

    def wrong(key: str, expected: str) -> CheckpointError:
        return CheckpointError(f"{file}: {key} is {content.get(key)!r}; expected {expected}. Export the model again")

    def is_size(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST

    accepted = {"graph": ("fused", "portable"), "output": ("logits", "scores"), "cache_dtype": ("float32", "float16")}
    for key, values in accepted.items():
        if content.get(key) not in values:
            raise wrong(key, " or ".join(values))
    for key in ("context_length", "vocab_size"):
        if not is_size(content.get(key)):
            raise wrong(key, "a number of tokens")
    prefix = content.get("prefix_end_id")
    if prefix is not None and (not isinstance(prefix, int) or not 0 <= prefix < content["vocab_size"]):
        raise wrong("prefix_end_id", "a token, or null")
    layers = content.get("layers")
    keys = LayerSize._fields
    if not isinstance(layers, list) or not layers:
        raise wrong("layers", "a list of sizes")
    for layer in layers:
        if not isinstance(layer, dict) or not all(is_size(layer.get(key)) for key in keys):
            raise wrong("layers", f"{', '.join(keys)} of each layer")
    return Description(
        content["graph"],
        content["output"],
        content["cache_dtype"],
        tuple(LayerSize(*(layer[key] for key in keys)) for layer in layers),
        content["context_length"],
        content["vocab_size"],
        prefix,
    )


class GraphCache:
    """Keys and values of some rows.

    `arrays` are those of each layer in turn, [B, K, C, D] of which the first `lengths` [B] tokens of a row count; of
    a portable graph [B, K, P, D], `padding` [B] of them padding. `prefix` [B] says where the prefix of a row ends.
    """

    def __init__(self, arrays: list[NDArray[Any]]) -> None:
        self.arrays = arrays
        num_rows = len(arrays[0])
        self.lengths = np.zeros(num_rows, np.int64)
        self.padding = np.zeros(num_rows, np.int64)
        self.prefix = np.full(num_rows, -1, np.int64)

    def select(self, rows: Sequence[int]) -> GraphCache:
        """A cache with these rows of this one, in their order, some perhaps more than once."""
        chosen = GraphCache([array[rows] for array in self.arrays])
        chosen.lengths, chosen.padding, chosen.prefix = (
            each[rows] for each in (self.lengths, self.padding, self.prefix)
        )
        return chosen

    def row(self, index: int) -> GraphCache:
        """One row, whose arrays are views."""
        one = GraphCache([array[index : index + 1] for array in self.arrays])
        one.lengths, one.padding, one.prefix = (
            each[index : index + 1] for each in (self.lengths, self.padding, self.prefix)
        )
        return one


class GraphSession:
    """A graph that is ready to run on the CPU.

    Args:
        folder: With model.onnx and generation.json.
        model: The graph itself, in place of model.onnx.
        threads: Of a product; as onnxruntime chooses if not given.
        is_packed: Whether weights are copied into the order in which products read them. Otherwise they stay in the
            file, which takes no memory and no time to open, and products are slower.

    Raises:
        CheckpointError: If a file is damaged or does not fit the others.
        ConfigError: If onnxruntime is not installed.
    """

    def __init__(self, folder: Path, model: Path | None = None, threads: int = 0, *, is_packed: bool = True) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ConfigError(INSTALL) from None
        self.description = read_description(folder)
        file = model or folder / GRAPH
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if not is_packed:
            options.add_session_config_entry("session.disable_prepacking", "1")
            # Further optimizations would convert weights in half precision to float32, all of them at once.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.enable_cpu_mem_arena = False  # it would keep what was converted one after the other
            # The usual order has all conversions first, and everything converted in memory at once.
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has classes of its own for each fault
            said = str(error).strip().partition("\n")[0]
            raise CheckpointError(f"{file} cannot be loaded ({said}); export the model again") from None
        self.file = file
        self._check_inputs(file)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the cache."""
        return np.dtype(self.description.dtype)

    def new_cache(self, num_rows: int) -> GraphCache:
        """An empty cache."""
        room = FIRST_CAPACITY if self.description.graph == "fused" else 0
        sizes = [(k, dim) for k, *dims in self.description.layers for dim in dims]
        return GraphCache([np.zeros((num_rows, k, room, dim), self.dtype) for k, dim in sizes])

    def forward(self, rows: Sequence[Sequence[int]], cache: GraphCache, keep: int = 1) -> NDArray[np.float32]:
        """Logits [B, keep, V], or scores [B, keep], of the last tokens of each row, all of which join the cache.

        Args:
            rows: New tokens of each row, at least `keep`; of a portable graph as many in each unless it is empty.
            cache: What came before.
            keep: Positions whose logits are wanted.
        """
        prefix_end = self.description.prefix_end_id
        for index, row in enumerate(rows):
            if prefix_end is not None and cache.prefix[index] < 0 and prefix_end in row:
                cache.prefix[index] = cache.lengths[index] + [*row].index(prefix_end)
        if self.description.graph == "portable":
            return self._portable(rows, cache, keep)
        is_first = not cache.lengths.any() and max(map(len, rows)) <= CHUNK
        if len(rows) > 1 and not is_first and any(len(row) > 1 for row in rows):
            # GroupQueryAttention reads several tokens behind others in one row only.
            self._make_room(cache, max(len(row) + n for row, n in zip(rows, cache.lengths.tolist(), strict=True)))
            return np.concatenate([self.forward([row], cache.row(n), keep) for n, row in enumerate(rows)])
        if len(rows) == 1 and len(rows[0]) > CHUNK:
            return self._in_chunks(rows[0], cache, keep)
        return self._fused(rows, cache, keep)

    def _in_chunks(self, row: Sequence[int], cache: GraphCache, keep: int) -> NDArray[np.float32]:
        """A long row, a part after the other; a prefix sees itself both ways, so it is read at once."""
        first = max(CHUNK, int(cache.prefix[0]) - int(cache.lengths[0]))
        starts = [0, *range(first, len(row), CHUNK)]
        found = []
        for start, end in zip(starts, [*starts[1:], len(row)], strict=True):
            wanted = max(0, end - max(start, len(row) - keep))
            logits = self._fused([row[start:end]], cache, max(1, wanted))
            found += [logits] if wanted else []
        return np.concatenate(found, axis=1)

    def _fused(self, rows: Sequence[Sequence[int]], cache: GraphCache, keep: int) -> NDArray[np.float32]:
        new = np.array([len(row) for row in rows])
        after = cache.lengths + new
        self._make_room(cache, int(after.max()))
        width = int(new.max())
        ids = np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int64)
        given = {
            "input_ids": ids,
            "position_ids": cache.lengths[:, None] + np.arange(width),
            "logit_positions": new[:, None] - keep + np.arange(keep),
            "seqlens_k": (after - 1).astype(np.int32),
            "total_length": after.max(keepdims=True).astype(np.int32),
        }
        cache.lengths[:] = after
        return self._run(given, cache, cache.arrays)

    def _portable(self, rows: Sequence[Sequence[int]], cache: GraphCache, keep: int) -> NDArray[np.float32]:
        width, num_past = max(map(len, rows)), cache.arrays[0].shape[2]
        short = np.array([width - len(row) for row in rows])
        assert not (num_past and short.any())
        cache.padding += short
        index = np.arange(num_past, num_past + width) - cache.padding[:, None]
        given = {
            "input_ids": np.array([[*[0] * (width - len(row)), *row] for row in rows], np.int64),
            "position_ids": index.clip(min=0),
            "logit_positions": np.broadcast_to(np.arange(width - keep, width), (len(rows), keep)).copy(),
            "padding": cache.padding,
        }
        after = [np.empty((*a.shape[:2], num_past + width, a.shape[3]), self.dtype) for a in cache.arrays]
        logits = self._run(given, cache, after)
        cache.arrays = after
        cache.lengths = num_past + width - cache.padding
        return logits

    def _run(self, given: dict[str, NDArray[Any]], cache: GraphCache, after: list[NDArray[Any]]) -> NDArray[np.float32]:
        """One run, keys and values written into `after`."""
        if self.description.prefix_end_id is not None:
            given["prefix_length"] = cache.prefix
        binding = self.session.io_binding()
        kept = {name: np.ascontiguousarray(array) for name, array in given.items()}
        for name, array in kept.items():
            binding.bind_cpu_input(name, array)
        for number, (before, present) in enumerate(zip(cache.arrays, after, strict=True)):
            name = f"{number // 2}.{('key', 'value')[number % 2]}"
            binding.bind_input(f"past.{name}", "cpu", 0, self.dtype, before.shape, before.ctypes.data)
            binding.bind_output(f"present.{name}", "cpu", 0, self.dtype, present.shape, present.ctypes.data)
        binding.bind_output(self.description.output, "cpu")
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:  # it is the first to see what the graph does with its inputs
            said = str(error).strip().partition("\n")[0]
            raise CheckpointError(f"{self.file} cannot be run ({said}); export the model again") from None
        return binding.get_outputs()[-1].numpy()  # type: ignore[no-any-return]

    def _make_room(self, cache: GraphCache, num_tokens: int) -> None:
        """Let the buffers hold so many tokens of each row."""
        capacity = cache.arrays[0].shape[2]
        if num_tokens <= capacity:
            return
        while capacity < num_tokens:
            capacity = max(FIRST_CAPACITY, 2 * capacity)
        used = int(cache.lengths.max())
        for index, array in enumerate(cache.arrays):
            wider = np.zeros((*array.shape[:2], capacity, array.shape[3]), self.dtype)
            wider[:, :, :used] = array[:, :, :used]
            cache.arrays[index] = wider

    def _check_inputs(self, file: Path) -> None:
        """The graph takes what generation.json says."""
        inputs = {each.name: each.shape for each in self.session.get_inputs()}
        kinds = {each.type for each in self.session.get_inputs() if each.name.startswith("past.")}
        for number, (heads, *dims) in enumerate(self.description.layers):
            for part, dim in zip(("key", "value"), dims, strict=True):
                shape = inputs.get(f"past.{number}.{part}", [])
                if len(shape) != 4 or (shape[1], shape[3]) != (heads, dim):
                    raise CheckpointError(
                        f"{file} does not take past.{number}.{part} of {heads} heads of {dim}, as {GENERATION} says; "
                        "export the model again"
                    )
        count = sum(name.startswith("past.") for name in inputs)
        expected = {"fused": "seqlens_k", "portable": "padding"}[self.description.graph]
        outputs = [each.name for each in self.session.get_outputs()]
        if (
            count != 2 * len(self.description.layers)
            or expected not in inputs
            or self.description.output not in outputs
            or ("prefix_length" in inputs) != (self.description.prefix_end_id is not None)
            or kinds != {{"float32": "tensor(float)", "float16": "tensor(float16)"}[self.description.dtype]}
        ):
            raise CheckpointError(f"{file} is not the graph that {GENERATION} describes; export the model again")
