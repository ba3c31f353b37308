"""Supervised fine-tuning: next-token loss on the answers, a mean over all supervised tokens of an optimizer step."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch

from lit_sft.data.batch import Batch, PairBatch, PromptBatch
from lit_sft.errors import ConfigError
from lit_sft.losses.cross_entropy import TokenTotals
from lit_sft.stages._answering import Answering
from lit_sft.stages._neftune import noisy_embeddings
from lit_sft.stages._summed import SummedLoss
from lit_sft.tuning._base import Tuning


class SFT(SummedLoss, Answering):
    """Supervised fine-tuning.

    Args:
        checkpoint: Model folder in its original layout.
        tuning: Which weights train.
        neftune_alpha: Magnitude of the noise on the embeddings in training (NEFTune: Jain et al. 2023,
            arXiv:2310.05914), 5 for example; none if not given.
        kwargs: What every stage takes that answers.
    """

    measures = ("token_accuracy",)
    shown_metrics = {"val/loss": "loss", "val/perplexity": "perplexity", "val/token_accuracy": "token accuracy"}  # noqa: RUF012
    is_zero_loss_harmful = True

    def __init__(self, checkpoint: str, tuning: Tuning, *, neftune_alpha: float | None = None, **kwargs: Any) -> None:
        super().__init__(checkpoint, tuning, **kwargs)
        if neftune_alpha is not None and neftune_alpha <= 0:
            raise ConfigError(f"neftune_alpha is {neftune_alpha}; it must be above 0")
        self.neftune_alpha = neftune_alpha

    def forward(self, batch: Batch) -> TokenTotals:
        """Loss, tokens and correct tokens of a micro-batch, summed by corpus."""
        return self.token_totals(batch)

    def means(self, loss: float, count: float, *sums: float) -> dict[str, float]:
        """Loss, perplexity and token accuracy."""
        perplexity = math.exp(min(loss / count, 700))
        return {"loss": loss / count, "perplexity": perplexity, **super().means(loss, count, *sums)}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Summed loss, scaled; with noise if wanted."""
        noise = self.neftune_alpha
        with noisy_embeddings(self.causal_lm, noise, batch.segment_ids) if noise else nullcontext():
            return super().training_step(batch, batch_idx)

    def check_first_batch(self, batch: Batch) -> str | None:
        """Does any answer in it learn to end?

        Raises:
            ConfigError: If it holds answers that are not to be learned.
        """
        if isinstance(batch, PairBatch):
            raise ConfigError(
                "SFT would learn the rejected answers of PreferenceData, too. Set data.class_path to SFTData, which "
                "takes the best answer of each record of the same corpora"
            )
        if isinstance(batch, PromptBatch):
            raise ConfigError("PromptData has no answers that SFT could learn. Set data.class_path to SFTData")
        ends = self.checkpoint.prompt_format.stop_token_ids(self.tokenizer)
        if torch.isin(batch.labels, torch.tensor(list(ends), device=batch.labels.device)).any():
            return None
        return (
            "the first batch supervises no end of an answer: the model may never stop. Replies are probably cut off at "
            "data.max_length; raise it"
        )
