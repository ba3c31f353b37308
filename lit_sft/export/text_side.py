"""The text side of an exported model: tokenizer and prompt format as data, proven before they are written.

prompt.json             the format, see `prompt_data.py`
tokenizer/config.json   see `families/shared/tokenizer_data.py`
tokenizer/text.model    of sentencepiece models
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from lit_sft.conversation import PromptFormat
from lit_sft.errors import ConfigError
from lit_sft.export.prompt_data import VERSION, PromptData
from lit_sft.export.text_proof import DifferentIdsError, prove_prompts, prove_tokenizer
from lit_sft.export.tokenizer_data import DataTokenizer
from lit_sft.families._base import Family

PROMPT_FILE = "prompt.json"
TOKENIZER_FOLDER = "tokenizer"


def write_text_side(
    family: Family, tokenizer: Any, folder: Path, *, num_texts: int = 300, num_conversations: int = 150
) -> dict[str, Any]:
    """Write what turns conversations into ids and ids into text without Python, into a folder that is being made.

    Args:
        family: The family, with the prompt format that is to be written.
        tokenizer: The tokenizer of its folder.
        folder: Where to.
        num_texts: Random texts whose ids must be those of the tokenizer.
        num_conversations: Random conversations whose ids must be those of the prompt format.

    Returns:
        Figures for the manifest: how many texts and conversations were equal, or under `refused` why there is no
        tokenizer or prompt format: the model then takes ids only.

    Raises:
        DifferentIdsError: If a text or conversation has other ids by the data.
    """
    figures: dict[str, Any] = {}
    try:
        data = family.tokenizer_data(tokenizer)
    except ConfigError as error:
        return {"tokenizer": {"refused": str(error)}, "prompt": {"refused": str(error)}}
    reader = DataTokenizer(data)
    figures["tokenizer"] = {"kind": data.config["kind"], "texts": prove_tokenizer(reader, tokenizer, num_texts)}
    target = folder / TOKENIZER_FOLDER
    target.mkdir()
    config = {"version": VERSION, **data.config, "polish": _polish(family)}
    if data.model is not None:
        (target / "text.model").write_bytes(data.model)
        # The sentencepiece library ends the process at some damages.
        config["model_sha256"] = hashlib.sha256(data.model).hexdigest()
    _write(target / "config.json", config)
    try:
        prompt, proven = _prompt(family, tokenizer, reader, num_conversations)
    except ConfigError as error:
        return {**figures, "prompt": {"refused": str(error)}}
    _write(folder / PROMPT_FILE, prompt)
    return {**figures, "prompt": {"format": family.prompt_format_name, **proven}}


def _prompt(
    family: Family, tokenizer: Any, reader: DataTokenizer, num_conversations: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data of the prompt format, and how it was proven.

    Raises:
        ConfigError: If the format cannot be written as data.
    """
    prompt_format: PromptFormat = family.prompt_format
    data = {
        "version": VERSION,
        "format": family.prompt_format_name,
        **prompt_format.describe(tokenizer),
        "stop": prompt_format.stop_token_ids(tokenizer),
        "closing": prompt_format.closing_ids(tokenizer),
    }
    is_derived = data.pop("derived", False)
    try:
        return data, prove_prompts(PromptData(data, reader), prompt_format, tokenizer, num_conversations)
    except DifferentIdsError as differs:
        if not is_derived:
            raise
        if not differs.has_tool:
            raise ConfigError(
                f"the chat template is not regular ({differs}), so an exported model takes ids only"
            ) from None
    # Many templates join what tools say in one go.
    data["refuse"] = [*data["refuse"], "tool-message"]
    try:
        proven = prove_prompts(PromptData(data, reader), prompt_format, tokenizer, num_conversations, has_tools=False)
    except DifferentIdsError as differs:
        raise ConfigError(
            f"the chat template is not regular ({differs}), so an exported model takes ids only"
        ) from None
    return data, proven


def _polish(family: Family) -> dict[str, Any]:
    """What a chat makes of an answer, in the order in which it does it."""
    return {
        "held_back": family.postprocess_lookback,
        **{key: [*map(list, family.polish.get(key, {}).items())] for key in ("replace", "beside_han")},
    }


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
