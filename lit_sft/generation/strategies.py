"""Decoding strategies: what a generation config may say, checked where it is written."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from copy import copy
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from lit_sft.errors import ConfigError

if TYPE_CHECKING:
    from transformers import LogitsProcessor


class Strategy(ABC):
    """How the next token is chosen.

    Args:
        max_new_tokens: Tokens of an answer at most.
        repetition_penalty: Above 1, tokens seen before become less likely (Keskar et al. 2019, arXiv:1909.05858).
        no_repeat_ngram_size: No sequence of so many tokens occurs twice, those of the prompt included; 0 to allow it.
        name: How result files and tables call it; made of its parameters if not given.
    """

    num_beams = 1
    """Sequences that are followed for each prompt."""

    named: ClassVar[tuple[str, ...]] = ()
    """Parameters that stand in the name even where they have their default."""

    def __init__(
        self,
        max_new_tokens: int = 256,
        repetition_penalty: float = 1.0,
        no_repeat_ngram_size: int = 0,
        name: str | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ConfigError(f"generation max_new_tokens is {max_new_tokens}; it must be at least 1")
        if not 0 < repetition_penalty < math.inf:
            raise ConfigError(f"generation repetition_penalty is {repetition_penalty}; it must be above 0, and finite")
        if no_repeat_ngram_size < 0:
            raise ConfigError(f"generation no_repeat_ngram_size is {no_repeat_ngram_size}; it must be at least 0")
        if name == "":
            raise ConfigError("generation name is empty; give one, or leave it out")
        self.max_new_tokens = max_new_tokens
        self.repetition_penalty = repetition_penalty
        self.no_repeat_ngram_size = no_repeat_ngram_size
        self._name = name

    def parameters(self) -> dict[str, Any]:
        """All that decides which answers come out."""
        return {key: value for key, value in vars(self).items() if key != "_name"}

    @property
    def name(self) -> str:
        """The given name, or one such as `top_p(top_p=0.9, temperature=0.8)`: what differs from the defaults."""
        if self._name:
            return self._name
        defaults, own = type(self)().parameters(), self.parameters()
        shown = [*self.named, *(key for key in own if key not in self.named and own[key] != defaults[key])]
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()
        return f"{kind}({', '.join(f'{key}={own[key]}' for key in shown)})" if shown else kind

    def redrawn(self, number: int) -> Strategy:
        """The same choice by other chances, of which number 0 are its own; itself where there is no chance."""
        return self

    def options(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `GenerationConfig`; none is left to the checkpoint's own."""
        common = {
            "max_new_tokens": self.max_new_tokens,
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
        }
        return common | self._choice()

    def processors(self, padding: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[LogitsProcessor]:
        """What stands between the logits and the choice of a token, in the order of transformers.

        No prompt depends on those answered beside it: what looks at the tokens before does so without padding.

        Args:
            padding: Columns at the left of each prompt that are padding.
            prompts: Their ids.
        """
        from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

        from lit_sft.generation._processors import WithoutPadding

        chain: list[LogitsProcessor] = []
        if self.repetition_penalty != 1:
            chain.append(WithoutPadding(RepetitionPenaltyLogitsProcessor(self.repetition_penalty), padding))
        if self.no_repeat_ngram_size:
            chain.append(WithoutPadding(NoRepeatNGramLogitsProcessor(self.no_repeat_ngram_size), padding))
        return chain

    @abstractmethod
    def _choice(self) -> dict[str, Any]:
        """The arguments that set this strategy apart."""


UNSAMPLED = {"do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}
"""No chance; what only sampling reads has the default of transformers."""


class Greedy(Strategy):
    """Always the likeliest token."""

    def _choice(self) -> dict[str, Any]:
        return {**UNSAMPLED, "num_beams": 1}


class BeamSearch(Strategy):
    """The likeliest of several answers followed side by side.

    Args:
        num_beams: Answers followed at once.
        length_penalty: Exponent of the length by which a score is divided; above 0 favors long answers.
        kwargs: What every strategy takes.
    """

    named = ("num_beams",)

    def __init__(
        self,
        num_beams: int = 4,
        length_penalty: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_beams < 2:
            raise ConfigError(f"generation num_beams is {num_beams}; beam search needs at least 2, else use Greedy")
        if not math.isfinite(length_penalty):
            raise ConfigError(f"generation length_penalty is {length_penalty}; it must be finite")
        self.num_beams = num_beams
        self.length_penalty = length_penalty

    def _choice(self) -> dict[str, Any]:
        return {**UNSAMPLED, "num_beams": self.num_beams, "length_penalty": self.length_penalty}


class Sampling(Strategy):
    """A token drawn by chance.

    Args:
        temperature: Divides the logits; above 0, below 1 sharpens.
        seed: Each prompt draws by a generator of its own, made of this and its tokens.
        kwargs: What every strategy takes.
    """

    def __init__(self, temperature: float = 1.0, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < temperature < math.inf:
            raise ConfigError(
                f"generation temperature is {temperature}; it must be above 0, and finite. "
                "For no chance at all use Greedy"
            )
        self.temperature = temperature
        self.seed = seed

    def redrawn(self, number: int) -> Sampling:
        """With a seed made of its own and the number."""
        other = copy(self)
        if number:
            other.seed = Random(f"{self.seed} {number}").getrandbits(63)  # noqa: S311 - no secret depends on it
        return other

    def processors(self, padding: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[LogitsProcessor]:
        """Temperature, what cuts off unlikely tokens, and a draw for each prompt instead of one for the batch."""
        from transformers import TemperatureLogitsWarper

        from lit_sft.generation._processors import Draw

        chain = super().processors(padding, prompts)
        if self.temperature != 1:
            chain.append(TemperatureLogitsWarper(float(self.temperature)))
        draw = Draw([f"{self.seed} {list(prompt)}" for prompt in prompts])
        return [*chain, *self._cut_off(), draw]

    def _cut_off(self) -> list[LogitsProcessor]:
        """What leaves only some tokens to draw from."""
        return []


class TopK(Sampling):
    """A token drawn from the `top_k` likeliest (Fan et al. 2018, arXiv:1805.04833).

    Args:
        top_k: Tokens to draw from.
        kwargs: What every sampling takes.
    """

    named = ("top_k",)

    def __init__(self, top_k: int = 50, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if top_k < 1:
            raise ConfigError(f"generation top_k is {top_k}; it must be at least 1")
        self.top_k = top_k

    def _cut_off(self) -> list[LogitsProcessor]:
        from transformers import TopKLogitsWarper

        return [TopKLogitsWarper(self.top_k)]

    def _choice(self) -> dict[str, Any]:
        return {"do_sample": True, "num_beams": 1, "top_k": self.top_k, "top_p": 1.0, "temperature": self.temperature}


class TopP(Sampling):
    """A token drawn from the likeliest that together reach `top_p` (Holtzman et al. 2019, arXiv:1904.09751).

    Args:
        top_p: Probability that the tokens to draw from must reach.
        kwargs: What every sampling takes.
    """

    named = ("top_p",)

    def __init__(self, top_p: float = 0.9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < top_p <= 1:
            raise ConfigError(f"generation top_p is {top_p}; it must be above 0 and at most 1")
        self.top_p = top_p

    def _cut_off(self) -> list[LogitsProcessor]:
        from transformers import TopPLogitsWarper

        return [TopPLogitsWarper(self.top_p)] if self.top_p < 1 else []

    def _choice(self) -> dict[str, Any]:
        return {"do_sample": True, "num_beams": 1, "top_p": self.top_p, "top_k": 0, "temperature": self.temperature}


def by_name(strategies: Iterable[Strategy]) -> dict[str, Strategy]:
    """Strategies by name, in order.

    Raises:
        ConfigError: If two have the same, or there is none.
    """
    found: dict[str, Strategy] = {}
    for strategy in strategies:
        if strategy.name in found:
            raise ConfigError(f"generation has two strategies of the name {strategy.name}; give one another name")
        found[strategy.name] = strategy
    if not found:
        raise ConfigError("generation is an empty list; give a strategy, or leave it out")
    return found
