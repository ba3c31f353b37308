"""The loss at supervised positions equals the loss of the full logits."""

from typing import Any

import pytest
import torch

from lit_sft.conversation import IGNORE_INDEX
from lit_sft.families.baichuan.norm_head import NormHead
from lit_sft.losses.cross_entropy import TokenTotals, supervised_cross_entropy
from lit_sft.losses.fused_head import head_cross_entropy


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.nn.Linear]:
    torch.manual_seed(0)
    hidden = torch.randn(3, 10, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 20, (3, 10))
    labels[0, :6] = labels[1, 3:] = IGNORE_INDEX
    return hidden, labels, torch.nn.Linear(8, 20, dtype=torch.float64)


def of_one_group(hidden: torch.Tensor, labels: torch.Tensor, head: torch.nn.Module, **options: Any) -> TokenTotals:
    return supervised_cross_entropy(hidden, labels, head, torch.zeros_like(labels), 1, **options)


@pytest.mark.parametrize("chunk_size", [1, 5, 1000])
def test_equals_the_loss_of_the_full_logits_with_its_gradients(chunk_size: int) -> None:
    hidden, labels, head = inputs()
    totals = of_one_group(hidden, labels, head, chunk_size=chunk_size)
    gradients = torch.autograd.grad(totals.loss, [hidden, *head.parameters()])

    logits = head(hidden)[:, :-1].reshape(-1, 20)
    targets = labels[:, 1:].reshape(-1)
    expected = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    torch.testing.assert_close(totals.loss.double(), expected, rtol=1e-6, atol=0)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, [hidden, *head.parameters()]), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)

    is_supervised = targets != IGNORE_INDEX
    loss, num_tokens, num_correct = totals.by_group[0]
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
    assert num_tokens == is_supervised.sum()
    assert num_correct == (logits.argmax(-1) == targets)[is_supervised].sum()


@pytest.mark.parametrize("chunk_size", [5, 1000])
def test_each_group_has_the_totals_it_has_alone(chunk_size: int) -> None:
    hidden, labels, head = inputs()
    groups = torch.randint(0, 3, labels.shape)
    together = supervised_cross_entropy(hidden, labels, head, groups, 4, chunk_size=chunk_size)
    assert not together.by_group.requires_grad
    for group in range(3):
        alone = of_one_group(hidden, labels.where(groups == group, IGNORE_INDEX), head)
        torch.testing.assert_close(together.by_group[group], alone.by_group[0])
    assert together.by_group[3].tolist() == [0, 0, 0]
    torch.testing.assert_close(together.by_group.sum(0)[0], together.loss.double(), rtol=1e-6, atol=0)


def test_a_loss_that_is_not_a_number_stays_in_its_group() -> None:
    hidden, labels, head = inputs()
    groups = torch.arange(3)[:, None].expand_as(labels)
    broken = hidden.detach().clone()
    broken[2] = float("nan")
    totals = supervised_cross_entropy(broken, labels, head, groups, 3)
    assert totals.by_group[:, 0].isnan().tolist() == [False, False, True]


def test_the_head_sees_no_more_positions_than_a_chunk_and_only_supervised_ones() -> None:
    hidden, labels, head = inputs()
    seen: list[int] = []
    head.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    for is_trained in (False, True):
        with torch.set_grad_enabled(is_trained):
            totals = of_one_group(hidden, labels, head, chunk_size=4)
        assert max(seen) <= 4
        assert sum(seen) == totals.by_group[0, 1]
        seen.clear()


@pytest.mark.parametrize("length", [1, 10])
def test_a_batch_without_supervised_tokens_has_zero_loss_and_zero_gradients(length: int) -> None:
    hidden, labels, head = inputs()
    totals = of_one_group(hidden[:, :length], torch.full_like(labels[:, :length], IGNORE_INDEX), head)
    assert totals.loss == 0
    assert totals.by_group.tolist() == [[0, 0, 0]]
    for gradient in torch.autograd.grad(totals.loss, [hidden, *head.parameters()]):
        assert not gradient.any()


def test_the_loss_can_be_back_propagated_only_once() -> None:
    hidden, labels, head = inputs()
    loss = of_one_group(hidden, labels, head).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


@pytest.mark.parametrize("chunk_size", [4, 1000])
def test_a_frozen_head_gets_no_gradient_and_hidden_states_the_same(chunk_size: int) -> None:
    hidden, labels, head = inputs()
    (trained,) = torch.autograd.grad(of_one_group(hidden, labels, head).loss, [hidden])
    head.requires_grad_(False)
    of_one_group(hidden, labels, head, chunk_size=chunk_size).loss.backward()
    torch.testing.assert_close(hidden.grad, trained)
    assert head.weight.grad is None


@pytest.mark.parametrize("chunk_size", [4, 1000])
@pytest.mark.parametrize("kind", ["norm", "hooked", "no bias"])
def test_any_head_is_differentiated(kind: str, chunk_size: int) -> None:
    """Baichuan 2 divides by the lengths of the rows of its head; others do more than a linear layer, too."""
    hidden, labels, _ = inputs()
    hidden = hidden.detach().float().requires_grad_()
    head = NormHead(8, 20) if kind == "norm" else torch.nn.Linear(8, 20, bias=False)
    if kind == "hooked":
        head.register_forward_hook(lambda module, args, output: output.tanh())
    loss = of_one_group(hidden, labels, head, chunk_size=chunk_size).loss
    logits = head(hidden)[:, :-1].reshape(-1, 20)
    expected = torch.nn.functional.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum")
    wanted = torch.autograd.grad(expected, [hidden, head.weight])
    for gradient, other in zip(torch.autograd.grad(loss, [hidden, head.weight]), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [4, 1000])
def test_logits_are_those_of_autocast(chunk_size: int) -> None:
    hidden, labels, head = inputs()
    hidden, head = hidden.detach().float().requires_grad_(), head.float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = of_one_group(hidden, labels, head, chunk_size=chunk_size).loss
        logits = head(hidden)[:, :-1].reshape(-1, 20)
    assert logits.dtype == torch.bfloat16
    expected = torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:].reshape(-1), reduction="sum")
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, [hidden, head.weight])
    for gradient, other in zip(torch.autograd.grad(loss, [hidden, head.weight]), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("trained", ["weight", "bias"])
def test_a_part_of_the_head_can_be_frozen(trained: str) -> None:
    hidden, labels, head = inputs()
    whole = dict(
        zip(
            ("weight", "bias"),
            torch.autograd.grad(of_one_group(hidden, labels, head).loss, [*head.parameters()]),
            strict=True,
        )
    )
    for name, parameter in head.named_parameters():
        parameter.requires_grad_(name == trained)
    of_one_group(hidden.detach(), labels, head, chunk_size=4).loss.backward()
    for name, parameter in head.named_parameters():
        if name == trained:
            torch.testing.assert_close(parameter.grad, whole[name])
        else:
            assert parameter.grad is None


def test_a_known_number_of_supervised_positions_is_not_counted_again() -> None:
    hidden, labels, head = inputs()
    size = int((labels[:, 1:] != IGNORE_INDEX).sum())
    known = of_one_group(hidden, labels, head, num_supervised=size)
    assert torch.equal(known.by_group, of_one_group(hidden, labels, head).by_group)


def test_the_loss_of_a_token_that_is_known_well_is_not_zero() -> None:
    logits = torch.tensor([[30.0, 14.5, 3.0]])
    head = torch.nn.Identity()
    loss, _, _ = head_cross_entropy(logits.requires_grad_(), torch.tensor([0]), head)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.tensor([0])), rtol=1e-5, atol=0)


def test_a_token_that_ties_with_another_for_the_first_place_is_not_correct() -> None:
    """In bfloat16 one row of random logits in twenty has two that are the highest."""
    logits = torch.tensor([[1.0, 3.0, 3.0], [3.0, 1.0, 3.0], [1.0, 3.0, 2.0], [3.0, 3.0, 3.0]])
    targets = torch.tensor([1, 2, 1, 0])
    for values in (logits.clone(), logits.clone().requires_grad_()):
        with torch.set_grad_enabled(values.requires_grad):
            _, losses, is_first = head_cross_entropy(values, targets, torch.nn.Identity())
        assert is_first.tolist() == [False, False, True, False]
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("chunk_size", [4, 1000])
@pytest.mark.parametrize("is_normalized", [True, False])
def test_the_z_loss_of_a_position_is_the_square_of_its_largest_logit(is_normalized: bool, chunk_size: int) -> None:
    hidden, labels, _ = inputs()
    hidden = hidden.detach().float().requires_grad_()
    head = NormHead(8, 20) if is_normalized else torch.nn.Linear(8, 20)
    totals = of_one_group(hidden, labels, head, chunk_size=chunk_size, z_loss_weight=0.1)
    logits, targets = head(hidden)[:, :-1].reshape(-1, 20), labels[:, 1:].reshape(-1)
    plain = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    expected = plain + 0.1 * logits[targets != IGNORE_INDEX].max(-1).values.square().sum()
    torch.testing.assert_close(totals.loss, expected)
    torch.testing.assert_close(totals.by_group[0, 0].float(), expected)
    wanted = torch.autograd.grad(expected, [hidden, *head.parameters()])
    for gradient, other in zip(torch.autograd.grad(totals.loss, [hidden, *head.parameters()]), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        held_out = of_one_group(hidden, labels, head, chunk_size=chunk_size, z_loss_weight=0.1)
    torch.testing.assert_close(held_out.loss, expected.detach())


def test_half_precision_is_summed_in_float32() -> None:
    hidden, labels, head = inputs()
    exact = of_one_group(hidden, labels, head)
    rounded = of_one_group(hidden.bfloat16(), labels, head.bfloat16())
    assert rounded.loss.dtype == torch.float32
    torch.testing.assert_close(rounded.loss, exact.loss.float(), rtol=0.02, atol=0)
