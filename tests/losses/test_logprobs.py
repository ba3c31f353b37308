"""Log-probabilities of targets that any loss may be made of, without the logits of all positions."""

import math
from typing import Any

import pytest
import torch
from goldens import golden_checkpoint, golden_model
from preference_goldens import close, equal, subject, tensors, variants
from torch import Tensor, nn

from lit_sft.families.baichuan.norm_head import NormHead
from lit_sft.losses.logprobs import TokenLogProbs, token_log_probs

NUM_TOKENS, WIDTH, VOCABULARY = 11, 8, 20


class Capped(nn.Linear):
    """As Gemma 2 has it, and scaled."""

    def forward(self, hidden: Tensor) -> Tensor:
        return 0.5 * (super().forward(hidden) / 3).tanh() * 3


HEADS: dict[str, Any] = {
    "plain": lambda: nn.Linear(WIDTH, VOCABULARY, bias=False),
    "with bias": lambda: nn.Linear(WIDTH, VOCABULARY),
    "normalized": lambda: NormHead(WIDTH, VOCABULARY),
    "capped": lambda: Capped(WIDTH, VOCABULARY, bias=False),
}


def given(kind: str, is_trained: bool) -> tuple[Tensor, Tensor, nn.Module]:
    head = HEADS[kind]().requires_grad_(is_trained)
    hidden = torch.randn(NUM_TOKENS, WIDTH, requires_grad=True)
    return hidden, torch.randint(0, VOCABULARY, (NUM_TOKENS,)), head


def some_loss(logps: Tensor, entropy: Tensor) -> Tensor:
    """No sum: each log-probability has a gradient of its own, which depends on the others."""
    return (logps.cumsum(0).sigmoid() * torch.arange(1, len(logps) + 1)).sum() + (entropy * logps.detach().exp()).sum()


@pytest.mark.parametrize("variant", variants("head"))
@pytest.mark.parametrize("is_trained", [False, True])
def test_golden(variant: str, is_trained: bool) -> None:
    numbers, expected = tensors("head"), subject("head")["variants"][variant]
    config = expected["config"]
    vocab_size, width = numbers["weight"].shape
    head = nn.Linear(width, vocab_size, bias=config["bias"])
    head.load_state_dict({"weight": numbers["weight"], **({"bias": numbers["bias"]} if config["bias"] else {})})
    head.requires_grad_(is_trained)
    hidden = numbers["hidden"].clone().requires_grad_()
    found = token_log_probs(
        hidden,
        numbers["targets"],
        head,
        temperature=config["temperature"],
        is_measured=True,
        differentiates_entropy=config["entropy_in_loss"],
        chunk_size=4,
    )
    loss = (numbers["upstream_logps"] * found.logps).sum()
    if config["entropy_in_loss"]:
        loss = loss + (numbers["upstream_entropy"] * found.entropy).sum()
    loss.backward()
    close(loss, expected["sum"])
    for name, value in (
        ("logps", found.logps),
        ("entropy", found.entropy),
        ("log_sum_sq_probs", found.collisions),
        ("mean_logits", found.mean_logits),
        ("is_top1", found.is_first),
        ("grad_hidden", hidden.grad),
        *((("grad_weight", head.weight.grad),) if is_trained else ()),
        *((("grad_bias", head.bias.grad),) if is_trained and config["bias"] else ()),
    ):
        equal(value, numbers[f"{variant}/{name}"])


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_any_loss_has_the_gradients_it_has_on_all_logits(kind: str, is_trained: bool, with_entropy: bool) -> None:
    hidden, targets, head = given(kind, is_trained)
    wanted_of = [hidden, *(head.parameters() if is_trained else ())]
    found = token_log_probs(hidden, targets, head, temperature=0.7, differentiates_entropy=with_entropy, chunk_size=4)
    loss = some_loss(found.logps, found.entropy if with_entropy else torch.zeros(1))

    all_logps = (head(hidden) / 0.7).log_softmax(1)
    logps = all_logps.gather(1, targets[:, None]).squeeze(1)
    entropy = -(all_logps.exp() * all_logps).sum(1) if with_entropy else torch.zeros(1)
    expected = some_loss(logps, entropy)
    torch.testing.assert_close(found.logps, logps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(torch.autograd.grad(loss, wanted_of), torch.autograd.grad(expected, wanted_of), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "mixed"])
def test_numbers_do_not_depend_on_whether_gradients_are_recorded(kind: str, precision: str) -> None:
    """The ratio of new to old probabilities is exactly one while the policy is the same."""
    hidden, targets, head = given(kind, is_trained=False)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    hidden, head = hidden.detach().to(dtype), head.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"):
        for with_entropy in (False, True):
            recorded: list[TokenLogProbs] = []
            for is_trained in (False, True):
                head.requires_grad_(is_trained)
                trained = hidden.clone().requires_grad_()
                recorded.append(
                    token_log_probs(trained, targets, head, differentiates_entropy=with_entropy, chunk_size=4)
                )
            with torch.no_grad():
                recorded.append(token_log_probs(hidden, targets, head, is_measured=with_entropy, chunk_size=4))
            with torch.inference_mode():
                recorded.append(token_log_probs(hidden, targets, head, is_measured=with_entropy, chunk_size=4))
            for found in recorded[1:]:
                assert all(torch.equal(one, other) for one, other in zip(found, recorded[0], strict=True))
            assert recorded[0].logps.dtype == torch.float32


@pytest.mark.parametrize("is_trained", [False, True])
def test_mixed_precision_has_the_gradients_of_autocast(is_trained: bool) -> None:
    hidden, targets, head = given("with bias", is_trained)
    wanted_of = [hidden, *(head.parameters() if is_trained else ())]
    with torch.autocast("cpu", torch.bfloat16):
        logps = token_log_probs(hidden, targets, head, chunk_size=4).logps
        expected = head(hidden).float().log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(logps, expected)
    weights = torch.randn(NUM_TOKENS)
    for one, other in zip(
        torch.autograd.grad((weights * logps).sum(), wanted_of),
        torch.autograd.grad((weights * expected).sum(), wanted_of),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("is_trained", [False, True])
def test_the_head_sees_no_more_positions_than_a_chunk_and_nothing_of_the_size_of_all_logits_is_kept(
    is_trained: bool,
) -> None:
    hidden, targets, head = given("plain", is_trained)
    seen: list[int] = []
    head.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        logps = token_log_probs(hidden, targets, head, chunk_size=4).logps
    logps.sum().backward()
    assert max(seen) <= 4
    assert sum(seen) == NUM_TOKENS * (2 if is_trained else 1), "a frozen head computes its logits once"
    assert max(kept) < NUM_TOKENS * VOCABULARY


@pytest.mark.parametrize("folder", ["baichuan-7b", "baichuan2-13b", "moss-16b", "chatglm-6b", "chatglm2-6b"])
def test_log_probabilities_of_a_family_are_those_of_its_logits(folder: str) -> None:
    network = golden_model(folder)
    hidden, targets = torch.randn(6, network.config.hidden_size), torch.randint(0, 50, (6,))
    head = golden_checkpoint(folder).family.behavior(network).head(network)
    with torch.no_grad():
        found = token_log_probs(hidden, targets, head).logps
        expected = head(hidden).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_head_that_is_the_embedding_gets_both_gradients() -> None:
    embedding = nn.Embedding(VOCABULARY, WIDTH)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    head.weight = embedding.weight
    ids = torch.randint(0, VOCABULARY, (NUM_TOKENS,))
    (gradient,) = torch.autograd.grad(token_log_probs(embedding(ids), ids, head).logps.sum(), [head.weight])
    logps = head(embedding(ids)).log_softmax(1).gather(1, ids[:, None])
    torch.testing.assert_close(gradient, torch.autograd.grad(logps.sum(), [head.weight])[0], rtol=1e-4, atol=1e-5)


def test_entropy_without_a_gradient_is_not_trained_on() -> None:
    hidden, targets, head = given("plain", is_trained=False)
    found = token_log_probs(hidden, targets, head, is_measured=True)
    assert found.logps.requires_grad
    assert not found.entropy.requires_grad


@pytest.mark.parametrize("is_trained", [False, True])
def test_no_position_at_all_has_zero_gradients(is_trained: bool) -> None:
    hidden, targets, head = given("with bias", is_trained)
    found = token_log_probs(hidden[:0], targets[:0], head)
    assert found.logps.shape == (0,)
    gradients = torch.autograd.grad(found.logps.sum(), [hidden, *(head.parameters() if is_trained else ())])
    assert not any(gradient.any() for gradient in gradients)


def test_a_hopeless_target_is_not_minus_infinity() -> None:
    logits = torch.tensor([[0.0, 200.0, -300.0]], requires_grad=True)
    logps = token_log_probs(logits, torch.tensor([2]), nn.Identity()).logps
    assert logps.item() == -500
    logps.backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0, -1, 1]]


def one_position(logits: list[float], target: int) -> dict[str, Any]:
    """What a softmax says, one number after the other."""
    highest = max(logits)
    log_total = highest + math.log(sum(math.exp(value - highest) for value in logits))
    shares = [math.exp(value - log_total) for value in logits]
    return {
        "logps": logits[target] - log_total,
        "entropy": -sum(share * math.log(share) for share in shares if share),
        "is_first": all(value < logits[target] for place, value in enumerate(logits) if place != target),
        "mean_logits": sum(logits) / len(logits),
        "collisions": math.log(sum(share * share for share in shares)),
        "of_logits": [(place == target) - share for place, share in enumerate(shares)],
    }


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 3000.0], ids=["all alike", "usual", "sure", "certain"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_tokens", "vocab_size", "chunk_size"), [(1, 2, 1), (1, 7, 5), (5, 3, 2), (6, 33, 3)])
def test_other_sizes_types_and_extremes_are_those_of_plain_numbers(
    num_tokens: int, vocab_size: int, chunk_size: int, dtype: torch.dtype, scale: float
) -> None:
    """Certain targets and impossible ones, and logits that are all alike."""
    head = nn.Linear(WIDTH, vocab_size, bias=False).to(dtype).requires_grad_(False)
    hidden = (scale * torch.randn(num_tokens, WIDTH)).to(dtype).requires_grad_()
    targets = torch.randint(0, vocab_size, (num_tokens,))
    found = token_log_probs(hidden, targets, head, temperature=0.5, is_measured=True, chunk_size=chunk_size)
    # Logits are rounded to their type; what is made of them is not.
    logits = (head(hidden).float() / 0.5).tolist()
    expected = [one_position(row, target) for row, target in zip(logits, targets.tolist(), strict=True)]
    for name in TokenLogProbs._fields:
        values = getattr(found, name)
        assert values.dtype == (torch.bool if name == "is_first" else torch.float32)
        assert values.tolist() == pytest.approx([row[name] for row in expected], rel=2e-5, abs=2e-5), name
    upstream = torch.arange(1.0, num_tokens + 1)
    (gradient,) = torch.autograd.grad((upstream * found.logps).sum(), [hidden])
    of_logits = torch.tensor([row["of_logits"] for row in expected]) * upstream[:, None] / 0.5
    tolerance = 3e-2 if dtype == torch.bfloat16 else 2e-5
    wanted = of_logits @ head.weight.float()
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient.float(), wanted, rtol=tolerance, atol=tolerance * num_tokens)
