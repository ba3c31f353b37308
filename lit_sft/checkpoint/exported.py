"""An exported folder before its graph is opened: how it was exported, and whether its files are still those.

lit_sft/export/folder.py says what stands in such a folder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from lit_sft.checkpoint.files import GENERATION, GRAPH
from lit_sft.errors import CheckpointError
from lit_sft.families.shared.settings import read_object, setting

DATA = f"{GRAPH}.data"
MANIFEST = "manifest.json"
TEXT_SIDE = ("prompt.json", "tokenizer/*")
"""The prompt format and the tokenizer as data, which programs without Python read."""

VERSION = 1
"""Of generation.json."""

REMEDY = "copy the folder again, or export the model again"


class Names(NamedTuple):
    """Whose text a graph reads: empty where the file says nothing."""

    family: str
    prompt_format: str


def exported_names(folder: Path) -> Names:
    """Family and prompt format of the checkpoint that was exported.

    Raises:
        CheckpointError: If generation.json is damaged, or of another version.
    """
    file = folder / GENERATION
    content = read_object(file)
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{file}: version is {content.get('version')!r}, and this lit_sft reads {VERSION}; export the model again"
        )
    return Names(*(setting(file, content, key, str, "") for key in Names._fields))


def check_files(folder: Path) -> None:
    """Compare a folder with its manifest.json.

    Weights are compared by size alone, for their hash takes minutes; what has checks of its own and may be edited
    (generation.json, config.json, files of the tokenizer) is not compared.

    Raises:
        CheckpointError: Naming the file that is missing or another, or what manifest.json lacks.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; {REMEDY}")
    listed = read_object(file).get("files")
    if not isinstance(listed, dict):
        raise CheckpointError(f"{file} does not list the files of the folder; {REMEDY}")
    text_side = [str(path.relative_to(folder)) for pattern in TEXT_SIDE for path in folder.glob(pattern)]
    expected = {name for name in listed if any(Path(name).match(pattern) for pattern in TEXT_SIDE)}
    for name in sorted({GRAPH, DATA, *text_side, *expected}):
        _compare(folder / name, file, listed.get(name), is_hashed=name != DATA)


def _compare(path: Path, manifest: Path, said: Any, *, is_hashed: bool) -> None:
    if not isinstance(said, dict) or not isinstance(said.get("bytes"), int) or not isinstance(said.get("sha256"), str):
        name = path.relative_to(manifest.parent)
        raise CheckpointError(f"{manifest} does not say size and hash of {name}; {REMEDY}")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {REMEDY}")
    if (size := path.stat().st_size) != said["bytes"]:
        raise CheckpointError(f"{path} has {size} bytes, and {said['bytes']} in {MANIFEST}; {REMEDY}")
    if not is_hashed:
        return
    with path.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() != said["sha256"]:
            raise CheckpointError(f"{path} was changed: its SHA-256 is not that in {MANIFEST}; {REMEDY}")
