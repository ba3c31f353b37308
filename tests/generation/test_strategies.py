"""Decoding strategies refuse what cannot work, and become transformers' options."""

from typing import Any

import pytest
from transformers import GenerationConfig

from lit_sft.errors import ConfigError
from lit_sft.generation.strategies import BeamSearch, Greedy, Strategy, TopK, TopP, by_name


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (Greedy(max_new_tokens=5), {"do_sample": False, "num_beams": 1, "max_new_tokens": 5}),
        (BeamSearch(num_beams=3, length_penalty=0.5), {"do_sample": False, "num_beams": 3, "length_penalty": 0.5}),
        (TopK(top_k=7, temperature=0.5), {"do_sample": True, "top_k": 7, "temperature": 0.5}),
        (TopP(top_p=0.8, repetition_penalty=1.1), {"do_sample": True, "top_p": 0.8, "repetition_penalty": 1.1}),
    ],
)
def test_options_are_those_of_transformers(strategy: Strategy, expected: dict[str, Any]) -> None:
    config = GenerationConfig(**strategy.options())
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (Greedy, {"max_new_tokens": 0}, "max_new_tokens"),
        (Greedy, {"repetition_penalty": 0.0}, "repetition_penalty"),
        (Greedy, {"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        (BeamSearch, {"num_beams": 1}, "at least 2, else use Greedy"),
        (TopK, {"top_k": 0}, "top_k"),
        (TopK, {"temperature": 0.0}, "For no chance at all use Greedy"),
        (TopP, {"top_p": 1.5}, "top_p"),
        (TopP, {"temperature": -1.0}, "temperature"),
    ],
)
def test_what_cannot_work_is_refused_at_once(strategy: type[Strategy], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        strategy(**options)


def test_names_say_what_differs_from_the_defaults() -> None:
    strategies = [
        Greedy(),
        TopP(temperature=0.8),
        TopK(seed=3),
        BeamSearch(no_repeat_ngram_size=2),
        Greedy(name="plain"),
    ]
    expected = ["greedy", "top_p(top_p=0.9, temperature=0.8)", "top_k(top_k=50, seed=3)"]
    expected += ["beam_search(num_beams=4, no_repeat_ngram_size=2)", "plain"]
    assert list(by_name(strategies)) == expected
    with pytest.raises(ConfigError, match="two strategies of the name plain"):
        by_name([Greedy(name="plain"), TopK(name="plain")])
