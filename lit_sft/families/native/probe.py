"""What a network of transformers does beside decoder and head, found out by asking it: a few tokens when it loads.

Training calls the decoder, chooses the positions that carry loss, and calls the head for these alone. Some model types
scale their logits behind the head (Granite, Cohere) or cap them (Gemma 2), each under another key of config.json; and
some keep the examples of a packed row apart only partly or not at all. Nothing says which, so nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from lit_sft.errors import CheckpointError
from lit_sft.families._base import Behavior

LENGTHS = (9, 7)
"""Tokens of two examples."""

LOUD = 100.0
"""Largest logit under which heads are compared: random weights give small ones, which no cap changes."""

HEAD_TOLERANCE = {torch.float32: 1e-3}
"""Largest difference of logits, as a share of the largest logit: the same numbers are multiplied in the same way."""

PACKED_TOLERANCE = {torch.float32: 1e-4}
"""Mean difference of hidden states, as a share of their mean size: rows of another length are summed in other order."""

HALF_TOLERANCE = 2e-2
"""Both in half precision."""


@dataclass
class _Given(BaseModelOutputWithPast):
    """What a decoder returns; whatever else is asked for is not there."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class OwnHead(nn.Module):
    """All that a network does behind its decoder: its own forward, in which the decoder answers what it is given."""

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self._of = (network, network.get_decoder())  # in a tuple, which makes no submodules of them

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [N, H] to logits [N, V]."""
        network, decoder = self._of

        def given(*args: Any, **kwargs: Any) -> _Given:
            return _Given(last_hidden_state=hidden[None])

        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        before = vars(decoder).get("forward")
        decoder.forward = given
        try:
            logits: Tensor = network(input_ids=ids, use_cache=False).logits
        finally:
            if before is None:
                del decoder.forward
            else:
                decoder.forward = before
        return logits[0]

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those behind the decoder, and of the head, which may be the embedding."""
        network, decoder = self._of
        head = network.get_output_embeddings()
        of_decoder = {*decoder.parameters()} - {*(head.parameters() if head is not None else ())}
        return (parameter for parameter in network.parameters() if parameter not in of_decoder)


@torch.no_grad()
def behavior_of(network: PreTrainedModel) -> Behavior:
    """Ask a network in evaluation mode.

    Raises:
        CheckpointError: If its logits are not a function of the last hidden states of its decoder, or it has none.
    """
    model_type = network.config.model_type
    try:
        return Behavior(OwnHead, _mixing(network)) if _does_more(network) else Behavior(mixing=_mixing(network))
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"model type {model_type} has no decoder that can be trained alone: {error}") from error


def _does_more(network: PreTrainedModel) -> bool:
    """Whether the output head is not all that turns hidden states into logits."""
    tokens = _tokens(network, sum(LENGTHS))
    hidden = network.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state[0]
    expected, own = network(input_ids=tokens, use_cache=False).logits[0], OwnHead(network)
    tolerance = HEAD_TOLERANCE.get(expected.dtype, HALF_TOLERANCE)
    difference = _largest_difference(own(hidden), expected)
    if not difference <= tolerance:
        raise CheckpointError(
            f"model type {network.config.model_type} cannot be trained: its logits differ from those of its decoder "
            f"and head by {difference:.1%} of the largest"
        )
    head = network.get_output_embeddings()
    if head is None:
        return True
    loud = hidden * (LOUD / head(hidden).abs().max().clamp_min(1e-6)).to(hidden.dtype)
    return _largest_difference(head(loud), own(loud)) > tolerance


def _mixing(network: PreTrainedModel) -> float:
    """By what share the second example of a packed row differs from what it is alone; 0 if by rounding only."""
    decoder, tokens = network.get_decoder(), _tokens(network, sum(LENGTHS))
    starts = torch.cat([torch.arange(length, device=tokens.device) for length in LENGTHS])[None]
    try:
        packed = decoder(input_ids=tokens, position_ids=starts, use_cache=False).last_hidden_state[0]
    except TypeError:  # it takes no positions
        return 1.0
    differences = []
    for together, ids in zip(packed.split(LENGTHS), tokens.split(LENGTHS, dim=1), strict=True):
        alone = decoder(input_ids=ids, use_cache=False).last_hidden_state[0].float()
        differences.append(float((together.float() - alone).abs().mean() / alone.abs().mean()))
    # The first one has nothing before it that it could see: that is rounding.
    rounding, difference = differences
    allowed = max(4 * rounding, PACKED_TOLERANCE.get(packed.dtype, HALF_TOLERANCE))
    return 0.0 if difference <= allowed else difference


def _tokens(network: PreTrainedModel, count: int) -> Tensor:
    """Some [1, count] of the vocabulary, all of them different."""
    embedding: Any = network.get_input_embeddings().weight
    tokens: Tensor = torch.arange(count, device=embedding.device) * 5 + 7
    return tokens[None] % len(embedding)


def _largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-6))
