"""What all tokenizers on a sentencepiece model have in common."""

from typing import Any

import pytest
from goldens import golden_checkpoint, golden_json
from transformers import PreTrainedTokenizerFast

from lit_sft.errors import ConfigError

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
