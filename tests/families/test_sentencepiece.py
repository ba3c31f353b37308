"""What all tokenizers on a sentencepiece model have in common."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from goldens import golden_checkpoint, golden_json
from sentencepiece import SentencePieceProcessor
from transformers import PreTrainedTokenizerFast

from lit_sft.checkpoint.opening import families
from lit_sft.errors import ConfigError
from lit_sft.families.shared.sentencepiece_file import CONTROL, Piece, extended_model, read_model

FAMILIES = ["baichuan-7b", "baichuan-13b", "baichuan2-7b", "baichuan2-13b", "chatglm2-6b", "chatglm3-6b"]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(family: str) -> Any:
    return golden_checkpoint(family, family).load_tokenizer()


def test_tokenize_gives_the_original_pieces(family: str, tokenizer: Any) -> None:
    golden = golden_json(family, "tokenizer_golden")
    for case in golden.get("cases") or golden["strings"]:
        assert tokenizer.tokenize(case["text"]) == case["tokens"], case["text"]


def test_words_and_pieces_are_known_where_offsets_are_asked_for(tokenizer: Any) -> None:
    encoded = tokenizer("你好 world", return_offsets_mapping=True)
    assert tokenizer("你好 world")["input_ids"] == encoded["input_ids"]
    assert encoded.tokens() == tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    assert len(encoded.word_ids()) == len(encoded["input_ids"])


def test_one_text_with_a_control_token_slows_no_other(
    family: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.split_special_tokens = False
    control = next(iter(tokenizer.added_tokens_encoder), "</s>")
    texts = ["你好", f"a{control}b", "", "世界 ", f"{control}"]
    expected = [tokenizer(text)["input_ids"] for text in texts]
    by_rust: list[str] = []
    encode = PreTrainedTokenizerFast._encode_plus

    def spy(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        by_rust.extend(text)
        return encode(self, text, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "_encode_plus", spy)
    assert tokenizer(texts)["input_ids"] == expected
    # No text spells a control token of ChatGLM2.
    assert by_rust == ([] if family == "chatglm2-6b" else [texts[1], texts[4]])


def test_no_texts_have_no_ids(tokenizer: Any) -> None:
    for options in ({}, {"padding": True}, {"truncation": True, "max_length": 8}, {"return_offsets_mapping": True}):
        assert dict(tokenizer([], **options)) == {"input_ids": [], "attention_mask": []}


def test_tokens_cannot_be_added(tokenizer: Any) -> None:
    """The sentencepiece library would neither find nor write them."""
    size = len(tokenizer)
    with pytest.raises(ConfigError, match="'<new>': no token can be added"):
        tokenizer.add_tokens(["</s>", "<new>"])
    with pytest.raises(ConfigError, match="'<pad>'"):
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.add_tokens(["</s>"]) == 0
    assert len(tokenizer) == size


MODELS = {"baichuan-7b": "tokenizer.model", "chatglm-6b": "ice_text.model", "chatglm2-6b": "tokenizer.model"}


@pytest.mark.parametrize("name", MODELS)
def test_the_pieces_of_a_file_are_those_that_the_library_finds(tiny: Callable[[str], Path], name: str) -> None:
    serialized = (tiny(name) / MODELS[name]).read_bytes()
    model, library = read_model(serialized), SentencePieceProcessor(model_proto=serialized)
    ids = list(range(library.vocab_size()))
    assert [piece.text for piece in model.pieces] == library.id_to_piece(ids)
    assert [piece.score for piece in model.pieces] == library.get_score(ids)
    assert [piece.kind == CONTROL for piece in model.pieces] == library.is_control(ids)
    assert model.has_dummy_prefix == (library.encode("1a", out_type=str)[0][0] == "▁")


def test_a_file_is_extended_behind_its_pieces(tiny: Callable[[str], Path]) -> None:
    serialized = (tiny("baichuan-7b") / "tokenizer.model").read_bytes()
    longer = extended_model(serialized, [Piece("<mark>", CONTROL), Piece("好" * 100, score=-2.5)])
    before, after = read_model(serialized), read_model(longer)
    assert after.pieces == [*before.pieces, Piece("<mark>", CONTROL), Piece("好" * 100, score=-2.5)]
    library = SentencePieceProcessor(model_proto=longer)
    assert library.is_control(library.piece_to_id("<mark>"))
    assert library.encode("你好") == SentencePieceProcessor(model_proto=serialized).encode("你好")


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: b"PK\x03\x04" + data, lambda data: b"\xff" * 9]
)
def test_what_is_not_a_model_is_refused(tiny: Callable[[str], Path], change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(ValueError, match="sentencepiece model"):
        read_model(change((tiny("baichuan-7b") / "tokenizer.model").read_bytes()))


WITHOUT_PROTOBUF = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name == "google.protobuf" or name.startswith("sentencepiece.sentencepiece"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Refused())
from lit_sft import open_checkpoint

for family, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    tokenizer = open_checkpoint(folder, family).load_tokenizer()
    ids = tokenizer("你好，world")["input_ids"]
    assert ids and "你好" in tokenizer.decode(ids), family
assert "google.protobuf" not in sys.modules
"""


@pytest.mark.slow
def test_no_tokenizer_depends_on_a_release_of_protobuf(tiny: Callable[[str], Path]) -> None:
    """The module that sentencepiece generates fails beside older ones, which loggers such as SwanLab bring."""
    named = [word for family in sorted(families()) for word in (family, str(tiny(family)))]
    done = subprocess.run([sys.executable, "-c", WITHOUT_PROTOBUF, *named], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("character", "mark", "piece"), [("-", 11, 789), (">", 34, 414)])
def test_pieces_of_one_score_are_chosen_as_by_the_library_of_2023(character: str, mark: int, piece: int) -> None:
    """sentencepiece 0.1.97 to 0.2.1 set the odd one last; from 0.2.2 on it stands elsewhere."""
    ids = golden_checkpoint("chatglm-6b").load_tokenizer().encode_text(character * 85)
    assert ids == [5, *[piece] * (len(ids) - 2), mark]
    assert len(ids) > 5
