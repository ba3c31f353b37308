"""MOSS-moon-003 equals the original implementation: network, generation, conversion, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import GOLDEN, assert_equal_where, golden_checkpoint, golden_json, golden_model, golden_tensors
from safetensors.torch import load_file
from transformers import CodeGenConfig, CodeGenForCausalLM

from lit_sft import open_checkpoint
from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.families._base import TinySize
from lit_sft.families.moss.family import Moss, original_state_dict
from lit_sft.families.moss.network import MossConfig, MossForCausalLM

FAMILY = "moss"
FOLDER = "moss-16b"
KINDS = ("q_proj", "v_proj", "k_proj")


def on_disk() -> dict[str, torch.Tensor]:
    files = sorted((GOLDEN / FOLDER / "checkpoint").glob("*.bin"))
    return {name: weight for file in files for name, weight in torch.load(file, weights_only=True).items()}


def fused(parts: list[torch.Tensor]) -> torch.Tensor:
    """[q, v, k] -> the layout on disk, row by row: four blocks, in each a quarter of each part."""
    quarter = len(parts[0]) // 4
    return torch.cat([part[block * quarter : (block + 1) * quarter] for block in range(4) for part in parts])


def code_gen(config: dict[str, Any], model: MossForCausalLM) -> CodeGenForCausalLM:
    """The class of transformers that computes the same, slowly."""
    other: CodeGenForCausalLM = CodeGenForCausalLM(CodeGenConfig(**config)).eval()
    state = {name: w.float() for name, w in original_state_dict(model).items() if "causal_mask" not in name}
    other.load_state_dict(state)
    return other


def test_recognized_from_its_config() -> None:
    assert golden_checkpoint(FOLDER).family.name == FAMILY


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["single", "right", "left"])
def test_logits_equal_the_original(padding: str, attention: str) -> None:
    golden, model = golden_tensors(FOLDER), golden_model(FOLDER)
    input_ids = golden[f"{padding}.input_ids"]
    mask = golden.get(f"{padding}.attention_mask", torch.ones_like(input_ids))
    model.set_attn_implementation(attention)
    with torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=mask).logits
    model.set_attn_implementation("sdpa")
    assert_equal_where(mask, logits, golden[f"{padding}.logits"])


def test_hidden_states_equal_the_original() -> None:
    golden = golden_tensors(FOLDER)
    with torch.no_grad():
        output = golden_model(FOLDER)(input_ids=golden["single.input_ids"], output_hidden_states=True)
    torch.testing.assert_close(torch.stack(output.hidden_states), golden["single.hidden_states"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("padding", ["single", "right", "left"])
def test_loss_and_gradients_equal_the_original(padding: str) -> None:
    golden, expected = golden_tensors(FOLDER), golden_json(FOLDER)
    model = golden_checkpoint(FOLDER).load_model(dtype=torch.float32).train()
    input_ids = golden[f"{padding}.input_ids"]
    mask = golden.get(f"{padding}.attention_mask", torch.ones_like(input_ids))
    loss = model(input_ids=input_ids, attention_mask=mask, labels=golden[f"{padding}.labels"]).loss
    assert loss.item() == pytest.approx(expected["loss"]["train"][padding], abs=1e-5)

    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, norm in expected["grad_norms"].get(f"train.{padding}", {}).items():
        split = "qkv_proj" in name
        gradient = fused([gradients[name.replace("qkv_proj", kind)] for kind in KINDS]) if split else gradients[name]
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), name
        if padding == "single" and f"grad.{name}" in golden:
            torch.testing.assert_close(gradient, golden[f"grad.{name}"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["generate.sequences", "generate.sequences_reppen1.1", "generate_left.sequences"])
def test_greedy_ids_equal_the_original(case: str) -> None:
    golden = golden_tensors(FOLDER)
    group = case.partition(".")[0]
    input_ids = golden[f"{group}.input_ids"]
    generated = golden_model(FOLDER).generate(
        input_ids=input_ids,
        attention_mask=golden.get(f"{group}.attention_mask", torch.ones_like(input_ids)),
        do_sample=False,
        max_new_tokens=24,
        repetition_penalty=1.1 if "reppen" in case else 1.0,
    )
    assert generated.tolist() == golden[case].tolist()


def test_cached_keys_have_the_original_shape() -> None:
    with torch.no_grad():
        cache = golden_model(FOLDER)(input_ids=torch.arange(7)[None], use_cache=True).past_key_values
    keys_and_values = [list(cache.layers[0].keys.shape), list(cache.layers[0].values.shape)]
    assert keys_and_values == golden_json(FOLDER)["kv_cache_shapes"]


def test_a_prompt_read_in_chunks_gives_the_same_logits() -> None:
    golden, model = golden_tensors(FOLDER), golden_model(FOLDER)
    input_ids = golden["single.input_ids"]
    with torch.no_grad():
        head = model(input_ids=input_ids[:, :5], use_cache=True)
        rest = model(input_ids=input_ids[:, 5:], past_key_values=head.past_key_values)
    logits = torch.cat([head.logits, rest.logits], dim=1)
    torch.testing.assert_close(logits, golden["single.logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("num_heads", "head_dim", "rotary_dim", "n_inner"),
    [(4, 16, 16, None), (8, 8, 2, 100), (12, 6, 4, 7), (20, 4, 2, 96)],
)
def test_equals_codegen_of_other_sizes(num_heads: int, head_dim: int, rotary_dim: int, n_inner: int | None) -> None:
    config: dict[str, Any] = {
        "vocab_size": 300, "n_positions": 64, "n_ctx": 64, "n_embd": num_heads * head_dim, "n_layer": 2,
        "n_head": num_heads, "rotary_dim": rotary_dim, "n_inner": n_inner, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(num_heads)
    model = MossForCausalLM(MossConfig(**config)).eval()
    model.load_state_dict({name: weight.half().float() for name, weight in model.state_dict().items()})
    input_ids = torch.randint(300, (2, 40))
    mask = torch.ones_like(input_ids)
    mask[1, :9] = 0
    with torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=mask).logits
        expected = code_gen(config, model)(input_ids=input_ids, attention_mask=mask).logits
    assert_equal_where(mask, logits, expected)


def test_fused_weights_are_four_blocks_of_query_value_key() -> None:
    model, stored = golden_model(FOLDER), on_disk()
    for layer in range(2):
        attention = model.transformer.h[layer].attn
        parts = [getattr(attention, kind).weight for kind in KINDS]
        assert torch.equal(fused(parts), stored[f"transformer.h.{layer}.attn.qkv_proj.weight"].float())


def test_saved_weights_are_the_original_ones(tmp_path: Path) -> None:
    golden_checkpoint(FOLDER).load_model(dtype=torch.float16).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    stored = {name: weight for name, weight in on_disk().items() if "causal_mask" not in name}
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[name], weight) for name, weight in stored.items())
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["MossForCausalLM"]


def test_four_bit_model_trains_adapters() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = golden_checkpoint(FOLDER).load_model(dtype=torch.float32, quantization=quantization)
    wrapped = get_peft_model(model.train(), LoraConfig(r=2, target_modules=list(Moss.lora_targets)))
    input_ids = golden_tensors(FOLDER)["single.input_ids"]
    wrapped(input_ids=input_ids, labels=input_ids).loss.backward()
    gradients = [p.grad for name, p in wrapped.named_parameters() if "lora_B" in name]
    assert len(gradients) == 2 * len(Moss.lora_targets)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_embedding_can_grow() -> None:
    golden = golden_tensors(FOLDER)
    model = golden_checkpoint(FOLDER).load_model(dtype=torch.float32)
    model.resize_token_embeddings(1300, mean_resizing=False)
    with torch.no_grad():
        logits = model(input_ids=golden["single.input_ids"]).logits
    assert logits.shape[-1] == model.lm_head.bias.shape[0] == 1300
    torch.testing.assert_close(logits[..., :1280], golden["single.logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_half_precision_stays_near_float32_at_far_positions(dtype: torch.dtype, attention: str) -> None:
    """Angles in half precision would be off by whole turns there."""
    model = golden_checkpoint(FOLDER).load_model(dtype=dtype)
    model.set_attn_implementation(attention)
    position_ids = torch.arange(2000, 2048)[None]
    input_ids = torch.randint(1200, (1, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = golden_model(FOLDER)(input_ids=input_ids, position_ids=position_ids).logits
        rounded = model(input_ids=input_ids, position_ids=position_ids).logits.float()
    assert (rounded - exact).abs().mean() < 0.02 * exact.std()


def test_generation_ends_with_eom() -> None:
    end_of_answer = golden_checkpoint(FOLDER).load_tokenizer().convert_tokens_to_ids("<eom>")
    generation = golden_model(FOLDER).generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == (end_of_answer, end_of_answer)


def copy_of_golden(folder: Path, **changes: Any) -> Path:
    for file in (GOLDEN / FOLDER / "checkpoint").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_base_model_ends_with_end_of_text_as_well(tmp_path: Path) -> None:
    model = open_checkpoint(copy_of_golden(tmp_path, eos_token_id=1200)).load_model(dtype=torch.float32)
    assert model.generation_config.eos_token_id == [1240, 1200]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_head": 6}, "n_head 6 is not a multiple of 4"),
        ({"wbits": 4}, "without -int4"),
        ({"rotary_dim": None}, "rotary_dim"),
        ({"rotary_dim": 64}, "at most the head's 16"),
    ],
)
def test_checkpoint_that_cannot_be_read_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = copy_of_golden(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(folder).load_model(dtype=torch.float32)


@pytest.mark.parametrize(
    ("size", "said"),
    [(TinySize(num_heads=6, hidden_size=96), "multiple of 4"), (TinySize(vocab_size=290), "vocab_size")],
)
def test_tiny_sizes_that_do_not_fit_are_refused(tmp_path: Path, size: TinySize, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Moss.write_tiny(tmp_path, ["text"], size)


def test_tiny_checkpoint_has_the_files_and_tensors_of_the_original(tmp_path: Path) -> None:
    Moss.write_tiny(tmp_path, ["你好，世界"], TinySize(hidden_size=32, num_heads=4, num_layers=2, vocab_size=700))
    names = {file.name for file in (GOLDEN / FOLDER / "checkpoint").iterdir()}
    assert {file.name for file in tmp_path.iterdir()} == names
    index = json.loads((tmp_path / "pytorch_model.bin.index.json").read_text())["weight_map"]
    assert index.keys() == on_disk().keys()
