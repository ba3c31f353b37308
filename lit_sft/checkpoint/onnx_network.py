"""An exported graph in the place of a network: what answers prompts with a network answers with it, unchanged."""

# mypy: disable-error-code="no-untyped-call,no-any-return"
# transformers is typed in part only.

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from lit_sft.checkpoint.onnx_session import GraphCache, GraphSession
from lit_sft.errors import ConfigError


class SessionCache:
    """The cache of a session, which `generate` hands back with each token and reorders for beams."""

    is_compileable = False

    def __init__(self, cache: GraphCache) -> None:
        self.cache = cache

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return int(self.cache.lengths.max())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was."""
        self.cache = self.cache.select(beam_idx.tolist())


class Reader(torch.nn.Module):
    """Takes the place of the decoder where all positions are wanted: its "hidden states" are the logits."""

    def __init__(self, session: GraphSession) -> None:
        super().__init__()
        self.session = session

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, **kwargs: Any) -> BaseModelOutputWithPast:
        """Logits [B, T, V] of rows [B, T]; where positions begin anew another example does."""
        found = []
        for index, row in enumerate(input_ids.tolist()):
            positions = range(len(row)) if position_ids is None else position_ids[index].tolist()
            starts = [place for place, position in enumerate(positions) if place == 0 or position == 0]
            parts = [row[start:end] for start, end in pairwise([*starts, len(row)])]
            logits = [self.session.forward([part], self.session.new_cache(1), keep=len(part))[0] for part in parts]
            found.append(torch.from_numpy(np.concatenate(logits)))
        return BaseModelOutputWithPast(last_hidden_state=torch.stack(found))


class OnnxForCausalLM(PreTrainedModel, GenerationMixin):
    """A graph with `generate()`. It has no weights of its own, so it computes on the CPU and does not train.

    Args:
        config: Of the network that was exported.
        session: The graph.
    """

    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: PreTrainedConfig, session: GraphSession) -> None:
        super().__init__(copy.deepcopy(config))
        if session.description.output != "logits":
            raise ConfigError("this exported folder is a reward model, which scores answers and writes none")
        self.session = session
        self.reader = Reader(session)

    def get_decoder(self, *args: Any, **kwargs: Any) -> Reader:
        """What measures ask for hidden states."""
        return self.reader

    def get_output_embeddings(self) -> torch.nn.Module:
        """The head that goes with them."""
        return torch.nn.Identity()

    @property
    def device(self) -> torch.device:
        """Where ids are read."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits."""
        return torch.float32

    def _supports_default_dynamic_cache(self) -> bool:  # type: ignore[override]  # a class method of some releases
        return False

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        past_key_values: SessionCache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """All ids: with a cache `forward` reads the last."""
        return {"input_ids": input_ids, "attention_mask": attention_mask, "past_key_values": past_key_values}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: SessionCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, 1, V] behind the last token.

        Args:
            input_ids: [B, T], padded on the left.
            attention_mask: [B, T], 0 where padding.
            past_key_values: What is known of all but the last token.
            kwargs: What `generate` also hands over.
        """
        if past_key_values is None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            new = [ids[kept.bool()].tolist() for ids, kept in zip(input_ids, mask, strict=True)]
            past_key_values = SessionCache(self.session.new_cache(len(new)))
        else:
            new = input_ids[:, -1:].tolist()
        logits = torch.from_numpy(self.session.forward(new, past_key_values.cache))
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)  # type: ignore[arg-type]
