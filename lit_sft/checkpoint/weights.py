"""Weights from disk into a network: one tensor at a time and every tensor in its place, or one line that says why not.

transformers logs a table and goes on with random numbers where a tensor is missing; and the pages of a mapped .bin
file stay in memory beside the converted weights. Here every tensor is read when its turn comes and must fit.
"""

from __future__ import annotations

import ctypes
import functools
import json
import logging
import mmap
import pickle
import re
import sys
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.modeling_utils import logger as transformers_logger
from transformers.modeling_utils import str_to_torch_dtype

from lit_sft.checkpoint.files import read_index, weight_files, weights_source
from lit_sft.checkpoint.foreign import RETAKE, inner_state, wrapper_of
from lit_sft.errors import CheckpointError, UserError
from lit_sft.families.shared.network_config import said_by

_LOADING = threading.RLock()
"""One network loads at a time, for loading changes transformers for its duration."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk. transformers indexes it with `...` when its turn comes; only then it is read.

    Args:
        file: Where it stands.
        start: Position of its first byte in the file; None if the whole file must be read to find it.
        layout: A tensor on "meta" of the same type, shape and strides.
        name: Its name in the file.
    """

    file: Path
    start: int | None
    layout: torch.Tensor
    name: str

    @property
    def shape(self) -> torch.Size:
        """Its sizes."""
        return self.layout.shape

    def is_floating_point(self) -> bool:
        """Whether it holds floating-point numbers: quantizers leave others alone."""
        return self.layout.is_floating_point()

    @property
    def num_bytes(self) -> int:
        """Bytes from its first to its last element."""
        pairs = zip(self.layout.shape, self.layout.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in pairs)
        return (last + 1) * self.layout.element_size() if self.layout.numel() else 0

    def __getitem__(self, index: Any) -> torch.Tensor:
        if not self.num_bytes:
            return torch.empty(self.layout.shape, dtype=self.layout.dtype)[index]
        if self.start is None:
            return _read_whole(self.file)[self.name][index]
        _trim_heap()
        # A mapping goes back to the system the moment the converted copy exists; memory from the heap may not.
        buffer = mmap.mmap(-1, self.num_bytes)
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            if stream.readinto(buffer) != self.num_bytes:
                raise CheckpointError(f"{self.file} ended while it was read; was it changed meanwhile?")
        flat = torch.frombuffer(buffer, dtype=self.layout.dtype)
        return flat.as_strided(self.layout.shape, self.layout.stride())[index]


def _trim_heap() -> None:
    """Hand freed memory back to the system: packing a matrix on a CPU leaves several times its size on the heap."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


@functools.lru_cache(maxsize=1)
def _read_whole(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def open_weights(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint folder by name. Only headers are read; no code in the files can run.

    Raises:
        CheckpointError: If a file is missing, truncated, a git-LFS pointer, or holds anything but tensors.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        tensors.update(open_weights_file(file))
    source = weights_source(folder)
    if source.suffix == ".json":
        for name, shard in read_index(source).items():
            if name not in tensors or tensors[name].file.name != shard:
                raise CheckpointError(
                    f"{folder / shard} lacks tensor {name}, listed in {source.name}; download both again"
                )
    return tensors


def open_weights_file(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name, as `open_weights` gives those of a folder.

    Raises:
        CheckpointError: If it is truncated or damaged, or holds anything but tensors.
    """
    return _open_safetensors(file) if file.suffix == ".safetensors" else _open_bin(file)


def _open_safetensors(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="pt"):  # the header is sound and describes the file to its last byte
            pass
    except (SafetensorError, OSError) as error:
        raise _broken(file, error) from None
    with file.open("rb") as stream:
        num_header_bytes = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(num_header_bytes))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in str_to_torch_dtype:
            raise CheckpointError(f"{file}: tensor {name} is of type {entry['dtype']}, which is not read. {RETAKE}")
        layout = torch.empty(entry["shape"], dtype=str_to_torch_dtype[entry["dtype"]], device="meta")
        tensors[name] = StoredTensor(file, 8 + num_header_bytes + entry["data_offsets"][0], layout, name)
    return tensors


def _open_bin(file: Path) -> dict[str, StoredTensor]:
    try:
        # On "meta" only the pickle is read, and each storage knows where its bytes stand in the file.
        content = torch.load(file, map_location="meta", weights_only=True)
        is_plain = zipfile.is_zipfile(file) and all(
            item.compress_type == zipfile.ZIP_STORED for item in zipfile.ZipFile(file).infolist()
        )
    except pickle.UnpicklingError as error:
        raise _refused(file, error) from None
    except Exception as error:  # a damaged pickle leads to any error there is
        raise _broken(file, error) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not tensors by name; it is not a weights file")
    tensors = {}
    for name, layout in content.items():
        if not isinstance(layout, torch.Tensor) or not isinstance(name, str):
            said = f"{file} holds {name!r}, which is not a tensor; expected the weights and nothing else"
            if inner := inner_state(content):
                said += f". It is a training checkpoint, whose weights stand under {inner!r}: write these alone"
            raise CheckpointError(said)
        # Files of torch before 1.6, and archives packed anew with compression, have no such position.
        start = getattr(layout.untyped_storage(), "_checkpoint_offset", None) if is_plain else None
        if start is not None:
            start += layout.storage_offset() * layout.element_size()
        tensors[name] = StoredTensor(file, start, layout, name)
    return tensors


def _broken(file: Path, error: Exception) -> CheckpointError:
    said = str(error).strip().partition("\n")[0].partition(". ")[0] or "it is empty"
    return CheckpointError(f"{file} is truncated or damaged ({said}); download it again")


def _refused(file: Path, error: Exception) -> CheckpointError:
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted:
        return CheckpointError(
            f"{file} would call {wanted[1]} when it is read, which a weights file has no need to; refused. "
            "Get it from a source you trust, best as safetensors"
        )
    return CheckpointError(f"{file} is not a weights file: it holds no pickle of plain tensors; download it again")


def load_network(
    folder: Path, tensors: dict[str, StoredTensor], build: Callable[[], PreTrainedModel]
) -> PreTrainedModel:
    """The network that `build` makes with `from_pretrained(folder)`, all of its weights from the folder.

    Args:
        folder: The checkpoint folder.
        tensors: What `open_weights` finds there.
        build: A family's loading, unaware of what happens here.

    Raises:
        CheckpointError: If a tensor is missing, superfluous or of the wrong shape, a file is unreadable, or config.json
            describes no network.
    """
    loading = _Loading(weights_source(folder), tensors)
    with loading.installed():
        try:
            model = build()
        except (UserError, ImportError):
            raise
        except Exception as error:
            # transformers points to the table it logged; the same facts fit into one line.
            loading.raise_problem()
            if loading.has_begun:
                raise
            raise CheckpointError(
                f"{folder / 'config.json'} describes no network that can be built: {said_by(error)}"
            ) from error
        finally:
            _read_whole.cache_clear()
    loading.raise_problem()
    loading.check_quantized_shapes(model)
    _make_saveable(model)
    return model


class _Loading:
    """Stands between transformers and the files while one network loads, and keeps its report."""

    def __init__(self, source: Path, tensors: dict[str, StoredTensor]) -> None:
        self.source = source
        self.tensors = tensors
        self.report: Any = None
        self.conversions: list[Any] = []
        self.shapes: dict[str, torch.Size] = {}
        self.has_begun = False
        """Whether there is a network to load into."""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """`from_pretrained` would fill what is missing before it says so, and tell no failed conversion."""
        load = PreTrainedModel._load_pretrained_model
        no_report = _NoLoadReport()

        def load_streaming(model: Any, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            self.has_begun = True
            self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
            loaded = load(model, self.tensors if state_dict is None else state_dict, *args, **kwargs)
            self.report, self.conversions = loaded[0], model._weight_conversions
            self._stop_early(model)
            return loaded

        with _LOADING:
            PreTrainedModel._load_pretrained_model = staticmethod(load_streaming)  # type: ignore[method-assign]
            transformers_logger.addFilter(no_report)
            try:
                yield
            finally:
                PreTrainedModel._load_pretrained_model = staticmethod(load)  # type: ignore[method-assign]
                transformers_logger.removeFilter(no_report)

    def _stop_early(self, model: Any) -> None:
        """Refuse what has no end before transformers fills it with random numbers, which may be more than fits."""
        lacking = self.report.missing_keys - set(model.all_tied_weights_keys)
        num_lacking = sum(self.shapes[name].numel() for name in lacking if name in self.shapes)
        if self.report.mismatched_keys or num_lacking > sum(each.layout.numel() for each in self.tensors.values()):
            self.raise_problem()

    def raise_problem(self) -> None:
        """Raise the most telling problem of the report, if there is one."""
        report = self.report
        if report is None:
            return
        for name, found, expected in sorted(report.mismatched_keys):
            self._raise_shape(name, found, expected)
        if report.missing_keys:
            names = sorted({self._stored_name(name) for name in report.missing_keys})
            if wrapped := wrapper_of(self.tensors, names):
                raise CheckpointError(f"{self.source} does not hold this model as it is: {wrapped}")
            raise CheckpointError(
                f"{self.source} lacks tensor {_first_of(names)}, which config.json asks for; "
                "download the weights again, or the config.json that belongs to them"
            )
        if report.conversion_errors:
            name, said = sorted(report.conversion_errors.items())[0]
            said = said.strip().splitlines()[-1]
            raise CheckpointError(f"{self._place(name)} cannot be converted ({said}); download the weights again")
        if report.unexpected_keys:
            names = sorted({self._stored_name(name) for name in report.unexpected_keys})
            if wrapped := wrapper_of(names):
                raise CheckpointError(f"{self._file(names[0])} does not hold this model alone: {wrapped}")
            raise CheckpointError(
                f"{self._file(names[0])} holds unexpected tensor {_first_of(names)}: "
                "config.json or `family:` belongs to another model"
            )

    def check_quantized_shapes(self, model: PreTrainedModel) -> None:
        """Shapes of the weights that were quantized, which transformers does not compare."""
        for name, parameter in model.named_parameters():
            packed = getattr(parameter, "quant_state", None)
            shape = parameter.shape if packed is None else packed.shape
            if shape != self.shapes.get(name, shape):
                self._raise_shape(name, shape, self.shapes[name])

    def _raise_shape(self, name: str, found: Iterable[int], expected: Iterable[int]) -> None:
        raise CheckpointError(
            f"{self._place(name)} has the wrong shape: it gives {name} {list(found)}, config.json asks for "
            f"{list(expected)}; download the weights and config.json again"
        )

    def _place(self, name: str) -> str:
        stored = self._stored_name(name)
        return f"{self._file(stored)}: tensor {stored}"

    def _file(self, stored_name: str) -> Path:
        return self.tensors[stored_name].file if stored_name in self.tensors else self.source

    def _stored_name(self, name: str) -> str:
        """What the files call the tensor that the network calls `name`."""
        if name in self.tensors:
            return name
        for conversion in reversed(self.conversions):
            try:
                name, _ = conversion.reverse_transform().rename_source_key(name)
            except (NotImplementedError, ValueError):  # a one-way conversion: the network's name must do
                continue
        return name


class _NoLoadReport(logging.Filter):
    """Drops the table in which transformers lists what did not fit: the error says it in a line."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()


def _first_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty")


def _make_saveable(model: PreTrainedModel) -> None:
    """Leave nothing on a loaded network that would make a saved copy of it wrong."""
    # It names the remote code of the original, which we never run and no copy contains.
    vars(model.config).pop("auto_map", None)
    if getattr(model, "hf_quantizer", None) is not None:
        # Parts that were packed after the split cannot be joined again, so a copy keeps the network's own names.
        model._weight_conversions = []  # type: ignore[assignment]
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    # Old releases ignored these in silence; transformers 5 refuses to save them together.
    ignored = [*(() if generation.do_sample else SAMPLING), *(() if (generation.num_beams or 1) > 1 else BEAMS)]
    for name in ignored:
        if getattr(generation, name, None) is not None:
            setattr(generation, name, None)
