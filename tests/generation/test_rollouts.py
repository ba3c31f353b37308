"""Rollouts of every family: drawn from the policy itself, and the same whatever stands beside."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from goldens import GOLDEN_MODELS, golden_checkpoint, golden_model
from torch import Tensor

from lit_sft import Conversation, Message, open_checkpoint
from lit_sft.errors import ConfigError, TrainingError
from lit_sft.generation.generate import generate_ids
from lit_sft.generation.rollouts import Rollout, RolloutSampler
from lit_sft.generation.strategies import Greedy

FAMILIES = [*GOLDEN_MODELS, "native"]
TEXT = "青榆镇在银镜湖的东岸，一共住着八百人。镇长名叫周叶，他养了一只灰猫，每天早上八点坐渡船去图书馆。"
K = 3


@dataclass
class Subject:
    model: Any
    prompts: list[list[int]]
    """Five, of different lengths."""
    stop: list[int]
    """Of the family, and tokens that end a part of the answers early."""

    def sample(self, wanted: list[int], sampler: RolloutSampler, rollout: int = 0) -> list[list[Rollout]]:
        prompts = [self.prompts[number] for number in wanted]
        return sampler.sample(self.model, prompts, numbers=wanted, rollout=rollout, stop_token_ids=self.stop)


@pytest.fixture(scope="module", params=FAMILIES)
def subject(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Subject:
    if request.param == "native":
        checkpoint = open_checkpoint(tiny("native"))
        model = checkpoint.load_model()
    else:
        checkpoint, model = golden_checkpoint(request.param), golden_model(request.param)
    tokenizer = checkpoint.load_tokenizer()
    asked = (Conversation([Message("user", TEXT[: 2 + 5 * number])]) for number in range(5))
    prompts = [checkpoint.prompt_format.encode_prompt(conversation, tokenizer) for conversation in asked]
    stop = checkpoint.prompt_format.stop_token_ids(tokenizer)
    return Subject(model, prompts, [*stop, *range(20, next(model.get_input_embeddings().parameters()).shape[0], 9)])


def ids_of(answers: list[list[Rollout]]) -> list[list[list[int]]]:
    return [[answer.ids for answer in of_prompt] for of_prompt in answers]


def test_a_prompt_has_the_same_k_different_answers_in_any_batch_and_others_in_the_next_rollout(
    subject: Subject,
) -> None:
    sampler = RolloutSampler(K, 8, seed=3)
    together = subject.sample([0, 1, 2, 3, 4], sampler)
    assert all(len({tuple(answer.ids) for answer in answers}) == K for answers in together)
    alone = [subject.sample([number], sampler)[0] for number in (4, 1)]
    assert ids_of(alone) == ids_of([together[4], together[1]])
    in_pieces = subject.sample([3, 1], RolloutSampler(K, 8, seed=3, token_budget=1))
    assert ids_of(in_pieces) == ids_of([together[3], together[1]])
    for others in (subject.sample([2], sampler, rollout=1), subject.sample([2], RolloutSampler(K, 8, seed=4))):
        assert ids_of(others)[0] != ids_of(together)[2]


def test_an_answer_ends_with_the_first_stop_token_or_is_cut(subject: Subject) -> None:
    answers = [answer for of_prompt in subject.sample([0, 2, 4], RolloutSampler(K, 8)) for answer in of_prompt]
    assert {answer.is_ended for answer in answers} == {True, False}
    for answer in answers:
        stops = [place for place, token in enumerate(answer.ids, start=1) if token in subject.stop]
        assert stops == ([answer.num_tokens] if answer.is_ended else [])
        assert answer.is_ended or answer.num_tokens == 8
        assert len(answer.logprobs) == answer.num_tokens


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_logprobs_are_those_of_a_plain_forward(subject: Subject, temperature: float) -> None:
    for number, answers in zip([1, 4], subject.sample([1, 4], RolloutSampler(K, 8, temperature)), strict=True):
        prompt = subject.prompts[number]
        for answer in answers:
            ids = torch.tensor([[*prompt, *answer.ids]])
            with torch.no_grad():
                logits: Tensor = subject.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
            expected = (logits.float() / temperature).log_softmax(-1)[range(len(answer.ids)), answer.ids]
            torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=1e-4, rtol=0)


def test_without_warmth_the_answers_are_those_of_greedy_generation(subject: Subject) -> None:
    expected = generate_ids(subject.model, list(subject.prompts), Greedy(max_new_tokens=6), stop=subject.stop, room=6)
    ends = [next((n for n, token in enumerate(ids, 1) if token in subject.stop), len(ids)) for ids in expected]
    answers = subject.sample([0, 1, 2, 3, 4], RolloutSampler(2, 6, temperature=1e-6))
    assert ids_of(answers) == [[ids[:end]] * 2 for ids, end in zip(expected, ends, strict=True)]


def test_in_training_with_gradient_checkpointing_the_answers_are_the_same(subject: Subject) -> None:
    sampler = RolloutSampler(2, 6)
    expected = subject.sample([0, 3], sampler)
    subject.model.train()
    subject.model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        assert subject.sample([0, 3], sampler) == expected
        assert subject.model.is_gradient_checkpointing
        assert subject.model.training
    finally:
        subject.model.activation_checkpointing_disable()
        subject.model.eval()


@dataclass
class Plain:
    """A network that has the same logits whatever it reads, and notes how much it reads."""

    logits: Tensor
    """[V]."""
    reads: list[tuple[int, int]]
    """Rows and tokens of each forward."""

    def modules(self) -> list[Any]:
        return []

    def get_input_embeddings(self) -> Any:
        return torch.nn.Embedding(1, 1)

    def _supports_logits_to_keep(self) -> bool:
        return False

    def prepare_inputs_for_generation(self, ids: Tensor, next_sequence_length: int | None, **kwargs: Any) -> Any:
        return {"ids": ids if next_sequence_length is None else ids[:, -next_sequence_length:]}

    def __call__(self, ids: Tensor) -> Any:
        self.reads.append((len(ids), ids.shape[1]))
        cache = SimpleNamespace(batch_repeat_interleave=lambda times: None, batch_select_indices=lambda rows: None)
        return SimpleNamespace(logits=self.logits.expand(*ids.shape, -1), past_key_values=cache)


def plain(*probabilities: float) -> Any:
    return Plain(torch.tensor(probabilities).log(), [])


def test_a_prompt_is_read_once_and_answers_that_have_ended_are_read_no_longer() -> None:
    network = plain(0.2, 0.4, 0.4)
    ((*answers,),) = RolloutSampler(64, 20).sample(network, [[5] * 9], numbers=[0], rollout=0, stop_token_ids=[0])
    assert network.reads[0] == (1, 9)
    assert all(tokens == 1 for _, tokens in network.reads[1:])
    rows = [rows for rows, _ in network.reads[1:]]
    assert rows == sorted(rows, reverse=True)
    going = [sum(answer.num_tokens > place for answer in answers) for place in range(1, len(rows) + 1)]
    assert all(0.75 * have <= need <= have for have, need in zip(rows, going, strict=True))


def test_tokens_come_as_often_as_they_are_probable_at_every_place() -> None:
    network = plain(0.5, 0.3, 0.2)
    prompts = [[number] for number in range(500)]
    answers = RolloutSampler(8, 3).sample(network, prompts, numbers=range(500), rollout=7, stop_token_ids=[9])
    drawn = torch.tensor([answer.ids for of_prompt in answers for answer in of_prompt])
    for place in range(3):
        shares = drawn[:, place].bincount(minlength=3) / len(drawn)
        torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.03, rtol=0)
    both = (drawn[:, 0] == 0) & (drawn[:, 1] == 0)
    assert both.float().mean() == pytest.approx(0.25, abs=0.03)


def test_as_many_answers_are_drawn_at_once_as_the_budget_has_tokens_for() -> None:
    lengths = [10, 40, 11, 9]
    assert RolloutSampler(4, 10, token_budget=200).batches(lengths) == [
        ([1], range(4)),
        ([2, 0], range(4)),
        ([3], range(4)),
    ]
    few = RolloutSampler(4, 10, token_budget=150).batches(lengths)
    assert few[:2] == [([1], range(3)), ([1], range(3, 4))]
    assert RolloutSampler(4, 10, token_budget=1).batches([7]) == [([0], range(k, k + 1)) for k in range(4)]
    assert RolloutSampler(4, 10).batches([]) == []


def test_a_network_without_probabilities_stops_the_rollout() -> None:
    with pytest.raises(TrainingError, match="gives no probabilities"):
        RolloutSampler(2, 3).sample(plain(torch.nan, 0.5), [[1]], numbers=[0], rollout=0, stop_token_ids=[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_answers": 0}, "num_answers of rollouts is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens of rollouts is 0"),
        ({"token_budget": 0}, "token_budget of rollouts is 0"),
        ({"temperature": 0.0}, "temperature of rollouts is 0.0; it must be above 0"),
        ({"temperature": torch.inf}, "must be above 0, and finite"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RolloutSampler(**{"num_answers": 2, "max_new_tokens": 8, **options})
