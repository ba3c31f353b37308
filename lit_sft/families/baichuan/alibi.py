"""Baichuan-13B and Baichuan2-13B (baichuan-inc, 2023): no position embedding, but a bias on the attention scores.

Positions: ALiBi by index in the row; forty heads, so the slopes are not sorted. Mask: causal, and a padding mask whose
values may name segments: [1, 1, 2, 2, 0] holds two examples that do not see each other. Norm: RMSNorm (1e-6) before
attention and feed-forward. Activation: SwiGLU. Fused weights: `W_pack` of plain thirds. No biases.
Against Llama: ALiBi for rotary positions, and config.json counts the context as `model_max_length`. Baichuan2-13B
adds the normalized head of Baichuan 2.

The original adds a dense bias in the type of the weights; see `_alibi` for why we do not.

Shapes: B rows, N heads, S tokens given, T tokens seen so far, D dimensions of a head, E of an extended one, H width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel, initialization
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from lit_sft.conversation import PromptFormat
from lit_sft.families.baichuan.alibi_dimensions import Alibi, extend
from lit_sft.families.baichuan.family import BaichuanFamily, OriginalConfig
from lit_sft.families.baichuan.norm_head import NormHead, ZLoss, resized_norm_head
from lit_sft.families.baichuan.prompts import BaichuanChatFormat, FirstReleaseChatFormat, HumanAssistantFormat
from lit_sft.families.shared.packed_rows import separate_packed


class BaichuanAlibiConfig(OriginalConfig, PreTrainedConfig):
    """The keys of the original config.json."""

    model_type = "baichuan"
    keys_to_ignore_at_inference = ("past_key_values",)
    original_architecture = "BaichuanForCausalLM"
    # For tools that ask for it; config.json must not have the key, by whose absence the family is recognized.
    attribute_map: ClassVar[dict[str, str]] = {"max_position_embeddings": "model_max_length"}

    vocab_size: int = 64000
    hidden_size: int = 5120
    intermediate_size: int = 13696
    num_hidden_layers: int = 40
    num_attention_heads: int = 40
    hidden_act: str = "silu"
    model_max_length: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False

    # What the feed-forward layer of Llama asks for.
    mlp_bias = False


class Baichuan2AlibiConfig(BaichuanAlibiConfig):
    """With the weight of the z-loss, a key that only Baichuan 2 has."""

    z_loss_weight: float = 0.0


def eager_attention(
    module: nn.Module,
    q_BNSE: Tensor,
    k_BNTE: Tensor,
    v_BNTE: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention spelt out: output [B, S, N, E] and weights [B, N, S, T]; `mask` is added to the scores."""
    # In half precision a large bias would swallow the score it is added to.
    scores_BNST = q_BNSE.float() @ k_BNTE.float().transpose(2, 3) * scaling
    if mask is not None:
        scores_BNST = scores_BNST + mask
    weights_BNST = scores_BNST.softmax(-1).to(v_BNTE.dtype)
    return (weights_BNST @ v_BNTE).transpose(1, 2).contiguous(), weights_BNST


class AlibiAttention(nn.Module):
    """Causal attention on heads that carry their bias; the cache holds extended heads, so decoding copies nothing."""

    is_causal = True

    def __init__(self, config: BaichuanAlibiConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_BSH: Tensor,
        alibi: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`alibi`: extra dimensions of queries [1, N, 1, X] and keys [1 or B, 1, S, X]."""

        def heads(linear: nn.Linear) -> Tensor:
            x_BSND: Tensor = linear(hidden_BSH).view(*hidden_BSH.shape[:-1], -1, self.head_dim)
            return x_BSND.transpose(1, 2)

        query_extra, key_extra = alibi
        q_BNSE = extend(heads(self.q_proj), query_extra)
        k_BNTE = extend(heads(self.k_proj), key_extra)
        # The fastest kernels want values as wide as keys.
        v_BNTE = F.pad(heads(self.v_proj), (0, key_extra.shape[-1]))
        if past_key_values is not None:
            k_BNTE, v_BNTE = past_key_values.update(k_BNTE, v_BNTE, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        y_BSNE, weights = attend(self, q_BNSE, k_BNTE, v_BNTE, attention_mask, scaling=self.scaling, **kwargs)
        return self.o_proj(y_BSNE[..., : self.head_dim].flatten(2)), weights


class AlibiDecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each behind its norm and beside the residual stream."""

    def __init__(self, config: BaichuanAlibiConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = AlibiAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_BSH: Tensor,
        alibi: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The residual stream after this block."""
        attended_BSH, _ = self.self_attn(
            self.input_layernorm(hidden_BSH), alibi, attention_mask, past_key_values, **kwargs
        )
        hidden_BSH = hidden_BSH + attended_BSH
        fed_BSH: Tensor = self.mlp(self.post_attention_layernorm(hidden_BSH))
        return hidden_BSH + fed_BSH


class AlibiPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of the network."""

    config_class = BaichuanAlibiConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["AlibiDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": AlibiDecoderLayer, "attentions": AlibiAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Loading starts on the meta device and leaves buffers without values.
        if isinstance(module, Alibi):
            initialization.copy_(module.query_NX, module.query_dimensions())


class AlibiModel(AlibiPreTrainedModel):
    """The blocks without the head."""

    def __init__(self, config: BaichuanAlibiConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([AlibiDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.alibi = Alibi(config.num_attention_heads, config.hidden_size // config.num_attention_heads)
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
        """Hidden states [B, S, H] after the last norm.

        Args:
            input_ids: [B, S].
            attention_mask: [B, T], 0 where padding; values above 1 name segments that do not see each other.
            position_ids: [B, S]; ALiBi needs none, but where they restart a packed example begins (without cache).
            past_key_values: Extended heads of the tokens before.
            inputs_embeds: [B, S, H] in place of `input_ids`.
            use_cache: Whether to return the cache.
            kwargs: Passed on to the attention.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            and_mask_function=_same_segment(attention_mask),
        )
        # By index as in the original: examples of a packed row and padded rows keep their distances within.
        alibi = self.alibi(torch.arange(hidden.shape[1], device=hidden.device)[None] + num_past, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, alibi, attention_mask=mask, past_key_values=past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)


def _same_segment(attention_mask: Tensor | None) -> Callable[..., Tensor] | None:
    """A mask function that keeps segments apart, if the padding mask names any."""
    if attention_mask is None or attention_mask.ndim != 2 or attention_mask.dtype == torch.bool:
        return None
    if attention_mask.is_floating_point() or not attention_mask.gt(1).any():
        return None
    return lambda row, head, query, key: attention_mask[row, query] == attention_mask[row, key]


class BaichuanAlibiForCausalLM(AlibiPreTrainedModel, GenerationMixin):
    """Baichuan-13B."""

    def __init__(self, config: BaichuanAlibiConfig) -> None:
        super().__init__(config)
        self.model = AlibiModel(config)
        separate_packed(self.model)
        self.lm_head = self.make_head(config)
        self.post_init()

    def make_head(self, config: BaichuanAlibiConfig) -> nn.Linear:
        """What turns hidden states into logits."""
        return nn.Linear(config.hidden_size, config.vocab_size, bias=False)

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
        """Logits [B, S, V]; with `labels` [B, S], not shifted, also the mean loss over those that are not -100."""
        outputs = self.model(
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


class Baichuan2AlibiForCausalLM(BaichuanAlibiForCausalLM):
    """Baichuan2-13B: the same blocks under a normalized head."""

    config_class = Baichuan2AlibiConfig

    def __init__(self, config: Baichuan2AlibiConfig) -> None:
        super().__init__(config)
        self.loss_function = ZLoss(config.z_loss_weight)

    def make_head(self, config: BaichuanAlibiConfig) -> nn.Linear:
        """Normalized rows."""
        return NormHead(config.hidden_size, config.vocab_size)

    def _get_resized_lm_head(self, *args: Any, **kwargs: Any) -> nn.Linear:
        return resized_norm_head(super()._get_resized_lm_head(*args, **kwargs))


class AlibiFamily(BaichuanFamily):
    """What the two ALiBi models share."""

    has_rotary_positions = False
    num_tiny_shards = 2

    def traced_hidden_states(
        self, network: Any, input_ids: Tensor, position_ids: Tensor, prefix_length: Tensor | None
    ) -> Tensor:
        """Biases by the positions of each row: in a graph rows of unequal length share a cache."""
        decoder = network.get_decoder()
        hidden: Tensor = decoder.embed_tokens(input_ids)
        alibi = decoder.alibi(position_ids, hidden.dtype)
        for layer in decoder.layers:
            hidden = layer(hidden, alibi)
        normed: Tensor = decoder.norm(hidden)
        return normed


class Baichuan13B(AlibiFamily):
    """Baichuan-13B-Base and -Chat.

    ALiBi, causal, RMSNorm, SwiGLU, fused W_pack; the tokenizer of Baichuan-7B. Only `vocab_size` 64000 says that a
    config.json is not that of Baichuan2-13B; with another size the family must be named.
    """

    name = "baichuan-13b"
    released: ClassVar = {
        "Baichuan-13B-Base": {
            "model_type": "baichuan", "hidden_act": "silu", "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 13696,
            "vocab_size": 64000, "model_max_length": 4096,
        }
    }  # fmt: skip
    network = BaichuanAlibiForCausalLM
    config_class = BaichuanAlibiConfig
    is_second_generation = False

    def prompt_formats(self) -> dict[str, PromptFormat]:
        """`chat`, `chat-eos` (the first release of the chat model ended answers with </s>), `human-assistant`."""
        return {
            "chat": BaichuanChatFormat(self.chat_limits()),
            "chat-eos": FirstReleaseChatFormat(self.chat_limits()),
            "human-assistant": HumanAssistantFormat(self.chat_limits()),
        }


class Baichuan2_13B(AlibiFamily):  # noqa: N801 - Baichuan213B would be another number
    """Baichuan2-13B-Base and -Chat.

    ALiBi, causal, RMSNorm, SwiGLU, fused W_pack; against Baichuan-13B a normalized head and a tokenizer of 125,696
    rows without dummy prefix.
    """

    name = "baichuan2-13b"
    network = Baichuan2AlibiForCausalLM
    config_class = Baichuan2AlibiConfig
    is_second_generation = True

    def prompt_formats(self) -> dict[str, PromptFormat]:
        """`chat`, `human-assistant`."""
        return {
            "chat": BaichuanChatFormat(self.chat_limits()),
            "human-assistant": HumanAssistantFormat(self.chat_limits(), reply_prefix=" "),
        }
