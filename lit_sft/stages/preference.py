"""Preference optimization: the policy learns from comparisons of answers, without a reward model in between."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from lit_sft.data.batch import PairBatch
from lit_sft.errors import ConfigError, TrainingError
from lit_sft.losses.logprobs import TokenLogProbs, token_log_probs
from lit_sft.losses.segments import Segments
from lit_sft.objectives._base import Answers, Objective
from lit_sft.stages._answering import Answering
from lit_sft.stages._judging import Judging
from lit_sft.stages._mismatched import mismatched
from lit_sft.stages._reference import StoredReference
from lit_sft.stages._sequences import (
    answer_lengths,
    answer_places,
    refuse_dropout,
    refuse_random_layers,
    sequence_numbers,
)
from lit_sft.stages._summed import SummedLoss
from lit_sft.tuning._base import Tuning

log = logging.getLogger(__name__)

SHOWN_MEASURES = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "reward, chosen",
    "rewards/rejected": "reward, rejected",
    "logps/chosen": "logps, chosen",
    "logps/rejected": "logps, rejected",
}
"""Measures of an objective that summaries show, and how they call them."""

MAX_DISTANCE = 0.01
"""By how much, a token, policy and reference may differ before the first step: rounding, but not another model."""

MAX_FALL = 0.1
"""Share of its log-probability that chosen answers may lose before a warning."""


class PreferenceTotals(NamedTuple):
    """Sums over a micro-batch; see `Totals`."""

    loss: Tensor
    by_group: Tensor


class Preference(SummedLoss, Answering, Judging):
    """Direct optimization on preferences.

    The reference is what the policy was before it trained: for LoRA and QLoRA the base, or a frozen copy of the adapter
    to start from; for full tuning log-probabilities that are computed once, before the first step.

    Args:
        checkpoint: Model folder in its original layout.
        tuning: Which weights train.
        objective: What is minimized.
        kwargs: What every stage takes that answers.
    """

    network_methods: ClassVar[tuple[str, ...]] = (*Answering.network_methods, "log_probs")
    head_use = "log-probabilities"

    def __init__(self, checkpoint: str, tuning: Tuning, *, objective: Objective, **kwargs: Any) -> None:
        super().__init__(checkpoint, tuning, **kwargs)
        refuse_dropout(tuning, self.checkpoint)
        self.checkpoint.prompt_format.check_answers()
        if objective.needs_mismatched and not tuning.keeps_reference:
            raise ConfigError(
                f"{type(objective).__name__} with baseline mismatched asks the reference in each step, which "
                f"{type(tuning).__name__} does not keep. Set baseline: none, or take LoRA or QLoRA"
            )
        self.objective = objective
        self.measures = objective.measures
        self.judgment = "log-ratio" if objective.needs_reference else "log-probability"
        shown = {name: called for name, called in SHOWN_MEASURES.items() if name in objective.measures}
        self.shown_metrics = {"val/loss": "loss", **{f"val/{name}": called for name, called in shown.items()}}
        self.stored_reference: StoredReference | None = None
        self._distances: list[Tensor] = []
        """How far policy and reference lie apart in each micro-batch of one of the first two steps."""
        self._first_logps: float | None = None

    def add_parts(self) -> None:
        """What answers as the reference, if a tuning has it at little cost."""
        refuse_random_layers(self.causal_lm, self.checkpoint)
        if self.objective.needs_reference:
            self.tuning.keep_reference(self.model)

    def configure_model(self) -> None:
        """Load the weights, and let them say what the reference says, where it cannot be asked later."""
        is_loaded = self.model is not None
        super().configure_model()
        measures = self._trainer is not None and self.trainer.state.fn in ("fit", "validate", "test")
        if is_loaded or not measures or not self.objective.needs_reference or self.tuning.keeps_reference:
            return
        # Here the weights are those of the checkpoint folder, also where a run goes on: its own are restored later.
        self.stored_reference = StoredReference.made_by(self)

    def forward(self, batch: PairBatch) -> PreferenceTotals:  # type: ignore[override]
        """Loss and what is measured, a mean over pairs or judged answers."""
        items = self._items(batch)
        answers = self._answers(batch, items)
        if self.objective.needs_mismatched:
            answers, items = self._with_mismatched(batch, answers, items)
        found = self.objective(answers, items)
        # Answers behind other prompts, which come last, count for nothing in whichever group.
        groups = F.pad(batch.sequence_corpora, (0, len(answers.lengths) - len(batch.sequences)))
        return PreferenceTotals(found.losses.sum(), found.by_group(groups, len(batch.corpora)))

    def means(self, loss: float, count: float, *sums: float) -> dict[str, float]:
        """The loss, and what the objective measures."""
        return {"loss": loss / count, **self.objective.means(count, *sums)}

    def check_first_batch(self, batch: Any) -> str | None:
        """Are there answers to compare?"""
        if not isinstance(batch, PairBatch):
            raise ConfigError(
                f"Preference learns from answers that are compared, not from {type(batch).__name__}: set "
                "data.class_path to PreferenceData"
            )
        if self.objective.items == "pairs" and not len(batch.pairs):
            raise ConfigError(
                f"{type(self.objective).__name__} compares two answers to one prompt, and the first batch has none: "
                "the corpora judge single answers, which KTO learns from"
            )
        return None

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Guard against another reference, and against a policy that does not move.

        Raises:
            TrainingError: If policy and reference differ before the first step, or are equal before the second; half
                precision is only warned of the latter.
        """
        distances, self._distances = self._distances, []
        if distances:
            distance = float(self.trainer.strategy.reduce(torch.stack(distances).max(), reduce_op="max"))
            self._check_distance(distance)
        super().on_before_optimizer_step(optimizer)

    def on_validation_epoch_end(self) -> None:
        """Warn where chosen answers become less likely: the difference grows, and the policy gets worse."""
        super().on_validation_epoch_end()
        logps = self.trainer.callback_metrics.get("val/logps/chosen")
        if logps is None or self.trainer.state.fn != "fit":
            return
        if self._first_logps is None:
            self._first_logps = float(logps)
        elif float(logps) < self._first_logps * (1 + MAX_FALL):
            log.warning(
                "chosen answers have become less likely: their mean log-probability fell from %.4g to %.4g. That is "
                "usual for objectives on differences; to stop it set sft_weight of the objective to 0.1 or 0.2, or "
                "lower the learning rate",
                self._first_logps, float(logps),
            )  # fmt: skip

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep from where chosen answers came."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["first_logps"] = self._first_logps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it from there."""
        super().on_load_checkpoint(checkpoint)
        self._first_logps = checkpoint["first_logps"]

    def log_probs(self, batch: PairBatch) -> Tensor:
        """Of each answer under the network as it is [S], summed as the objective wants it."""
        found, segments = self._log_probs(batch, self._hidden(batch), answer_places(batch))
        return self.objective.summed(segments.grid(found.logps), segments.lengths, self._items(batch))

    @torch.no_grad()
    def judge(self, batch: PairBatch) -> Tensor:
        """The log-probability of each answer [S], less that under the reference if there is one."""
        logps = self.log_probs(batch)
        return logps - self._reference(batch) if self.objective.needs_reference else logps

    def _items(self, batch: PairBatch) -> Tensor:
        return batch.pairs if self.objective.items == "pairs" else batch.is_good.long()

    def _answers(self, batch: PairBatch, items: Tensor) -> Answers:
        reference = self._reference(batch) if self.objective.needs_reference else None
        hidden = self._hidden(batch)
        is_measured = self.objective.needs_certainty
        found, segments = self._log_probs(batch, hidden, answer_places(batch), is_measured=is_measured)
        grid = segments.grid(found.logps)
        logps = self.objective.summed(grid, segments.lengths, items)
        answers = Answers(logps, segments.lengths, reference)
        if reference is not None and self._is_guarded:
            ratios = (logps.detach() - reference).abs() / segments.lengths.clamp_min(1)
            self._distances.append(ratios.max() if len(ratios) else ratios.sum())
        if self.objective.needs_certainty:
            certainty = segments.sums(found.logps.detach() - found.collisions) / segments.lengths
            answers = replace(answers, certainty=certainty)
        if self.objective.needs_prompts:
            whole, of_whole = self._log_probs(batch, hidden, _predicted_places(batch))
            answers = replace(answers, whole_logps=of_whole.sums(whole.logps), whole_lengths=of_whole.lengths)
        return answers

    def _with_mismatched(self, batch: PairBatch, answers: Answers, items: Tensor) -> tuple[Answers, Tensor]:
        """Behind them answers to other prompts, with the verdict -1."""
        others = mismatched(batch, self.checkpoint.context_length)
        if others is None:
            return answers, items
        with torch.no_grad():
            logps = self.log_probs(others)
            with self.tuning.reference_of(self.model):
                reference = self.log_probs(others)
        assert answers.reference is not None
        joined = replace(
            answers,
            logps=torch.cat([answers.logps, logps]),
            lengths=torch.cat([answers.lengths, answer_lengths(others)]),
            reference=torch.cat([answers.reference, reference]),
        )
        return joined, torch.cat([items, items.new_full((len(logps),), -1)])

    def _reference(self, batch: PairBatch) -> Tensor:
        """What the reference says of each answer [S]."""
        if self.stored_reference is not None:
            return self.stored_reference.of(batch)
        with torch.no_grad(), self.tuning.reference_of(self.model):
            return self.log_probs(batch)

    def _log_probs(
        self, batch: PairBatch, hidden: Tensor, places: Tensor, *, is_measured: bool = False
    ) -> tuple[TokenLogProbs, Segments]:
        """Of the tokens at these places in the flat rows [N], and to which answer each belongs."""
        found = token_log_probs(
            hidden.index_select(0, places - 1),
            batch.input_ids.flatten()[places],
            self.behavior.head(self.causal_lm),
            is_measured=is_measured,
        )
        return found, Segments.of(sequence_numbers(batch)[places], len(batch.sequences), batch.input_ids.shape[1])

    def _hidden(self, batch: PairBatch) -> Tensor:
        """Hidden states of the flat rows [B * T, H]."""
        if batch.position_ids is not None:
            self.refuse_mixing()
        decoded = self.causal_lm.get_decoder()(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        )
        hidden: Tensor = decoded.last_hidden_state
        return hidden.flatten(0, 1)

    @property
    def _is_guarded(self) -> bool:
        trainer = self._trainer
        return trainer is not None and bool(trainer.training) and trainer.global_step < 2

    def _check_distance(self, distance: float) -> None:
        step = self.trainer.global_step
        if step == 0 and not distance <= MAX_DISTANCE:
            raise TrainingError(
                f"before the first step log-probabilities of policy and reference differ by {distance:.3g} a token: "
                "the reference is not the model that training starts from"
            )
        if step == 1 and distance == 0:
            said = (
                "after the first step the policy still is the reference to the bit: nothing trains. Raise the learning "
                "rate, or shorten the warm-up"
            )
            # In half precision a step of a warm-up may be too small to show in any log-probability.
            if str(self.trainer.precision) == "32-true":
                raise TrainingError(said)
            log.warning("%s, if that stays so", said)


def _predicted_places(batch: PairBatch) -> Tensor:
    """The same, with the prompts: all but the first token of each segment, which nothing of its own predicts."""
    is_wanted = (batch.segment_ids != 0) & (F.pad(batch.segment_ids[:, :-1], (1, 0)) == batch.segment_ids)
    return torch.nonzero(is_wanted.flatten()).squeeze(1)
