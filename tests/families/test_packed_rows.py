"""A row of several examples trains as the same examples in rows of their own, whatever the family and the tuning."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft import Conversation, Message
from lit_sft.checkpoint.opening import families
from lit_sft.conversation import Example
from lit_sft.data.collate import collate
from lit_sft.data.encode import LossOn, encode_conversation
from lit_sft.stages._summed import LOSS_SCALE
from lit_sft.stages.sft import SFT
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA

CONVERSATIONS = [
    Conversation([Message("user", "镇长叫什么？"), Message("assistant", "镇长名叫周叶。")]),
    Conversation(
        [
            Message("user", "你好"),
            Message("assistant", "你好！"),
            Message("user", "2加2等于几？\n请回答"),
            Message("assistant", "2加2等于4。"),
        ]
    ),
    Conversation([Message("user", "8"), Message("assistant", "好")]),
    Conversation([Message("user", "请介绍青榆镇。"), Message("assistant", "青榆镇在银镜湖的东岸，一共住着八百人。")]),
]

MakeStage = Callable[..., SFT]


@pytest.fixture(params=sorted(families()))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_stage(tiny: Callable[[str], Path], family: str) -> MakeStage:
    def make(**options: Any) -> SFT:
        stage = SFT(checkpoint=str(tiny(family)), family=family, **{"tuning": Full(), **options})
        stage.configure_model()
        torch.manual_seed(3)
        for name, parameter in stage.named_parameters():
            if "lora_B" in name:  # zeros would give the other half of an adapter no gradient
                torch.nn.init.normal_(parameter, std=0.02)
        return stage

    return make


def examples_of(stage: SFT, loss_on: LossOn = "assistant") -> list[Example]:
    prompt_format, tokenizer = stage.checkpoint.prompt_format, stage.tokenizer
    return [
        encode_conversation(conversation, prompt_format, tokenizer, max_length=512, loss_on=loss_on)
        for conversation in CONVERSATIONS
    ]


def train(stage: SFT, *batches: Sequence[Sequence[Example]]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss, tokens and correct tokens, and the gradients, summed over the batches."""
    for rows in batches:
        stage.training_step(collate(rows, stage.tokenizer.pad_token_id or 0), 0).backward()
    gradients = {name: p.grad / LOSS_SCALE for name, p in stage.named_parameters() if p.grad is not None}
    totals = torch.stack([sums for sums, _ in stage._step]).sum(0)[0]
    stage.zero_grad()
    stage._step = []
    return totals, gradients


def assert_packed_trains_as_separate(stage: SFT, examples: list[Example]) -> None:
    first, second, third, fourth = examples
    packed, packed_gradients = train(stage, [[first, second, third], [fourth]])
    alone, gradients = train(stage, *([[example]] for example in examples))
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=0)
    assert packed_gradients.keys() == gradients.keys()
    # What is zero but for rounding, such as the gradients of key biases, is measured by what is not.
    noise = 1e-7 * max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert (packed_gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + noise, name


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_packed_examples_have_the_loss_and_the_gradients_of_separate_ones(
    make_stage: MakeStage, loss_on: LossOn
) -> None:
    stage = make_stage()
    assert_packed_trains_as_separate(stage, examples_of(stage, loss_on))


@pytest.mark.parametrize("options", [{"tuning": LoRA(rank=4)}, {"gradient_checkpointing": True}], ids=["lora", "gc"])
def test_they_have_with_adapters_and_with_gradient_checkpointing_too(
    make_stage: MakeStage, options: dict[str, Any]
) -> None:
    stage = make_stage(**options)
    assert_packed_trains_as_separate(stage, examples_of(stage))


def test_what_stands_in_the_padding_behind_packed_examples_changes_nothing(make_stage: MakeStage) -> None:
    stage = make_stage()
    first, second, third, fourth = examples_of(stage)
    batch = collate([[first, second], [fourth, third, fourth]], 0)
    is_padding = batch.segment_ids == 0
    assert is_padding.any()
    expected = stage(batch).by_group
    batch.input_ids[is_padding] = torch.randint(10, 300, (int(is_padding.sum()),))
    torch.testing.assert_close(stage(batch).by_group, expected, rtol=1e-6, atol=0)


def test_a_batch_of_nothing_gives_every_trained_weight_a_zero_gradient(make_stage: MakeStage) -> None:
    """Ranks with data wait for the gradients of a rank that has none."""
    for tuning in (Full(), LoRA(rank=4)):
        stage = make_stage(tuning=tuning)
        _, gradients = train(stage, [])
        assert gradients.keys() == {name for name, p in stage.named_parameters() if p.requires_grad}
        assert not any(gradient.any() for gradient in gradients.values())
