"""P-tuning v2 (Liu et al. 2021, arXiv:2110.07602), as ChatGLM-6B and ChatGLM2-6B were fine-tuned by their authors."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.errors import ConfigError
from lit_sft.tuning._base import Footprint, Tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PTuning(Tuning):
    """A prefix of keys and values in float32 that every layer of a frozen ChatGLM sees before the first token.

    The learning rate of the original is 0.02, a hundred times that of LoRA. A fresh prefix is noise that changes what
    the network says, so the state before training is measured without it.

    Args:
        pre_seq_len: Tokens of the prefix, 128 if not given.
        prefix_projection: Whether they are projected by two layers, which train with them: far more weights (0.96
            billion for ChatGLM-6B), for a learning rate like that of LoRA. False if not given.
        dropout: Probability with which a number of a prefix is dropped, that of the original.
        adapter: Folder of a prefix to start from, of this program or of the original script, which says itself how
            long it is and whether it is projected.
    """

    export_name = "prefix"
    stands_on_base = True
    begins_as_base = False
    keeps_reference = True

    def __init__(
        self,
        pre_seq_len: int | None = None,
        prefix_projection: bool | None = None,
        *,
        dropout: float = 0.1,
        adapter: str | None = None,
    ) -> None:
        if pre_seq_len is not None and pre_seq_len < 1:
            raise ConfigError(f"PTuning pre_seq_len is {pre_seq_len}; it must be at least 1")
        if not 0 <= dropout < 1:
            raise ConfigError(f"PTuning dropout is {dropout}; it must be at least 0 and below 1")
        self.pre_seq_len = 128 if pre_seq_len is None else pre_seq_len
        self.prefix_projection = bool(prefix_projection)
        self.dropout = dropout
        self.adapter = adapter
        self._given = {"pre_seq_len": pre_seq_len, "prefix_projection": prefix_projection}
        self._reference: Any = None

    def check(self, checkpoint: Checkpoint) -> None:
        """Whether the family has a prefix encoder, and the prefix to start from fits."""
        from lit_sft.tuning._prefix_file import read_prefix, refuse_without_encoder

        refuse_without_encoder(checkpoint)
        if not self.adapter:
            return
        stored = read_prefix(Path(self.adapter), checkpoint)
        own = {"pre_seq_len": stored.size.num_tokens, "prefix_projection": stored.has_projection}
        for key, value in self._given.items():
            if value not in (None, own[key]):
                raise ConfigError(
                    f"PTuning {key} is {value}, but the prefix {self.adapter} has {own[key]}. Leave {key} out, or give "
                    "what the prefix has"
                )
        self.pre_seq_len, self.prefix_projection = stored.size.num_tokens, stored.has_projection

    def load(self, checkpoint: Checkpoint, precision: str) -> PreTrainedModel:
        """The base with a prefix that trains."""
        from lit_sft.tuning._prefix import PrefixEncoder, PrefixSize, put_before
        from lit_sft.tuning._prefix_file import read_prefix

        if self.adapter:
            encoder = read_prefix(Path(self.adapter), checkpoint).encoder(self.dropout)
        else:
            size = PrefixSize.of(checkpoint.family, self.pre_seq_len)
            encoder = PrefixEncoder(size, projection=self.prefix_projection, dropout=self.dropout)
        network = self.load_base(checkpoint, precision).requires_grad_(False)
        put_before(network, encoder)
        return network

    def footprint(self, family_targets: Sequence[str]) -> Footprint:
        """The prefix beside a base of the arithmetic's type."""
        return Footprint(prefix_tokens=self.pre_seq_len, prefix_projection=self.prefix_projection, dropout=self.dropout)

    def choices(self) -> dict[str, str | float]:
        """Length and kind of the prefix."""
        return {"pre_seq_len": self.pre_seq_len, "kind": "projected" if self.prefix_projection else "plain"}

    def causal_lm(self, model: Any) -> PreTrainedModel:
        """Nothing is wrapped: the encoder is a part of the decoder."""
        network: PreTrainedModel = model
        return network

    def base_of(self, model: Any) -> AbstractContextManager[Any]:
        """Without the prefix."""
        from lit_sft.tuning._prefix import encoder_of

        return encoder_of(model).disable_adapter()

    def keep_reference(self, model: Any) -> None:
        """A frozen copy of the prefix to start from; a fresh one is noise, so that the base is the reference."""
        from lit_sft.tuning._prefix import encoder_of

        if self.adapter:
            self._reference = copy.deepcopy(encoder_of(model)).requires_grad_(False).eval()

    def reference_of(self, model: Any) -> AbstractContextManager[Any]:
        """With the prefix to start from, or without any."""
        from lit_sft.tuning._prefix import exchanged

        return self.base_of(model) if self._reference is None else exchanged(model, self._reference)

    def save(self, model: Any, folder: Path, checkpoint: Checkpoint, weights: dict[str, Any] | None = None) -> None:
        """A folder as the original script leaves it."""
        from lit_sft.tuning._prefix import encoder_of
        from lit_sft.tuning._prefix_file import write_prefix

        write_prefix(folder, checkpoint, encoder_of(model), weights)
