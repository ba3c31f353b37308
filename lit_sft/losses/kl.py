"""How far a policy is from its reference, by the tokens it wrote (Schulman 2020, http://joschu.net/blog/kl-approx.html).

Which estimate is used where decides what is optimized. The aim is E[reward] - beta KL(policy | reference) over whole
answers, whose best policy is softmax(log reference + reward / beta). `k1` in the reward has exactly its gradient, and
so has `k3` in the loss times the ratio of the whole answer. Times the ratio of a token, as GRPO has it, it has it for
answers of one token only: on longer ones it does not see what an early token does to later ones. Plain `k3` in the loss
has the gradient of the other divergence, KL(reference | policy).
"""

from __future__ import annotations

from torch import Tensor


def k1(logps: Tensor, reference: Tensor) -> Tensor:
    """Log-ratio: right on average, negative at times; of tokens [R, T] or whole answers [R], as it is given."""
    return logps - reference


def k2(logps: Tensor, reference: Tensor) -> Tensor:
    """Half the square of the log-ratio, in the shape given: biased a little, and never negative."""
    return 0.5 * (logps - reference).square()


def k3(logps: Tensor, reference: Tensor) -> Tensor:
    """Right on average and never negative, in the shape given."""
    difference = reference - logps
    return difference.expm1() - difference


def adapted_coefficient(coefficient: float, kl: float, *, target: float, num_answers: int, horizon: int) -> float:
    """The weight of the KL in the next rollout, which steers towards `target` (Ziegler et al. 2019, section 2.2).

    Args:
        coefficient: That of this rollout.
        kl: Its mean KL of an answer.
        target: What it should be.
        num_answers: Answers of the rollout.
        horizon: Answers in which the coefficient changes by the whole error.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * num_answers / horizon)
