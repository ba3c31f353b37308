"""A Baichuan that a script made a Llama is recognized by its tokenizer, computes the same, and stays a Llama."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from original_adapters import merged_by_hand, random_adapter
from torch.nn import functional as F

from lit_sft import open_checkpoint
from lit_sft.families.baichuan.norm_head import NormHead
from lit_sft.tuning._adapter_loading import place_adapter

TOKENS = torch.tensor([[5, 300, 7, 411, 9]])


def llamafied(source: Path, folder: Path, **keys: Any) -> Path:
    """What the scripts that go around write."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    for key in ("tokenizer_class", "z_loss_weight"):
        config.pop(key, None)
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps({**config, **llama, **keys}))
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("pytorch_model*.bin")):
        state |= torch.load(file, weights_only=True)
    for file in folder.glob("pytorch_model*"):
        file.unlink()
    split = {}
    for name, weight in state.items():
        if "W_pack" in name:
            for part, rows in zip("qkv", weight.chunk(3), strict=True):
                split[name.replace("W_pack", f"{part}_proj")] = rows.clone()
        elif "inv_freq" not in name:
            split[name] = weight
    if "2" in source.name:
        split["lm_head.weight"] = F.normalize(split["lm_head.weight"].float())
    torch.save(split, folder / "pytorch_model.bin")
    return folder


@pytest.fixture(params=["baichuan-7b", "baichuan2-7b"])
def pair(request: pytest.FixtureRequest, tiny: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Path]:
    source = Path(shutil.copytree(tiny(request.param), tmp_path / request.param))
    return source, llamafied(source, tmp_path / "llama")


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return open_checkpoint(folder).load_model()(TOKENS).logits  # type: ignore[no-any-return]


def test_it_is_recognized_and_equal_to_the_original(pair: tuple[Path, Path]) -> None:
    source, llama = pair
    opened = open_checkpoint(llama)
    assert opened.family.name == source.name
    torch.testing.assert_close(logits(llama), logits(source), atol=1e-5, rtol=1e-5)
    text = "你好，世界 12"
    ids = opened.load_tokenizer()(text)["input_ids"]
    assert ids == open_checkpoint(source).load_tokenizer()(text)["input_ids"]


def test_its_head_is_not_normalized_again(pair: tuple[Path, Path]) -> None:
    assert not isinstance(open_checkpoint(pair[1]).load_model().get_output_embeddings(), NormHead)


def test_it_is_saved_as_the_llama_that_it_is(pair: tuple[Path, Path], tmp_path: Path) -> None:
    opened = open_checkpoint(pair[1])
    opened.save_model(opened.load_model(), tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert open_checkpoint(tmp_path / "saved").family.name == pair[0].name
    assert torch.equal(logits(tmp_path / "saved"), logits(pair[1]))


def test_split_weights_under_the_original_model_type_are_read_too(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    source = tiny("baichuan-7b")
    kept = {"model_type": "baichuan", "architectures": ["BaiChuanForCausalLM"]}
    assert torch.equal(logits(llamafied(source, tmp_path / "split", **kept)), logits(source))


def test_a_llama_with_a_chat_template_of_its_own_stays_native(pair: tuple[Path, Path]) -> None:
    file = pair[1] / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), "chat_template": "{{ messages }}", "tokenizer_class": "LlamaTokenizer"}
    file.write_text(json.dumps(settings))
    assert open_checkpoint(pair[1]).family.name == "native"


def test_any_other_llama_stays_native(tiny: Callable[[str], Path]) -> None:
    assert open_checkpoint(tiny("native")).family.name == "native"


def test_adapters_of_the_fused_projection_fit_it_too(pair: tuple[Path, Path], tmp_path: Path) -> None:
    source, llama = pair
    adapter = random_adapter(tmp_path / "adapter", source, ("W_pack", "o_proj"))
    opened = open_checkpoint(llama)
    model = place_adapter(adapter, opened).attach(opened.load_model(), is_trainable=False)
    with torch.no_grad():
        found = model(TOKENS).logits
        wanted = merged_by_hand(tmp_path / "merged", source, adapter).load_model()(TOKENS).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
