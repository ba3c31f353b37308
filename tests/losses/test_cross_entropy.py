"""The loss at supervised positions equals the loss of the full logits."""

import pytest
import torch

from lit_sft.conversation import IGNORE_INDEX
from lit_sft.losses.cross_entropy import supervised_cross_entropy


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.nn.Linear]:
    torch.manual_seed(0)
    hidden = torch.randn(3, 10, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 20, (3, 10))
    labels[0, :6] = labels[1, 3:] = IGNORE_INDEX
    return hidden, labels, torch.nn.Linear(8, 20, dtype=torch.float64)


@pytest.mark.parametrize("chunk_size", [1, 5, 1000])
def test_equals_the_loss_of_the_full_logits_with_its_gradients(chunk_size: int) -> None:
    hidden, labels, head = inputs()
    totals = supervised_cross_entropy(hidden, labels, head, chunk_size=chunk_size)
    gradients = torch.autograd.grad(totals.loss, [hidden, *head.parameters()])

    logits = head(hidden)[:, :-1].reshape(-1, 20)
    targets = labels[:, 1:].reshape(-1)
    expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    torch.testing.assert_close(totals.loss.double(), expected, rtol=1e-6, atol=0)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, [hidden, *head.parameters()]), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)

    is_supervised = targets != IGNORE_INDEX
    assert totals.num_tokens == is_supervised.sum()
    assert totals.num_correct == (logits.argmax(-1) == targets)[is_supervised].sum()


def test_the_head_sees_no_more_positions_than_a_chunk_and_only_supervised_ones() -> None:
    hidden, labels, head = inputs()
    seen: list[int] = []
    head.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    with torch.no_grad():
        totals = supervised_cross_entropy(hidden, labels, head, chunk_size=4)
    assert max(seen) <= 4
    assert sum(seen) == totals.num_tokens


def test_a_batch_without_supervised_tokens_has_zero_loss_and_a_graph() -> None:
    hidden, labels, head = inputs()
    totals = supervised_cross_entropy(hidden, torch.full_like(labels, IGNORE_INDEX), head)
    assert (totals.loss, totals.num_tokens) == (0, 0)


def test_half_precision_is_summed_in_float32() -> None:
    hidden, labels, head = inputs()
    exact = supervised_cross_entropy(hidden, labels, head)
    rounded = supervised_cross_entropy(hidden.bfloat16(), labels, head.bfloat16())
    assert rounded.loss.dtype == torch.float32
    torch.testing.assert_close(rounded.loss, exact.loss.float(), rtol=0.02, atol=0)
