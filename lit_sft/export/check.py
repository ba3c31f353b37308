"""The gate: what a graph answers, in onnxruntime, beside what the network answers in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_sft.conversation import IGNORE_INDEX
from lit_sft.errors import ConfigError
from lit_sft.export.reference import outputs_of, weights_on_call, with_plain_head

if TYPE_CHECKING:
    from lit_sft.checkpoint.onnx_session import GraphSession
    from lit_sft.export.weights import WeightStore

MAX_SAMPLES = 8
MAX_TOKENS = 96
"""Of a sample, the last ones: together they bound the logits that are compared, half a GB at most."""

NUM_GREEDY = 16
"""Tokens that each prompt is answered with."""

TOLERANCES = {"float32": 1e-3, "float16": 0.05}
"""Difference of a logit at most, in standard deviations of the logits (at least 1): what another order of sums makes.

A wrong graph differs by whole deviations. Integers are compared with the same integers in torch, so as float32.
"""


@dataclass(frozen=True)
class Sample:
    """Ids of a conversation, and where an answer is to be learned its ids again, else -100."""

    input_ids: Sequence[int]
    labels: Sequence[int]

    def last(self, number: int) -> Sample:
        """Its last tokens."""
        return Sample(self.input_ids[-number:], self.labels[-number:])

    @property
    def prompt(self) -> Sequence[int]:
        """What stands before the first answer."""
        first = next((place for place, label in enumerate(self.labels) if label != IGNORE_INDEX), len(self.labels))
        return self.input_ids[: max(1, first)]


class Gate:
    """Compares a graph with its network on some samples.

    Args:
        network: On "meta" or with fake weights.
        store: Its weights, as they were and as exported.
        samples: To compare on; shortened.
        scores: Weight [1, H] of the head of a reward model.
    """

    def __init__(
        self, network: Any, store: WeightStore, samples: Sequence[Sample], scores: Tensor | None = None
    ) -> None:
        self.network = network
        self.store = store
        self.samples = [sample.last(MAX_TOKENS) for sample in samples[:MAX_SAMPLES]]
        self.scores = scores
        self.originals: list[Tensor] = []

    def check(self, session: GraphSession) -> dict[str, Any]:
        """Figures of the comparison.

        Args:
            session: The graph, products with integers at accuracy level 0.

        Raises:
            ConfigError: If the graph does not compute what the network does.
        """
        rows = [list(sample.input_ids) for sample in self.samples]
        answered = self._answer(session) if self.scores is None else []
        expected = self._expected([*rows, *answered])
        found = [_forward(session, row) for row in rows]
        spread = float(torch.cat([each.flatten() for each in expected]).std())
        limit = TOLERANCES[str(self.store.precision.compute).removeprefix("torch.")] * max(1.0, spread)
        difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=False))
        if not difference <= limit:
            raise ConfigError(
                f"the graph does not compute what the network does: logits differ by {difference:.2g}, and "
                f"{limit:.2g} is the most; nothing is exported"
            )
        self._check_ids(answered, expected[len(rows) :], 2 * limit)
        return {
            "num_prompts": len(rows),
            "num_positions": sum(map(len, rows)),
            "max_logit_difference": difference,
            "limit": limit,
            "std_of_logits": spread,
            "num_greedy_ids": NUM_GREEDY * len(answered),
        }

    def quality(self, session: GraphSession) -> dict[str, float]:
        """How far the exported model is from the one that it was made of, on the answers in the samples.

        Args:
            session: The graph as it is exported.
        """
        self._keep_originals()
        divergence, agreed, count = 0.0, 0, 0
        losses = {"original": 0.0, "exported": 0.0}
        for sample, original in zip(self.samples, self.originals, strict=True):
            exported = _forward(session, list(sample.input_ids))
            labels = torch.tensor([*sample.labels[1:]])
            places = (labels != IGNORE_INDEX).nonzero()[:, 0]
            if not len(places):
                continue
            expected, given = (each[places].double().log_softmax(-1) for each in (original, exported))
            divergence += float((expected.exp() * (expected - given)).sum())
            agreed += int((expected.argmax(-1) == given.argmax(-1)).sum())
            for name, logs in (("original", expected), ("exported", given)):
                losses[name] -= float(logs.gather(1, labels[places, None]).sum())
            count += len(places)
        if not count:
            return {}
        return {
            "num_tokens": count,
            "perplexity_of_original": float(torch.tensor(losses["original"] / count).exp()),
            "perplexity": float(torch.tensor(losses["exported"] / count).exp()),
            "kl_divergence": divergence / count,
            "top_1_agreement": agreed / count,
        }

    def _expected(self, rows: Sequence[Sequence[int]]) -> list[Tensor]:
        """Of torch: with the weights as they were, or where they were rounded, with the rounded ones."""
        if self.store.precision.name == "float32":
            with weights_on_call(self.network, self.store.as_it_was):
                expected = outputs_of(self.network, rows, self.scores)
            if self.scores is None:
                self.originals = expected[: len(self.samples)]
            return expected
        if self.scores is None:
            self._keep_originals()
            with_plain_head(self.network)
        with weights_on_call(self.network, self.store.as_exported):
            return outputs_of(self.network, rows, self.scores)

    def _keep_originals(self) -> None:
        """What the original says of the samples, kept before the head is changed."""
        if not self.originals:
            with weights_on_call(self.network, self.store.as_it_was):
                self.originals = outputs_of(self.network, [sample.input_ids for sample in self.samples])

    def _answer(self, session: GraphSession) -> list[list[int]]:
        """Greedy answers to the prompts behind them, all prompts in one batch."""
        rows = [list(sample.prompt) for sample in self.samples]
        cache = session.new_cache(len(rows))
        new = rows = [*rows]
        for _ in range(NUM_GREEDY):
            chosen = session.forward(new, cache)[:, -1].argmax(-1).tolist()
            new = [[token] for token in chosen]
            rows = [[*row, token] for row, token in zip(rows, chosen, strict=True)]
        return rows

    def _check_ids(self, answered: Sequence[Sequence[int]], expected: Sequence[Tensor], tie: float) -> None:
        """Each id is the one that torch would choose in its place, or as likely but for rounding."""
        for row, logits in zip(answered, expected, strict=True):
            for place in range(len(row) - NUM_GREEDY, len(row)):
                best, chosen = logits[place - 1].max(), logits[place - 1, row[place]]
                if not best - chosen <= tie:
                    raise ConfigError(
                        f"the graph answers otherwise than the network: token {row[place]} instead of "
                        f"{int(logits[place - 1].argmax())}; nothing is exported"
                    )


def _forward(session: GraphSession, row: Sequence[int]) -> Tensor:
    """Logits [T, V], or scores [T], of a row."""
    return torch.from_numpy(session.forward([row], session.new_cache(1), keep=len(row))[0])
