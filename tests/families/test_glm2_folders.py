"""Which folders are ChatGLM2-6B, which ChatGLM3-6B, and which are refused; what a saved copy looks like."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import GOLDEN, golden_checkpoint

from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import families
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.errors import CheckpointError
from lit_sft.families._base import TinySize

BOTH = ["chatglm2-6b", "chatglm3-6b"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ChatGLM2 folder that may be changed."""
    return Path(shutil.copytree(GOLDEN / "chatglm2-6b" / "checkpoint", tmp_path / "copy"))


def change(folder: Path, file: str = "config.json", **keys: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads((folder / file).read_text()) | keys
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def forget_names(folder: Path) -> None:
    change(folder, _name_or_path=None)
    change(folder, "tokenizer_config.json", name_or_path=None)


@pytest.mark.parametrize("family", BOTH)
def test_recognized_by_name(family: str) -> None:
    assert golden_checkpoint(family).family.name == family


def test_recognized_by_the_name_of_the_tokenizer(folder: Path) -> None:
    forget_names(folder)
    change(folder, "tokenizer_config.json", name_or_path="/models/ChatGLM3-6B-32k")
    assert open_checkpoint(folder).family.name == "chatglm3-6b"


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        ({"seq_length": 32768}, "chatglm2-6b"),
        ({"seq_length": 8192}, "chatglm3-6b"),
        ({"_name_or_path": "THUDM/codegeex2-6b", "seq_length": 8192, "torch_dtype": "bfloat16"}, "chatglm2-6b"),
        ({"_name_or_path": "THUDM/chatglm3-6b-32k", "seq_length": 32768, "rope_ratio": 50}, "chatglm3-6b"),
    ],
)
def test_recognized_by_the_released_context_length(folder: Path, keys: dict[str, Any], family: str) -> None:
    forget_names(folder)
    change(folder, **keys)
    assert open_checkpoint(folder).family.name == family


@pytest.mark.parametrize(
    "keys",
    [
        {"seq_length": 4096},
        {"seq_length": 32768, "rope_ratio": 50},
        {"seq_length": 8192, "torch_dtype": "bfloat16"},
        {"_name_or_path": "out/chatglm3-from-chatglm2"},
    ],
)
def test_without_a_decisive_hint_the_user_must_say(folder: Path, keys: dict[str, Any]) -> None:
    forget_names(folder)
    change(folder, **keys)
    with pytest.raises(CheckpointError, match=r"could be several families.*`family:`.*chatglm2-6b, chatglm3-6b"):
        open_checkpoint(folder)
    for family in BOTH:
        assert open_checkpoint(folder, family).family.name == family


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"padded_vocab_size": 151552, "_name_or_path": "THUDM/glm-4-9b-chat"}, "GLM-4 with remote code"),
        ({"eos_token_id": [151329, 151336]}, "GLM-4 with remote code"),
        ({"padded_vocab_size": 151552, "vision_config": {}}, "GLM-4V"),
        ({"quantization_bit": 4}, "quantization_bit 4"),
        ({"multi_query_attention": False}, "multi_query_attention false"),
        ({"rmsnorm": False}, "rmsnorm false"),
        ({"pre_seq_len": 128}, "P-Tuning"),
    ],
)
@pytest.mark.parametrize("family", ["auto", *BOTH])
def test_relatives_are_refused_by_name(folder: Path, keys: dict[str, Any], message: str, family: str) -> None:
    change(folder, **keys)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder, family)


def test_glm4_is_also_known_by_its_tokenizer(folder: Path) -> None:
    change(folder, "tokenizer_config.json", tokenizer_class="ChatGLM4Tokenizer")
    with pytest.raises(CheckpointError, match="GLM-4"):
        open_checkpoint(folder)


def test_no_other_family_claims_these_folders() -> None:
    for name in BOTH:
        checkpoint = golden_checkpoint(name)
        claiming = [cls.name for cls in families().values() if cls.matches_folder(checkpoint.path, checkpoint.config)]
        assert claiming == [name]


def test_rope_ratio_scales_the_base(folder: Path) -> None:
    plain = open_checkpoint(folder).load_model()
    change(folder, rope_ratio=16)
    scaled = open_checkpoint(folder).load_model()
    exponents = torch.arange(0, 8, 2) / 8
    torch.testing.assert_close(plain.model.rotary_emb.inv_freq, 10000.0**-exponents)
    torch.testing.assert_close(scaled.model.rotary_emb.inv_freq, 160000.0**-exponents)


@pytest.mark.parametrize("missing", ["pad_token_id", "tie_word_embeddings", "model_type"])
def test_first_revisions_lack_keys(folder: Path, missing: str) -> None:
    keys: dict[str, Any] = {missing: None}
    change(folder, **keys)
    model = open_checkpoint(folder).load_model()
    assert model.config.pad_token_id == 0
    assert model.config.eos_token_id == 2
    assert model.lm_head.weight is not model.model.embed_tokens.weight


@pytest.mark.parametrize("family", BOTH)
def test_a_saved_copy_has_the_original_layout(family: str, tmp_path: Path) -> None:
    checkpoint = golden_checkpoint(family)
    checkpoint.load_model(dtype=torch.float16).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes((checkpoint.path / "tokenizer.model").read_bytes())

    again = open_checkpoint(tmp_path)
    assert again.family.name == family
    changed = {"_name_or_path", "architectures", "auto_map", "torch_dtype", "transformers_version", "model_type"}
    for key in checkpoint.config.keys() - changed:
        assert again.config[key] == checkpoint.config[key], key
    assert "rope_parameters" not in again.config
    expected = checkpoint.load_model(dtype=torch.float16).state_dict()
    for name, weight in again.load_model(dtype=torch.float16).state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_saved_weights_have_the_original_names(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    checkpoint = golden_checkpoint("chatglm3-6b")
    checkpoint.load_model(dtype=torch.float16).save_pretrained(tmp_path)
    original = torch.load(checkpoint.path / "pytorch_model.bin", weights_only=True)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == original.keys() - {"transformer.rotary_pos_emb.inv_freq"}
    for name, weight in saved.items():
        assert torch.equal(weight, original[name]), name


@pytest.mark.parametrize("num_heads", [3, 6])
def test_heads_need_not_be_a_power_of_two(tmp_path: Path, num_heads: int) -> None:
    size = TinySize(
        hidden_size=60, intermediate_size=50, num_layers=1, num_heads=num_heads, vocab_size=600, context_length=64
    )
    families()["chatglm2-6b"].write_tiny(tmp_path, demo_texts()[:50], size)
    model = open_checkpoint(tmp_path).load_model()
    input_ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        step = model(input_ids=input_ids[:, :-1], use_cache=True)
        last = model(input_ids=input_ids[:, -1:], past_key_values=step.past_key_values).logits
        torch.testing.assert_close(last, model(input_ids=input_ids).logits[:, -1:], atol=1e-4, rtol=0)
