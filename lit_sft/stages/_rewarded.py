"""A stage whose answers are rewarded: drawn from the policy itself, scored, and measured on held-out prompts."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_sft.conversation import Prompt
from lit_sft.data.batch import PromptBatch
from lit_sft.data.rollout_prompts import PromptData
from lit_sft.distributed.processes import gather
from lit_sft.errors import ConfigError
from lit_sft.generation.generate import TOKEN_BUDGET, decode_answer
from lit_sft.generation.rollouts import Rollout, RolloutSampler
from lit_sft.rewards._base import Answered, RewardFunction
from lit_sft.rewards._together import Scores, check_rewards, score_answers
from lit_sft.rewards.trained import Trained
from lit_sft.stages._answering import Answering
from lit_sft.stages._compile import uncompiled
from lit_sft.stages._rollout_metrics import Measured
from lit_sft.tuning._base import Tuning

HELD_OUT = -1
"""The number of a rollout for what is drawn in validations: always the same answers of the same weights."""


class Rewarded(Answering):
    """A policy whose answers are worth something.

    Args:
        checkpoint: Model folder in its original layout.
        tuning: Which weights train.
        rewards: What answers are worth: the weighted sum of them.
        temperature: Divides the logits, where answers are drawn and where they are trained. There is nothing else to
            choose: top-k, top-p and penalties draw from another distribution than the one that is trained.
        rollout_tokens: Tokens of prompts and whole answers in memory at once while answers are drawn.
        kwargs: What every stage takes that answers.
    """

    best_by = ("val/reward", "max")
    shown_metrics = {  # noqa: RUF012
        "val/reward": "reward",
        "val/completions/mean_length": "tokens of an answer",
        "val/completions/clipped_ratio": "cut answers",
    }

    def __init__(
        self,
        checkpoint: str,
        tuning: Tuning,
        *,
        rewards: list[RewardFunction],
        temperature: float = 1.0,
        rollout_tokens: int = TOKEN_BUDGET,
        **kwargs: Any,
    ) -> None:
        super().__init__(checkpoint, tuning, **kwargs)
        self.checkpoint.prompt_format.check_answers()
        check_rewards(rewards)
        RolloutSampler(1, 1, temperature, token_budget=rollout_tokens)  # refuses what cannot be
        self.rewards = rewards
        self.temperature = temperature
        self.rollout_tokens = rollout_tokens
        self._held_out_answers: list[tuple[Measured, Tensor, list[str]]] = []
        """Of a batch, with the number of the corpus of each answer, and the names of all."""

    def setup(self, stage: str) -> None:
        """Refuse what are not prompts.

        Raises:
            ConfigError: As every stage, and for other data.
        """
        super().setup(stage)
        if stage != "predict" and not isinstance(self.prompt_data, PromptData):
            raise ConfigError(
                f"{type(self).__name__} learns from its own answers to prompts, not from what "
                f"{type(self.prompt_data).__name__} holds: set data.class_path to PromptData"
            )

    @property
    def prompt_data(self) -> PromptData:
        """What is answered."""
        data: PromptData = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, undeclared
        return data

    def draw(
        self, prompts: Sequence[Prompt], numbers: Sequence[int], rollout: int, num_answers: int
    ) -> list[list[Rollout]]:
        """Answers to each prompt.

        Args:
            prompts: What is asked.
            numbers: Of the prompts in the rollout, over all devices.
            rollout: Its number.
            num_answers: To each.
        """
        sampler = RolloutSampler(
            num_answers,
            self.prompt_data.max_new_tokens,
            self.temperature,
            self.prompt_data.seed,
            token_budget=self.rollout_tokens,
        )
        with uncompiled():
            return sampler.sample(
                self.causal_lm,
                [prompt.input_ids for prompt in prompts],
                numbers=numbers,
                rollout=rollout,
                stop_token_ids=self.checkpoint.prompt_format.stop_token_ids(self.tokenizer),
            )

    def scores(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[Rollout]]) -> Scores:
        """What all answers [S] are worth, group after group."""
        return self.worth(
            [
                Answered(
                    prompt.messages,
                    decode_answer(answer.ids[:-1] if answer.is_ended else answer.ids, self.tokenizer),
                    answer.is_ended,
                    answer.num_tokens,
                    prompt.reference,
                )
                for prompt, of_prompt in zip(prompts, answers, strict=True)
                for answer in of_prompt
            ]
        )

    @torch.no_grad()
    def worth(self, answers: Sequence[Answered]) -> Scores:
        """What answers are worth, whoever wrote them."""
        for reward in self.rewards:
            if isinstance(reward, Trained):
                reward.to(self.device)
        return score_answers(self.rewards, answers)

    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Reward an answer to each held-out prompt."""
        self._answer_held_out(batch)

    def on_validation_epoch_end(self) -> None:
        """Log what they are worth."""
        self._log_answers("val")

    def test_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Reward an answer to each prompt of the test corpora."""
        self._answer_held_out(batch)

    def on_test_epoch_end(self) -> None:
        """Log what they are worth."""
        self._log_answers("test")

    @torch.no_grad()
    def _answer_held_out(self, batch: PromptBatch) -> None:
        prompts = batch.prompts
        if not prompts:
            return  # no data is left for this device
        numbers = [zlib.crc32(str(prompt.input_ids).encode()) for prompt in prompts]
        answers = self.draw(prompts, numbers, HELD_OUT, 1)
        drawn = [answer for (answer,) in answers]
        measured = Measured(
            self.scores(prompts, answers),
            torch.tensor([answer.num_tokens for answer in drawn]),
            torch.tensor([answer.is_ended for answer in drawn]),
        )
        self._held_out_answers.append((measured, batch.corpus_ids[:, 0].cpu(), batch.corpora))

    def _log_answers(self, split: str) -> None:
        """What all of them are worth, and what those of each corpus are, if there are several."""
        own, self._held_out_answers = self._held_out_answers, []
        parts = [part for of_rank in gather(own) for part in of_rank]
        measured, numbers, names = zip(*parts, strict=True)
        together = Measured.together(measured)
        metrics = together.metrics(1)
        if len(names[0]) > 1:
            metrics |= together.mean_rewards(torch.cat(numbers), names[0])
        self.log_dict({f"{split}/{name}": value for name, value in metrics.items()}, prog_bar=True, sync_dist=True)
