"""The network of ChatGLM-6B, written for the original weights.

Letters in names of tensors: B rows, T tokens, K tokens with the cached ones, H heads, D their width, C hidden size.
"""

# mypy: disable-error-code="no-untyped-call,untyped-decorator,override,no-any-return"
# transformers and torch are typed in part only.

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from lit_sft.families.chatglm.layout import Layout, MarkIds, causal_mask, read_layout
from lit_sft.families.chatglm.weights import CONVERSION
from lit_sft.families.shared.packed_attention import SDPA_BY_SEGMENT, goes_by_segment

RESIDUAL_SCALE = (2 * 28) ** 0.5
"""The original never tells its blocks how many they are, so this is that of 28 layers for any number."""


class ChatGLM6BConfig(PreTrainedConfig):
    """The keys of the original config.json; the marks default to what its March 2023 revision left out."""

    model_type = "chatglm"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012 - a form of transformers
        "num_hidden_layers": "num_layers",
        "intermediate_size": "inner_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    vocab_size: int = 150528
    hidden_size: int = 4096
    inner_hidden_size: int = 16384
    num_layers: int = 28
    num_attention_heads: int = 32
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    use_cache: bool = True
    bos_token_id: int | None = 150004
    eos_token_id: int | list[int] | None = 150005
    pad_token_id: int | None = 0
    mask_token_id: int = 150000
    gmask_token_id: int = 150001
    tie_word_embeddings: bool = True


class PrefixCache(DynamicCache):
    """A cache that remembers the tokens too: where the next one stands depends on the prefix.

    They are one more layer, so that they are reordered, repeated and cropped along with keys and values.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.tokens = DynamicLayer()
        self.layers.append(self.tokens)

    def append(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Remember `input_ids` [B, T]; returns all tokens so far [B, K]."""
        states = input_ids[:, None, :, None]
        return self.tokens.update(states, states)[0][:, 0, :, 0]


class TwoChannelRotary(nn.Module):
    """Rotary positions of both channels: each turns one half of a head, in the half-split way, base 10000."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.channel_dim = head_dim // 2

    def frequencies(self, device: torch.device | str) -> torch.Tensor:
        """Angle for each step of a channel [D/4]; the original rounds it to half precision, whatever the weights."""
        exponents = torch.arange(0, self.channel_dim, 2, device=device).float() / self.channel_dim
        return (1 / 10000**exponents).half().float()

    def forward(self, positions_B2T: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine, [B, 1, T, 2, D/2]."""
        angles = positions_B2T.transpose(1, 2)[:, None, ..., None].float() * self.frequencies(positions_B2T.device)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BHTD: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn both halves of each head by their angles [B, 1, T, 2, D/2]."""
    halves = x_BHTD.unflatten(-1, (2, -1))
    real, imaginary = halves.chunk(2, dim=-1)
    return (halves * cos + torch.cat([-imaginary, real], dim=-1) * sin).flatten(-2)


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention [B, T, H, D] and its weights [B, H, T, K], written out."""
    scores_BHTK = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores_BHTK = scores_BHTK.masked_fill(~attention_mask, torch.finfo(scores_BHTK.dtype).min)
    weights_BHTK = scores_BHTK.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights_BHTK @ value).transpose(1, 2).contiguous(), weights_BHTK


class ChatGLM6BAttention(nn.Module):
    """Attention whose query, key and value are one interleaved matrix on disk, three layers here."""

    # Who sees whom is always said.
    is_causal = False

    def __init__(self, config: ChatGLM6BConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_BTC: torch.Tensor,
        attention_mask: torch.Tensor | None,
        angles: tuple[torch.Tensor, torch.Tensor],
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mixed values [B, T, C] and, where the implementation gives them, attention weights."""
        shape = (*hidden_BTC.shape[:2], -1, self.head_dim)
        q_BHTD = rotate(self.q_proj(hidden_BTC).view(shape).transpose(1, 2), *angles)
        k_BHKD = rotate(self.k_proj(hidden_BTC).view(shape).transpose(1, 2), *angles)
        v_BHKD = self.v_proj(hidden_BTC).view(shape).transpose(1, 2)
        if past_key_values is not None:
            k_BHKD, v_BHKD = past_key_values.update(k_BHKD, v_BHKD, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        mixed_BTHD, weights = attend(
            self, q_BHTD, k_BHKD, v_BHKD, attention_mask, scaling=self.head_dim**-0.5, dropout=0.0, **kwargs
        )
        return self.dense(mixed_BTHD.flatten(2)), weights


class ChatGLM6BMLP(nn.Module):
    """Two layers with the tanh form of GELU, without a gate."""

    def __init__(self, config: ChatGLM6BConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_BTC: torch.Tensor) -> torch.Tensor:
        """[B, T, C] -> [B, T, C]."""
        inner = nn.functional.gelu(self.dense_h_to_4h(hidden_BTC), approximate="tanh")
        return self.dense_4h_to_h(inner)


class ChatGLM6BBlock(GradientCheckpointingLayer):
    """A block whose residual path carries the *normed* input, scaled up."""

    def __init__(self, config: ChatGLM6BConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLM6BAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLM6BMLP(config)

    def forward(self, hidden_BTC: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """[B, T, C] -> [B, T, C]; `kwargs` go to the attention."""
        normed = self.input_layernorm(hidden_BTC)
        hidden_BTC = normed * RESIDUAL_SCALE + self.attention(normed, **kwargs)[0]
        normed = self.post_attention_layernorm(hidden_BTC)
        return normed * RESIDUAL_SCALE + self.mlp(normed)


class ChatGLM6BPreTrainedModel(PreTrainedModel):
    """What decoder and language model share."""

    config_class = ChatGLM6BConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ChatGLM6BBlock"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = False
    _can_record_outputs = {  # noqa: RUF012 - a form of transformers
        "hidden_states": ChatGLM6BBlock,
        "attentions": ChatGLM6BAttention,
    }


class ChatGLM6BModel(ChatGLM6BPreTrainedModel):
    """The decoder; positions and mask follow from the tokens (see `_chatglm_layout`)."""

    def __init__(self, config: ChatGLM6BConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(ChatGLM6BBlock(config, index) for index in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.rotary = TwoChannelRotary(config.hidden_size // config.num_attention_heads)
        self.gradient_checkpointing = False
        self.post_init()
        if config._attn_implementation == "sdpa":
            config._attn_implementation = SDPA_BY_SEGMENT

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, under its original name."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embedding."""
        self.word_embeddings = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, C] after the last norm.

        Args:
            input_ids: [B, T].
            attention_mask: [B, K], 0 where padding; or [B, 1, T, K] bool in the original sense: True is *blocked*.
            position_ids: [B, T], restarting for each example of a packed row; or the original [B, 2, T]. Found out
                from the tokens if not given.
            past_key_values: Keys and values of earlier tokens.
            use_cache: Whether to return them.
            kwargs: Passed on to the attention.
        """
        if use_cache and past_key_values is None:
            past_key_values = PrefixCache(self.config)
        if past_key_values is not None and past_key_values.is_compileable:
            raise ValueError("ChatGLM-6B needs a cache that grows: leave cache_implementation at its default")
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        tokens = past_key_values.append(input_ids) if isinstance(past_key_values, PrefixCache) else input_ids
        if seen:
            positions, allowed = self._continue(input_ids, tokens, attention_mask, position_ids, seen)
        else:
            layout = self.layout(input_ids, attention_mask, position_ids)
            positions = layout.positions
            is_plain = attention_mask is None and past_key_values is None
            allowed = layout.cu_seqlens() if is_plain and goes_by_segment(self) else layout.allowed()
            if position_ids is not None and position_ids.dim() == 3:
                positions = position_ids
        if attention_mask is not None and attention_mask.dim() == 4:
            allowed = ~attention_mask.bool()
            allowed = allowed | ~allowed.any(-1, keepdim=True)

        hidden_BTC = self.word_embeddings(input_ids)
        angles = self.rotary(positions, hidden_BTC.dtype)
        for layer in self.layers:
            hidden_BTC = layer(
                hidden_BTC, attention_mask=allowed, angles=angles, past_key_values=past_key_values, **kwargs
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.final_layernorm(hidden_BTC), past_key_values=past_key_values if use_cache else None
        )

    def layout(
        self,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
    ) -> Layout:
        """The layout of whole rows `tokens` [B, K]; masks and positions as `forward` takes them."""
        if attention_mask is None:
            is_real = torch.ones_like(tokens, dtype=torch.bool)
        elif attention_mask.dim() == 4:
            # A token always sees itself, padding nothing.
            is_real = ~attention_mask[:, 0].bool().diagonal(dim1=1, dim2=2)
        else:
            is_real = attention_mask.bool()
        config = self.config
        marks = MarkIds(sop=config.bos_token_id, gmask=config.gmask_token_id, mask=config.mask_token_id)
        counted = position_ids if position_ids is not None and position_ids.dim() == 2 else None
        return read_layout(tokens, marks, is_real, counted)

    def _continue(
        self,
        input_ids: torch.Tensor,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        seen: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Positions [B, 2, T] and mask of tokens after `seen` cached ones, which hold the whole prefix."""
        num_new = input_ids.shape[1]
        if num_new > 1 and bool((input_ids == self.config.bos_token_id).any()):
            raise ValueError("a prompt of ChatGLM-6B sees itself in both directions, so it cannot be read in pieces")
        padding_mask = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        if position_ids is not None and position_ids.dim() == 3:
            positions = position_ids
        elif tokens.shape[1] == seen + num_new:
            positions = self.layout(tokens, padding_mask).positions[..., -num_new:]
        else:
            raise ValueError("this cache does not know its tokens: give position_ids [B, 2, T], or use a PrefixCache")
        if padding_mask is None:
            if num_new == 1:
                return positions, None
            padding_mask = input_ids.new_ones((input_ids.shape[0], seen + num_new))
        return positions, causal_mask(num_new, padding_mask.bool())[:, None]


class ChatGLM6BForCausalLM(ChatGLM6BPreTrainedModel, GenerationMixin):
    """The decoder with its head, which is the embedding unless the config says otherwise."""

    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq$"]  # noqa: RUF012

    def __init__(self, config: ChatGLM6BConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLM6BModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def tie_weights(self, missing_keys: set[str] | None = None, **kwargs: Any) -> None:
        """As in the original, the embedding wins over a head that is stored beside it."""
        if missing_keys is not None and self.config.tie_word_embeddings:
            missing_keys.add("lm_head.weight")
        super().tie_weights(missing_keys=missing_keys, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] and, given `labels` [B, T], the mean loss of the next tokens; the rest as in the decoder."""
        outputs = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
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

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Positions of the new tokens, read off all tokens: so beams may change places, and any cache will do."""
        # transformers types itself more narrowly than it means.
        base: Any = super()
        inputs = base.prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        new_ids = inputs["input_ids"]
        positions = self.transformer.layout(input_ids, attention_mask).positions[..., -new_ids.shape[1] :]
        return {**inputs, "position_ids": positions.to(new_ids.device)}


register_checkpoint_conversion_mapping(ChatGLM6BForCausalLM.__name__, CONVERSION, overwrite=True)
