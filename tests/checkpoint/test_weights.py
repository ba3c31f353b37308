"""A damaged folder is told apart in a line before training starts; a sound one is read to the bit, in every layout."""

import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BitsAndBytesConfig

from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.checkpoint.weights import load_network, open_weights
from lit_sft.errors import CheckpointError

W_PACK = "model.layers.1.self_attn.W_pack.weight"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 14000000000\n"
NF4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
INT8 = BitsAndBytesConfig(load_in_8bit=True)


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
def test_shards_without_their_index_are_not_a_checkpoint(folder: Path, suffix: str) -> None:
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


def test_anything_but_tensors_by_name_is_not_a_weights_file(folder: Path) -> None:
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
    _, files = write_shards(folder)
    weights = torch.load(files[1], weights_only=True)
    torch.save({**weights, "transformer.prefix_encoder.weight": torch.zeros(2)}, files[1])
    refused(folder, str(files[1]), "transformer.prefix_encoder.weight")


@pytest.mark.parametrize("quantization", [None, NF4, INT8], ids=["full", "nf4", "int8"])
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
    with pytest.raises(CheckpointError, match=r"tokenizer.model not in the folder"):
        open_checkpoint(folder).load_tokenizer()


def test_git_lfs_pointer_in_place_of_the_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.model").write_text(LFS_POINTER)
    with pytest.raises(CheckpointError, match=r"tokenizer.model is a git-LFS pointer.*git lfs pull"):
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
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 700}))
    refused(folder)
    assert PreTrainedModel.__dict__["_load_pretrained_model"].__func__ is before


def test_tied_head_is_not_a_missing_tensor(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert "lm_head.weight" not in open_weights(tmp_path)
    model = load_network(tmp_path, open_weights(tmp_path), lambda: LlamaForCausalLM.from_pretrained(tmp_path))
    assert model.lm_head.weight is model.model.embed_tokens.weight
