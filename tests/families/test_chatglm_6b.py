"""ChatGLM-6B computes what the original implementation does, in both vocabulary revisions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import GOLDEN, assert_equal_where, golden_checkpoint, golden_json, golden_model, golden_tensors
from transformers import DynamicCache

from lit_sft import open_checkpoint
from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.families._base import TinySize
from lit_sft.families.chatglm.family import ChatGLM6B
from lit_sft.families.chatglm.weights import fuse_heads, split_heads

REVISIONS = ["chatglm-6b", "chatglm-6b-v0"]


@pytest.fixture(scope="module", params=REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def columns_of(revision: str) -> Any:
    """The v0 goldens hold some columns of the vocabulary only."""
    return golden_tensors(revision).get("logit_columns", slice(None))


# Network


def test_both_revisions_are_one_family(revision: str) -> None:
    assert golden_checkpoint(revision).family.name == "chatglm-6b"


@pytest.mark.parametrize("case", ["single", "pair", "maskonly"])
def test_logits_equal_the_original(revision: str, case: str) -> None:
    golden = golden_tensors(revision)
    with torch.no_grad():
        logits = golden_model(revision)(input_ids=golden[f"{case}.input_ids"]).logits
    torch.testing.assert_close(logits[..., columns_of(revision)], golden[f"{case}.logits"], atol=1e-4, rtol=0)


def test_every_hidden_state_equals_the_original(revision: str) -> None:
    golden = golden_tensors(revision)
    with torch.no_grad():
        states = golden_model(revision)(input_ids=golden["single.input_ids"], output_hidden_states=True).hidden_states
    torch.testing.assert_close(torch.stack(states), golden["single.hidden_states"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", ["usual", "original"])
def test_left_padded_logits_equal_the_original(revision: str, form: str) -> None:
    """With a [B, T] mask, and with the 4-D mask and two-channel positions that the original tokenizer makes."""
    golden = golden_tensors(revision)
    inputs = {"attention_mask": golden["leftpad.valid"].long()}
    if form == "original":
        inputs = {
            "attention_mask": golden["leftpad.attention_mask_true_is_blocked"],
            "position_ids": golden["leftpad.position_ids"],
        }
    with torch.no_grad():
        logits = golden_model(revision)(input_ids=golden["leftpad.input_ids"], **inputs).logits
    assert torch.isfinite(logits).all()
    assert_equal_where(golden["leftpad.valid"], logits[..., columns_of(revision)], golden["leftpad.logits"])


@pytest.mark.parametrize("is_masked", [False, True])
def test_right_padded_logits_equal_the_original(revision: str, is_masked: bool) -> None:
    golden = golden_tensors(revision)
    valid = golden["rightpad.valid"]
    mask = valid.long() if is_masked else None
    with torch.no_grad():
        logits = golden_model(revision)(input_ids=golden["rightpad.input_ids"], attention_mask=mask).logits
    last = logits[torch.arange(len(valid)), valid.sum(1) - 1][:, columns_of(revision)]
    torch.testing.assert_close(last, golden["rightpad.last_valid_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["single", "maskonly", "leftpad"])
def test_positions_and_mask_are_those_of_the_original(revision: str, case: str) -> None:
    golden = golden_tensors(revision)
    valid = golden.get(f"{case}.valid", torch.ones_like(golden[f"{case}.input_ids"])).bool()
    layout = golden_model(revision).transformer.layout(golden[f"{case}.input_ids"], valid)
    assert torch.equal(layout.positions, golden[f"{case}.position_ids"])
    blocked = golden.get(f"{case}.mask_true_is_blocked", golden.get(f"{case}.attention_mask_true_is_blocked"))
    if blocked is not None:
        assert torch.equal(layout.allowed()[:, 0][valid], ~blocked[:, 0][valid])


@pytest.mark.parametrize("case", ["train", "train_hist"])
def test_loss_and_gradients_equal_the_original(revision: str, case: str) -> None:
    golden, expected = golden_tensors(revision), golden_json(revision)["train"][case]
    model = golden_checkpoint(revision).load_model(dtype=torch.float32).train()
    input_ids, labels = golden[f"{case}.input_ids"], golden[f"{case}.labels"]
    rows = zip(input_ids.unsqueeze(1), labels.unsqueeze(1), strict=True)
    with torch.no_grad():
        per_sample = [model(input_ids=ids, labels=label).loss.item() for ids, label in rows]
    assert per_sample == pytest.approx(expected["loss_per_sample"], abs=1e-5)
    loss = model(input_ids=input_ids, labels=labels).loss
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-5)

    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, norm in expected["grad_norm"].items():
        if "query_key_value" in name:
            parts = [gradients[name.replace("query_key_value", part)] for part in ("q_proj", "k_proj", "v_proj")]
            gradient = fuse_heads(parts, model.config.num_attention_heads)
        else:
            gradient = gradients[name]
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), name


# Generation


def test_cached_steps_equal_the_original(revision: str) -> None:
    golden, model = golden_tensors(revision), golden_model(revision)
    input_ids, num_prompt = golden["incremental.input_ids"], golden_json(revision)["incremental_prompt_len"]
    logits, cache = [], None
    with torch.no_grad():
        for start, end in [(0, num_prompt), *((i, i + 1) for i in range(num_prompt, input_ids.shape[1]))]:
            step = model(input_ids=input_ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            logits.append(step.logits[:, -1, columns_of(revision)])
    for expected in ("incremental.step_logits", "incremental.full_logits_from_prompt_end"):
        torch.testing.assert_close(torch.stack(logits, dim=1), golden[expected], atol=1e-4, rtol=0)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_ids_equal_the_original(revision: str, use_cache: bool) -> None:
    expected, model = golden_json(revision)["greedy"], golden_model(revision)
    options = {
        "do_sample": False,
        "max_new_tokens": 24,
        "use_cache": use_cache,
        "pad_token_id": model.config.pad_token_id,
    }
    for case in (case for name, case in expected.items() if name.startswith("single")):
        prompt = torch.tensor([case["input_ids"]])
        assert model.generate(prompt, **options)[0, prompt.shape[1] :].tolist() == case["new_ids"]
    golden = golden_tensors(revision)
    padded, mask = golden["leftpad.input_ids"], golden["leftpad.valid"].long()
    new_ids = model.generate(padded, attention_mask=mask, **options)[:, padded.shape[1] :]
    assert new_ids.tolist() == expected["leftpad_batch"]


def test_beams_with_a_cache_are_those_without(revision: str) -> None:
    golden, model = golden_tensors(revision), golden_model(revision)
    prompts, mask = golden["leftpad.input_ids"], golden["leftpad.valid"].long()
    options = {"num_beams": 4, "do_sample": False, "max_new_tokens": 12, "pad_token_id": 3}
    cached, plain = (
        model.generate(prompts, attention_mask=mask, use_cache=use_cache, **options) for use_cache in (True, False)
    )
    assert cached.tolist() == plain.tolist()


def test_a_cache_may_be_reordered_and_cropped() -> None:
    golden, model = golden_tensors("chatglm-6b"), golden_model("chatglm-6b")
    prompts, mask = golden["leftpad.input_ids"], golden["leftpad.valid"].long()
    order, new_ids = torch.tensor([2, 0, 1]), torch.tensor([[700], [701], [702]])
    mask = torch.cat([mask[order], torch.ones_like(new_ids)], dim=1)
    with torch.no_grad():
        cache = model(input_ids=prompts, attention_mask=golden["leftpad.valid"].long(), use_cache=True).past_key_values
        cache.reorder_cache(order)
        for _ in range(2):
            step = model(input_ids=new_ids, attention_mask=mask, past_key_values=cache).logits[:, 0]
            cache.crop(-1)
        full = model(input_ids=torch.cat([prompts[order], new_ids], dim=1), attention_mask=mask).logits[:, -1]
    torch.testing.assert_close(step, full, atol=1e-4, rtol=0)


def test_several_tokens_at_once_may_follow_the_prompt() -> None:
    ids, model = golden_tensors("chatglm-6b")["pair.input_ids"], golden_model("chatglm-6b")
    with torch.no_grad():
        cache = model(input_ids=ids[:, :-5], use_cache=True).past_key_values
        rest = model(input_ids=ids[:, -5:], past_key_values=cache).logits
        full = model(input_ids=ids).logits[:, -5:]
    torch.testing.assert_close(rest, full, atol=1e-4, rtol=0)


def test_a_prompt_read_in_pieces_is_refused() -> None:
    ids, model = golden_tensors("chatglm-6b")["single.input_ids"], golden_model("chatglm-6b")
    cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="pieces"):
        model(input_ids=ids[:, 4:], past_key_values=cache)


def test_a_cache_without_tokens_needs_positions() -> None:
    ids, model = golden_tensors("chatglm-6b")["single.input_ids"], golden_model("chatglm-6b")
    cache = DynamicCache(config=model.config)
    model(input_ids=ids, past_key_values=cache, use_cache=True)
    with pytest.raises(ValueError, match="position_ids"):
        model(input_ids=ids[:, :1], past_key_values=cache)


def test_a_static_cache_is_refused() -> None:
    ids, model = golden_tensors("chatglm-6b")["single.input_ids"], golden_model("chatglm-6b")
    with pytest.raises(ValueError, match="cache that grows"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")


# Layout of tokens the original never saw


def test_tokens_without_sop_are_plain_causal_text() -> None:
    model = golden_model("chatglm-6b")
    ids = torch.tensor([[600, 601, 602, 603]])
    layout = model.transformer.layout(ids)
    assert layout.positions.tolist() == [[[0, 1, 2, 3], [0, 0, 0, 0]]]
    assert torch.equal(layout.allowed()[0, 0], torch.ones(4, 4).tril().bool())
    with torch.no_grad():
        torch.testing.assert_close(model(ids[:, :2]).logits, model(ids).logits[:, :2], atol=1e-5, rtol=0)


def test_gmask_comes_before_mask_and_only_the_first_sop_counts() -> None:
    config = golden_model("chatglm-6b").config
    mask, gmask, sop = config.mask_token_id, config.gmask_token_id, config.bos_token_id
    layout = golden_model("chatglm-6b").transformer.layout(torch.tensor([[mask, 600, gmask, sop, 601, sop]]))
    assert layout.positions.tolist() == [[[0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]]]


def test_packed_examples_restart_and_do_not_see_each_other() -> None:
    model = golden_model("chatglm-6b")
    gmask, sop = model.config.gmask_token_id, model.config.bos_token_id
    row = torch.tensor([[600, gmask, sop, 601, 600, 601, 602, gmask, sop, 602, 603, 604]])
    layout = model.transformer.layout(row, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 1]]))
    places, blocks = layout.positions[0].tolist()
    assert places == [0, 1, 1, 1, 0, 1, 2, 3, 3, 3, 0, 1]
    assert blocks == [0, 0, 1, 2, 0, 0, 0, 0, 1, 2, 0, 0]
    sees = layout.allowed()[0, 0]
    assert sees[0].nonzero().flatten().tolist() == [0, 1]
    assert sees[4].nonzero().flatten().tolist() == [4, 5, 6, 7]
    assert sees[8].nonzero().flatten().tolist() == [4, 5, 6, 7, 8]
    assert sees[10].nonzero().flatten().tolist() == [10]


# Weights


@pytest.mark.parametrize("num_heads", [1, 3, 4])
def test_splitting_heads_is_undone_by_fusing_them(num_heads: int) -> None:
    for fused in (torch.randn(3 * num_heads * 8, 5), torch.randn(3 * num_heads * 8)):
        assert torch.equal(fuse_heads(split_heads(fused, num_heads), num_heads), fused)
    first_head_key = split_heads(torch.arange(3 * num_heads * 8), num_heads)[1][:8]
    assert first_head_key.tolist() == list(range(8, 16))


def test_saved_files_hold_the_original_names_and_bits(revision: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    original = torch.load(GOLDEN / revision / "checkpoint" / "pytorch_model.bin", weights_only=True)
    golden_model(revision).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == {name for name in original if "inv_freq" not in name and name != "lm_head.weight"}
    for name, weight in saved.items():
        assert torch.equal(weight, original[name].float()), name


def test_embedding_and_head_are_one_even_if_the_stored_ones_differ(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "chatglm-6b" / "checkpoint", tmp_path, dirs_exist_ok=True)
    weights = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    torch.save(weights, tmp_path / "pytorch_model.bin")
    model: Any = open_checkpoint(tmp_path).load_model(dtype=torch.float32)
    assert model.lm_head.weight is model.transformer.word_embeddings.weight
    assert torch.equal(model.lm_head.weight, weights["transformer.word_embeddings.weight"].float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rotary_angles_do_not_depend_on_the_type_of_the_weights(dtype: torch.dtype) -> None:
    model: Any = golden_checkpoint("chatglm-6b").load_model(dtype=torch.float32)
    model.to(dtype)
    positions = torch.tensor([[[2047], [2000]]])
    expected = golden_model("chatglm-6b").transformer.rotary(positions, torch.float32)
    for angle, exact in zip(model.transformer.rotary(positions, torch.float32), expected, strict=True):
        assert torch.equal(angle, exact)


def test_half_precision_is_as_near_as_the_original_was() -> None:
    golden = golden_tensors("chatglm-6b")
    model = golden_checkpoint("chatglm-6b").load_model(dtype=torch.float16)
    with torch.no_grad():
        logits = model(input_ids=golden["single.input_ids"]).logits[:, -1].float()
    error = (logits - golden["single.logits"][:, -1]).abs().max()
    assert error < 2 * golden_json("chatglm-6b")["fp16_vs_fp32_maxdiff"]


# Folders that must be refused


def changed_checkpoint(folder: Path, revision: str, **changes: Any) -> Path:
    shutil.copytree(GOLDEN / revision / "checkpoint", folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "changes",
    [{"quantization_bit": 4}, {"pre_seq_len": 128}, {"position_encoding_2d": False}],
    ids=lambda c: next(iter(c)),
)
def test_other_kinds_of_checkpoint_are_refused_by_key(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        open_checkpoint(changed_checkpoint(tmp_path, "chatglm-6b", **changes))


@pytest.mark.parametrize("changes", [{"bos_token_id": 1304}, {"gmask_token_id": 1301}, {"vocab_size": 1664}])
def test_files_of_two_revisions_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    """A vocabulary read with the wrong offset gives wrong ids without any other sign."""
    folder = changed_checkpoint(tmp_path, "chatglm-6b-v0", **changes)
    with pytest.raises(CheckpointError, match="one revision"):
        open_checkpoint(folder).load_tokenizer()


@pytest.mark.parametrize("key", ["padded_vocab_size", "ffn_hidden_size", "multi_query_group_num"])
def test_later_chatglms_are_not_taken_for_this_one(key: str) -> None:
    config = golden_checkpoint("chatglm-6b").config
    assert ChatGLM6B.matches(config)
    assert not ChatGLM6B.matches({**config, key: 1})
    assert not ChatGLM6B.matches({"model_type": "glm", "max_sequence_length": 1024})


@pytest.mark.parametrize("size", [TinySize(vocab_size=500), TinySize(hidden_size=40, num_heads=4)])
def test_a_tiny_checkpoint_of_impossible_size_is_refused(size: TinySize, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be"):
        ChatGLM6B.write_tiny(tmp_path, ["text"], size)
