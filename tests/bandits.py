"""A problem with a known answer for the network of any family: which of sixteen tokens to say."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from policies import data_of, fitted
from torch import Tensor, nn

from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.generation.generate import decode_answer
from lit_sft.rewards._base import Answered, RewardFunction
from lit_sft.stages._rollout import RolloutStage
from lit_sft.stages.policy import Policy
from lit_sft.stages.schedules import Cosine
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

BETA = 0.3
NUM_LIKELY = 16


class Worth(RewardFunction):
    """From 0 to 1, by the text of an answer."""

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        return [hashlib.sha256(answered.answer.encode()).digest()[0] / 255 for answered in answers]


class FewWords(LoRA):
    """A network that answers one prompt with a few tokens only: the rows of all others point away from its state.

    Args:
        prompt: Its ids.
        kwargs: Of the adapters.
    """

    def __init__(self, prompt: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt

    def load(self, checkpoint: Checkpoint, precision: str) -> Any:
        model = super().load(checkpoint, precision)
        network = self.causal_lm(model)
        with torch.no_grad():
            state = network.get_decoder()(input_ids=torch.tensor([self.prompt]), use_cache=False).last_hidden_state
            state = state[0, -1]
            head = network.get_output_embeddings()
            # A weight of its own, also where that of the embedding was its.
            head.weight = nn.Parameter((-20 / state.norm() ** 2 * state).repeat(len(head.weight), 1), False)
            likely = torch.arange(20, len(head.weight), (len(head.weight) - 20) // NUM_LIKELY)[:NUM_LIKELY]
            head.weight[likely] = torch.randn(NUM_LIKELY, len(state)) / state.norm()
        return model


def probabilities(stage: Any, prompt: Sequence[int]) -> Tensor:
    """Of each token as the answer to the prompt [V]."""
    with torch.no_grad():
        logits: Tensor = stage.causal_lm(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
    return logits.double().softmax(-1)


def best_policy(reference: Tensor, tokenizer: Any, stop: Sequence[int]) -> Tensor:
    """softmax(log reference + reward / beta) [V]."""
    answers = [
        Answered([], decode_answer([] if token in stop else [token], tokenizer)) for token in range(len(reference))
    ]
    worth = torch.tensor([value or 0.0 for value in Worth().score(answers)], dtype=torch.float64)
    return (reference.log() + worth / BETA).softmax(-1)


class FewWordsInFourBits(FewWords, QLoRA):
    """The same on a base in 4 bits."""


class Learned(NamedTuple):
    """What a fit has changed: the total variation from the best policy, and the share of the best token in answers."""

    distance_before: float
    distance_after: float
    share_before: float
    share_after: float


def learned(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    num_steps: int,
    lr: float,
    num_answers: int = 96,
    stage_class: type[RolloutStage] = Policy,
    tuning_class: type[FewWords] = FewWords,
    **options: Any,
) -> Learned:
    """What a fit of a policy changes. The best token is that whose share the best policy raises most."""
    torch.manual_seed(3)
    asked, data = (data_of(checkpoint, folder, count=1, max_new_tokens=1, micro_batch_size=1) for _ in range(2))
    asked.setup("fit")
    (batch,) = asked.train_dataloader()
    (prompt,) = batch.prompts
    stage = stage_class(
        str(checkpoint.path),
        tuning_class(prompt.input_ids, rank=8),
        family=checkpoint.family.name,
        rewards=[Worth()],
        num_answers=num_answers,
        num_parts=1,
        beta=BETA,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0),
        schedule=Cosine(warmup_fraction=0.0),
        **options,
    )
    stage.configure_model()
    tokenizer = stage.tokenizer
    before = probabilities(stage, prompt.input_ids)
    best = best_policy(before, tokenizer, checkpoint.prompt_format.stop_token_ids(tokenizer))
    fitted(stage, data, folder, max_steps=num_steps, accumulate_grad_batches=stage.parts_of_pass)
    policies = before, probabilities(stage, prompt.input_ids)
    rewarded = int((best / before).where(before > 1e-3, 0).argmax())
    return Learned(
        *(float((policy - best).abs().sum() / 2) for policy in policies),
        *(float(policy[rewarded]) for policy in policies),
    )
