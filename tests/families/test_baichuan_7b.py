"""Baichuan-7B equals the original implementation: network, tokenizer, generation."""

import pytest
import torch
from goldens import assert_equal_where, golden_checkpoint, golden_json, golden_model, golden_tensors

FAMILY = "baichuan-7b"


def test_recognised_from_its_config() -> None:
    assert golden_checkpoint(FAMILY).family.name == FAMILY


@pytest.mark.parametrize("padding", ["single", "right", "left"])
def test_logits_equal_the_original(padding: str) -> None:
    golden = golden_tensors(FAMILY)
    input_ids = golden[f"{padding}.input_ids"]
    mask = golden.get(f"{padding}.attention_mask", torch.ones_like(input_ids))
    with torch.no_grad():
        logits = golden_model(FAMILY)(input_ids=input_ids, attention_mask=mask).logits
    assert_equal_where(mask, logits, golden[f"{padding}.logits"])


@pytest.mark.parametrize("padding", ["single", "right"])
def test_loss_and_gradients_equal_the_original(padding: str) -> None:
    golden, expected = golden_tensors(FAMILY), golden_json(FAMILY)
    model = golden_checkpoint(FAMILY).load_model(dtype=torch.float32).train()
    labels = golden[f"{padding}.labels"]
    loss = model(input_ids=golden[f"{padding}.input_ids"], labels=labels).loss
    assert loss.item() == pytest.approx(expected["loss"]["train"][padding], abs=1e-5)

    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, norm in expected["grad_norms"][f"train.{padding}"].items():
        if "W_pack" in name:
            parts = [gradients[name.replace("W_pack", part)] for part in ("q_proj", "k_proj", "v_proj")]
            gradient = torch.cat(parts)
        else:
            gradient = gradients[name]
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), name
        if padding == "single" and f"grad.{name}" in golden:
            torch.testing.assert_close(gradient, golden[f"grad.{name}"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["generate.sequences", "generate.sequences_reppen1.1", "generate_left.sequences"])
def test_greedy_ids_equal_the_original(case: str) -> None:
    golden = golden_tensors(FAMILY)
    group = case.partition(".")[0]
    input_ids = golden[f"{group}.input_ids"]
    generated = golden_model(FAMILY).generate(
        input_ids=input_ids,
        attention_mask=golden.get(f"{group}.attention_mask", torch.ones_like(input_ids)),
        do_sample=False,
        max_new_tokens=24,
        repetition_penalty=1.1 if "reppen" in case else 1.0,
    )
    assert generated.tolist() == golden[case].tolist()


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return golden_checkpoint(FAMILY).load_tokenizer()


def test_every_text_has_the_original_ids_and_decodes(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for case in golden_json(FAMILY, "tokenizer_golden")["cases"]:
        ids = tokenizer(case["text"])["input_ids"]
        assert ids == case["ids"], case["text"]
        assert tokenizer.decode(ids) == case["decode"], case["text"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == case["decode_skip_special"], case["text"]
        assert tokenizer.convert_ids_to_tokens(ids) == case["tokens"], case["text"]
