"""A trained prefix (P-tuning v2: Liu et al. 2021, arXiv:2110.07602) as ChatGLM's original code has it.

Every layer sees keys and values of P further tokens before the first. They were never at any place, so they are not
rotated; places of the real tokens are counted without them, and all tokens see all of them. The cache holds real tokens
only: the prefix is put before what it holds when a layer attends.

Letters in names of tensors: B rows, P tokens of the prefix, L layers, N heads of keys, D their width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_sft.families._base import Family

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ENCODER = "prefix_encoder"
"""Name of the encoder within the decoder, as in the original."""

SDPA_WITH_PREFIX = "sdpa_with_prefix"
"""The attention function of a network with a prefix; where there is none to see, transformers' `sdpa`."""


@dataclass(frozen=True)
class PrefixSize:
    """Sizes of a prefix encoder.

    Args:
        num_tokens: P.
        num_layers: L.
        num_heads: N.
        head_dim: D.
        hidden_size: Inner width of the projection.
        input_size: Width of an embedded token before the projection.
    """

    num_tokens: int
    num_layers: int
    num_heads: int
    head_dim: int
    hidden_size: int
    input_size: int

    @property
    def states_size(self) -> int:
        """Numbers of a token in all keys and values."""
        return 2 * self.num_layers * self.num_heads * self.head_dim

    @classmethod
    def of(cls, family: Family, num_tokens: int) -> PrefixSize:
        """Those that fit the network of a family with a prefix encoder."""
        config: Any = family.network_config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = cls(num_tokens, config.num_hidden_layers, num_heads, head_dim, config.hidden_size, config.hidden_size)
        if family.prefix_input == "hidden":
            return size
        return cls(num_tokens, size.num_layers, num_heads, head_dim, size.hidden_size, size.states_size)


class PrefixEncoder(nn.Module):
    """Keys and values of all layers, as rows of an embedding, or projected from such by two layers with a tanh.

    Parameters have the original's names, and begin as there: N(0, 1), and torch's defaults for the layers.

    Args:
        size: Sizes.
        projection: Whether they are projected.
        dropout: Probability with which a number is dropped in training.
    """

    def __init__(self, size: PrefixSize, *, projection: bool, dropout: float) -> None:
        super().__init__()
        self.size = size
        self.dropout = dropout
        self.is_off = False
        self.embedding = nn.Embedding(size.num_tokens, size.input_size if projection else size.states_size)
        self.trans = (
            nn.Sequential(
                nn.Linear(size.input_size, size.hidden_size), nn.Tanh(), nn.Linear(size.hidden_size, size.states_size)
            )
            if projection
            else None
        )

    def forward(self, num_rows: int, dtype: torch.dtype) -> Tensor:
        """Keys and values [L, 2, B, N, P, D]; what is dropped differs between the rows."""
        with torch.autocast(self.embedding.weight.device.type, enabled=False):
            rows: Tensor = self.trans(self.embedding.weight) if self.trans else self.embedding.weight
        size = self.size
        states = rows.to(dtype).expand(num_rows, -1, -1)
        states = states.unflatten(-1, (2 * size.num_layers, size.num_heads, size.head_dim))
        states = F.dropout(states, self.dropout, self.training)
        return states.permute(2, 0, 3, 1, 4).unflatten(0, (size.num_layers, 2))

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """While it is open, the network computes as without a prefix; the name is peft's."""
        before, self.is_off = self.is_off, True
        try:
            yield
        finally:
            self.is_off = before


def put_before(network: PreTrainedModel, encoder: PrefixEncoder) -> None:
    """Have every layer of a loaded network see the prefix."""
    decoder = network.get_decoder()
    decoder.add_module(ENCODER, encoder.to(network.device))
    decoder.register_forward_pre_hook(_hand_over, with_kwargs=True)
    decoder.config._attn_implementation = SDPA_WITH_PREFIX


def encoder_of(network: Any) -> PrefixEncoder:
    """The encoder that was put before a network."""
    encoder: PrefixEncoder = getattr(network.get_decoder(), ENCODER)
    return encoder


@contextmanager
def exchanged(network: Any, other: PrefixEncoder) -> Iterator[None]:
    """While it is open, the network computes with another prefix; only where no gradients are recorded."""
    decoder = network.get_decoder()
    own = getattr(decoder, ENCODER)
    setattr(decoder, ENCODER, other.to(network.device))
    try:
        yield
    finally:
        setattr(decoder, ENCODER, own)


def _hand_over(
    decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Keys and values go to the layers as an argument, so that gradient checkpointing knows of them."""
    encoder: PrefixEncoder = getattr(decoder, ENCODER)
    if encoder.is_off:
        return None
    given = args[0] if args else kwargs.get("input_ids")
    tokens = given if given is not None else kwargs["inputs_embeds"]
    dtype = decoder.get_input_embeddings().weight.dtype
    return args, {**kwargs, "prefix_states": encoder(len(tokens), dtype)}


def attention_with_prefix(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefix_states: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Mixed values of queries [B, M, T, D] over the prefix and keys and values [B, N, K, D].

    Args:
        module: The attention layer, which knows its number.
        query: [B, M, T, D], N dividing M.
        key: [B, N, K, D].
        value: [B, N, K, D].
        attention_mask: [B, 1, T, K], True where a key is seen; causal, if the layer is, where not given.
        prefix_states: [L, 2, B, N, P, D].
        kwargs: What transformers' `sdpa` takes.
    """
    if prefix_states is not None:
        before = prefix_states[module.layer_idx]  # type: ignore[index]  # a number
        num_queries, num_tokens = query.shape[2], before.shape[-2]
        if attention_mask is None and num_queries > 1 and module.is_causal:
            attention_mask = torch.ones(num_queries, num_queries, dtype=torch.bool, device=query.device).tril()[
                None, None
            ]
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, (num_tokens, 0), value=attention_mask.dtype == torch.bool)
        key, value = (torch.cat([own.to(k.dtype), k], dim=2) for own, k in zip(before, (key, value), strict=True))
    mixed, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return mixed, None


ALL_ATTENTION_FUNCTIONS.register(SDPA_WITH_PREFIX, attention_with_prefix)
ALL_MASK_ATTENTION_FUNCTIONS.register(SDPA_WITH_PREFIX, sdpa_mask)
