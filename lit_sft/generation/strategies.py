"""Decoding strategies: what a generation config may say, checked where it is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from lit_sft.errors import ConfigError


class Strategy(ABC):
    """How the next token is chosen.

    Args:
        max_new_tokens: Tokens of an answer at most.
        repetition_penalty: Above 1, tokens seen before become less likely (Keskar et al. 2019, arXiv:1909.05858).
    """

    def __init__(self, max_new_tokens: int = 256, repetition_penalty: float = 1.0) -> None:
        if max_new_tokens < 1:
            raise ConfigError(f"generation max_new_tokens is {max_new_tokens}; it must be at least 1")
        if repetition_penalty <= 0:
            raise ConfigError(f"generation repetition_penalty is {repetition_penalty}; it must be above 0")
        self.max_new_tokens = max_new_tokens
        self.repetition_penalty = repetition_penalty

    def options(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `GenerationConfig`."""
        common = {"max_new_tokens": self.max_new_tokens, "repetition_penalty": self.repetition_penalty}
        return common | self._choice()

    @abstractmethod
    def _choice(self) -> dict[str, Any]:
        """The arguments that set this strategy apart."""


class Greedy(Strategy):
    """Always the likeliest token."""

    def _choice(self) -> dict[str, Any]:
        return {"do_sample": False, "num_beams": 1}


class BeamSearch(Strategy):
    """The likeliest of several answers followed side by side.

    Args:
        num_beams: Answers followed at once.
        length_penalty: Exponent of the length by which a score is divided; above 0 favours long answers.
        kwargs: What every strategy takes.
    """

    def __init__(
        self,
        num_beams: int = 4,
        length_penalty: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_beams < 2:
            raise ConfigError(f"generation num_beams is {num_beams}; beam search needs at least 2, else use Greedy")
        self.num_beams = num_beams
        self.length_penalty = length_penalty

    def _choice(self) -> dict[str, Any]:
        return {"do_sample": False, "num_beams": self.num_beams, "length_penalty": self.length_penalty}


class TopK(Strategy):
    """A token drawn from the `top_k` likeliest (Fan et al. 2018, arXiv:1805.04833).

    Args:
        top_k: Tokens to draw from.
        temperature: Divides the logits; above 0, below 1 sharpens.
        kwargs: What every strategy takes.
    """

    def __init__(
        self,
        top_k: int = 50,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if top_k < 1:
            raise ConfigError(f"generation top_k is {top_k}; it must be at least 1")
        self.top_k = top_k
        self.temperature = _positive(temperature)

    def _choice(self) -> dict[str, Any]:
        return {"do_sample": True, "top_k": self.top_k, "top_p": 1.0, "temperature": self.temperature}


class TopP(Strategy):
    """A token drawn from the likeliest that together reach `top_p` (Holtzman et al. 2019, arXiv:1904.09751).

    Args:
        top_p: Probability that the tokens to draw from must reach.
        temperature: Divides the logits; above 0, below 1 sharpens.
        kwargs: What every strategy takes.
    """

    def __init__(
        self,
        top_p: float = 0.9,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 < top_p <= 1:
            raise ConfigError(f"generation top_p is {top_p}; it must be above 0 and at most 1")
        self.top_p = top_p
        self.temperature = _positive(temperature)

    def _choice(self) -> dict[str, Any]:
        return {"do_sample": True, "top_p": self.top_p, "top_k": 0, "temperature": self.temperature}


def _positive(temperature: float) -> float:
    if temperature <= 0:
        raise ConfigError(
            f"generation temperature is {temperature}; it must be above 0. For no chance at all use Greedy"
        )
    return temperature
