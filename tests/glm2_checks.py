"""What the tests of ChatGLM2-6B and ChatGLM3-6B share: both have the same golden tensors and real tokenizer."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from goldens import SHARED, assert_equal_where, golden_checkpoint, golden_json, golden_model, golden_tensors

from lit_sft.families.glm2.family import RENAMED

TOKENIZERS = SHARED / "reference" / "tokenizers"
REAL_MODEL = TOKENIZERS / "chatglm2.tokenizer.model"


def real_golden(family: str) -> Any:
    """Ids of the released tokenizer, if they are at hand."""
    file = TOKENIZERS / f"{family}.json"
    if not file.is_file() or not REAL_MODEL.is_file():
        pytest.skip(f"{REAL_MODEL} is not here; set LIT_SFT_SHARED to the folder that holds reference/tokenizers")
    return json.loads(file.read_text(encoding="utf-8"))


def forward_cases(family: str) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Inputs of a forward pass, the logits they give, the golden ones, and where they count."""
    golden, model = golden_tensors(family), golden_model(family)
    for case in ("single", "leftpad"):
        input_ids = golden[f"{case}.input_ids"]
        mask = golden.get(f"{case}.attention_mask", torch.ones_like(input_ids))
        for positions in ({}, {"position_ids": golden[f"{case}.position_ids"]}):
            inputs = {"input_ids": input_ids, "attention_mask": mask, **positions}
            with torch.no_grad():
                logits = model(**inputs).logits
            yield inputs, logits, golden[f"{case}.logits"], mask


def check_logits(family: str) -> None:
    for _, logits, expected, mask in forward_cases(family):
        assert_equal_where(mask, logits, expected)


def check_right_padding(family: str) -> None:
    golden = golden_tensors(family)
    mask = golden["rightpad.attention_mask"]
    with torch.no_grad():
        logits = golden_model(family)(input_ids=golden["rightpad.input_ids"], attention_mask=mask).logits
    last = logits[torch.arange(len(mask)), mask.sum(1) - 1]
    torch.testing.assert_close(last, golden["rightpad.last_valid_logits"], atol=1e-4, rtol=0)


def check_hidden_states(family: str) -> None:
    """The original returns the last one before the final norm, transformers after it."""
    golden, model = golden_tensors(family), golden_model(family)
    with torch.no_grad():
        states = model(input_ids=golden["single.input_ids"], output_hidden_states=True).hidden_states
        expected = golden["single.hidden_states"]
        torch.testing.assert_close(torch.stack(states[:-1]), expected[:-1], atol=1e-4, rtol=0)
        torch.testing.assert_close(states[-1], model.model.norm(expected[-1]), atol=1e-4, rtol=0)


def check_cached_decoding(family: str) -> None:
    golden, model = golden_tensors(family), golden_model(family)
    input_ids = golden["incremental.input_ids"]
    prompt_length = golden_json(family)["incremental_prompt_len"]
    with torch.no_grad():
        full = model(input_ids=input_ids).logits[:, prompt_length - 1 :]
        step = model(input_ids=input_ids[:, :prompt_length], use_cache=True)
        steps = [step.logits[:, -1]]
        for position in range(prompt_length, input_ids.shape[1]):
            token = input_ids[:, position : position + 1]
            step = model(input_ids=token, past_key_values=step.past_key_values, use_cache=True)
            steps.append(step.logits[:, -1])
    torch.testing.assert_close(torch.stack(steps, 1), golden["incremental.step_logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(full, golden["incremental.full_logits_from_prompt_end"], atol=1e-4, rtol=0)


def check_loss_and_gradients(family: str, case: str, mask: torch.Tensor | None) -> None:
    golden, expected = golden_tensors(family), golden_json(family)
    expected = expected["train"][case] if case in expected["train"] else expected[case]
    model = golden_checkpoint(family).load_model(dtype=torch.float32).train()
    loss = model(
        input_ids=golden[f"{case}.input_ids"], labels=golden[f"{case}.labels"], attention_mask=mask, use_cache=False
    ).loss
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-5)

    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, norm in expected["grad_norm"].items():
        renamed = name
        for here, original in RENAMED.items():
            renamed = renamed.replace(original, here)
        fused = "self_attention.query_key_value"
        parts = [renamed.replace(fused, f"self_attn.{part}_proj") for part in "qkv"] if fused in name else [renamed]
        gradient = torch.cat([gradients[part] for part in parts])
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), name


def check_sample_losses(family: str, case: str) -> None:
    golden, model = golden_tensors(family), golden_model(family)
    expected = golden_json(family)["train"][case]["loss_per_sample"]
    for input_ids, labels, loss in zip(golden[f"{case}.input_ids"], golden[f"{case}.labels"], expected, strict=True):
        with torch.no_grad():
            actual = model(input_ids=input_ids[None], labels=labels[None]).loss
        assert actual.item() == pytest.approx(loss, abs=1e-5)


def check_greedy(family: str) -> None:
    expected = golden_json(family)["greedy"]
    model, tokenizer = golden_model(family), golden_checkpoint(family).load_tokenizer()
    options = {"do_sample": False, "max_new_tokens": 24, "eos_token_id": -1, "pad_token_id": 0}
    singles = [case for name, case in expected.items() if name.startswith("single")]
    for case in singles:
        input_ids = torch.tensor([case["input_ids"]])
        new = model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **options)
        assert new[0, input_ids.shape[1] :].tolist() == case["new_ids"]
        assert tokenizer.decode(case["new_ids"]) == case["decoded"]
    batch = tokenizer([case["text"] for case in singles], padding=True, return_tensors="pt")
    new = model.generate(**batch, **options)
    assert new[:, batch["input_ids"].shape[1] :].tolist() == expected["leftpad_batch"]


def check_texts(tokenizer: Any, golden: Any) -> None:
    for case in golden["strings"]:
        text = case["text"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == case["ids"], text
        assert tokenizer.encode_text(text) == case["ids"], text
        assert tokenizer.convert_ids_to_tokens(ids) == case["tokens"], text
        with_controls = tokenizer(text)["input_ids"]
        assert with_controls == case["ids_special"], text
        assert tokenizer.decode(ids) == case["decode"], text
        assert tokenizer.decode(with_controls) == case["decode_special"] == case["decode_nocleanup"], text
        assert tokenizer.decode(with_controls, skip_special_tokens=True) == case["decode_skip"], text


def check_batches(tokenizer: Any, golden: Any) -> None:
    for case in golden["padded"]:
        batch = tokenizer(case["texts"], padding=True)
        assert batch["input_ids"] == case["input_ids"]
        assert batch["attention_mask"] == case["attention_mask"]
