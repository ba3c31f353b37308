"""The normalized head of Baichuan 2."""

import pytest
import torch
from goldens import golden_checkpoint, golden_tensors
from torch.nn import functional as F

from lit_sft.families.baichuan.norm_head import NormHead, ZLoss

SECOND = ["baichuan2-7b", "baichuan2-13b"]


def test_equals_normalized_rows_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    head, hidden = NormHead(16, 40), torch.randn(3, 5, 16)
    expected = F.linear(hidden, F.normalize(head.weight))
    torch.testing.assert_close(head(hidden), expected, atol=1e-6, rtol=1e-6)
    weights = torch.randn(3, 5, 40)
    (gradient,) = torch.autograd.grad((head(hidden) * weights).sum(), head.weight)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), head.weight)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-5, rtol=1e-5)


def test_empty_row_gives_zero() -> None:
    head = NormHead(4, 2)
    torch.nn.init.zeros_(head.weight)
    assert head(torch.ones(1, 4)).tolist() == [[0, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head, hidden = NormHead(64, 100).to(dtype), torch.randn(7, 64).to(dtype)
    exact = F.linear(hidden.double(), F.normalize(head.weight.double()))
    assert head(hidden).dtype == dtype
    torch.testing.assert_close(head(hidden).double(), exact, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("family", SECOND)
def test_training_and_evaluation_give_the_same_and_keep_the_weight(family: str) -> None:
    model = golden_checkpoint(family).load_model(dtype=torch.float32)
    before = model.lm_head.weight.clone()
    input_ids = golden_tensors(family)["single.input_ids"]
    with torch.no_grad():
        evaluated, trained = model.eval()(input_ids=input_ids).logits, model.train()(input_ids=input_ids).logits
    assert torch.equal(evaluated, trained)
    assert torch.equal(model.lm_head.weight, before)
    assert not torch.allclose(before.norm(dim=1), torch.ones(len(before)), atol=1e-2)


@pytest.mark.parametrize("family", SECOND)
def test_resized_vocabulary_keeps_a_normalized_head(family: str) -> None:
    model = golden_checkpoint(family).load_model(dtype=torch.float32)
    input_ids = golden_tensors(family)["single.input_ids"]
    with torch.no_grad():
        before = model(input_ids=input_ids).logits
        model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
        after = model(input_ids=input_ids).logits
    assert isinstance(model.get_output_embeddings(), NormHead)
    assert after.shape[-1] == before.shape[-1] + 8
    torch.testing.assert_close(after[..., :-8], before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", SECOND)
def test_z_loss_is_added_if_the_config_asks_for_it(family: str) -> None:
    golden = golden_tensors(family)
    model = golden_checkpoint(family).load_model(dtype=torch.float32)
    inputs = {"input_ids": golden["single.input_ids"], "labels": golden["single.labels"]}
    with torch.no_grad():
        plain = model(**inputs)
        model.loss_function = ZLoss(0.1)
        loss = model(**inputs).loss
    expected = plain.loss + 0.1 * plain.logits[:, :-1].amax(-1).square().mean()
    torch.testing.assert_close(loss, expected)
