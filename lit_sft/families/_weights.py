"""Weights from disk into a network: one tensor at a time, every tensor in its place, or one line that says what is wrong.

transformers logs a table and goes on with random numbers where a tensor is missing; and the pages of a mapped .bin
file stay in memory beside the converted weights. Here every tensor is read when its turn comes and must fit.
"""

from __future__ import annotations

import functools
import logging
import pickle
import re
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

from lit_sft.errors import CheckpointError
from lit_sft.families._files import read_index, weight_files, weights_source

_LOADING = threading.RLock()
"""One network loads at a time, for loading changes transformers for its duration."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk; indexing reads it, as it does with the slices of safetensors.

    Args:
        file: Where it stands.
        shape: Its sizes.
        is_float: Whether it holds floating-point numbers.
        read: Reads it into memory of its own.
    """

    file: Path
    shape: tuple[int, ...]
    is_float: bool
    read: Callable[[], torch.Tensor]

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.read()[index]

    def is_floating_point(self) -> bool:
        """Whether it holds floating-point numbers: quantizers leave others alone."""
        return self.is_float


def open_weights(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint folder by name. Only headers are read; no code in the files can run.

    Raises:
        CheckpointError: If a file is missing, truncated, a git-LFS pointer, or holds anything but tensors.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in weight_files(folder):
        tensors.update(_open_safetensors(file) if file.suffix == ".safetensors" else _open_bin(file))
    source = weights_source(folder)
    if source.suffix == ".json":
        for name, shard in read_index(source).items():
            if name not in tensors or tensors[name].file.name != shard:
                raise CheckpointError(f"{folder / shard} lacks tensor {name}, listed in {source.name}; download both again")
    return tensors


def _open_safetensors(file: Path) -> dict[str, StoredTensor]:
    try:
        # "pread" reads into memory of its own; the default maps the file, whose pages then count beside the weights.
        content = safe_open(file, framework="pt", backend="pread")
    except SafetensorError as error:
        raise _broken(file, error) from None
    tensors = {}
    for name in content.keys():  # noqa: SIM118 - it is no dict
        stored = content.get_slice(name)
        is_float = stored.get_dtype().startswith(("F", "BF"))
        tensors[name] = StoredTensor(
            file, tuple(stored.get_shape()), is_float, functools.partial(stored.__getitem__, ...)
        )
    return tensors


def _open_bin(file: Path) -> dict[str, StoredTensor]:
    try:
        # On "meta" only the pickle is read, and each storage knows where its bytes stand in the file.
        content = torch.load(file, map_location="meta", weights_only=True)
        is_compressed = zipfile.is_zipfile(file) and any(
            item.compress_type != zipfile.ZIP_STORED for item in zipfile.ZipFile(file).infolist()
        )
    except pickle.UnpicklingError as error:
        raise _refused(file, error) from None
    except (RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise _broken(file, error) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not tensors by name; it is no weights file")
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{file} holds {name!r}, which is no tensor; expected the weights and nothing else")
    whole_file = functools.lru_cache(maxsize=1)(
        functools.partial(torch.load, file, map_location="cpu", weights_only=True)
    )
    tensors = {}
    for name, value in content.items():
        offset = getattr(value.untyped_storage(), "_checkpoint_offset", None)
        if offset is None or is_compressed:  # the format of torch before 1.6, or a file packed anew
            read = functools.partial(lambda name: whole_file()[name], name)
        else:
            read = functools.partial(_read_strided, file, offset, value)
        tensors[name] = StoredTensor(file, tuple(value.shape), value.is_floating_point(), read)
    return tensors


def _read_strided(file: Path, storage_start: int, meta: torch.Tensor) -> torch.Tensor:
    """The tensor whose sizes and strides `meta` has and whose storage starts at this byte of the file."""
    last = sum((size - 1) * stride for size, stride in zip(meta.shape, meta.stride(), strict=True))
    buffer = torch.empty(last + 1 if meta.numel() else 0, dtype=meta.dtype)
    with file.open("rb") as stream:
        stream.seek(storage_start + meta.storage_offset() * meta.element_size())
        if stream.readinto(buffer.view(torch.uint8).numpy()) != buffer.nbytes:
            raise CheckpointError(f"{file} ended while it was read; was it changed meanwhile?")
    return buffer.as_strided(meta.shape, meta.stride())


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
    return CheckpointError(f"{file} is no weights file: it holds no pickle of plain tensors; download it again")


def load_network(folder: Path, build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The network that `build` makes with `from_pretrained(folder)`, all of its weights from the folder.

    Args:
        folder: The checkpoint folder.
        build: A family's loading, unaware of what happens here.

    Raises:
        CheckpointError: If a tensor is missing, superfluous or of the wrong shape, or a file is unreadable.
    """
    loading = _Loading(weights_source(folder), open_weights(folder))
    with loading.installed():
        try:
            model = build()
        except RuntimeError:
            # transformers points to the table it logged; the same facts fit into one line.
            loading.raise_problem()
            raise
    loading.raise_problem()
    loading.check_quantized_shapes(model)
    _settle(model)
    return model


class _Loading:
    """Stands between transformers and the files while one network loads, and keeps its report."""

    def __init__(self, source: Path, tensors: dict[str, StoredTensor]) -> None:
        self.source = source
        self.tensors = tensors
        self.report: Any = None
        self.conversions: list[Any] = []
        self.shapes: dict[str, torch.Size] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """`from_pretrained` offers no way to read a .bin tensor by tensor nor to fail on a missing one."""
        load = PreTrainedModel._load_pretrained_model

        def load_streaming(model: Any, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
            self.shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
            loaded = load(model, self.tensors if state_dict is None else state_dict, *args, **kwargs)
            self.report, self.conversions = loaded[0], model._weight_conversions
            return loaded

        with _LOADING:
            PreTrainedModel._load_pretrained_model = staticmethod(load_streaming)  # type: ignore[method-assign]
            transformers_logger.addFilter(_is_no_load_report)
            try:
                yield
            finally:
                PreTrainedModel._load_pretrained_model = staticmethod(load)  # type: ignore[method-assign]
                transformers_logger.removeFilter(_is_no_load_report)

    def raise_problem(self) -> None:
        """Raise the most telling problem of the report, if there is one."""
        report = self.report
        if report is None:
            return
        for name, found, expected in sorted(report.mismatched_keys):
            self._raise_shape(name, found, expected)
        if report.missing_keys:
            names = sorted({self._stored_name(name) for name in report.missing_keys})
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
            raise CheckpointError(
                f"{self._file(names[0])} holds unexpected tensor {_first_of(names)}: "
                "config.json or `family:` belongs to another model"
            )

    def check_quantized_shapes(self, model: PreTrainedModel) -> None:
        """transformers compares no shapes of the weights it quantizes."""
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


def _is_no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _first_of(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
BEAMS = ("early_stopping", "length_penalty")


def _settle(model: PreTrainedModel) -> None:
    """Leave nothing on a loaded network that would make a saved copy of it wrong."""
    # It names the remote code of the original, which we never run and no copy contains.
    vars(model.config).pop("auto_map", None)
    if getattr(model, "hf_quantizer", None) is not None:
        # Parts that were packed after the split cannot be joined again, so a copy keeps the network's own names.
        model._weight_conversions = []  # type: ignore[assignment]
    generation = model.generation_config
    if generation is None:
        return
    # Old releases ignored these in silence; transformers 5 refuses to save them together.
    ignored = [*(() if generation.do_sample else SAMPLING), *(() if (generation.num_beams or 1) > 1 else BEAMS)]
    for name in ignored:
        if getattr(generation, name, None) is not None:
            setattr(generation, name, None)
