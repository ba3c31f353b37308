"""The four Baichuan models equal their original implementations: network, generation, tokenizer, files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import GOLDEN, assert_equal_where, golden_checkpoint, golden_json, golden_model, golden_tensors

from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import families
from lit_sft.errors import CheckpointError

FAMILIES = ["baichuan-7b", "baichuan-13b", "baichuan2-7b", "baichuan2-13b"]
CHAT = ["baichuan-13b", "baichuan2-7b", "baichuan2-13b"]


def forward(family: str, group: str, **options: Any) -> Any:
    golden = golden_tensors(family)
    with torch.no_grad():
        return golden_model(family, family)(
            input_ids=golden[f"{group}.input_ids"], attention_mask=golden.get(f"{group}.attention_mask"), **options
        )


def original_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of split projections under the name of the fused one."""
    fused = {}
    for name, tensor in tensors.items():
        if "q_proj" in name:
            parts = [tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            fused[name.replace("q_proj", "W_pack")] = torch.cat(parts)
        elif "k_proj" not in name and "v_proj" not in name:
            fused[name] = tensor
    return fused


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", ["single", "right", "left"])
def test_logits_equal_the_original(family: str, padding: str) -> None:
    golden = golden_tensors(family)
    mask = golden.get(f"{padding}.attention_mask", torch.ones_like(golden[f"{padding}.input_ids"]))
    assert_equal_where(mask, forward(family, padding).logits, golden[f"{padding}.logits"])


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_of_every_layer_equal_the_original(family: str) -> None:
    states = torch.stack(forward(family, "single", output_hidden_states=True).hidden_states)
    torch.testing.assert_close(states, golden_tensors(family)["single.hidden_states"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", ["single", "right", "left"])
def test_loss_equals_the_original(family: str, padding: str) -> None:
    """Of the 7B models the original trains wrongly on left padding; we give what it gives in evaluation."""
    loss = forward(family, padding, labels=golden_tensors(family)[f"{padding}.labels"]).loss
    assert loss.item() == pytest.approx(golden_json(family)["loss"]["eval"][padding], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", ["single", "right"])
def test_gradients_equal_the_original(family: str, padding: str) -> None:
    golden, expected = golden_tensors(family), golden_json(family)
    model = golden_checkpoint(family, family).load_model(dtype=torch.float32).train()
    loss = model(
        input_ids=golden[f"{padding}.input_ids"],
        attention_mask=golden.get(f"{padding}.attention_mask"),
        labels=golden[f"{padding}.labels"],
    ).loss
    assert loss.item() == pytest.approx(expected["loss"]["train"][padding], abs=1e-5)
    loss.backward()
    gradients = original_names({name: parameter.grad for name, parameter in model.named_parameters()})
    norms = expected["grad_norms"][f"train.{padding}"]
    assert gradients.keys() == norms.keys()
    for name, norm in norms.items():
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-4), name
        if padding == "single" and f"grad.{name}" in golden:
            torch.testing.assert_close(gradients[name], golden[f"grad.{name}"], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", ["generate.sequences", "generate.sequences_reppen1.1", "generate_left.sequences"])
def test_greedy_ids_equal_the_original(family: str, case: str) -> None:
    golden, group = golden_tensors(family), case.partition(".")[0]
    input_ids = golden[f"{group}.input_ids"]
    generated = golden_model(family, family).generate(
        input_ids=input_ids,
        attention_mask=golden.get(f"{group}.attention_mask", torch.ones_like(input_ids)),
        do_sample=False,
        max_new_tokens=24,
        repetition_penalty=1.1 if "reppen" in case else 1.0,
    )
    assert generated.tolist() == golden[case].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_in_chunks_equals_reading_at_once(family: str) -> None:
    """The original ALiBi models cannot."""
    model, input_ids = golden_model(family, family), golden_tensors(family)["single.input_ids"]
    cache, logits = None, []
    with torch.no_grad():
        for chunk in input_ids.split(5, dim=1):
            output = model(input_ids=chunk, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
    torch.testing.assert_close(torch.cat(logits, 1), forward(family, "single").logits, atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(family: str) -> Any:
    return golden_checkpoint(family, family).load_tokenizer()


def test_every_text_has_the_original_ids_and_decodes(family: str, tokenizer: Any) -> None:
    for case in golden_json(family, "tokenizer_golden")["cases"]:
        ids = tokenizer(case["text"])["input_ids"]
        assert ids == case["ids"], case["text"]
        assert tokenizer(case["text"], add_special_tokens=False)["input_ids"] == case["ids_no_special"]
        assert tokenizer.decode(ids) == case["decode"], case["text"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == case["decode_skip_special"], case["text"]
        assert tokenizer.convert_ids_to_tokens(ids) == case["tokens"], case["text"]


def test_sizes_and_special_ids_equal_the_original(family: str, tokenizer: Any) -> None:
    info = golden_json(family, "tokenizer_golden")["info"]
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
    assert special == (info["bos"], info["eos"], info["unk"], info["pad"])
    assert (len(tokenizer), tokenizer.vocab_size) == (info["len"], info["vocab_size"])
    assert (tokenizer.padding_side, tokenizer.add_bos_token) == (info["padding_side"], info["add_bos_token"])


def test_bos_and_eos_can_be_switched_on(family: str, tokenizer: Any) -> None:
    extra = golden_json(family, "tokenizer_golden")["extra"]
    tokenizer.add_bos_token = True
    tokenizer.add_eos_token = True
    for case in extra["with_add_bos_eos_true"]:
        assert tokenizer(case["text"])["input_ids"] == case["ids"], case["text"]
    for case in extra["pair"]:
        assert tokenizer(case["a"], case["b"])["input_ids"] == case["ids"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_batches_are_padded_as_by_the_original(family: str, tokenizer: Any, side: str) -> None:
    expected = golden_json(family, "tokenizer_golden")["extra"][f"batch_{side}"]
    named = tokenizer.pad_token  # Baichuan-7B names none
    tokenizer.padding_side = side
    rows = [{"input_ids": ids} for ids in tokenizer(expected["texts"])["input_ids"]]
    by_rust = tokenizer(expected["texts"], padding=True, return_length=True)
    for batch in (tokenizer(expected["texts"], padding=True), tokenizer.pad(rows), by_rust):
        assert batch["input_ids"] == expected["input_ids"]
        assert batch["attention_mask"] == expected["attention_mask"]
    assert tokenizer.pad_token == named


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((GOLDEN / family / "checkpoint/config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in (config | changes).items() if value is not None}


def candidates(config: dict[str, Any]) -> list[str]:
    return sorted(name for name, cls in families().items() if cls.matches(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_recognized_from_its_folder(family: str) -> None:
    assert golden_checkpoint(family).family.name == family


@pytest.mark.parametrize(
    ("family", "vocab_size"),
    [("baichuan-7b", 64000), ("baichuan-13b", 64000), ("baichuan2-7b", 125696), ("baichuan2-13b", 125696)],
)
def test_recognized_by_the_released_vocabulary_alone(family: str, vocab_size: int) -> None:
    assert candidates(config_of(family, vocab_size=vocab_size, tokenizer_class=None, z_loss_weight=None)) == [family]


def test_a_missing_key_is_not_a_sign_of_the_first_generation() -> None:
    """A normalized head taken for a plain one would give nonsense without an error."""
    both = ["baichuan-13b", "baichuan2-13b"]
    assert candidates(config_of("baichuan-13b")) == both
    assert candidates(config_of("baichuan2-13b", tokenizer_class=None)) == both


def test_signs_that_contradict_each_other_leave_both() -> None:
    assert candidates(config_of("baichuan2-7b", vocab_size=64000)) == ["baichuan-7b", "baichuan2-7b"]


def test_ambiguous_folder_is_an_error_that_names_the_candidates(tmp_path: Path) -> None:
    """Without the tokenizer, whose role marks tell the generations apart, nothing decides."""
    shutil.copy(GOLDEN / "baichuan-13b/checkpoint/config.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"several families.*`family:`.*baichuan-13b, baichuan2-13b"):
        open_checkpoint(tmp_path)
    assert open_checkpoint(tmp_path, "baichuan-13b").family.name == "baichuan-13b"


def test_the_tokenizer_does_not_overrule_a_decisive_config(tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.model"):
        family = "baichuan2-13b" if file == "config.json" else "baichuan-13b"
        shutil.copy(GOLDEN / family / "checkpoint" / file, tmp_path)
    assert open_checkpoint(tmp_path).family.name == "baichuan2-13b"


def test_wrong_family_names_the_missing_key() -> None:
    with pytest.raises(CheckpointError, match=r"config\.json has no 'max_position_embeddings'"):
        _ = golden_checkpoint("baichuan-13b", "baichuan-7b").context_length


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_folder_is_one_of_the_original_layout(family: str, tmp_path: Path) -> None:
    original = golden_checkpoint(family, family)
    model = original.load_model(dtype=torch.bfloat16)
    with torch.no_grad():
        model(input_ids=golden_tensors(family)["single.input_ids"])
    model.save_pretrained(tmp_path)

    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == original.config["architectures"]
    assert not config.get("auto_map")
    for key in {"max_position_embeddings", "model_max_length", "tokenizer_class", "vocab_size"} & {*original.config}:
        assert config[key] == original.config[key]
    assert ("max_position_embeddings" in config) == ("max_position_embeddings" in original.config)
    assert candidates(config) == candidates(original.config)

    from safetensors.torch import load_file

    saved = load_file(tmp_path / "model.safetensors")
    assert {name: list(weight.shape) for name, weight in saved.items()} == {
        name: shape for name, shape in golden_json(family)["param_names"].items() if "inv_freq" not in name
    }
    for file in original.weight_files:
        for name, weight in torch.load(file, weights_only=True).items():
            if "inv_freq" not in name:
                assert torch.equal(saved[name], weight.bfloat16()), name


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_weights_are_an_error(family: str, tmp_path: Path) -> None:
    for file in (GOLDEN / family / "checkpoint").iterdir():
        if not file.name.startswith("pytorch_model"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    files = golden_checkpoint(family, family).weight_files
    weights = {name: weight for file in files for name, weight in torch.load(file, weights_only=True).items()}
    del weights["model.norm.weight"]
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="weights"):
        open_checkpoint(tmp_path, family).load_model()
