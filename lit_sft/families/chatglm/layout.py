"""Where the tokens of ChatGLM-6B stand and what they see, read off the tokens themselves.

A sequence is `prompt [gMASK] <sop> answer <eop>`. All before <sop> is the *prefix*.

    token       你  好  [gMASK]  <sop>  您  好  <eop>
    place       0   1   2        2      2   2   2       channel 0: in the prefix; then that of the mask being filled
    block       0   0   0        1      2   3   4       channel 1: in the answer

Prefix tokens see the whole prefix; <sop> and later tokens see all that comes before. A sequence without <sop> is read
as plain causal text: a prefix in its places, but without looking ahead.

Letters in names of tensors: B rows, K tokens of a row with the cached ones, T tokens asked about (the last ones).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lit_sft.families.shared.packed_attention import CuSeqlens, cu_seqlens_of


@dataclass(frozen=True)
class MarkIds:
    """Ids of the control tokens that give a sequence its layout."""

    sop: int
    gmask: int
    mask: int


@dataclass(frozen=True)
class Layout:
    """The layout of rows of tokens.

    `positions` [B, 2, K] int64; `segment` [B, K] int64 numbers the examples packed into a row; `is_prefix` and
    `is_real` [B, K] bool; padding is not real.
    """

    positions: torch.Tensor
    segment: torch.Tensor
    is_prefix: torch.Tensor
    is_real: torch.Tensor

    def allowed(self) -> torch.Tensor:
        """Which keys each query sees, [B, 1, K, K] bool."""
        sees_BKK = causal_mask(self.is_real.shape[1], self.is_real) | self.is_prefix[:, None, :]
        sees_BKK = sees_BKK & (self.segment[:, :, None] == self.segment[:, None, :]) & self.is_real[:, None, :]
        # Padding that sees nothing would be NaN; what it sees instead is nowhere read.
        return (sees_BKK | ~sees_BKK.any(-1, keepdim=True))[:, None]

    def cu_seqlens(self) -> CuSeqlens:
        """The same without padding, as `packed_attention` takes it."""
        starts_BK = self.segment != torch.nn.functional.pad(self.segment[:, :-1], (1, 0), value=-1)
        return cu_seqlens_of(starts_BK, self.is_prefix)


def causal_mask(num_queries: int, is_real: torch.Tensor) -> torch.Tensor:
    """Which of the K keys the last `num_queries` tokens see if none looks ahead, [B, T, K] bool."""
    index_K = torch.arange(is_real.shape[1], device=is_real.device)
    index_T = index_K[index_K.shape[0] - num_queries :]
    return (index_K[None, :] <= index_T[:, None]) & is_real[:, None, :]


def read_layout(
    input_ids: torch.Tensor, marks: MarkIds, is_real: torch.Tensor, position_ids: torch.Tensor | None = None
) -> Layout:
    """Find prefix and answer of each example.

    The first <sop> of an example begins its answer. The place of the answer is that of the first [gMASK], else of
    the first [MASK], else of the last token before <sop>. Places count from the first real token.

    Args:
        input_ids: [B, K] int64.
        marks: Which ids are the marks.
        is_real: [B, K] bool, False where padding.
        position_ids: [B, K]; wherever they do not count on, another example of a packed row begins. One example
            in each row if not given.
    """
    index_BK = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    segment = _segments(position_ids).expand_as(input_ids) if position_ids is not None else torch.zeros_like(input_ids)

    def first(is_hit: torch.Tensor) -> torch.Tensor:
        return _first_in_segment(is_hit & is_real, segment)

    num_tokens = input_ids.shape[1]
    start, sop = first(is_real), first(input_ids == marks.sop)
    gmask, mask = first(input_ids == marks.gmask), first(input_ids == marks.mask)
    filled = torch.where(gmask < num_tokens, gmask, torch.where(mask < num_tokens, mask, sop - 1))
    is_answer = index_BK >= sop
    place = torch.where(is_answer, filled, index_BK) - start
    block = torch.where(is_answer, index_BK - sop + 1, 0)
    return Layout(
        positions=torch.stack([place, block], dim=1).clamp(min=0),
        segment=segment,
        is_prefix=(index_BK < sop) & (sop < num_tokens),
        is_real=is_real,
    )


def positions_of_prefix(index: torch.Tensor, prefix_length: torch.Tensor) -> torch.Tensor:
    """Positions [B, 2, T] of tokens by their index [B, T] in the row, where [gMASK] ends the prefix as in all prompts.

    Args:
        index: [B, T], from 0 at the first token that is not padding.
        prefix_length: [B, 1], tokens before <sop>; -1 where there is none.
    """
    place = torch.where(prefix_length < 0, index, torch.minimum(index, prefix_length - 1))
    block = torch.where(prefix_length < 0, 0, index - prefix_length + 1)
    return torch.stack([place, block], dim=1).clamp(min=0)


def _segments(position_ids: torch.Tensor) -> torch.Tensor:
    """Number the stretches [B, K] in which positions count up one by one."""
    restarts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    return torch.nn.functional.pad(restarts.long().cumsum(1), (1, 0))


def _first_in_segment(is_hit: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    """For each token the index of the first hit in its segment, the number of tokens if there is none; [B, K]."""
    num_tokens = is_hit.shape[1]
    index_BK = torch.arange(num_tokens, device=is_hit.device).expand_as(segment)
    places = index_BK.masked_fill(~is_hit, num_tokens)
    return torch.full_like(segment, num_tokens).scatter_reduce(1, segment, places, "amin").gather(1, segment)
