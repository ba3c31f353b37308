"""Where the answers of a batch of pairs stand, and what is wrong with a stage that compares them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.conversation import IGNORE_INDEX, Batch, PairBatch
from lit_sft.errors import ConfigError
from lit_sft.tuning._base import Tuning


def last_positions(batch: PairBatch) -> Tensor:
    """Of each segment the place of its last token in the flat rows [S]; by number, whatever token it is.

    Where padding is the end token, the last token that is not padding is one too early: the place counts, not the id.
    """
    segments = batch.segment_ids
    is_last = (segments != 0) & (F.pad(segments[:, 1:], (0, 1)) != segments)
    return torch.nonzero_static(is_last.flatten(), size=len(batch.sequences)).squeeze(1)


def sequence_numbers(batch: Batch) -> Tensor:
    """Of each place in the flat rows the number of its segment [B * T], of padding that of the segment before it."""
    segments = batch.segment_ids
    is_first = (segments != 0) & (F.pad(segments[:, :-1], (1, 0)) != segments)
    return is_first.flatten().cumsum(0) - 1


def answer_places(batch: Batch) -> Tensor:
    """Places of the supervised tokens in the flat rows [N]; what predicts each is one place before."""
    places = torch.nonzero_static((batch.labels != IGNORE_INDEX).flatten(), size=batch.num_supervised)
    return places.squeeze(1)


def answer_lengths(batch: PairBatch) -> Tensor:
    """Supervised tokens of each segment [S] int64."""
    is_supervised = (batch.labels != IGNORE_INDEX).flatten().long()
    # Whole numbers add up to the same in any order.
    counts = is_supervised.new_zeros(len(batch.sequences))
    return counts.scatter_add(0, sequence_numbers(batch).clamp(min=0), is_supervised) if len(counts) else counts


def refuse_dropout(tuning: Tuning, checkpoint: Checkpoint) -> None:
    """Scores and log-probabilities that are compared must be functions of the text.

    Raises:
        ConfigError: If adapters drop at random.
    """
    if dropout := tuning.footprint(checkpoint.family.lora_targets).dropout:
        raise ConfigError(
            f"model.init_args.tuning.init_args.dropout is {dropout}: answers are compared, and the same answer would "
            "get another score in each pass. Set it to 0"
        )


def refuse_random_layers(network: nn.Module, checkpoint: Checkpoint) -> None:
    """The same of the network itself.

    Raises:
        ConfigError: If it drops at random in training.
    """
    for name, module in network.named_modules():
        rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0)
        if isinstance(rate, float) and rate > 0:
            raise ConfigError(
                f"{checkpoint.path / 'config.json'}: {name} drops {rate:.0%} at random: answers are compared, and the "
                "same answer would get another score in each pass. Set its dropout to 0"
            )
