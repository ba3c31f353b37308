"""The files of a checkpoint folder: which of them hold the weights, and whether they are all there. No torch needed."""

from __future__ import annotations

from pathlib import Path

from lit_sft.errors import CheckpointError
from lit_sft.families.shared.settings import read_object

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where weights can stand, the preferred place first; transformers looks in the same order."""

GRAPH = "model.onnx"
GENERATION = "generation.json"
"""What an exported model is, and how it answers: lit_sft/export/folder.py says what stands in such a folder."""

LFS_POINTER = b"version https://git-lfs"


def weights_source(folder: Path) -> Path:
    """The file that holds the weights, or the index of the files that do.

    Raises:
        CheckpointError: If there is none.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    for pattern in ("model-*.safetensors", "pytorch_model-*.bin"):
        for shard in sorted(folder.glob(pattern)):
            index = f"{shard.name.partition('-')[0]}{shard.suffix}.index.json"
            raise CheckpointError(f"{folder} holds {shard.name} but not {index}, which lists all shards; download it")
    raise CheckpointError(f"{folder} holds no weights ({', '.join(WEIGHT_FILES)}); is the download complete?")


def is_exported(folder: Path) -> bool:
    """Whether a folder holds a graph instead of weights."""
    return (folder / GRAPH).is_file() and (folder / GENERATION).is_file()


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, all present and none a git-LFS pointer.

    Raises:
        CheckpointError: Otherwise, or if the index is broken.
    """
    source = weights_source(folder)
    refuse_pointer(source)
    if source.suffix != ".json":
        return [source]
    files = [folder / name for name in sorted(set(read_index(source).values()))]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"shard {file} is missing; {source.name} lists it. Download it into the folder")
        refuse_pointer(file)
    return files


def read_index(index: Path) -> dict[str, str]:
    """Names of the tensors and of the file in which each stands.

    Raises:
        CheckpointError: If it is not JSON, has no `weight_map`, or names a file outside its folder.
    """
    refuse_pointer(index)
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index} is not an index of weights (it lacks a 'weight_map'); download it again")
    named = {tensor: str(file) for tensor, file in weight_map.items()}
    for tensor, file in named.items():
        if Path(file).name != file:
            raise CheckpointError(
                f"{index} says {tensor} stands in {file!r}, which is not a file of the folder; refused"
            )
    if not named:
        raise CheckpointError(f"{index} lists no tensors; download it again")
    return named


def refuse_pointer(file: Path) -> None:
    """Stop at the text that git leaves in place of a large file it did not fetch.

    Raises:
        CheckpointError: If `file` is such a text, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            start = stream.read(len(LFS_POINTER))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    if start == LFS_POINTER:
        raise CheckpointError(f"{file} is a git-LFS pointer, not the file itself; run `git lfs pull` in its folder")
