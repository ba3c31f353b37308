"""Damaged folders are told apart in one line before training starts, and what is saved reads back to the bit."""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from goldens import golden_checkpoint, golden_json, golden_model, golden_tensors
from lit_sft import open_checkpoint
from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.families._base import Checkpoint, TinySize, families
from lit_sft.families._tiny import demo_texts
from lit_sft.families._weights import open_weights

SIZE = TinySize(hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, vocab_size=1400, context_length=128)
W_PACK = "model.layers.1.self_attn.W_pack.weight"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 14000000000\n"
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
QUANTIZATIONS = {"nf4": NF4, "int8": BitsAndBytesConfig(load_in_8bit=True)}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    written: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in written:
            written[family] = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            families()[family].write_tiny(written[family], demo_texts(), SIZE)
        return written[family]

    return folder_of


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Baichuan-7B of one's own to damage, its weights in one pytorch_model.bin."""
    return Path(shutil.copytree(tiny("baichuan-7b"), tmp_path / "checkpoint"))


@pytest.fixture(params=sorted(families()))
def checkpoint(request: pytest.FixtureRequest, tiny: Callable[[str], Path], tmp_path: Path) -> Checkpoint:
    """A checkpoint of each family, in a folder of one's own."""
    return open_checkpoint(shutil.copytree(tiny(request.param), tmp_path / "checkpoint"), request.param)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "pytorch_model.bin", weights_only=True)  # type: ignore[no-any-return]


def write_safetensors(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    (folder / "pytorch_model.bin").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder / "model.safetensors"


def write_shards(folder: Path, suffix: str = "bin") -> tuple[Path, list[Path]]:
    """The weights in two shards and their index."""
    weights = weights_of(folder)
    (folder / "pytorch_model.bin").unlink()
    stem = "pytorch_model" if suffix == "bin" else "model"
    files = [folder / f"{stem}-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    weight_map: dict[str, str] = {}
    for number, file in enumerate(files):
        part = {name: weights[name] for name in list(weights)[number::2]}
        torch.save(part, file) if suffix == "bin" else save_file(part, file)
        weight_map |= dict.fromkeys(part, file.name)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index, files


def load(folder: Path, **options: Any) -> Any:
    return open_checkpoint(folder, "baichuan-7b").load_model(**options)


def refused(folder: Path, *said: str, **options: Any) -> None:
    with pytest.raises(CheckpointError) as raised:
        load(folder, **options)
    message = str(raised.value)
    assert "\n" not in message
    for part in said:
        assert part in message


# Files


def test_folder_without_weights_lists_what_was_looked_for(folder: Path) -> None:
    (folder / "pytorch_model.bin").unlink()
    refused(folder, str(folder), "pytorch_model.bin", "model.safetensors")


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_missing_shard_is_named(folder: Path, suffix: str) -> None:
    index, files = write_shards(folder, suffix)
    files[1].unlink()
    refused(folder, str(files[1]), index.name, "Download")


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_shards_without_their_index_are_no_checkpoint(folder: Path, suffix: str) -> None:
    index, files = write_shards(folder, suffix)
    index.unlink()
    refused(folder, files[0].name, index.name)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}'])
def test_broken_index_is_named(folder: Path, suffix: str, content: str) -> None:
    index, _ = write_shards(folder, suffix)
    index.write_text(content)
    refused(folder, str(index), "download")


def test_index_cannot_lead_out_of_the_folder(folder: Path) -> None:
    index, _ = write_shards(folder)
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../other/pytorch_model.bin"}}))
    refused(folder, str(index), "../other/pytorch_model.bin")


def test_shard_without_a_tensor_that_the_index_lists_is_named(folder: Path) -> None:
    _, files = write_shards(folder)
    weights = torch.load(files[0], weights_only=True)
    del weights[next(iter(weights))]
    torch.save(weights, files[0])
    refused(folder, str(files[0]), "model.embed_tokens.weight")


@pytest.mark.parametrize("kept", [0, 5, 1000, -10])
def test_truncated_bin_is_named(folder: Path, kept: int) -> None:
    file = folder / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:kept])
    refused(folder, str(file), "download")


@pytest.mark.parametrize("kept", [0, 5, 1000, -10])
def test_truncated_safetensors_is_named(folder: Path, kept: int) -> None:
    file = write_safetensors(folder, weights_of(folder))
    file.write_bytes(file.read_bytes()[:kept])
    refused(folder, str(file), "truncated", "download")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "pytorch_model.bin.index.json"])
def test_git_lfs_pointer_in_place_of_weights_is_named(folder: Path, name: str) -> None:
    (folder / "pytorch_model.bin").unlink()
    (folder / name).write_text(LFS_POINTER)
    refused(folder, str(folder / name), "git lfs pull")


def test_web_page_in_place_of_weights_is_named(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_text("<html>404</html>")
    refused(folder, str(folder / "pytorch_model.bin"), "download")


def test_anything_but_tensors_by_name_is_no_weights_file(folder: Path) -> None:
    torch.save([torch.zeros(1)], folder / "pytorch_model.bin")
    refused(folder, str(folder / "pytorch_model.bin"), "list")
    torch.save({"epoch": 3}, folder / "pytorch_model.bin")
    refused(folder, str(folder / "pytorch_model.bin"), "'epoch'")


# Code in a checkpoint never runs


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("is_legacy", [False, True])
def test_pickle_that_would_run_code_is_refused(folder: Path, tmp_path: Path, is_legacy: bool) -> None:
    marker = tmp_path / "ran"
    file = folder / "pytorch_model.bin"
    content = {**weights_of(folder), "payload": Payload(marker)}
    torch.save(content, file, _use_new_zipfile_serialization=not is_legacy)
    refused(folder, str(file), "mkdir", "refused")
    assert not marker.exists()


def test_auto_map_is_never_imported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    folder = checkpoint.path
    (folder / "remote.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Remote: pass\n")
    classes = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    for name, auto_map in (
        ("config.json", dict.fromkeys(classes, "remote.Remote")),
        ("tokenizer_config.json", {"AutoTokenizer": ["remote.Remote", None]}),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, "auto_map": auto_map}))
    opened = open_checkpoint(folder, checkpoint.family.name)
    opened.load_tokenizer()
    model = opened.load_model()
    opened.save_model(model, tmp_path / "saved")
    assert not marker.exists()
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "saved" / name).read_text())


# Tensors


@pytest.mark.parametrize("quantization", [None, NF4], ids=["full", "nf4"])
def test_missing_tensor_is_named_instead_of_made_up(folder: Path, quantization: Any) -> None:
    weights = weights_of(folder)
    del weights[W_PACK]
    torch.save(weights, folder / "pytorch_model.bin")
    refused(folder, str(folder / "pytorch_model.bin"), W_PACK, quantization=quantization)


def test_unexpected_tensor_is_named_with_its_shard(folder: Path) -> None:
    index, files = write_shards(folder)
    weights = torch.load(files[1], weights_only=True)
    torch.save({**weights, "transformer.prefix_encoder.weight": torch.zeros(2)}, files[1])
    refused(folder, str(files[1]), "transformer.prefix_encoder.weight")


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS.values()], ids=["full", *QUANTIZATIONS])
@pytest.mark.parametrize("name", [W_PACK, "model.layers.0.mlp.up_proj.weight"])
def test_tensor_of_the_wrong_shape_is_named(folder: Path, name: str, quantization: Any) -> None:
    weights = weights_of(folder)
    weights[name] = torch.cat([weights[name]] * 2)
    torch.save(weights, folder / "pytorch_model.bin")
    refused(folder, str(folder / "pytorch_model.bin"), name, "shape", quantization=quantization)


def test_config_of_a_larger_model_does_not_fit(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    refused(folder, "model.layers.2.", "more)", "config.json")


# Tokenizers


def test_missing_tokenizer_model_is_named(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match="tokenizer.model not in the folder"):
        open_checkpoint(folder).load_tokenizer()


def test_git_lfs_pointer_in_place_of_the_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.model").write_text(LFS_POINTER)
    with pytest.raises(CheckpointError, match="tokenizer.model is a git-LFS pointer.*git lfs pull"):
        open_checkpoint(folder).load_tokenizer()


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_damaged_tokenizer_model_is_named(folder: Path, kept: int) -> None:
    file = folder / "tokenizer.model"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"tokenizer.model.*cannot be read.*download") as raised:
        open_checkpoint(folder).load_tokenizer()
    assert "\n" not in str(raised.value)


def test_tokenizer_larger_than_the_embedding_belongs_to_another_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 700}))
    with pytest.raises(CheckpointError, match=r"tokenizer.model has \d+ tokens.*700 rows"):
        open_checkpoint(folder).load_tokenizer()


# Reading


def test_every_layout_gives_the_same_weights(folder: Path, tmp_path: Path) -> None:
    expected = load(folder).state_dict()
    for layout in ("legacy", "compressed", "bin", "safetensors"):
        copy = Path(shutil.copytree(folder, tmp_path / layout))
        file = copy / "pytorch_model.bin"
        if layout == "legacy":  # torch before 1.6
            torch.save(weights_of(copy), file, _use_new_zipfile_serialization=False)
        elif layout == "compressed":
            with zipfile.ZipFile(folder / file.name) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
                for item in old.infolist():
                    new.writestr(item.filename, old.read(item))
        else:
            write_shards(copy, layout)
        actual = load(copy).state_dict()
        for name, weight in expected.items():
            assert torch.equal(actual[name], weight), (layout, name)


def test_views_and_transposed_tensors_are_read_as_they_are(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    weights = {"part": base[1:3, 2:], "turned": base.T, "same": base, "none": torch.empty(0, 3), "one": torch.tensor(7)}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    for name, stored in open_weights(tmp_path).items():
        assert stored.shape == weights[name].shape
        assert torch.equal(stored[...], weights[name]), name


def test_safetensors_are_preferred(folder: Path) -> None:
    weights = {name: tensor.float() + 1 for name, tensor in weights_of(folder).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "pytorch_model.bin").write_text("never read")
    assert torch.equal(load(folder).lm_head.weight, weights["lm_head.weight"])


def test_reading_leaves_transformers_as_it_was(folder: Path) -> None:
    from transformers import PreTrainedModel

    before = PreTrainedModel.__dict__["_load_pretrained_model"].__func__
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"vocab_size": ', '"vocab_size": 1'))
    refused(folder)
    assert PreTrainedModel.__dict__["_load_pretrained_model"].__func__ is before


# Saving


def test_saved_folder_is_clean_and_reads_back_exactly(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint.load_model(dtype=torch.bfloat16)
    checkpoint.save_model(model, tmp_path / "saved")
    again = open_checkpoint(tmp_path / "saved", checkpoint.family.name)
    assert again.config["architectures"] == checkpoint.config["architectures"]
    assert "auto_map" not in again.config
    model.generation_config.validate(strict=True)
    again.load_tokenizer()
    for name, weight in again.load_model(dtype=torch.bfloat16).state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_saved_tensors_have_the_original_names_and_values(folder: Path, tmp_path: Path) -> None:
    load(folder, dtype=torch.float16).save_pretrained(tmp_path / "saved")
    saved, original = load_file(tmp_path / "saved" / "model.safetensors"), weights_of(folder)
    assert saved.keys() == {name for name in original if "inv_freq" not in name}
    assert all(torch.equal(weight, original[name]) for name, weight in saved.items())


def test_model_can_be_saved_over_the_folder_it_came_from(folder: Path) -> None:
    model = load(folder, dtype=torch.float16)
    for _ in range(2):
        model.save_pretrained(folder)
        assert torch.equal(load(folder, dtype=torch.float16).lm_head.weight, model.lm_head.weight)


def test_sampling_options_without_sampling_do_not_stop_a_save(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "top_p": 0.85, "eos_token_id": 2}))
    model = load(folder)
    model.generation_config.max_new_tokens = 8
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()).keys().isdisjoint({"temperature", "top_p"})


def test_attached_adapters_are_not_saved_as_a_model(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    checkpoint = open_checkpoint(folder)
    wrapped = get_peft_model(checkpoint.load_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    for model in (wrapped, wrapped.get_base_model()):
        with pytest.raises(ConfigError, match="merge"):
            checkpoint.save_model(model, tmp_path / "saved")
    checkpoint.save_model(wrapped.merge_and_unload(), tmp_path / "saved")


# Quantization


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_quantized_model_is_saved_and_read_back_exactly(checkpoint: Checkpoint, tmp_path: Path, name: str) -> None:
    """The default of transformers joins the packed parts again, which nothing can read."""
    model = checkpoint.load_model(dtype=torch.bfloat16, quantization=QUANTIZATIONS[name])
    expected = model.state_dict()
    for generation in ("first", "second"):
        checkpoint.save_model(model, tmp_path / generation)
        model = open_checkpoint(tmp_path / generation, checkpoint.family.name).load_model(dtype=torch.bfloat16)
        actual = model.state_dict()
        assert actual.keys() == expected.keys()
        for key, weight in expected.items():
            assert torch.equal(actual[key], weight), (generation, key)


def test_nf4_equals_quantizing_the_split_weight(folder: Path) -> None:
    from bitsandbytes.functional import quantize_4bit

    exact, packed = load(folder, dtype=torch.bfloat16), load(folder, dtype=torch.bfloat16, quantization=NF4)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        source = exact.get_submodule(f"model.layers.1.self_attn.{name}").weight.detach()
        actual = packed.get_submodule(f"model.layers.1.self_attn.{name}").weight
        expected, state = quantize_4bit(source, quant_type="nf4", compress_statistics=True)
        assert torch.equal(actual.data, expected)
        assert torch.equal(actual.quant_state.absmax, state.absmax)


def test_int8_equals_quantizing_the_split_weight(folder: Path) -> None:
    from bitsandbytes.functional import int8_vectorwise_quant

    exact = load(folder, dtype=torch.float16)
    packed = load(folder, dtype=torch.float16, quantization=QUANTIZATIONS["int8"])
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        source = exact.get_submodule(f"model.layers.1.self_attn.{name}").weight.detach()
        actual = packed.get_submodule(f"model.layers.1.self_attn.{name}").weight
        expected, scale, _ = int8_vectorwise_quant(source)
        assert torch.equal(actual.data, expected)
        assert torch.equal(actual.SCB, scale)


# Plain transformers


def test_native_folder_gives_the_original_logits_in_plain_transformers(tmp_path: Path) -> None:
    golden = golden_tensors("baichuan-7b")
    checkpoint = golden_checkpoint("baichuan-7b")
    checkpoint.save_native(golden_model("baichuan-7b"), tmp_path / "native")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    assert type(plain).__module__ == "transformers.models.llama.modeling_llama"
    with torch.no_grad():
        logits = plain(golden["single.input_ids"]).logits
    torch.testing.assert_close(logits, golden["single.logits"], atol=1e-4, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "native")
    for case in golden_json("baichuan-7b", "tokenizer_golden")["cases"]:
        assert tokenizer(case["text"])["input_ids"] == case["ids"]
        assert tokenizer.decode(case["ids"], skip_special_tokens=True) == case["decode_skip_special"]


def test_native_folder_equals_its_family_where_there_is_a_plain_class(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = checkpoint.load_model(dtype=torch.bfloat16)
    if checkpoint.family.native_config(model.config) is None:
        with pytest.raises(ConfigError, match="no class of transformers"):
            checkpoint.save_native(model, tmp_path / "native")
        return
    checkpoint.save_native(model, tmp_path / "native")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "native", dtype=torch.bfloat16)
    assert type(plain).__module__.startswith("transformers.models.")
    input_ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(plain(input_ids).logits, model(input_ids).logits)


def test_quantized_model_is_not_offered_to_plain_transformers(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder)
    with pytest.raises(ConfigError, match="quantization=None"):
        checkpoint.save_native(checkpoint.load_model(quantization=NF4), tmp_path / "native")
    assert not (tmp_path / "native").exists()
