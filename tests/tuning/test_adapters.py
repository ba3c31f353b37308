"""Adapters made elsewhere: those of the original fused modules load exactly, and what does not fit is refused."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from original_adapters import FUSED, merged_by_hand, open_adapter, random_adapter, write_adapter
from peft import PeftModel

from lit_sft import open_checkpoint
from lit_sft.chat.network import Network, Source
from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.export.merge import merge_adapter, write_original_adapter
from lit_sft.stages.sft import SFT
from lit_sft.tuning._adapter_loading import place_adapter
from lit_sft.tuning.lora import LoRA

Tiny = Callable[[str], Path]
SUBSETS = [subset for size in (1, 2, 3) for subset in itertools.combinations(range(3), size)]
IDS = torch.arange(300, 320)[None]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("subset", [(0,), (1,), (2,), (0, 1, 2)], ids=str)  # pairs: where tensors alone are compared
@pytest.mark.parametrize("family", FUSED)
def test_an_adapter_of_the_original_modules_equals_the_weights_merged_by_hand(
    tiny: Tiny, tmp_path: Path, family: str, subset: tuple[int, ...]
) -> None:
    base = tiny(family)
    adapter = random_adapter(tmp_path / "adapter", base, tuple(FUSED[family][i] for i in subset))
    wanted = logits(merged_by_hand(tmp_path / "merged", base, adapter).load_model())
    checkpoint = open_checkpoint(base)
    plain = logits(checkpoint.load_model())
    network = Network(Source(checkpoint, adapter, torch.float32))
    torch.testing.assert_close(logits(network.model), wanted, atol=1e-4, rtol=0)
    assert (wanted - plain).abs().max() > 1e-3
    with network.adapter(False):
        torch.testing.assert_close(logits(network.model), plain)


def cases_of(last: Any, *others: Any) -> list[tuple[str, Any]]:
    """One form on every family, for they cut their modules differently; the others on one, for all are cut alike."""
    return [*((family, last) for family in FUSED), *(("chatglm-6b", form) for form in others)]


@pytest.mark.parametrize(
    ("family", "form"),
    cases_of({"use_dora": True, "use_rslora": True}, {"use_rslora": True}, {"use_dora": True}),
    ids=str,
)
def test_the_forms_of_lora_are_cut_exactly_too(tiny: Tiny, tmp_path: Path, family: str, form: dict[str, bool]) -> None:
    base = tiny(family)
    adapter = random_adapter(tmp_path / "adapter", base, FUSED[family], **form)
    wanted = logits(merged_by_hand(tmp_path / "merged", base, adapter).load_model())
    model = LoRA(adapter=str(adapter)).load(open_checkpoint(base), "32-true")
    torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=0)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains
    assert all("lora_" in name for name in trains)


def trained(folder: Path, base: Path, targets: list[str], **options: Any) -> Path:
    """An adapter of ours whose every tensor is random."""
    checkpoint, tuning = open_checkpoint(base), LoRA(rank=4, targets=targets, **options)
    model = tuning.load(checkpoint, "32-true")
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tuning.save(model, folder, checkpoint)
    return folder


@pytest.mark.parametrize(("family", "form"), cases_of({"use_dora": True}, {}, {"use_rslora": True}), ids=str)
def test_an_adapter_comes_back_to_its_original_names_bit_for_bit(
    tiny: Tiny, tmp_path: Path, family: str, form: dict[str, bool]
) -> None:
    base = tiny(family)
    adapter = random_adapter(tmp_path / "adapter", base, FUSED[family], **form)
    checkpoint, tuning = open_checkpoint(base), LoRA(adapter=str(adapter))
    ours = tmp_path / "ours"
    tuning.save(tuning.load(checkpoint, "32-true"), ours, checkpoint)
    write_original_adapter(checkpoint, ours, tmp_path / "back")
    found, wanted = open_adapter(tmp_path / "back"), open_adapter(adapter)
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name][...], wanted[name][...]), name
    before, after = (
        json.loads((folder / "adapter_config.json").read_text()) for folder in (adapter, tmp_path / "back")
    )
    assert set(after.pop("target_modules")) == set(before.pop("target_modules"))
    for changed in ("base_model_name_or_path", "inference_mode"):
        before.pop(changed), after.pop(changed)
    assert after == before


@pytest.mark.parametrize("family", FUSED)
def test_every_subset_of_the_original_modules_makes_the_way_there_and_back_bit_for_bit(
    tiny: Tiny, tmp_path: Path, family: str
) -> None:
    base = tiny(family)
    checkpoint = open_checkpoint(base)
    for number, subset in enumerate(SUBSETS):
        adapter = random_adapter(tmp_path / f"{number}", base, tuple(FUSED[family][i] for i in subset))
        config, back = place_adapter(adapter, checkpoint).original(checkpoint)
        wanted = {name.removeprefix("base_model.model."): tensor[...] for name, tensor in open_adapter(adapter).items()}
        assert back.keys() == wanted.keys()
        assert all(torch.equal(back[name], wanted[name]) for name in wanted), subset
        assert (config.r, config.lora_alpha, config.rank_pattern) == (8, 16, {})


@pytest.mark.parametrize(
    ("family", "options"),
    [*((family, {}) for family in FUSED), *cases_of({"dora": True}, {"rslora": True})],  # one part is left out, or none
    ids=str,
)
def test_separately_trained_parts_become_blocks_of_one_adapter(
    tiny: Tiny, tmp_path: Path, family: str, options: dict[str, bool]
) -> None:
    checkpoint = open_checkpoint(tiny(family))
    targets = ["q_proj", "v_proj", *(["k_proj"] if options.get("dora") else []), FUSED[family][2]]
    targets = ["gate_up_proj" if family == "chatglm2-6b" and name == "dense_h_to_4h" else name for name in targets]
    ours = trained(tmp_path / "ours", checkpoint.path, targets, **options)
    write_original_adapter(checkpoint, ours, tmp_path / "original")
    names = open_adapter(tmp_path / "original")
    fused = next(name for name in names if name.endswith(f"{FUSED[family][0]}.lora_A.weight"))
    assert len(names[fused].shape) == 2
    assert names[fused].shape[0] == 4 * sum(name in targets for name in ("q_proj", "k_proj", "v_proj"))
    found = place_adapter(tmp_path / "original", checkpoint).attach(checkpoint.load_model(), is_trainable=False)
    wanted = place_adapter(ours, checkpoint).attach(checkpoint.load_model(), is_trainable=False)
    torch.testing.assert_close(logits(found), logits(wanted), atol=1e-4, rtol=0)


def test_lengths_of_untrained_rows_are_not_an_adapter_of_the_fused_module(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("baichuan-7b"))
    ours = trained(tmp_path / "ours", checkpoint.path, ["q_proj", "v_proj"], dora=True)
    with pytest.raises(ConfigError, match=r"no form under the original names.*W_pack.*k_proj is not adapted"):
        write_original_adapter(checkpoint, ours, tmp_path / "original")
    assert not (tmp_path / "original").exists()


def test_merging_adds_the_whole_file_to_the_base(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("chatglm-6b")
    adapter = random_adapter(tmp_path / "adapter", base, FUSED["chatglm-6b"])
    figures = merge_adapter(
        open_checkpoint(base), adapter, tmp_path / "merged", dtype=torch.float32, prompts=[[*range(300, 320)]]
    )
    assert figures["from_adapter_on_base"]["max_logit_difference"] < 1e-4
    wanted = merged_by_hand(tmp_path / "by_hand", base, adapter).load_model()
    merged = open_checkpoint(tmp_path / "merged").load_model()
    torch.testing.assert_close(logits(merged), logits(wanted), atol=1e-4, rtol=0)


def test_ranks_and_scales_of_single_layers_follow_their_module(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("baichuan-7b")
    checkpoint = open_checkpoint(base)
    adapter = random_adapter(tmp_path / "adapter", base, ("W_pack",))
    tensors = {name.removeprefix("base_model.model."): t[...] for name, t in open_adapter(adapter).items()}
    layer = "model.layers.1.self_attn.W_pack"
    tensors[f"{layer}.lora_A.weight"] = tensors[f"{layer}.lora_A.weight"][:4]
    tensors[f"{layer}.lora_B.weight"] = tensors[f"{layer}.lora_B.weight"][:, :4]
    options = {"rank_pattern": {"layers.1.self_attn.W_pack": 4}, "alpha_pattern": {"1.self_attn.W_pack": 24}}
    write_adapter(tmp_path / "uneven", tensors, target_modules=["W_pack"], **options)
    placed = place_adapter(tmp_path / "uneven", checkpoint)
    model = placed.attach(checkpoint.load_model(), is_trainable=False)
    layers: list[Any] = [model.get_submodule(f"base_model.model.model.layers.{i}.self_attn.k_proj") for i in (0, 1)]
    assert [layer.scaling["default"] for layer in layers] == [16 / 8, 24 / 4]
    config, back = placed.original(checkpoint)
    assert (config.rank_pattern, config.alpha_pattern) == ({layer: 4}, {layer: 24})
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


def _drop_first_layer(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    for name in [name for name in tensors if ".0." in name]:
        del tensors[name]


def _drop_fused(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    for name in [name for name in tensors if "W_pack" in name]:
        del tensors[name]


def _drop_all(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    tensors.clear()


def _nan(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    tensors[min(tensors)][0, 0] = torch.nan


def _embedding(num_rows: int) -> Change:
    return lambda tensors, config: tensors.update({"model.embed_tokens.weight": torch.zeros(num_rows, 64)})


def _under(before: str, after: str) -> Change:
    def change(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace(before, after, 1)] = tensors.pop(name)

    return change


def _another_prefix(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    for name in list(tensors):
        tensors[name.replace("model.layers", "layers")] = tensors.pop(name)


def _unknown_layer(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    tensors["model.layers.7.self_attn.W_pack.lora_A.weight"] = torch.zeros(8, 64)


def _unnamed_module(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    config["target_modules"] = ["o_proj"]


def _another_size(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    for name in [name for name in tensors if "W_pack.lora_B" in name]:
        tensors[name] = torch.zeros(96, 8)


def _another_width(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    for name in [name for name in tensors if "lora_A" in name]:
        tensors[name] = torch.zeros(8, 32)


def _another_rank(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    config["r"] = 16


def _resized(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    config["modules_to_save"] = ["lm_head"]
    tensors["lm_head.weight"] = torch.zeros(1500, 64)


def _empty(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    for name in tensors:
        tensors[name] = torch.zeros(0)


def _setting(key: str, value: Any) -> Change:
    return lambda tensors, config: config.update({key: value})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_drop_first_layer, r"no tensor for model\.layers\.0\."),
        (_drop_fused, r"no tensor for model\.layers\.0\.self_attn\.W_pack"),
        (_drop_all, "holds no tensors"),
        (_another_prefix, r"belong to no module of this model, the first layers\.0\."),
        (_unknown_layer, r"1 of \d+ tensors belong to no module of this model, the first model\.layers\.7"),
        (_unnamed_module, r"W_pack, which its target_modules do not name"),
        (_another_size, r"W_pack\.lora_B\.weight is \[96, 8\], but that layer of the model has 192 rows"),
        (_another_width, r"lora_A\.weight is \[8, 32\], the model needs \[8, 64\]"),
        (_another_rank, r"is \[.*8.*\], the model needs \[.*16.*\]"),
        (_resized, r"lm_head\.weight is \[1500, 64\], the model needs \[1400, 64\]: .* resized vocabulary"),
        (_empty, r"tensors are empty, .* ZeRO-3"),
        (_setting("enable_lora", [True, False, True]), r"peft before 0\.3 \(key enable_lora\)"),
        (_setting("peft_type", "PREFIX_TUNING"), "adapters of type PREFIX_TUNING are not supported"),
        (_setting("peft_type", "ADALORA"), "adapters of type ADALORA are not supported"),
        (_setting("peft_type", ["LORA"]), "are not supported"),
        (_setting("peft_type", None), r"of type unknown \(no peft_type\)"),
        (_embedding(1500), r"embed_tokens\.weight has no place: it is \[1500, 64\].* \[1400, 64\].*resized vocabulary"),
        (
            _embedding(1400),
            r"embed_tokens\.weight has no place: it is a weight of the base.*save_embedding_layers=False",
        ),
        (_under("lora_A.", "lora_A.default."), r"'\.default\.' in its name: it is the state of a PeftModel"),
        (_under("", "base_model.model."), "an adapter on an adapter"),
        (_setting("init_lora_weights", "pissa_niter_4"), "trains on a changed base"),
        (_setting("layer_replication", [[0, 2], [1, 2]]), "layer_replication are not supported"),
        (_setting("r", "8"), 'r is "8"; it must be a number above 0'),
        (_setting("r", 8.5), "the rank 8.5 of r must be a whole number"),
        (_setting("rank_pattern", {"W_pack": 7.5}), "the rank 7.5 of W_pack must be a whole number"),
        (_setting("lora_alpha", float("nan")), "lora_alpha is NaN; it must be a number above 0"),
        (_setting("alpha_pattern", {"W_pack": "x"}), 'alpha_pattern of W_pack is "x"; it must be a number above 0'),
        (_setting("rank_pattern", {"([": 4}), "rank_pattern has '\\(\\[', which is not a regular expression"),
        (_setting("rank_pattern", "x"), "rank_pattern must be an object of names and numbers"),
        (_setting("use_rslora", "false"), 'use_rslora is "false"; it must be true or false'),
        (_setting("target_modules", None), "names no target_modules"),
        (_setting("target_modules", "(["), "target_modules has '\\(\\[', which is not a regular expression"),
        (_setting("target_modules", {"W_pack": 1}), "target_modules must be a list of names, or a regular expression"),
        (_setting("of_tomorrow", 3), "of_tomorrow: 3, which this peft does not know"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_weights_are_read(
    tiny: Tiny, tmp_path: Path, change: Change, said: str
) -> None:
    base = tiny("baichuan-7b")
    adapter = random_adapter(tmp_path / "adapter", base, ("W_pack", "o_proj"))
    tensors = {name.removeprefix("base_model.model."): t[...].clone() for name, t in open_adapter(adapter).items()}
    config = json.loads((adapter / "adapter_config.json").read_text())
    change(tensors, config)
    write_adapter(adapter, tensors)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=said) as refused:
        SFT(checkpoint=str(base), tuning=LoRA(adapter=str(adapter)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["query_key_value.base_layer.bias", "query_key_value.bias"], ids=["new", "old"])
def test_biases_that_were_trained_in_place_of_those_of_the_base_are_refused(
    tiny: Tiny, tmp_path: Path, name: str
) -> None:
    base = tiny("chatglm2-6b")
    adapter = random_adapter(tmp_path / "adapter", base, ("query_key_value",))
    tensors = {name.removeprefix("base_model.model."): t[...].clone() for name, t in open_adapter(adapter).items()}
    layer = min(tensors).partition(".query_key_value")[0]
    tensors[f"{layer}.{name}"] = torch.randn(128)
    write_adapter(adapter, tensors, target_modules=["query_key_value"], bias="lora_only")
    with pytest.raises(ConfigError, match=r"says bias: lora_only and holds .*bias: .* Merge it with the program"):
        place_adapter(adapter, open_checkpoint(base))


def test_an_adapter_that_says_bias_on_a_base_without_any_is_plain_lora(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("baichuan-7b")
    adapter = random_adapter(tmp_path / "adapter", base, ("W_pack",), bias="all")
    checkpoint = open_checkpoint(base)
    network = Network(Source(checkpoint, adapter, torch.float32))
    wanted = merged_by_hand(tmp_path / "merged", base, adapter).load_model()
    torch.testing.assert_close(logits(network.model), logits(wanted), atol=1e-4, rtol=0)
    with network.adapter(False):  # peft warns where taking it off leaves biases behind
        torch.testing.assert_close(logits(network.model), logits(checkpoint.load_model()))


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")  # by peft, of the same
def test_a_bias_of_the_adapter_is_not_merged_into_layers_that_have_none(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("baichuan-7b")
    adapter = random_adapter(tmp_path / "adapter", base, ("o_proj",))
    tensors = {name.removeprefix("base_model.model."): t[...].clone() for name, t in open_adapter(adapter).items()}
    for name in [name for name in tensors if "lora_B" in name]:
        tensors[name.replace("weight", "bias")] = torch.randn(64)
    write_adapter(adapter, tensors, target_modules=["o_proj"], lora_bias=True)
    checkpoint = open_checkpoint(base)
    assert torch.isfinite(logits(Network(Source(checkpoint, adapter, torch.float32)).model)).all()
    with pytest.raises(ConfigError, match=r"cannot be merged: it has a bias for .*o_proj, which has none"):
        merge_adapter(checkpoint, adapter, tmp_path / "merged", dtype=torch.float32, prompts=[[300, 301]])


def test_an_adapter_that_holds_no_numbers_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("baichuan-7b")
    adapter = random_adapter(tmp_path / "adapter", base, ("W_pack",))
    tensors = {name.removeprefix("base_model.model."): t[...].clone() for name, t in open_adapter(adapter).items()}
    _nan(tensors, {})
    write_adapter(adapter, tensors, target_modules=["W_pack"])
    with pytest.raises(ConfigError, match=rf"the tensor {re.escape(min(tensors))} holds NaN"):
        LoRA(adapter=str(adapter)).load(open_checkpoint(base), "32-true")


def test_plain_peft_leaves_out_no_part_of_an_adapter_either(tiny: Tiny, tmp_path: Path) -> None:
    base = tiny("moss")
    adapter = random_adapter(tmp_path / "adapter", base, ("qkv_proj", "out_proj"))
    with pytest.raises(ConfigError, match=r"4 of 8 tensors of the adapter belong to no module.*qkv_proj.*LoRA\("):
        PeftModel.from_pretrained(open_checkpoint(base).load_model(), adapter)


def test_names_of_the_hub_and_folders_without_weights_are_never_looked_up(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("baichuan-7b"))
    with pytest.raises(ConfigError, match="is not a folder; adapters are not downloaded"):
        place_adapter(Path("someone/an-adapter"), checkpoint)
    adapter = random_adapter(tmp_path / "adapter", checkpoint.path, ("W_pack",))
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        place_adapter(adapter, checkpoint)
    weights.unlink()
    with pytest.raises(ConfigError, match=r"holds no adapter_model\.safetensors or adapter_model\.bin"):
        place_adapter(adapter, checkpoint)
