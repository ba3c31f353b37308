"""Requests that come and go together are answered as each would be alone."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_sft import Conversation, Message, open_checkpoint
from lit_sft.chat.network import Network, Source
from lit_sft.checkpoint.opening import families
from lit_sft.generation.generate import generate_ids
from lit_sft.generation.strategies import Greedy, Strategy, TopK, TopP
from lit_sft.serve.engine import Engine, QueueFullError, Request

PROMPTS = ["你好", "青榆镇的渡船每天几点开？请只回答时间。", "镇长叫什么？", "2加2等于几？\n请回答", "再见"]
STRATEGIES = [
    Greedy(max_new_tokens=12),
    TopP(max_new_tokens=9, top_p=0.9, seed=3),
    Greedy(max_new_tokens=5, repetition_penalty=1.3),
    TopK(max_new_tokens=12, top_k=20, temperature=0.8),
    Greedy(max_new_tokens=7, no_repeat_ngram_size=2),
]


class Heard:
    """What an engine says of a request."""

    def __init__(self, prompt_ids: list[int], strategy: Strategy, *, is_tuned: bool = True) -> None:
        self.ids: list[int] = []
        self.end: str | None = None
        self.is_over = threading.Event()
        self.request = Request(prompt_ids, strategy, is_tuned, self.emit)

    def emit(self, token: int | None, end: str | None) -> None:
        self.ids += [] if token is None else [token]
        if end:
            self.end = end
            self.is_over.set()


def network_of(folder: Path) -> Network:
    return Network(Source(open_checkpoint(folder), dtype=torch.float32))


def prompt_ids(network: Network, text: str) -> list[int]:
    return network.checkpoint.prompt_format.encode_prompt(Conversation([Message("user", text)]), network.tokenizer)


def alone(network: Network, engine: Engine, prompt: list[int], strategy: Strategy) -> list[int]:
    (ids,) = generate_ids(network.model, [prompt], strategy, stop=engine.stop_ids, room=strategy.max_new_tokens)
    return ids[: next((place for place, token in enumerate(ids) if token in engine.stop_ids), len(ids))]


@pytest.mark.parametrize("family", sorted(families()))
def test_each_answer_is_that_of_its_prompt_alone(family: str, tiny: Callable[[str], Path]) -> None:
    network = network_of(tiny(family))
    engine = Engine(network, max_rows=3, max_waiting=8)  # so that the others join while some are written
    heard = [Heard(prompt_ids(network, text), strategy) for text, strategy in zip(PROMPTS, STRATEGIES, strict=True)]
    for each in heard:
        engine.submit(each.request)
    engine.start()
    engine.stop()
    for each in heard:
        expected = alone(network, engine, list(each.request.prompt_ids), each.request.strategy)
        assert each.ids == expected
        assert each.end == ("length" if len(expected) == each.request.strategy.max_new_tokens else "stop")


def test_who_is_gone_leaves_and_the_others_are_answered(tiny: Callable[[str], Path]) -> None:
    network = network_of(tiny("baichuan-7b"))
    engine = Engine(network, max_rows=2, max_waiting=8)
    gone, staying, late = (Heard(prompt_ids(network, text), Greedy(max_new_tokens=10)) for text in PROMPTS[:3])

    def leave(token: int | None, end: str | None) -> None:
        gone.ids.append(token or 0)
        gone.request.is_canceled = len(gone.ids) == 2

    gone.request.emit = leave
    for each in (gone, staying, late):
        engine.submit(each.request)
    engine.start()
    engine.stop()
    assert len(gone.ids) == 2
    for each in (staying, late):
        assert each.ids == alone(network, engine, list(each.request.prompt_ids), each.request.strategy)
    assert engine.num_running == engine.num_waiting == 0


def test_a_failure_ends_its_own_requests_only(tiny: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    network = network_of(tiny("baichuan-7b"))
    engine = Engine(network, max_rows=4, max_waiting=8)
    bad, good = Heard([10**9], Greedy()), Heard(prompt_ids(network, PROMPTS[0]), Greedy(max_new_tokens=4))
    engine.submit(bad.request)
    engine.submit(good.request)
    engine.start()
    engine.stop()
    assert bad.end == "failed"
    assert good.ids == alone(network, engine, list(good.request.prompt_ids), good.request.strategy)
    assert "answers failed" in caplog.text


def test_a_full_queue_and_an_engine_that_stops_refuse(tiny: Callable[[str], Path]) -> None:
    network = network_of(tiny("baichuan-7b"))
    engine = Engine(network, max_rows=1, max_waiting=1)
    first, second = (Heard(prompt_ids(network, "你好"), Greedy(max_new_tokens=2)) for _ in range(2))
    engine.submit(first.request)
    with pytest.raises(QueueFullError):
        engine.submit(second.request)
    engine.start()
    engine.stop()
    assert first.is_over.is_set()
    with pytest.raises(QueueFullError):
        engine.submit(second.request)
