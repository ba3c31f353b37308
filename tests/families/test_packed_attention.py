"""Attention within the examples of packed rows equals plain attention of each example, by every way there is."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lit_sft import open_checkpoint
from lit_sft.families.shared import packed_attention
from lit_sft.families.shared.packed_attention import Borders, attend, borders_of

LENGTHS = [[3, 5, 4], [12]]
PREFIXES = [[2, 0, 4], [7]]
SCALE = 0.3


def packed(num_heads: int, num_key_heads: int, *, has_prefix: bool = False) -> tuple[Tensor, Tensor, Tensor, Borders]:
    """Two rows of 12 tokens, and the borders of their examples."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, 12, 8) for n in (num_heads, num_key_heads, num_key_heads))
    starts = torch.zeros(2, 12, dtype=torch.bool)
    starts[0, [0, 3, 8]] = starts[1, 0] = True
    is_prefix = torch.zeros(2, 12, dtype=torch.bool)
    is_prefix[0, [0, 1, 8, 9, 10, 11]] = is_prefix[1, :7] = True
    return query, key, value, borders_of(starts, is_prefix if has_prefix else None)


def expected(query: Tensor, key: Tensor, value: Tensor, *, has_prefix: bool = False) -> Tensor:
    """Each example alone, with the weights written out."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    mixed = torch.zeros_like(query)
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length, prefix in zip(lengths, PREFIXES[row], strict=True):
            own = (row, slice(None), slice(start, start + length))
            scores = SCALE * query[own] @ key[own].transpose(1, 2)
            is_hidden = torch.ones(length, length).triu(1).bool()
            is_hidden[:, : prefix * has_prefix] = False
            scores = scores.masked_fill(is_hidden, -torch.inf)
            mixed[own] = scores.softmax(-1) @ value[own]
            start += length
    return mixed.transpose(1, 2)


def reference_kernel(calls: list[str]) -> ModuleType:
    """In place of torch.nn.attention.varlen, which needs a GPU: the same signature, one sequence after the other."""

    def varlen_attn(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
        *, scale: float | None, window_size: tuple[int, int], enable_gqa: bool,
    ) -> Tensor:  # fmt: skip
        calls.append("called")
        assert window_size in {(-1, 0), (-1, -1)}
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        parts = []
        for start, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
            assert end - start <= max_q == max_k
            q, k, v = (part[start:end].transpose(0, 1) for part in (query, key, value))
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=window_size[1] == 0, scale=scale, enable_gqa=enable_gqa
            )
            parts.append(mixed.transpose(0, 1))
        return torch.cat(parts)

    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn  # type: ignore[attr-defined]
    return module


@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize("num_key_heads", [4, 2, 1])
@pytest.mark.parametrize("way", ["one by one", "together", "dense"])
def test_every_example_attends_to_itself_alone(
    way: str, num_key_heads: int, has_prefix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    query, key, value, borders = packed(4, num_key_heads, has_prefix=has_prefix)
    module: Any = torch.nn.Module()
    module.num_key_value_groups = 4 // num_key_heads
    if way == "dense":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    elif way == "together":
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", reference_kernel([]))

        def on_a_gpu(
            q: Tensor, k: Tensor, v: Tensor, b: Tensor, dropout: float, scale: float, **causal: bool
        ) -> Tensor:
            return packed_attention._together(q, k, v, b, scale, **causal)

        monkeypatch.setattr(packed_attention, "_one_by_one", on_a_gpu)
    mixed, _ = attend(module, query, key, value, borders, scaling=SCALE)
    torch.testing.assert_close(mixed, expected(query, key, value, has_prefix=has_prefix))


def test_a_mask_is_a_mask_and_borders_are_borders_whatever_their_numbers_are() -> None:
    query, key, value, borders = packed(4, 4)
    assert isinstance(borders, Borders)
    assert type(borders[0, 0]) is Tensor
    module: Any = torch.nn.Module()
    module.is_causal = True
    biases = torch.zeros(2, 1, 12, 12).masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf)
    one_example_a_row = torch.stack([torch.arange(12) == 0] * 2)
    masked, _ = attend(module, query, key, value, biases, scaling=SCALE)
    alone, _ = attend(module, query, key, value, borders_of(one_example_a_row), scaling=SCALE)
    torch.testing.assert_close(masked, alone)
    with pytest.raises(RuntimeError):  # no example boundaries, but a mask of a wrong type
        attend(module, query, key, value, borders.as_subclass(Tensor), scaling=SCALE)


def test_a_kernel_is_taken_only_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(module: ModuleType, dtype: torch.dtype) -> bool:
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
        return packed_attention._varies_lengths.__wrapped__(torch.device("cpu"), dtype, 8)

    calls: list[str] = []
    right = reference_kernel(calls)
    with torch.inference_mode():
        assert answer(right, torch.bfloat16)
    calls.clear()
    assert not answer(right, torch.float32)
    assert not calls

    wrong = reference_kernel(calls)
    wrong.varlen_attn = lambda *args, **options: 2 * right.varlen_attn(*args, **options)  # type: ignore[attr-defined]
    assert not answer(wrong, torch.bfloat16)
    assert not answer(ModuleType("empty"), torch.bfloat16)


def test_a_checkpointed_block_may_be_the_first_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trial saves for its own backward pass is none of the block's."""
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", reference_kernel([]))
    answers: list[bool] = []

    def asks(query: Tensor, dropout: float) -> bool:
        if not answers:
            answers.append(packed_attention._varies_lengths.__wrapped__(query.device, torch.bfloat16, 8))
        return True

    monkeypatch.setattr(packed_attention, "_can_go_by_segment", asks)
    query, key, value, borders = packed(4, 4)
    query.requires_grad_()

    def block(query: Tensor) -> Tensor:
        return attend(torch.nn.Module(), query, key, value, borders, scaling=SCALE)[0].square()

    (gradient,) = torch.autograd.grad(checkpoint(block, query, use_reentrant=False).sum(), query)
    assert answers == [True]
    (wanted,) = torch.autograd.grad(block(query).sum(), query)
    torch.testing.assert_close(gradient, wanted)


def test_one_row_of_positions_is_that_of_all_rows(tiny: Callable[[str], Path]) -> None:
    network = open_checkpoint(tiny("baichuan-7b")).load_model(dtype=torch.float32)
    ids, positions = torch.arange(20, 44).view(2, 12), torch.tensor([[*range(7), *range(5)]])
    of_one, of_all = (network(input_ids=ids, position_ids=p).logits for p in (positions, positions.expand(2, -1)))
    assert torch.equal(of_one, of_all)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("head_dim", [64, 128, 136])
def test_this_gpu_has_the_kernel(head_dim: int) -> None:
    assert packed_attention._varies_lengths(torch.device("cuda", 0), torch.bfloat16, head_dim)


@pytest.mark.parametrize(
    "family", ["baichuan-7b", "baichuan-13b", "baichuan2-7b", "moss", "chatglm-6b", "chatglm2-6b", "native"]
)
def test_no_layer_sees_a_mask_of_a_whole_row(
    family: str, tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = open_checkpoint(tiny(family)).load_model(dtype=torch.float32)
    masks: list[Any] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def watched(*args: Any, **options: Any) -> Tensor:
        masks.append(options.get("attn_mask"))
        return original(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    positions = torch.tensor([[*range(7), *range(5)], [*range(12)]])
    network.get_decoder()(input_ids=torch.arange(20, 44).view(2, 12), position_ids=positions, use_cache=False)
    assert len(masks) >= 3 * network.config.num_hidden_layers
    assert masks == [None] * len(masks)
