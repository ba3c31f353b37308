"""Supervised fine-tuning: next-token loss on the answers.

The loss of an optimizer step is the mean over all supervised tokens of that step, whatever the micro-batches,
accumulation and ranks it is cut into. Each micro-batch back-propagates its *sum*; before clipping, the gradients
are divided by the tokens of the whole step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, Literal, TypeVar

import torch
from torch.distributed import all_gather_object
from torch.optim import Optimizer

from lit_sft.conversation import Batch, Prompt
from lit_sft.distributed.fsdp2 import num_shares
from lit_sft.errors import ConfigError, TrainingError
from lit_sft.generation.generate import Answer, generate_answers
from lit_sft.generation.strategies import Greedy, Strategy, by_name
from lit_sft.losses.cross_entropy import TokenTotals, supervised_cross_entropy
from lit_sft.stages._base import Stage, is_logged
from lit_sft.stages._compile import uncompiled
from lit_sft.stages._neftune import noisy_embeddings

LOSS_SCALE = 1 / 1024
"""Keeps the summed loss in the range of half precision; divided out again before the optimizer step."""

MAX_NAMED = 8
"""Records that an error names."""

Split = Literal["val", "test"]
T = TypeVar("T")


class SFT(Stage):
    """Supervised fine-tuning.

    Args:
        generation: How `predict` and the samples during validation choose tokens; with a list, in each of its ways;
            greedy if not given.
        neftune_alpha: Magnitude of the noise on the embeddings in training (NEFTune: Jain et al. 2023,
            arXiv:2310.05914), 5 for example; none if not given.
        kwargs: What every stage takes.
    """

    network_methods = ("answer",)

    def __init__(
        self,
        generation: Strategy | list[Strategy] | None = None,
        neftune_alpha: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if neftune_alpha is not None and neftune_alpha <= 0:
            raise ConfigError(f"neftune_alpha is {neftune_alpha}; it must be above 0")
        generation = Greedy() if generation is None else generation
        self.strategies = by_name(generation if isinstance(generation, list) else [generation])
        self.neftune_alpha = neftune_alpha
        self._step: list[tuple[torch.Tensor, list[str]]] = []
        self._factor, self._norm = 1.0, 0.0
        self._held_out: list[torch.Tensor] = []
        self._corpora: list[str] = []

    def forward(self, batch: Batch) -> TokenTotals:
        """Loss, tokens and correct tokens of a micro-batch, summed by corpus."""
        network = self.causal_lm
        if batch.position_ids is not None:  # where they restart, another example of a packed row begins
            self.refuse_mixing()
        decoded = network.get_decoder()(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        return supervised_cross_entropy(
            decoded.last_hidden_state,
            batch.labels,
            self.behavior.head(network),
            groups=batch.corpus_ids,
            num_groups=len(batch.corpora),
            num_supervised=batch.num_supervised,
            z_loss_weight=self.checkpoint.family.z_loss_weight,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Summed loss, scaled."""
        noise = self.neftune_alpha
        with noisy_embeddings(self.causal_lm, noise, batch.segment_ids) if noise else nullcontext():
            totals = self(batch)
        self._step.append((totals.by_group, batch.sources))
        self._corpora = batch.corpora
        # Lightning divides by the accumulation. Gradients that are kept in half precision until they are scaled are
        # scaled without an error only by a power of two, so that is undone here.
        accumulation = self._trainer.accumulate_grad_batches if self._trainer else 1
        loss: torch.Tensor = totals.loss * (LOSS_SCALE * accumulation)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Measure the step, and find what makes its summed gradients those of the mean over its tokens.

        Raises:
            TrainingError: If loss or gradients are not finite, before they reach the weights.
        """
        super().on_before_optimizer_step(optimizer)
        micro_batches, self._step = self._step, []
        own = torch.stack([by_corpus for by_corpus, _ in micro_batches])  # [M, C, 3]
        totals = self.trainer.strategy.reduce(own.sum(0), reduce_op="sum")
        # Here the host waits for the device: nothing harmful may reach the weights.
        *flat, norm = torch.cat([totals.flatten(), self.gradient_norm().double()[None]]).tolist()
        by_corpus = [flat[start : start + 3] for start in range(0, len(flat), 3)]
        loss, num_tokens, _ = map(math.fsum, zip(*by_corpus, strict=True))
        if not num_tokens:
            self._factor, self._norm = 1.0, 0.0
            return  # no rank has data left for this step: its gradients are zero, and there is no mean
        if not math.isfinite(loss) or loss == 0:
            raise self._harmful("loss", loss, own, micro_batches)
        # The strategy averaged over the ranks.
        self._factor = self.trainer.world_size / (LOSS_SCALE * num_tokens)
        self._norm = norm = norm * self._factor
        # The loss scaler of fp16 skips overflowing steps by itself.
        if not math.isfinite(norm) and self.trainer.precision != "16-mixed":
            raise self._harmful("gradient norm", norm, own, micro_batches)
        self.log("train/loss", loss / num_tokens, prog_bar=True)
        # Each costs a millisecond, in which a GPU has nothing to do: the others only where they are written down.
        if is_logged(self.trainer, self.trainer.global_step + 1):
            self._log_step(by_corpus, optimizer)

    def _log_step(self, by_corpus: list[list[float]], optimizer: Optimizer) -> None:
        """What the step was, beside its loss, and the loss of each corpus that has tokens in it."""
        loss, num_tokens, num_correct = map(math.fsum, zip(*by_corpus, strict=True))
        self.log_dict(
            {
                "train/token_accuracy": num_correct / num_tokens,
                "train/gradient_norm": self._norm,
                "train/learning_rate": optimizer.param_groups[0]["lr"],
            },
            prog_bar=True,
        )
        self.log("train/perplexity", math.exp(min(loss / num_tokens, 700)))
        if len(by_corpus) == 1:
            return
        losses = {
            f"train/loss/{name}": loss / num_tokens
            for name, (loss, num_tokens, _) in zip(self._corpora, by_corpus, strict=True)
            if num_tokens
        }
        # self.log would repeat the last loss of a corpus in steps that have none of its tokens.
        for logger in self.loggers:
            logger.log_metrics(losses, step=self.trainer.global_step)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Make summed gradients those of the mean, and clip them, in one pass: their norm is known.

        Whoever overrides it must call it: until then gradients are sums.
        """
        factor = self._factor
        if gradient_clip_val and gradient_clip_algorithm != "value":
            factor *= min(1.0, gradient_clip_val / (self._norm + 1e-6))
        if factor != 1:
            torch._foreach_mul_([p.grad for p in self.parameters() if p.grad is not None], factor)
        if gradient_clip_algorithm == "value":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

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

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> list[dict[str, Any]]:
        """A row for each prompt and strategy, in this order; of the prompts of all processes, one after the other."""
        rows = [
            {
                "source": prompt.source,
                "category": prompt.category,
                "strategy": strategy,
                "prompt": prompt.text,
                "is_truncated": prompt.is_truncated,
                "answer": answer.text,
                "reference": prompt.reference,
                "finish_reason": answer.finish_reason,
                "prompt_tokens": len(prompt.input_ids),
                "answer_tokens": answer.num_tokens,
            }
            for prompt, by_strategy in zip(batch, self.answer(batch), strict=True)
            for strategy, answer in by_strategy.items()
        ]
        return rows if num_shares(self.trainer) == 1 else self._of_all_processes(rows)

    def answer(self, prompts: Sequence[Prompt]) -> list[dict[str, Answer]]:
        """Of each prompt the answers by the name of the strategy."""
        with uncompiled():
            answers = [
                generate_answers(
                    self.causal_lm,
                    self.tokenizer,
                    [prompt.input_ids for prompt in prompts],
                    strategy,
                    stop_token_ids=self.checkpoint.prompt_format.stop_token_ids(self.tokenizer),
                    context_length=self.checkpoint.context_length,
                )
                for strategy in self.strategies.values()
            ]
        return [dict(zip(self.strategies, of_prompt, strict=True)) for of_prompt in zip(*answers, strict=True)]

    def _measure(self, batch: Batch) -> None:
        self._held_out.append(self(batch).by_group)
        self._corpora = batch.corpora

    def _harmful(self, what: str, value: float, own: torch.Tensor, micro_batches: list[Any]) -> TrainingError:
        """The error that stops the run, naming the records of the micro-batches at fault, or of the whole step."""
        totals = own.sum(1).tolist()
        suspects = [sources for (loss, num_tokens, _), (_, sources) in zip(totals, micro_batches, strict=True)
                    if num_tokens and (not math.isfinite(loss) or loss == 0)]  # fmt: skip
        blamed = self._of_all_processes([source for sources in suspects for source in sources])
        records = blamed or self._of_all_processes([source for _, sources in micro_batches for source in sources])
        named = ", ".join(records[:MAX_NAMED]) + (f" and {len(records) - MAX_NAMED} more" * (len(records) > MAX_NAMED))
        return TrainingError(
            f"{what} is {value} in optimizer step {self.trainer.global_step + 1}; the weights were left as they are. "
            f"Records of the step: {named}. Lower the learning rate, use bf16 or float32, or look at them"
        )

    def _of_all_processes(self, own: list[T]) -> list[T]:
        """What each process has, one after the other; all of them must ask."""
        if self.trainer.world_size == 1:
            return own
        parts: list[list[T]] = [[]] * self.trainer.world_size
        all_gather_object(parts, own)
        return list(chain.from_iterable(parts))

    def _log_held_out(self, split: Split) -> None:
        """Means over the supervised tokens of all batches and ranks, summed in float64 whatever the precision."""
        own, self._held_out = self._held_out, []
        by_corpus = self.trainer.strategy.reduce(torch.stack(own).sum(0), reduce_op="sum").tolist()
        values = _held_out_metrics(split, "", *map(math.fsum, zip(*by_corpus, strict=True)))
        if len(by_corpus) > 1:
            for name, totals in zip(self._corpora, by_corpus, strict=True):
                values |= _held_out_metrics(split, f"/{name}", *totals)
        # Every rank has the same values; saying so spares a warning of each.
        self.log_dict(values, prog_bar=True, sync_dist=True)


def _held_out_metrics(
    split: Split, suffix: str, loss: float, num_tokens: float, num_correct: float
) -> dict[str, float]:
    """The means of a corpus, or of all; none if it has no token."""
    if not num_tokens:
        return {}
    return {
        f"{split}/loss{suffix}": loss / num_tokens,
        f"{split}/perplexity{suffix}": math.exp(min(loss / num_tokens, 700)),
        f"{split}/token_accuracy{suffix}": num_correct / num_tokens,
    }
