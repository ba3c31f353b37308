"""Plain classes of transformers, for the programs that load such."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import enable_progress_bar

from lit_sft.__main__ import main
from lit_sft.checkpoint.opening import open_checkpoint

CLASSES = {
    "baichuan-7b": "LlamaForCausalLM",
    "baichuan2-7b": "LlamaForCausalLM",
    "chatglm2-6b": "GlmForCausalLM",
    "chatglm3-6b": "GlmForCausalLM",
}


@pytest.mark.parametrize("family", CLASSES)
def test_a_model_with_its_adapter_is_a_plain_class_with_the_same_logits_and_ids(
    family: str, tiny: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = open_checkpoint(tiny(family), family)
    wrapped = get_peft_model(
        checkpoint.load_model(), LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    )
    wrapped.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    words = ["export", "--checkpoint", str(tiny(family)), "--adapter", str(tmp_path / "adapter"), "--family", family]
    enable_progress_bar()  # as in a new process
    capsys.readouterr()
    assert main([*words, "--format", "native", "--output", str(tmp_path / "plain")]) == 0
    said = capsys.readouterr()
    assert f"{CLASSES[family]} in float32 with tokenizer" in said.out
    assert "Loading weights" not in said.err
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    assert type(plain).__name__ == CLASSES[family]
    ids = torch.arange(5, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=ids).logits, wrapped(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    text = "你好！ hello\n\n  2024"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert tokenizer(text)["input_ids"] == checkpoint.load_tokenizer()(text)["input_ids"]


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("chatglm-6b", [], "no class of transformers computes a chatglm-6b"),
        ("moss", [], "docs/sharing.md"),
        ("baichuan-7b", ["--dtype", "int4"], "--format native has weights in float32"),
    ],
)
def test_what_has_no_plain_class_is_refused_and_leaves_nothing(
    family: str,
    options: list[str],
    said: str,
    tiny: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["export", "--checkpoint", str(tiny(family)), "--format", "native", "--output", str(tmp_path / "plain")]
    assert main([*words, *options]) == 2
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
