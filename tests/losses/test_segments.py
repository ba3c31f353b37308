"""Sums over the sequences of a micro-batch."""

import torch
from torch import Tensor

from lit_sft.losses.segments import Segments

IDS = torch.tensor([0, 0, 0, 2, 2, 3])
"""The second sequence has no token."""


def values() -> Tensor:
    return torch.tensor([1.0, 2, 4, 8, 16, 32], requires_grad=True)


def test_tokens_stand_from_the_left_in_the_row_of_their_sequence() -> None:
    segments = Segments.of(IDS, 4, 5)
    assert segments.lengths.tolist() == [3, 0, 2, 1]
    assert segments.grid(values()).tolist() == [[1, 2, 4, 0, 0], [0] * 5, [8, 16, 0, 0, 0], [32, 0, 0, 0, 0]]
    assert torch.equal(segments.mask, segments.grid(torch.ones(6)).bool())
    assert segments.sums(values()).tolist() == [7, 0, 24, 32]


def test_the_gradient_of_a_sum_reaches_its_tokens_alone() -> None:
    tokens = values()
    (Segments.of(IDS, 4, 5).sums(tokens) * torch.tensor([1.0, 10, 100, 1000])).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.tolist() == [1, 1, 1, 100, 100, 1000]


def test_a_sum_does_not_depend_on_what_else_is_in_the_micro_batch() -> None:
    """To the bit, so that the ratio of new to old log-probabilities stays one in other company."""
    tokens = torch.randn(1000)
    ids = torch.arange(1000) // 250
    together = Segments.of(ids, 4, 250).sums(tokens)
    alone = torch.cat([Segments.of(ids[:250], 1, 250).sums(part) for part in tokens.split(250)])
    assert torch.equal(together, alone)


def test_no_operation_adds_in_an_order_of_its_own() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        tokens = values()
        Segments.of(IDS, 4, 5).sums(tokens).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    names, pending = set(), [Segments.of(IDS, 4, 5).sums(values()).grad_fn]
    while pending:
        node = pending.pop()
        if node is not None:
            names.add(node.name())
            pending += [following for following, _ in node.next_functions]
    assert not {name for name in names if "Index" in name}


def test_nothing_at_all() -> None:
    segments = Segments.of(IDS[:0], 2, 3)
    assert segments.sums(values()[:0]).tolist() == [0, 0]
