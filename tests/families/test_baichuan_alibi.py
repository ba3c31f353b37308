"""ALiBi without a bias matrix, and the network built on it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import golden_checkpoint, golden_model, golden_tensors
from torch.nn import functional as F

from lit_sft.families.baichuan.alibi import BaichuanAlibiConfig, BaichuanAlibiForCausalLM
from lit_sft.families.baichuan.alibi_dimensions import Alibi, alibi_slopes, extend

ALIBI = ["baichuan-13b", "baichuan2-13b"]


def test_slopes_of_a_power_of_two_fall_geometrically() -> None:
    assert alibi_slopes(8).tolist() == [2.0**-head for head in range(1, 9)]


def test_other_counts_take_every_second_slope_of_the_next_power() -> None:
    expected = [2 ** (-head / 4) for head in range(1, 33)] + [2 ** (-(2 * head + 1) / 8) for head in range(8)]
    torch.testing.assert_close(alibi_slopes(40), torch.tensor(expected, dtype=torch.float64), atol=0, rtol=1e-12)
    assert alibi_slopes(1).tolist() == [2.0**-8]


def attention_error(num_heads: int, num_tokens: int, head_dim: int, dtype: torch.dtype) -> float:
    """Largest difference from a dense bias in double precision, of inputs about one in size."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, num_heads, num_tokens, head_dim).to(dtype) for _ in range(3))
    alibi = Alibi(num_heads, head_dim)
    query_extra, key_extra = alibi(torch.arange(num_tokens)[None], dtype)
    folded = F.scaled_dot_product_attention(
        extend(q, query_extra),
        extend(k, key_extra),
        F.pad(v, (0, alibi.num_extra)),
        is_causal=True,
        scale=head_dim**-0.5,
    )[..., :head_dim]
    positions = torch.arange(num_tokens).double()
    bias = alibi_slopes(num_heads)[:, None, None] * (positions - positions[:, None])
    bias = bias.masked_fill(positions > positions[:, None], -math.inf)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=bias[None])
    return (folded.double() - exact).abs().max().item()


@pytest.mark.parametrize("num_heads", [1, 2, 3, 5, 6, 8, 12, 40])
@pytest.mark.parametrize("head_dim", [12, 16])
def test_folded_attention_equals_a_dense_bias(num_heads: int, head_dim: int) -> None:
    assert attention_error(num_heads, 300, head_dim, torch.float32) < 5e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_loses_no_more_than_its_rounding(dtype: torch.dtype, tolerance: float) -> None:
    """Ten heads: slopes that bfloat16 does not hold exactly."""
    assert attention_error(10, 1500, 16, dtype) < tolerance


@pytest.mark.parametrize("head_dim", [10, 12, 16, 64, 128])
def test_head_dimensions_stay_aligned(head_dim: int) -> None:
    assert (head_dim + Alibi(4, head_dim).num_extra) % 8 == 0
    assert 6 <= Alibi(4, head_dim).num_extra < 14


@pytest.mark.parametrize("family", ALIBI)
def test_no_mask_is_made_where_the_row_is_only_causal(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    attend = F.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: Any = None, is_causal: bool = False, **kwargs: Any) -> torch.Tensor:
        masks.append((attn_mask, is_causal))
        return attend(*args, **{"attn_mask": attn_mask, "is_causal": is_causal, **kwargs})

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    golden_model(family, family)(input_ids=golden_tensors(family)["single.input_ids"], use_cache=False)
    assert masks
    assert all(mask is None and is_causal for mask, is_causal in masks)


@pytest.mark.parametrize("family", ALIBI)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_values_of_the_mask_name_segments(family: str, implementation: str) -> None:
    model, ids = golden_model(family, family), golden_tensors(family)["single.input_ids"][0, :9]
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        alone = [model(input_ids=part[None]).logits[0] for part in (ids[:4], ids[4:8])]
        together = model(input_ids=ids[None], attention_mask=torch.tensor([[1] * 4 + [2] * 4 + [0]])).logits[0]
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(together[:8], torch.cat(alone), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ALIBI)
def test_position_ids_move_nothing(family: str) -> None:
    """Only distances count, so rows may start anywhere."""
    model, input_ids = golden_model(family, family), golden_tensors(family)["single.input_ids"]
    positions = torch.arange(input_ids.shape[1])[None] + 7
    with torch.no_grad():
        moved = model(input_ids=input_ids, position_ids=positions).logits
        torch.testing.assert_close(moved, model(input_ids=input_ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"cache_implementation": "static"}], ids=["beams", "static"])
def test_other_ways_to_decode_agree_with_the_full_forward(options: dict[str, Any]) -> None:
    model, input_ids = (
        golden_model("baichuan2-13b", "baichuan2-13b"),
        golden_tensors("baichuan2-13b")["generate.input_ids"],
    )
    common = {"do_sample": False, "max_new_tokens": 8, "repetition_penalty": 1.0, "disable_compile": True}
    mask = torch.ones_like(input_ids)
    with_cache = model.generate(input_ids=input_ids, attention_mask=mask, **common, **options)
    without = model.generate(
        input_ids=input_ids,
        attention_mask=mask,
        **common,
        **(options | {"use_cache": False, "cache_implementation": None}),
    )
    assert with_cache.tolist() == without.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ALIBI)
def test_half_precision_decodes_left_padded_rows(family: str, dtype: torch.dtype) -> None:
    model = golden_checkpoint(family, family).load_model(dtype=dtype)
    golden = golden_tensors(family)
    mask = golden["left.attention_mask"].bool()
    with torch.no_grad():
        logits = model(input_ids=golden["left.input_ids"], attention_mask=mask.long()).logits
    error = (logits.float() - golden["left.logits"])[mask].abs()
    assert error.mean() < 0.02 * golden["left.logits"][mask].std()


def test_context_longer_than_a_block_of_positions_is_exact() -> None:
    config = BaichuanAlibiConfig(
        vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3
    )
    torch.manual_seed(0)
    model = BaichuanAlibiForCausalLM(config).eval()
    input_ids = torch.randint(3, 50, (1, 600))
    with torch.no_grad():
        full = model(input_ids=input_ids).logits
        prefix = model(input_ids=input_ids[:, :599], use_cache=True)
        last = model(input_ids=input_ids[:, 599:], past_key_values=prefix.past_key_values).logits
        model.set_attn_implementation("eager")
        eager = model(input_ids=input_ids).logits
    torch.testing.assert_close(last, full[:, -1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(eager, full, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["baichuan-13b", "baichuan2-13b"])
def test_tools_find_the_context_length_and_config_json_does_not_name_it(family: str, tmp_path: Path) -> None:
    config = golden_model(family, family).config
    assert config.max_position_embeddings == config.model_max_length
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "max_position_embeddings" not in saved
    assert saved["model_max_length"] == config.model_max_length
