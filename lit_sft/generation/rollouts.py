"""Rollouts: several answers to each prompt, drawn from the policy itself, for reinforcement learning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_sft.errors import ConfigError, TrainingError
from lit_sft.generation._processors import draw
from lit_sft.generation.generate import TOKEN_BUDGET, pad_left
from lit_sft.generation.reading import Reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DROPPED_SHARE = 1 / 4
"""Of the answers in memory that must have ended before they leave it: dropping them copies the cache of the others."""


@dataclass(slots=True)
class Rollout:
    """An answer that was drawn.

    `ids` ends with the first stop token where `is_ended`; otherwise it was cut at `max_new_tokens`. `logprobs` are
    those of the ids under the distribution that they were drawn from, temperature included.
    """

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    is_ended: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer, its end included."""
        return len(self.ids)


class RolloutSampler:
    """Draws answers from the network's own distribution, which is what the gradient of a policy is of.

    So there is a temperature and nothing else: top-k, top-p and penalties draw from another distribution than the one
    that is trained, and the KL from the reference can then come out negative.

    An answer depends on seed, rollout, prompt and its own number alone, not on what stands beside it: it is the same
    in other batches, on other ranks and after a restart, but for rounding.

    Args:
        num_answers: To each prompt, K.
        max_new_tokens: Tokens of an answer at most.
        temperature: Divides the logits; close to 0 the likeliest token is drawn.
        seed: With the number of a rollout, of a prompt in it and of an answer to that, decides what is drawn.
        token_budget: Tokens of prompts, padding and whole answers in memory at once, unless of one answer.
    """

    def __init__(
        self,
        num_answers: int,
        max_new_tokens: int,
        temperature: float = 1.0,
        seed: int = 0,
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        for name, value in (
            *(("num_answers", num_answers), ("max_new_tokens", max_new_tokens)),
            ("token_budget", token_budget),
        ):
            if value < 1:
                raise ConfigError(f"{name} of rollouts is {value}; it must be at least 1")
        if not 0 < temperature < math.inf:
            raise ConfigError(f"temperature of rollouts is {temperature}; it must be above 0, and finite")
        self.num_answers = num_answers
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.seed = seed
        self.token_budget = token_budget

    @torch.no_grad()
    def sample(
        self,
        network: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        *,
        numbers: Sequence[int],
        rollout: int,
        stop_token_ids: Sequence[int],
    ) -> list[list[Rollout]]:
        """K answers to each prompt, in order.

        The network stays in its mode, in which it is trained, too: dropout would make it another policy.

        Args:
            network: The policy.
            prompts: Ids of each, which leave room for `max_new_tokens` in the context.
            numbers: Of the prompts in this rollout, over all ranks.
            rollout: Its number.
            stop_token_ids: Tokens that end an answer.

        Raises:
            TrainingError: If the network gives no probabilities.
        """
        answers = [[Rollout() for _ in range(self.num_answers)] for _ in prompts]
        chances = [self._chances(rollout, number) for number in numbers]
        with without_checkpointing(network):
            for rows, copies in self.batches([len(prompt) for prompt in prompts]):
                lines = [_Line(answers[row][k], chances[row][k]) for row in rows for k in copies]
                self._write(network, [prompts[row] for row in rows], lines, list(stop_token_ids))
        return answers

    def batches(self, lengths: Sequence[int]) -> list[tuple[list[int], range]]:
        """What is in memory together: prompts, by their numbers, and which of the K answers to each.

        The longest come first: what does not fit shows at once.

        Args:
            lengths: Tokens of each prompt.
        """
        order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        found: list[tuple[list[int], range]] = []
        while order:
            at_once = max(1, self.token_budget // (lengths[order[0]] + self.max_new_tokens))  # answers
            num_prompts = max(1, at_once // self.num_answers)
            for first in range(0, self.num_answers, at_once):
                copies = range(first, min(first + at_once, self.num_answers))
                found.append((order[:num_prompts], copies))
            order = order[num_prompts:]
        return found

    def _chances(self, rollout: int, number: int) -> list[Random]:
        """A generator for each answer to a prompt."""
        seeds = [f"{self.seed} {rollout} {number} {k}" for k in range(self.num_answers)]
        return [Random(seed) for seed in seeds]  # noqa: S311 - no secret depends on it

    def _write(
        self, network: PreTrainedModel, prompts: list[Sequence[int]], lines: list[_Line], stop: list[int]
    ) -> None:
        """Draw token after token until all lines, equally many for each prompt, have ended."""
        reading = Reading(network, *pad_left(prompts, pad_token_id=stop[0]))
        reading.repeat(len(lines) // len(prompts))
        for place in range(1, self.max_new_tokens + 1):
            tokens = self._draw(reading.logits, lines)
            for line, token, logprob in zip(lines, *tokens, strict=True):
                line.add(token, logprob, stop)
            going = [row for row, line in enumerate(lines) if not line.answer.is_ended]
            if not going or place == self.max_new_tokens:
                break
            chosen = torch.tensor(tokens[0])
            if len(going) <= (1 - DROPPED_SHARE) * len(lines):
                lines, chosen = [lines[row] for row in going], chosen[going]
                reading.keep(going)
            reading.go_on(chosen)

    def _draw(self, logits: Tensor, lines: Sequence[_Line]) -> tuple[list[int], list[float]]:
        """Tokens of each line, from logits [B, V], and their log-probabilities."""
        probabilities = (logits.double() / self.temperature).softmax(-1)
        tokens = draw(probabilities, [line.chance.random() for line in lines])
        logprobs: list[float] = probabilities.gather(1, tokens[:, None])[:, 0].log().tolist()
        if any(map(math.isnan, logprobs)):
            raise TrainingError("the network gives no probabilities (NaN) in a rollout: its weights are damaged")
        return tokens.tolist(), logprobs


@dataclass(frozen=True, slots=True)
class _Line:
    """An answer that is being drawn, and where its numbers come from."""

    answer: Rollout
    chance: Random

    def add(self, token: int, logprob: float, stop: Sequence[int]) -> None:
        """Write a token, unless the answer has ended."""
        if not self.answer.is_ended:
            self.answer.ids.append(token)
            self.answer.logprobs.append(logprob)
            self.answer.is_ended = token in stop


@contextmanager
def without_checkpointing(network: nn.Module) -> Iterator[None]:
    """While it is open, no block forgets the cache, as it does in training to be computed again backwards."""
    blocks: list[Any] = [module for module in network.modules() if getattr(module, "gradient_checkpointing", False)]
    for block in blocks:
        block.gradient_checkpointing = False
    try:
        yield
    finally:
        for block in blocks:
            block.gradient_checkpointing = True
