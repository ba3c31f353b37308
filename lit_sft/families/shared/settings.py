"""The JSON files of a model folder, read with the types that their keys must have.

Folders come from elsewhere: tools rewrite them, downloads break off, and hands edit them. What is wrong is told in a
line that names file and key, before anything is computed with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from lit_sft.errors import CheckpointError

Kind = TypeVar("Kind", int, float, bool, str, list[Any])

NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list"}


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object that a file holds; empty if there is no such file.

    Raises:
        CheckpointError: If it is not a regular file, cannot be read, or holds anything else.
    """
    try:
        if file.exists() and not file.is_file():  # nobody may ever write into a pipe
            raise CheckpointError(f"{file} is not a file; put the file of that name in its place")
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}; download it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} does not hold a JSON object; download it again")
    return content


def setting(file: Path, settings: dict[str, Any], key: str, kind: type[Kind], default: Kind) -> Kind:
    """What the file says of a key; `default` where it says nothing, or null.

    Raises:
        CheckpointError: If it is not of that kind.
    """
    value = settings.get(key)
    if value is None:
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CheckpointError(f"{file}: {key} is {_short(value)}, not {NAMES[kind]}; correct it, or remove the key")
    return value


def token_setting(file: Path, settings: dict[str, Any], key: str, default: str) -> str:
    """The text of a token, which may stand there as an object, as transformers writes it (`{"content": "<s>", ...}`).

    Raises:
        CheckpointError: If it is neither text nor such an object.
    """
    value = settings.get(key)
    return default if value is None else token_text(file, key, value)


def token_text(file: Path, key: str, value: Any) -> str:
    """As `token_setting`, of a value.

    Raises:
        CheckpointError: If it is neither text nor such an object.
    """
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text:
        raise CheckpointError(f"{file}: {key} is {_short(value)}, not a token; correct it, or remove the key")
    return text


def _short(value: Any) -> str:
    return text if len(text := json.dumps(value, ensure_ascii=False)) <= 60 else f"{text[:57]}..."
