"""Tokens that somebody added to a vocabulary keep the ids, and so the rows, with which they were trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_sft import open_checkpoint
from lit_sft.errors import CheckpointError, UserError

SENTENCEPIECE = ["baichuan-7b", "baichuan-13b", "baichuan2-7b", "baichuan2-13b", "chatglm2-6b", "chatglm3-6b"]
SETTINGS, ADDED, NAMES = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"


def change(file: Path, **keys: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**content, **keys}), encoding="utf-8")


@pytest.fixture(params=SENTENCEPIECE)
def extended(request: pytest.FixtureRequest, tiny: Callable[[str], Path], tmp_path: Path) -> tuple[Path, str, int]:
    """A folder with two more words, its family, and the first new id."""
    folder = Path(shutil.copytree(tiny(request.param), tmp_path / "extended"))
    size = len(open_checkpoint(folder, request.param).load_tokenizer())
    change(folder / "config.json", **{"padded_vocab_size" if "chatglm" in request.param else "vocab_size": size + 8})
    change(folder / ADDED, **{"<医生>": size, "<病人>": size + 1})
    return folder, request.param, size


def tokenizer_of(extended: tuple[Path, str, int]) -> Any:
    return open_checkpoint(extended[0], extended[1]).load_tokenizer()


def test_they_are_one_token_in_every_way_to_encode_and_survive_it(extended: tuple[Path, str, int]) -> None:
    tokenizer, first = tokenizer_of(extended), extended[2]
    text = "<医生>你好 <病人>我头疼<医生><医生>"
    ids = tokenizer.encode_text(text)
    assert [token for token in ids if token >= first] == [first, first + 1, first, first]
    prefix = len(tokenizer.prefix_ids)
    assert tokenizer(text)["input_ids"][prefix:] == ids
    assert tokenizer(["你好", text], padding=False)["input_ids"][1][prefix:] == ids
    assert tokenizer(text, return_offsets_mapping=True)["input_ids"][prefix:] == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == first + 2


def test_other_text_has_the_ids_that_it_had(extended: tuple[Path, str, int], tiny: Callable[[str], Path]) -> None:
    before = open_checkpoint(tiny(extended[1]), extended[1]).load_tokenizer()
    for text in ("你好，世界", "a  b\tc </s> <医 生>", ""):
        assert tokenizer_of(extended).encode_text(text) == before.encode_text(text)
        assert tokenizer_of(extended)(text)["input_ids"] == before(text)["input_ids"]


def test_no_text_spells_a_special_one(extended: tuple[Path, str, int]) -> None:
    change(extended[0] / NAMES, additional_special_tokens=["<医生>"])
    tokenizer, first = tokenizer_of(extended), extended[2]
    ids = tokenizer.encode_text("<医生>你好<病人>")
    assert first not in ids
    assert first + 1 in ids
    assert tokenizer.convert_tokens_to_ids("<医生>") == first
    assert tokenizer.decode([first], skip_special_tokens=True) == ""


def test_newer_tools_list_them_in_the_settings(extended: tuple[Path, str, int]) -> None:
    folder, _, first = extended
    (folder / ADDED).unlink()
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    listed = {str(first): {"content": "<医生>", **flags, "special": False}, "2": {"content": "</s>", "special": True}}
    change(folder / SETTINGS, added_tokens_decoder=listed)
    assert first in tokenizer_of(extended).encode_text("你好<医生>")


def test_a_saved_tokenizer_still_has_them(extended: tuple[Path, str, int], tmp_path: Path) -> None:
    tokenizer = tokenizer_of(extended)
    saved = tmp_path / "saved"
    saved.mkdir()
    shutil.copy(extended[0] / "config.json", saved)
    tokenizer.save_pretrained(saved)
    again = open_checkpoint(saved, extended[1]).load_tokenizer()
    text = "<医生>你好 <病人>"
    assert again.encode_text(text) == tokenizer.encode_text(text)
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_more_tokens_than_rows_is_an_error_that_says_both(extended: tuple[Path, str, int]) -> None:
    folder, family, size = extended
    change(folder / "config.json", **{"padded_vocab_size" if "chatglm" in family else "vocab_size": size})
    with pytest.raises(CheckpointError, match=rf"added_tokens\.json has {size + 2} tokens.*{size} rows"):
        tokenizer_of(extended)


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"<医生>": 5}, "5"),
        ({"<医生>": 100_000}, "the next one"),
        ({"</s>": 1}, "has it as 2"),
        ({"<医生>": "7"}, "whole number"),
        ({"<医生>": -1}, "whole number"),
    ],
)
def test_ids_that_cannot_be_are_named(extended: tuple[Path, str, int], added: Any, said: str) -> None:
    (extended[0] / ADDED).write_text(json.dumps(added))
    with pytest.raises(CheckpointError, match=rf"added_tokens\.json.*{said}"):
        tokenizer_of(extended)


def test_a_padding_token_of_its_own_may_be_added(folder: Path) -> None:
    size = len(open_checkpoint(folder).load_tokenizer())
    change(folder / "config.json", vocab_size=size + 1)
    change(folder / SETTINGS, pad_token="[PAD]")
    with pytest.raises(UserError, match=r"'\[PAD\]'.*added_tokens\.json"):
        open_checkpoint(folder).load_tokenizer()
    change(folder / ADDED, **{"[PAD]": size})
    tokenizer = open_checkpoint(folder).load_tokenizer()
    assert tokenizer(["你好世界", "你"], padding=True)["input_ids"][1][-1] == size


def test_words_added_to_moss_are_tokens_and_field_ends_stay_text(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("moss"), tmp_path / "moss"))
    size = len(open_checkpoint(folder).load_tokenizer())
    change(folder / "config.json", vocab_size=size + 8)
    change(folder / ADDED, **{"<医生>": size})
    tokenizer = open_checkpoint(folder).load_tokenizer()
    ids = tokenizer.encode_text("你好<医生>吗<eom>")
    assert ids.count(size) == 1
    assert tokenizer.convert_tokens_to_ids("<eom>") not in ids
    assert tokenizer("你好<医生>吗")["input_ids"].count(size) == 1


def test_chatglm_6b_refuses_more_tokens_than_it_has(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("chatglm-6b"), tmp_path / "chatglm"))
    size = len(open_checkpoint(folder).load_tokenizer())
    end = open_checkpoint(folder).load_tokenizer().eos_token_id
    change(folder / ADDED, **{"<eop>": end})
    open_checkpoint(folder).load_tokenizer()
    change(folder / ADDED, **{"<医生>": size})
    with pytest.raises(CheckpointError, match="'<医生>'.*not supported"):
        open_checkpoint(folder).load_tokenizer()


@pytest.mark.parametrize("kind", ["objects", "null"])
def test_settings_of_chatglm_6b_may_hold_tokens_as_objects(
    tiny: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    folder = Path(shutil.copytree(tiny("chatglm-6b"), tmp_path / "chatglm"))
    text = "你好 <eop>[MASK] 世界"
    expected = open_checkpoint(folder).load_tokenizer()(text)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    roles = [f"{role}_token" for role in ("bos", "eos", "mask", "pad", "unk")]
    written: dict[str, Any] = {
        role: {"__type": "AddedToken", "content": settings[role], "lstrip": False} for role in roles
    }
    if kind == "null":
        written = dict.fromkeys(("bos_token", "unk_token"))
    change(folder / SETTINGS, **written)
    assert open_checkpoint(folder).load_tokenizer()(text) == expected
