"""The layers that LoRA adapts, named as users of peft name them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from original_adapters import random_adapter
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import Phi3Config, Phi3ForCausalLM

from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.errors import ConfigError
from lit_sft.tuning._adapter_loading import place_adapter
from lit_sft.tuning._targets import check_targets
from lit_sft.tuning.lora import LoRA

Tiny = Callable[[str], Path]

ALL_OF_THE_ORIGINAL = {
    "baichuan-7b": ("W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "chatglm-6b": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "chatglm2-6b": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "moss": ("qkv_proj", "out_proj", "fc_in", "fc_out"),
}


def adapted_by_peft(checkpoint: Checkpoint, targets: Any) -> set[str]:
    """Names of the layers that peft adapts in the network."""
    with torch.device("meta"):
        config = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
        wrapped: Any = get_peft_model(checkpoint.family.skeleton(), config, low_cpu_mem_usage=True)
    return {name for name, module in wrapped.get_base_model().named_modules() if isinstance(module, LoraLayer)}


def test_all_linear_is_what_it_is_in_peft_and_what_is_adapted_unless_told(checkpoint: Checkpoint) -> None:
    wanted = adapted_by_peft(checkpoint, "all-linear")
    assert adapted_by_peft(checkpoint, list(checkpoint.family.lora_targets)) == wanted


@pytest.mark.parametrize("targets", ["all-linear", ["all-linear"], ["all-linear", "lm_head"], ["v_proj"]], ids=str)
def test_targets_are_adapted_and_counted_by_the_names_of_peft(tiny: Tiny, targets: Any) -> None:
    checkpoint = open_checkpoint(tiny("baichuan-7b"))
    tuning = LoRA(2, targets=targets)
    tuning.check(checkpoint)
    wrapped: Any = tuning.load(checkpoint, "32-true")
    adapted = {name.rpartition(".")[2] for name, module in wrapped.named_modules() if isinstance(module, LoraLayer)}
    own = set(checkpoint.family.lora_targets)
    assert (
        adapted
        == {"all-linear": own, "lm_head": own | {"lm_head"}, "v_proj": {"v_proj"}}[
            targets if isinstance(targets, str) else targets[-1]
        ]
    )
    assert set(tuning.footprint(checkpoint.family.lora_targets).targets) == adapted


@pytest.mark.parametrize(
    ("family", "target", "said"),
    [
        ("baichuan-7b", "W_pack", "'W_pack' of the original code is q_proj, k_proj, v_proj in this network"),
        ("baichuan2-13b", "self_attn.W_pack", "is q_proj, k_proj, v_proj in this network; give those"),
        ("chatglm-6b", "query_key_value", "is q_proj, k_proj, v_proj in this network; give those"),
        ("chatglm3-6b", "dense_h_to_4h", "is gate_up_proj in this network; give that"),
        ("moss", "qkv_proj", "is q_proj, v_proj, k_proj in this network; give those"),
        ("baichuan-7b", ".*_proj", r"'\.\*_proj' is not the name of a layer; regular expressions are not taken"),
        ("baichuan-7b", "q_proj,v_proj", "is not the name of a layer; regular"),
        ("baichuan-7b", "", "'' is not the name of a layer"),
        ("baichuan-7b", "embed_tokens", "'embed_tokens' matches no linear layer. Accepted: all-linear, down_proj, ga"),
        ("baichuan-7b", "all_linear", r"Did you mean 'all-linear'\?"),
    ],
)
def test_a_target_that_is_none_is_refused_before_anything_is_read(
    tiny: Tiny, family: str, target: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        LoRA(targets=["all-linear", target]).check(open_checkpoint(tiny(family)))
    assert "\n" not in str(refused.value)


def test_a_part_of_a_fused_layer_is_told_the_layer() -> None:
    config = Phi3Config(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    config.pad_token_id = 0
    with torch.device("meta"):
        network = Phi3ForCausalLM(config)
    check_targets(["qkv_proj", "gate_up_proj"], network)
    for part in ("q_proj", "v_proj"):
        with pytest.raises(ConfigError, match=rf"'{part}' matches no linear layer. Did you mean 'qkv_proj'\?"):
            check_targets([part], network)


def test_no_targets_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match="LoRA targets is empty; name linear layers, or leave it out"):
        LoRA(targets=[])


def test_all_linear_contradicts_an_adapter_of_some_layers(tiny: Tiny, tmp_path: Path) -> None:
    adapter = random_adapter(tmp_path / "adapter", tiny("moss"), ("out_proj",))
    with pytest.raises(ConfigError, match=r"targets is all-linear, but the adapter .* has \['out_proj'\]"):
        LoRA(targets="all-linear", adapter=str(adapter))


@pytest.mark.parametrize("family", ALL_OF_THE_ORIGINAL)
def test_an_adapter_of_fused_layers_may_name_them_as_peft_lets_it(tiny: Tiny, tmp_path: Path, family: str) -> None:
    names = ALL_OF_THE_ORIGINAL[family]
    adapter = random_adapter(tmp_path / "adapter", tiny(family), names)
    file = adapter / "adapter_config.json"
    content = json.loads(file.read_text())
    checkpoint = open_checkpoint(tiny(family))
    wanted = place_adapter(adapter, checkpoint)
    for written in ("all-linear", "All-Linear", rf".*\.({'|'.join(names)})"):
        file.write_text(json.dumps({**content, "target_modules": written}))
        found = place_adapter(adapter, checkpoint)
        assert found.config.target_modules == wanted.config.target_modules
        assert found.pieces.keys() == wanted.pieces.keys()


def test_an_adapter_of_some_layers_is_not_one_of_all(tiny: Tiny, tmp_path: Path) -> None:
    adapter = random_adapter(tmp_path / "adapter", tiny("baichuan-7b"), ("W_pack", "o_proj"))
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "target_modules": "all-linear"}))
    with pytest.raises(ConfigError, match=r"no tensor for model\.layers\.0\.mlp\.down_proj .* which it says it adapts"):
        place_adapter(adapter, open_checkpoint(tiny("baichuan-7b")))
