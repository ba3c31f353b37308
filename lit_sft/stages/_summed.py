"""A stage whose loss is a mean over an optimizer step, whatever the micro-batches and ranks the step is cut into.

Each micro-batch back-propagates its *sum*. Before the optimizer steps, the gradients are divided by the total of the
whole step: `divide_gradients`, which `on_before_optimizer_step` calls, and that Lightning calls for automatic and for
manual optimization alike.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from lit_sft.data.batch import Batch
from lit_sft.distributed.processes import gather
from lit_sft.errors import TrainingError
from lit_sft.stages._base import Stage, is_logged
from lit_sft.tuning._base import Tuning

LOSS_SCALE = 1 / 1024
"""Keeps the summed loss in the range of half precision; divided out again before the optimizer step."""

MAX_NAMED = 8
"""Records that an error names."""

Split = Literal["val", "test"]


class Totals(Protocol):
    """Sums over a micro-batch."""

    @property
    def loss(self) -> torch.Tensor:
        """Summed loss, a scalar to back-propagate."""

    @property
    def by_group(self) -> torch.Tensor:
        """For each corpus its loss, its number of what the loss is a mean over, and its `measures` [G, 2 + M]."""


class SummedLoss(Stage):
    """A stage whose `forward` gives the `Totals` of a micro-batch.

    Args:
        checkpoint: Model folder in its original layout.
        tuning: Which weights train.
        kwargs: What every stage takes.
    """

    measures: tuple[str, ...] = ()
    """Names of the sums beside the loss; what is logged is their mean."""

    is_zero_loss_harmful: ClassVar[bool] = False
    """Whether a loss of exactly zero says that something is broken."""

    def __init__(self, checkpoint: str, tuning: Tuning, **kwargs: Any) -> None:
        super().__init__(checkpoint, tuning, **kwargs)
        self._step: list[tuple[torch.Tensor, list[str]]] = []
        self._held_out: list[torch.Tensor] = []
        self._corpora: list[str] = []

    @abstractmethod
    def forward(self, batch: Batch) -> Totals:
        """Sums over a micro-batch."""

    def means(self, loss: float, count: float, *sums: float) -> dict[str, float]:
        """Metrics of so many, by name: the mean loss, and that of each measure."""
        return {"loss": loss / count, **{name: value / count for name, value in zip(self.measures, sums, strict=True)}}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Summed loss, scaled."""
        totals = self(batch)
        self._step.append((totals.by_group, batch.sources))
        self._corpora = batch.corpora
        # Lightning divides by the accumulation. Gradients that are kept in half precision until they are scaled are
        # scaled without an error only by a power of two, so that is undone here.
        accumulation = self._trainer.accumulate_grad_batches if self._trainer else 1
        loss: torch.Tensor = totals.loss * (LOSS_SCALE * accumulation)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Measure the step, and make its summed gradients those of the mean.

        Raises:
            TrainingError: If loss or gradients are not finite, before they reach the weights.
        """
        super().on_before_optimizer_step(optimizer)
        micro_batches, self._step = self._step, []
        own = torch.stack([by_corpus for by_corpus, _ in micro_batches])  # [N, G, 2 + M]
        totals = self.trainer.strategy.reduce(own.sum(0), reduce_op="sum")
        # Here the host waits for the device: nothing harmful may reach the weights.
        *flat, norm = torch.cat([totals.flatten(), self.gradient_norm().double()[None]]).tolist()
        width = own.shape[-1]
        by_corpus = [flat[start : start + width] for start in range(0, len(flat), width)]
        loss, count, *_ = sums = list(map(math.fsum, zip(*by_corpus, strict=True)))
        if not count:
            return  # no rank has data left for this step: its gradients are zero, and there is no mean
        if self._is_harmful(loss):
            raise self._harmful("loss", loss, own, micro_batches)
        norm = self.divide_gradients(count, norm)
        # The loss scaler of fp16 skips overflowing steps by itself.
        if not math.isfinite(norm) and self.trainer.precision != "16-mixed":
            raise self._harmful("gradient norm", norm, own, micro_batches)
        self.log("train/loss", loss / count, prog_bar=True)
        # Each costs a millisecond, in which a GPU has nothing to do: the others only where they are written down.
        if is_logged(self.trainer, self.trainer.global_step + 1):
            self._log_step(sums, by_corpus, norm, optimizer.param_groups[0]["lr"])

    def divide_gradients(self, count: float, norm: float) -> float:
        """Make summed gradients those of the mean, and clip them, in one pass over them, for their norm is known.

        Args:
            count: What the loss of the whole step is a mean over, on all ranks together.
            norm: Euclidean norm of the summed gradients.

        Returns:
            The norm of the mean's gradients, before they are clipped.
        """
        return self.scale_gradients(self.parameters(), count, norm)

    def scale_gradients(self, parameters: Iterable[nn.Parameter], count: float, norm: float) -> float:
        """The same of some parameters, `norm` being theirs."""
        # The strategy averaged over the ranks.
        factor = self.trainer.world_size / (LOSS_SCALE * count)
        norm *= factor
        clip = self.trainer.gradient_clip_val
        if clip and self.trainer.gradient_clip_algorithm != "value":
            factor *= min(1.0, clip / (norm + 1e-6))
        if factor != 1:
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)
        return norm

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by value only: by norm it is done with the division."""
        if gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _log_step(self, sums: Sequence[float], by_corpus: list[list[float]], norm: float, rate: float) -> None:
        """What the step was, beside its loss, and the loss of each corpus that takes part in it."""
        metrics = {f"train/{name}": value for name, value in self.means(*sums).items() if name != "loss"}
        self.log_dict({**metrics, "train/gradient_norm": norm, "train/learning_rate": rate}, prog_bar=True)
        if len(by_corpus) == 1:
            return
        losses = {
            f"train/loss/{name}": loss / count
            for name, (loss, count, *_) in zip(self._corpora, by_corpus, strict=True)
            if count
        }
        # self.log would repeat the last loss of a corpus in steps that have none of its tokens.
        for logger in self.loggers:
            logger.log_metrics(losses, step=self.trainer.global_step)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the validation split."""
        self._measure(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the validation split."""
        self._log_held_out("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the test corpora."""
        self._measure(batch)

    def on_test_epoch_end(self) -> None:
        """Log the test corpora."""
        self._log_held_out("test")

    def _measure(self, batch: Batch) -> None:
        self._held_out.append(self(batch).by_group)
        self._corpora = batch.corpora

    def _log_held_out(self, split: Split) -> None:
        """Means over all batches and ranks, summed in float64 whatever the precision."""
        own, self._held_out = self._held_out, []
        by_corpus = self.trainer.strategy.reduce(torch.stack(own).sum(0), reduce_op="sum").tolist()
        groups = {"": list(map(math.fsum, zip(*by_corpus, strict=True)))}
        if len(by_corpus) > 1:
            groups |= {f"/{name}": sums for name, sums in zip(self._corpora, by_corpus, strict=True)}
        values = {
            f"{split}/{name}{suffix}": value
            for suffix, sums in groups.items()
            if sums[1]
            for name, value in self.means(*sums).items()
        }
        # Every rank has the same values; saying so spares a warning of each.
        self.log_dict(values, prog_bar=True, sync_dist=True)

    def _is_harmful(self, loss: float) -> bool:
        return not math.isfinite(loss) or (self.is_zero_loss_harmful and loss == 0)

    def _harmful(self, what: str, value: float, own: torch.Tensor, micro_batches: list[Any]) -> TrainingError:
        """The error that stops the run, naming the records of the micro-batches at fault, or of the whole step."""
        totals = own.sum(1).tolist()
        suspects = [
            sources
            for (loss, count, *_), (_, sources) in zip(totals, micro_batches, strict=True)
            if count and self._is_harmful(loss)
        ]
        blamed = list(chain.from_iterable(gather([source for sources in suspects for source in sources])))
        records = blamed or list(chain.from_iterable(gather([s for _, sources in micro_batches for s in sources])))
        named = ", ".join(records[:MAX_NAMED]) + (f" and {len(records) - MAX_NAMED} more" * (len(records) > MAX_NAMED))
        return TrainingError(
            f"{what} is {value} in optimizer step {self.trainer.global_step + 1}; the weights were left as they are. "
            f"Records of the step: {named}. Lower the learning rate, use bf16 or float32, or look at them"
        )
