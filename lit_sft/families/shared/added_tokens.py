"""Tokens that somebody added to a vocabulary, each with a row of its own behind the rows of the released embedding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AddedToken

from lit_sft.errors import CheckpointError
from lit_sft.families.shared.settings import read_object, token_text

FILE = "added_tokens.json"


def read_added_tokens(folder: Path) -> dict[int, AddedToken]:
    """Added tokens by id, in the order of their ids; tools also list tokens of the released vocabulary among them.

    transformers writes them to added_tokens.json, since 4.34 also to `added_tokens_decoder` in tokenizer_config.json,
    there with their flags. Special ones, which no text may spell, are named as such there or in
    special_tokens_map.json.

    Raises:
        CheckpointError: If a file is not what transformers writes.
    """
    settings_file, map_file, file = (
        folder / name for name in ("tokenizer_config.json", "special_tokens_map.json", FILE)
    )
    settings, names = read_object(settings_file), read_object(map_file)
    special = {token["content"] if isinstance(token, dict) and "content" in token else str(token) for token in [
        *_listed(map_file, names, "additional_special_tokens"),
        *_listed(settings_file, settings, "additional_special_tokens"),
        *(value for source in (names, settings) for key, value in source.items() if key.endswith("_token") and value),
    ]}  # fmt: skip
    found: dict[int, AddedToken] = {}
    for content, index in read_object(file).items():
        found[_id(file, content, index)] = AddedToken(content, normalized=False, special=content in special)
    decoder = settings.get("added_tokens_decoder")
    for key, value in (decoder if isinstance(decoder, dict) else {}).items():
        content = token_text(settings_file, f"added_tokens_decoder {key}", value)
        flags = {name: bool(value.get(name)) for name in ("lstrip", "rstrip", "single_word", "special")}
        index = _id(settings_file, content, int(key) if key.isdigit() else key)
        if index in found and found[index].content != content:
            raise CheckpointError(f"{folder}: id {index} is {content!r} in tokenizer_config.json, another in {FILE}")
        found[index] = AddedToken(content, normalized=False, **flags)
    return dict(sorted(found.items()))


def behind(
    size: int, added: dict[int, AddedToken], id_of: Callable[[str], int | None], model_file: str | Path
) -> dict[int, AddedToken]:
    """Those of the added tokens that follow the `size` ids of a vocabulary.

    Args:
        size: Ids of the vocabulary.
        added: From `read_added_tokens`.
        id_of: The id that a text has as a whole in the vocabulary.
        model_file: Where the vocabulary stands.

    Raises:
        CheckpointError: If the others are not in it, or there is a gap.
    """
    new: dict[int, AddedToken] = {}
    for index, token in added.items():
        known = id_of(token.content)
        if known == index:
            continue
        if known is not None or index < size:
            where = f"has it as {known}" if known is not None else f"has another token there, of {size}"
            raise CheckpointError(
                f"{FILE} or tokenizer_config.json gives {token.content!r} the id {index}, but {model_file} {where}; "
                "take all files from one folder"
            )
        if index != size + len(new):
            raise CheckpointError(
                f"{FILE} or tokenizer_config.json gives {token.content!r} the id {index}, but the next one behind "
                f"the {size + len(new)} tokens before it is {size + len(new)}; a token is missing there"
            )
        new[index] = token
    return new


def _listed(file: Path, settings: dict[str, Any], key: str) -> list[Any]:
    value = settings.get(key)
    if value is not None and not isinstance(value, list):
        raise CheckpointError(f"{file}: {key} is not a list; correct it, or remove the key")
    return value or []


def _id(file: Path, content: str, index: Any) -> int:
    if not isinstance(index, int) or isinstance(index, bool) or index < 0 or not content:
        raise CheckpointError(f"{file} gives {content!r} the id {index!r}; expected a whole number")
    return index
