"""The network of MOSS-moon-003: GPT-J's block over separate query, key and value projections.

Shape suffixes: B rows, T tokens, S tokens with the cached ones, E width, H heads, D width of a head, R rotated pairs.
"""

# mypy: disable-error-code="no-untyped-call, untyped-decorator"
# Constructors and decorators of transformers carry no types.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CodeGenConfig, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from lit_sft.families.shared.packed_rows import separate_packed

NUM_BLOCKS = 4
"""The original was trained on four TPU cores, and its fused projection holds the share of each core in turn."""


class MossConfig(CodeGenConfig):
    """CodeGen's configuration under the original model type."""

    model_type = "moss"


class UnfuseQkv(ConversionOps):
    """`qkv_proj` [3E, E] on disk -> query, value, key [E, E] each: in every block the heads stand in that order."""

    def convert(  # type: ignore[override]
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Rows of each block and kind, gathered over the blocks."""
        (found,) = input_dict.values()
        fused = found[0] if isinstance(found, list) else found
        parts = fused.view(NUM_BLOCKS, len(target_patterns), -1, fused.shape[-1]).unbind(dim=1)
        return {name: part.flatten(0, 1) for name, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        """What writes the original file again."""
        return FuseQkv()


class FuseQkv(ConversionOps):
    """Query, value, key [E, E] -> `qkv_proj` [3E, E] as on disk."""

    def convert(  # type: ignore[override]
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Rows of each part, dealt out to the blocks."""
        found = [input_dict[name] for name in source_patterns]
        parts = [part[0] if isinstance(part, list) else part for part in found]
        blocks = torch.stack([part.unflatten(0, (NUM_BLOCKS, -1)) for part in parts], dim=1)
        return {target_patterns[0]: blocks.flatten(0, 2)}

    @property
    def reverse_op(self) -> ConversionOps:
        """What reads the original file."""
        return UnfuseQkv()


def rotary_tables(position_ids_BT: Tensor, rotary_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, T, R] of every position, in float32: half precision cannot hold position 2047."""
    exponents_R = torch.arange(0, rotary_dim, 2, device=position_ids_BT.device, dtype=torch.float32) / rotary_dim
    angles_B1TR = position_ids_BT[:, None, :, None].float() * (1.0 / 10000**exponents_R)
    return angles_B1TR.cos(), angles_B1TR.sin()


def rotate(x_BHTD: Tensor, cos_B1TR: Tensor, sin_B1TR: Tensor) -> Tensor:
    """Turn neighboring pairs of the first 2R dimensions by their angles, in float32; the others stay."""
    rotary_dim = 2 * cos_B1TR.shape[-1]
    even, odd = x_BHTD[..., :rotary_dim].float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos_B1TR - odd * sin_B1TR, odd * cos_B1TR + even * sin_B1TR), dim=-1).flatten(-2)
    return torch.cat((turned.to(x_BHTD.dtype), x_BHTD[..., rotary_dim:]), dim=-1)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """The original's attention: scores [B, H, T, S] as a whole, in float32 lest they overflow half precision.

    Returns:
        The mixed values [B, T, H, D] and the attention weights.
    """
    scores_BHTS = (query.float() @ key.float().transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores_BHTS = scores_BHTS + attention_mask
    weights_BHTS = scores_BHTS.softmax(dim=-1).to(value.dtype)
    weights_BHTS = nn.functional.dropout(weights_BHTS, p=dropout, training=module.training)
    return (weights_BHTS @ value).transpose(1, 2).contiguous(), weights_BHTS


class MossAttention(nn.Module):
    """Causal attention with partial rotary positions; no biases."""

    is_causal = True

    def __init__(self, config: MossConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.n_embd // config.n_head
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attn_pdrop
        self.q_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.k_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.v_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_BTE: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """What every token gathers [B, T, E], and the attention weights where they exist as a whole."""
        heads = (*hidden_BTE.shape[:-1], -1, self.head_dim)
        q_BHTD = rotate(self.q_proj(hidden_BTE).view(heads).transpose(1, 2), *rotary)
        k_BHSD = rotate(self.k_proj(hidden_BTE).view(heads).transpose(1, 2), *rotary)
        v_BHSD = self.v_proj(hidden_BTE).view(heads).transpose(1, 2)
        if past_key_values is not None:
            k_BHSD, v_BHSD = past_key_values.update(k_BHSD, v_BHSD, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        mixed_BTHD, weights = attend(
            self,
            q_BHTD,
            k_BHSD,
            v_BHSD,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        mixed_BTE = mixed_BTHD.reshape(hidden_BTE.shape)
        return self.resid_dropout(self.out_proj(mixed_BTE)), weights


class MossMLP(nn.Module):
    """Two layers with biases, four times the width between them unless the configuration says otherwise."""

    def __init__(self, config: MossConfig) -> None:
        super().__init__()
        inner_dim = 4 * config.n_embd if config.n_inner is None else config.n_inner
        self.fc_in = nn.Linear(config.n_embd, inner_dim)
        self.fc_out = nn.Linear(inner_dim, config.n_embd)
        self.act = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_BTE: Tensor) -> Tensor:
        """Each token on its own."""
        output: Tensor = self.dropout(self.fc_out(self.act(self.fc_in(hidden_BTE))))
        return output


class MossBlock(GradientCheckpointingLayer):
    """Attention and feed-forward layer side by side on one norm; both are added to the residual stream."""

    def __init__(self, config: MossConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = MossAttention(config, layer_idx)
        self.mlp = MossMLP(config)

    def forward(self, hidden_BTE: Tensor, **kwargs: Any) -> Tensor:
        """The next state of the residual stream; `kwargs` are the attention's."""
        normed_BTE = self.ln_1(hidden_BTE)
        gathered_BTE, _ = self.attn(normed_BTE, **kwargs)
        output: Tensor = gathered_BTE + self.mlp(normed_BTE) + hidden_BTE
        return output


class MossPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the network."""

    config_class = MossConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MossBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": MossBlock, "attentions": MossAttention}  # noqa: RUF012


class MossModel(MossPreTrainedModel):
    """Embedding, blocks and final norm."""

    _input_embed_layer = "wte"

    def __init__(self, config: MossConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(MossBlock(config, layer_idx) for layer_idx in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Final hidden states [B, T, E].

        Positions [B, T] that restart within a row, without mask and cache, separate packed examples.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden_BTE = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            num_cached = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(hidden_BTE.shape[1], device=hidden_BTE.device)[None] + num_cached
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_BTE,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotary = rotary_tables(position_ids, self.config.rotary_dim)
        hidden_BTE = self.drop(hidden_BTE)
        for block in self.h:
            hidden_BTE = block(
                hidden_BTE, rotary=rotary, attention_mask=mask, past_key_values=past_key_values, **kwargs
            )
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(hidden_BTE), past_key_values=past_key_values)


class MossForCausalLM(MossPreTrainedModel, GenerationMixin):
    """The network with its vocabulary projection, which has a bias; named as in the original config.json."""

    # A buffer that the original saves and never needs to read.
    _keys_to_ignore_on_load_unexpected = [r"attn\.causal_mask$"]  # noqa: RUF012

    def __init__(self, config: MossConfig) -> None:
        super().__init__(config)
        self.transformer = MossModel(config)
        separate_packed(self.transformer)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of the next token, and with `labels` [B, T] (not shifted) the mean loss."""
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


register_checkpoint_conversion_mapping(
    MossForCausalLM.__name__,
    [
        WeightConverter(
            "attn.qkv_proj.weight",
            # The order on disk.
            ["attn.q_proj.weight", "attn.v_proj.weight", "attn.k_proj.weight"],
            [UnfuseQkv()],
        )
    ],
    overwrite=True,
)
