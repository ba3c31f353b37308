"""What is saved reads back to the bit: in full precision, quantized, and in plain transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import golden_checkpoint, golden_json, golden_model, golden_tensors
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.errors import ConfigError

pytestmark = pytest.mark.slow  # as a whole

NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
QUANTIZATIONS = {"nf4": NF4, "int8": BitsAndBytesConfig(load_in_8bit=True)}


def load(folder: Path, **options: Any) -> Any:
    return open_checkpoint(folder, "baichuan-7b").load_model(**options)


def test_saved_folder_is_clean_and_reads_back_exactly(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint.load_model(dtype=torch.bfloat16)
    checkpoint.save_model(model, tmp_path / "saved")
    again = open_checkpoint(tmp_path / "saved", checkpoint.family.name)
    assert again.config["architectures"] == checkpoint.config["architectures"]
    assert "auto_map" not in again.config
    model.generation_config.validate(strict=True)
    again.load_tokenizer()
    for name, weight in again.load_model(dtype=torch.bfloat16).state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


TEXTS = ["你好，世界！", "a  b\tc </s> <|user|>", "", "def f(x):\n    return 12"]


def test_tokenizer_beside_a_saved_model_reads_back(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model, tokenizer = checkpoint.load_model(dtype=torch.bfloat16), checkpoint.load_tokenizer()
    if checkpoint.family.name.startswith("baichuan"):
        tokenizer.add_bos_token = True
        tokenizer.padding_side = "left"
        tokenizer.pad_token = None
    elif checkpoint.family.name == "chatglm3-6b":
        tokenizer.encode_special_tokens = True
    # The second folder is also the one that it came from.
    for folder in (tmp_path / "first", tmp_path / "second", tmp_path / "second"):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        again = open_checkpoint(folder, checkpoint.family.name).load_tokenizer()
        assert again(TEXTS, padding=True) == tokenizer(TEXTS, padding=True)
        assert [again.encode_text(text) for text in TEXTS] == [tokenizer.encode_text(text) for text in TEXTS]
        assert again.special_tokens_map == tokenizer.special_tokens_map
        ids = tokenizer(TEXTS[1])["input_ids"]
        assert again.decode(ids) == tokenizer.decode(ids)
        tokenizer = again


def test_network_saved_without_its_tokenizer_is_read_back(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint.load_model(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    again = open_checkpoint(tmp_path / "saved", checkpoint.family.name).load_model(dtype=torch.bfloat16)
    for ends in ("eos_token_id", "pad_token_id"):
        assert getattr(again.generation_config, ends) == getattr(model.generation_config, ends)
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_saved_tensors_have_the_original_names_and_values(folder: Path, tmp_path: Path) -> None:
    load(folder, dtype=torch.float16).save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    original = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert saved.keys() == {name for name in original if "inv_freq" not in name}
    assert all(torch.equal(weight, original[name]) for name, weight in saved.items())


def test_model_can_be_saved_over_the_folder_it_came_from(folder: Path) -> None:
    model = load(folder, dtype=torch.float16)
    for _ in range(2):
        model.save_pretrained(folder)
        assert torch.equal(load(folder, dtype=torch.float16).lm_head.weight, model.lm_head.weight)


def test_sampling_options_without_sampling_do_not_stop_a_save(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "top_p": 0.85, "eos_token_id": 2}))
    model = load(folder)
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()).keys().isdisjoint({"temperature", "top_p"})


def test_attached_adapters_are_not_saved_as_a_model(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    checkpoint = open_checkpoint(folder)
    wrapped: Any = get_peft_model(checkpoint.load_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    for model in (wrapped, wrapped.get_base_model()):
        with pytest.raises(ConfigError, match="merge"):
            checkpoint.save_model(model, tmp_path / "saved")
    checkpoint.save_model(wrapped.merge_and_unload(), tmp_path / "saved")


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_quantized_model_is_saved_and_read_back_exactly(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    """The default of transformers joins the packed parts again, which nothing can read."""
    model = checkpoint.load_model(dtype=torch.bfloat16, quantization=QUANTIZATIONS[name])
    expected = model.state_dict()
    for generation in ("first", "second"):
        checkpoint.save_model(model, tmp_path / generation)
        model = open_checkpoint(tmp_path / generation, checkpoint.family.name).load_model(dtype=torch.bfloat16)
        actual = model.state_dict()
        assert actual.keys() == expected.keys()
        for key, weight in expected.items():
            assert torch.equal(actual[key], weight), (generation, key)


def test_nf4_equals_quantizing_the_split_weight(folder: Path) -> None:
    from bitsandbytes.functional import quantize_4bit

    exact, packed = load(folder, dtype=torch.bfloat16), load(folder, dtype=torch.bfloat16, quantization=NF4)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        source = exact.get_submodule(f"model.layers.1.self_attn.{name}").weight.detach()
        actual = packed.get_submodule(f"model.layers.1.self_attn.{name}").weight
        expected, state = quantize_4bit(source, quant_type="nf4", compress_statistics=True)
        assert torch.equal(actual.data, expected)
        assert torch.equal(actual.quant_state.absmax, state.absmax)


def test_int8_equals_quantizing_the_split_weight(folder: Path) -> None:
    from bitsandbytes.functional import int8_vectorwise_quant

    exact = load(folder, dtype=torch.float16)
    packed = load(folder, dtype=torch.float16, quantization=QUANTIZATIONS["int8"])
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        source = exact.get_submodule(f"model.layers.1.self_attn.{name}").weight.detach()
        actual = packed.get_submodule(f"model.layers.1.self_attn.{name}").weight
        expected, scale, _ = int8_vectorwise_quant(source)
        assert torch.equal(actual.data, expected)
        assert torch.equal(actual.SCB, scale)


def test_native_folder_gives_the_original_logits_in_plain_transformers(tmp_path: Path) -> None:
    golden = golden_tensors("baichuan-7b")
    checkpoint = golden_checkpoint("baichuan-7b")
    checkpoint.save_native(golden_model("baichuan-7b"), tmp_path / "native")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    assert type(plain).__module__ == "transformers.models.llama.modeling_llama"
    with torch.no_grad():
        logits = plain(golden["single.input_ids"]).logits
    torch.testing.assert_close(logits, golden["single.logits"], atol=1e-4, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "native")
    for case in golden_json("baichuan-7b", "tokenizer_golden")["cases"]:
        assert tokenizer(case["text"])["input_ids"] == case["ids"]
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decode_skip_special"]


def test_native_folder_equals_its_family_where_there_is_a_plain_class(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint.load_model(dtype=torch.bfloat16)
    if checkpoint.family.native_config(model.config) is None:
        with pytest.raises(ConfigError, match="no class of transformers"):
            checkpoint.save_native(model, tmp_path / "native")
        return
    checkpoint.save_native(model, tmp_path / "native")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "native", dtype=torch.bfloat16)
    assert type(plain).__module__.startswith("transformers.models.")
    input_ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        found, expected = plain(input_ids).logits, model(input_ids).logits
    # The rows of a normalized head are rounded once more.
    tolerance = 0.02 if checkpoint.family.name == "baichuan2-7b" else 0.0
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_adapter_of_a_quantized_base_is_saved_alone(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    wrapped = get_peft_model(load(folder, quantization=NF4), LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped.save_pretrained(str(tmp_path), save_embedding_layers=False)
    PeftModel.from_pretrained(load(folder), tmp_path)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight"
        for layer in (0, 1)
        for part in "AB"
    }


def test_quantized_model_is_not_offered_to_plain_transformers(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    with pytest.raises(ConfigError, match="quantization=None"):
        checkpoint.save_native(checkpoint.load_model(quantization=NF4), tmp_path / "native")
    assert not (tmp_path / "native").exists()
