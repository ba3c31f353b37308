"""A reward model: a number for each answer, trained so that the better of two has the higher one (Bradley-Terry)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_sft.conversation import Prompt
from lit_sft.data.batch import PairBatch
from lit_sft.distributed.fsdp2 import FSDP2
from lit_sft.errors import BadRecord, ConfigError, DataError
from lit_sft.losses.ranking import Ranking, pair_weights, ranking_losses
from lit_sft.losses.segments import sums_by_group
from lit_sft.rewards._scoring import encode_answer, score_sequences
from lit_sft.rewards.trained import HEAD_FILE, REWARD_FILE
from lit_sft.stages._judging import Judging
from lit_sft.stages._predicting import Predicting
from lit_sft.stages._sequences import (
    answer_lengths,
    last_positions,
    refuse_dropout,
    refuse_random_layers,
)
from lit_sft.stages._summed import SummedLoss
from lit_sft.tuning._base import Tuning
from lit_sft.tuning._heads import ScalarHead, hidden_size_of

NUM_BINS = 10
"""Of the probabilities from 1/2 to 1 that a pair is judged with, for the calibration."""


class RankingTotals(NamedTuple):
    """Sums over a micro-batch; see `Totals`."""

    loss: Tensor
    by_group: Tensor


class Reward(SummedLoss, Predicting, Judging):
    """Reward modeling on ranked answers, a head of one number on the last token of each.

    Args:
        checkpoint: Model folder in its original layout.
        tuning: Which weights train, beside the head.
        centering: Weight of the squared sum of the two rewards of a pair, which keeps rewards near 0
            (Eisenstein et al. 2023, arXiv:2312.09244); 0.01 for example. It bends them a little.
        kwargs: What every stage takes.
    """

    measures = (
        "accuracy",
        "margin",
        "longer_wins",
        *(f"{name}_{bin}" for bin in range(NUM_BINS) for name in ("right", "expected")),
        "num_answers",
        "rewards",
        "squared_rewards",
        "lengths",
        "squared_lengths",
        "rewards_times_lengths",
    )
    best_by = ("val/accuracy", "max")
    network_methods = ("score", "judge")
    head_use = "score"
    scores_answers = True
    judgment = "score"
    shown_metrics = {  # noqa: RUF012
        "val/loss": "loss",
        "val/accuracy": "accuracy",
        "val/margin": "margin",
        "val/mean_reward": "mean reward",
    }

    def __init__(self, checkpoint: str, tuning: Tuning, *, centering: float = 0.0, **kwargs: Any) -> None:
        super().__init__(checkpoint, tuning, **kwargs)
        if centering < 0:
            raise ConfigError(f"centering is {centering}; it must be at least 0")
        refuse_dropout(tuning, self.checkpoint)
        if tuning.stands_on_base and not tuning.exports_adapter:
            raise ConfigError(
                f"Reward keeps its head beside an adapter or a model, which {type(tuning).__name__} leaves neither of: "
                "take LoRA, QLoRA, Freeze or Full"
            )
        self.centering = centering
        self.head: nn.Module | None = None
        self.statistics: dict[str, float] = {}
        """Accuracy, mean and standard deviation of the rewards in the latest validation."""

    def setup(self, stage: str) -> None:
        """Refuse to score by a head that has learned nothing, too.

        Raises:
            ConfigError: As every stage, and in `predict` without a run.
        """
        super().setup(stage)
        if stage == "predict" and self.head is None and not self.trainer.ckpt_path:
            raise ConfigError(
                "a reward model that was not trained scores by chance: give its run with --run, not --base"
            )

    def add_parts(self) -> None:
        """The head of one number; that of the vocabulary has no part in the score."""
        network = self.causal_lm
        refuse_random_layers(network, self.checkpoint)
        # Drawn by the seed of the run alone: the same on every process.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            self.head = ScalarHead(hidden_size_of(network))
        embedding, vocabulary = network.get_input_embeddings(), network.get_output_embeddings()
        if vocabulary is not None and getattr(vocabulary, "weight", None) is not getattr(embedding, "weight", None):
            vocabulary.requires_grad_(False)

    def configure_model(self) -> None:
        """Load the weights, and let go of the head of the vocabulary once the network has been tried with it.

        Where the base trains it is exported, too; weights that are shared out stay as they were shared.
        """
        is_loaded = self.model is not None
        super().configure_model()
        is_sharded = self._trainer is not None and isinstance(self.trainer.strategy, FSDP2)
        if not is_loaded and not is_sharded and not self.tuning.footprint(()).trains_base:
            # Half a gigabyte of Baichuan-7B in half precision.
            self.causal_lm.set_output_embeddings(nn.Identity())

    def scores(self, batch: PairBatch) -> Tensor:
        """The reward of each answer [S], float32."""
        if batch.position_ids is not None:
            self.refuse_mixing()
        decoded = self.causal_lm.get_decoder()(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        )
        assert self.head is not None
        rewards: Tensor = self.head(decoded.last_hidden_state.flatten(0, 1)[last_positions(batch)])
        return rewards

    def forward(self, batch: PairBatch) -> RankingTotals:  # type: ignore[override]
        """Loss and what is measured, a mean over records: all pairs of a ranking together count as one."""
        rewards = self.scores(batch)
        ranking = ranking_losses(rewards, batch.pairs, batch.margins, self.centering)
        weights = pair_weights(batch.sequences[batch.pairs[:, 0]])
        lengths = answer_lengths(batch)
        measured = _of_pairs(ranking, batch.pairs, lengths)
        by_pair = torch.stack([ranking.losses.detach(), torch.ones_like(weights), *measured], dim=1)
        corpora, num_corpora = batch.sequence_corpora, len(batch.corpora)
        of_pairs = sums_by_group(by_pair * weights[:, None], corpora[batch.pairs[:, 0]], num_corpora)
        of_answers = sums_by_group(_of_answers(rewards.detach(), lengths), corpora, num_corpora)
        sums = torch.cat([of_pairs, of_answers], dim=1)
        return RankingTotals((ranking.losses * weights).sum(), sums)

    def means(self, loss: float, count: float, *sums: float) -> dict[str, float]:
        """Accuracy, margin, what the length alone would give, calibration, and how rewards lie."""
        total = dict(zip(self.measures, sums, strict=True))
        n = total["num_answers"] or 1.0
        mean, mean_length = total["rewards"] / n, total["lengths"] / n
        std = math.sqrt(max(0.0, total["squared_rewards"] / n - mean**2))
        std_length = math.sqrt(max(0.0, total["squared_lengths"] / n - mean_length**2))
        covariance = total["rewards_times_lengths"] / n - mean * mean_length
        gaps = [abs(total[f"right_{bin}"] - total[f"expected_{bin}"]) for bin in range(NUM_BINS)]
        return {
            "loss": loss / count,
            "accuracy": total["accuracy"] / count,
            "accuracy_of_longer_wins": total["longer_wins"] / count,
            "margin": total["margin"] / count,
            "calibration_error": sum(gaps) / count,
            "mean_reward": mean,
            "reward_std": std,
            "length_correlation": covariance / (std * std_length) if std * std_length else 0.0,
        }

    def group_prompts(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        """By the tokens of the prompts; the answers stand behind them."""
        order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
        size = max(1, token_budget // max(lengths, default=1))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Refuse a prompt without an answer.

        Raises:
            DataError: Naming the first.
        """
        for prompt in prompts:
            if prompt.reference is None:
                raise DataError(
                    f"{prompt.source} has no answer to score: give one with the key answer, or as the last message"
                )

    def rows(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """A score for the answer of each prompt; None where it is not finite, too long or not to be written."""
        sequences = [self._sequence(prompt) for prompt in prompts]
        found = iter(self.score([ids for ids in sequences if ids]))
        scores = [next(found) if ids else math.nan for ids in sequences]
        return [
            {
                "source": prompt.source,
                "category": prompt.category,
                "prompt": prompt.text,
                "answer": prompt.reference,
                "score": score if math.isfinite(score) else None,
                "tokens": len(ids),
            }
            for prompt, ids, score in zip(prompts, sequences, scores, strict=True)
        ]

    def row_settings(self) -> dict[str, Any]:
        """What is written."""
        return {"rows": "scores"}

    @torch.no_grad()
    def judge(self, batch: PairBatch) -> Tensor:
        """The reward of each answer [S]."""
        return self.scores(batch)

    def score(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The reward of each sequence of prompt and answer [N]."""
        assert self.head is not None
        return score_sequences(self.causal_lm, self.head, sequences)

    def _sequence(self, prompt: Prompt) -> list[int]:
        assert prompt.reference is not None
        try:
            ids = encode_answer(prompt.messages, prompt.reference, self.checkpoint.prompt_format, self.tokenizer)
        except BadRecord:
            return []
        return ids if len(ids) <= self.checkpoint.context_length else []

    def check_first_batch(self, batch: Any) -> str | None:
        """Is there a pair in it?"""
        if not isinstance(batch, PairBatch):
            raise ConfigError(
                f"Reward learns from pairs of answers, not from {type(batch).__name__}: set data.class_path to "
                "PreferenceData"
            )
        if len(batch.pairs):
            return None
        return "the first batch compares no answers: a reward model learns from rankings, not from single verdicts"

    def on_validation_epoch_end(self) -> None:
        """Keep what rewards are compared by later, too."""
        super().on_validation_epoch_end()
        metrics = self.trainer.callback_metrics
        names = {"accuracy": "val/accuracy", "mean": "val/mean_reward", "std": "val/reward_std"}
        self.statistics = {name: float(metrics[key]) for name, key in names.items() if key in metrics}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep them in the checkpoint."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reward_statistics"] = self.statistics

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them from there."""
        super().on_load_checkpoint(checkpoint)
        self.statistics = checkpoint["reward_statistics"]

    def write_parts(self, folder: Path, state: dict[str, Any]) -> None:
        """The head, and what it belongs to."""
        ScalarHead.save(state["head.weight"], folder / HEAD_FILE)
        about = {
            "family": self.checkpoint.family.name,
            "prompt_format": self.checkpoint.family.prompt_format_name,
            "base": self.checkpoint.fingerprint(),
            "quantization": self.tuning.quantization(),
            **self.statistics,
        }
        (folder / REWARD_FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _of_pairs(ranking: Ranking, pairs: Tensor, lengths: Tensor) -> Sequence[Tensor]:
    """Right or not, margin, and whether the longer answer is the better one; ties of length count half. [P] each."""
    longer = (lengths[pairs[:, 0]] - lengths[pairs[:, 1]]).sign().float() / 2 + 0.5
    # With which probability the winner wins, from 1/2 to 1, and whether it does.
    confidence = torch.sigmoid(ranking.margins.abs())
    bins = ((confidence - 0.5) * 2 * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    is_right = ranking.is_right.float()
    calibration = [torch.where(bins == bin, value, 0.0) for bin in range(NUM_BINS) for value in (is_right, confidence)]
    return [is_right, ranking.margins, longer, *calibration]


def _of_answers(rewards: Tensor, lengths: Tensor) -> Tensor:
    """One, reward, its square, length, its square, product [S, 6] float64."""
    r, n = rewards.double(), lengths.double()
    return torch.stack([torch.ones_like(r), r, r * r, n, n * n, r * n], dim=1)
