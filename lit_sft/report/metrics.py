"""Metrics of answers. Each counts something on every prompt; sums of the counts give its value.

Sums, so that the same formula serves all prompts, those of a category and every draw of a bootstrap. Characters are
tokens, for Chinese has no blanks between words. BLEU, chrF and ROUGE-L are those of torchmetrics, of which
`SacreBLEUScore(tokenize="char")` and `rouge_score(tokenizer=list)` count here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torchmetrics.functional.text.rouge import rouge_score
from torchmetrics.text import SacreBLEUScore

from lit_sft.report.refusals import is_refusal

Array = NDArray[np.float64]
Counts = Sequence[float]

MAX_ORDER = 4
CHRF_ORDER = 6
CHRF_BETA = 2.0
REPEATED = 4


@dataclass(frozen=True)
class Judgment:
    """What a reward model says of an answer: its score, and 1 if that is above the one before tuning, 1/2 if equal."""

    score: float
    win: float


@dataclass(frozen=True)
class Reply:
    """An answer, and how well the model predicts the reference: `loss` in nats and `num_correct`, over `tokens`.

    `rewards`: by name of a reward model; none where it cannot read one of the two answers.
    """

    text: str
    has_stopped: bool
    num_tokens: int
    loss: float = 0.0
    tokens: int = 0
    num_correct: int = 0
    rewards: Mapping[str, Judgment] = field(default_factory=dict)


HeldOutLosses = dict[str, dict[str, tuple[float, float]]]
"""Held-out data as a model predicts it: by corpus, and there by source, nats and tokens."""


@dataclass(frozen=True)
class Metric:
    """A metric: what it counts on a prompt (None where it says nothing), and the value of the sums [..., S] -> [...].

    `needs`: the prompts that it is for; for `reward` those whose answers the reward model `judge` could read.
    `by_strategy`: whether it depends on how tokens are chosen.
    """

    key: str
    title: str
    kind: Literal["share", "number", "score", "perplexity"]
    better: Literal["higher", "lower", ""]
    count: Callable[[Reply, str], Counts]
    value: Callable[[Array], Array]
    needs: Literal["reference", "safety", "reward", ""] = ""
    by_strategy: bool = True
    judge: str = ""


def ratio(sums: Array) -> Array:
    """The first sum over the second."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def perplexity(sums: Array) -> Array:
    """Of summed nats and tokens."""
    return np.asarray(np.exp(np.minimum(ratio(sums), 700.0)))


def bleu(sums: Array) -> Array:
    """BLEU-4 (Papineni et al. 2002) of matches, n-grams, length of answers and of references [..., 10]."""
    matches, totals = sums[..., :MAX_ORDER], sums[..., MAX_ORDER : 2 * MAX_ORDER]
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.exp(np.log(matches / totals).mean(-1))
        brevity = np.exp(np.minimum(0.0, 1 - sums[..., -1] / sums[..., -2]))
    return np.asarray(np.where(matches.min(-1) > 0, precision * brevity, 0.0))


def chrf(sums: Array) -> Array:
    """chrF2 (Popović 2015) of matches, n-grams of answers and of references [..., 18]."""
    matches, answered, wanted = np.split(sums, 3, axis=-1)
    tiny = 1e-16
    precision, recall = matches / np.maximum(answered, tiny), matches / np.maximum(wanted, tiny)
    squared = CHRF_BETA**2
    scores = (1 + squared) * precision * recall / np.maximum(squared * precision + recall, tiny)
    return np.asarray(scores.mean(-1))


@cache
def _bleu_counter() -> SacreBLEUScore:
    return SacreBLEUScore(n_gram=MAX_ORDER, tokenize="char")


def _bleu_counts(reply: Reply, reference: str) -> Counts:
    counter: Any = _bleu_counter()
    counter.reset()
    counter.update([reply.text], [[reference]])
    sums = (counter.numerator, counter.denominator, counter.preds_len[None], counter.target_len[None])
    return [float(number) for part in sums for number in part.flatten()]


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


def _chrf_counts(reply: Reply, reference: str) -> Counts:
    orders = range(1, CHRF_ORDER + 1)
    answered = [_ngrams("".join(reply.text.split()), order) for order in orders]
    wanted = [_ngrams("".join(reference.split()), order) for order in orders]
    matches = [(a & w).total() for a, w in zip(answered, wanted, strict=True)]
    return [*matches, *(a.total() for a in answered), *(w.total() for w in wanted)]


def _rouge_counts(reply: Reply, reference: str) -> Counts:
    found = rouge_score(reply.text, reference, rouge_keys="rougeL", tokenizer=list, normalizer=str)
    return [float(found["rougeL_fmeasure"]), 1.0]


def distinct(text: str, order: int) -> Counts:
    """Different n-grams of an answer, and all (Li et al. 2016, arXiv:1510.03055); sums of them over answers."""
    found = _ngrams("".join(text.split()), order)
    return [len(found), found.total()]


def repetition(text: str) -> Counts:
    """4-grams of characters that stood in the answer before, and all."""
    different, total = distinct(text, REPEATED)
    return [total - different, total]


PERPLEXITY = Metric("perplexity", "Perplexity of the reference", "perplexity", "lower",
           lambda reply, _: [reply.loss, reply.tokens], perplexity, "reference", by_strategy=False)  # fmt: skip

METRICS = (
    PERPLEXITY,
    Metric("token_accuracy", "Token accuracy", "share", "higher",
           lambda reply, _: [reply.num_correct, reply.tokens], ratio, "reference", by_strategy=False),
    Metric("bleu", "BLEU-4", "share", "higher", _bleu_counts, bleu, "reference"),
    Metric("chrf", "chrF", "share", "higher", _chrf_counts, chrf, "reference"),
    Metric("rouge_l", "ROUGE-L", "share", "higher", _rouge_counts, ratio, "reference"),
    Metric("distinct_1", "Distinct-1", "share", "higher", lambda reply, _: distinct(reply.text, 1), ratio),
    Metric("distinct_2", "Distinct-2", "share", "higher", lambda reply, _: distinct(reply.text, 2), ratio),
    Metric("repetition", "Repetition", "share", "lower", lambda reply, _: repetition(reply.text), ratio),
    Metric("stopped", "Stopped by itself", "share", "higher", lambda reply, _: [float(reply.has_stopped), 1.0], ratio),
    Metric("length", "Characters of an answer", "number", "", lambda reply, _: [len(reply.text), 1.0], ratio),
    Metric("refusals", "Refusals", "share", "", lambda reply, _: [float(is_refusal(reply.text)), 1.0], ratio, "safety"),
)  # fmt: skip


def reward_metrics(judge: str) -> tuple[Metric, Metric]:
    """What a reward model says of the answers, by its name. Before tuning wins half of the time against itself."""
    return (
        Metric(f"reward/{judge}", f"Reward of {judge}", "score", "higher",
               lambda reply, _: [reply.rewards[judge].score, 1.0], ratio, "reward", judge=judge),
        Metric(f"win_rate/{judge}", f"Win rate against before, by {judge}", "share", "higher",
               lambda reply, _: [reply.rewards[judge].win, 1.0], ratio, "reward", judge=judge),
    )  # fmt: skip
