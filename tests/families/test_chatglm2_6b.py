"""ChatGLM2-6B equals the original implementation: network, tokenizer, chat and fine-tuning format."""

import glm2_checks as checks
import pytest
import torch
from goldens import golden_checkpoint, golden_json, golden_tensors

from lit_sft import Conversation, Message
from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.families.glm2.tokenizer import Glm2Tokenizer

FAMILY = "chatglm2-6b"


@pytest.fixture(scope="module")
def tokenizer() -> Glm2Tokenizer:
    loaded = golden_checkpoint(FAMILY).load_tokenizer()
    assert isinstance(loaded, Glm2Tokenizer)
    return loaded


@pytest.fixture(scope="module")
def real_tokenizer() -> Glm2Tokenizer:
    checks.real_golden(FAMILY)
    return Glm2Tokenizer(str(checks.REAL_MODEL))


def said(history: list[list[str]], query: str, answer: str | None = None) -> Conversation:
    messages = [message for q, a in history for message in (Message("user", q), Message("assistant", a))]
    messages.append(Message("user", query))
    return Conversation([*messages, Message("assistant", answer)] if answer is not None else messages)


def test_logits_equal_the_original() -> None:
    checks.check_logits(FAMILY)
    checks.check_right_padding(FAMILY)


def test_hidden_states_equal_the_original() -> None:
    checks.check_hidden_states(FAMILY)


def test_cached_decoding_equals_the_original() -> None:
    checks.check_cached_decoding(FAMILY)


@pytest.mark.parametrize("case", ["train", "train_hist"])
def test_loss_and_gradients_equal_the_original(case: str) -> None:
    checks.check_loss_and_gradients(FAMILY, case, mask=None)
    checks.check_sample_losses(FAMILY, case)


def test_greedy_ids_equal_the_original() -> None:
    checks.check_greedy(FAMILY)


def test_half_precision_is_as_near_as_the_original() -> None:
    golden = golden_tensors(FAMILY)
    model = golden_checkpoint(FAMILY).load_model(dtype=torch.float16)
    with torch.no_grad():
        logits = model(input_ids=golden["single.input_ids"]).logits[:, -1].float()
    torch.testing.assert_close(logits, golden["single.last_logits_fp16"].float(), atol=5e-2, rtol=0)


def test_texts_have_the_original_ids_and_decodes(tokenizer: Glm2Tokenizer) -> None:
    checks.check_texts(tokenizer, golden_json(FAMILY, "tokenizer_golden"))
    checks.check_batches(tokenizer, golden_json(FAMILY, "tokenizer_golden"))


def test_texts_have_the_ids_of_the_released_tokenizer(real_tokenizer: Glm2Tokenizer) -> None:
    checks.check_texts(real_tokenizer, checks.real_golden(FAMILY))
    checks.check_batches(real_tokenizer, checks.real_golden(FAMILY))


def test_prompts_equal_the_original(tokenizer: Glm2Tokenizer) -> None:
    golden = golden_json(FAMILY, "prompt_golden")
    format_ = golden_checkpoint(FAMILY).prompt_format
    assert format_.encode_prompt(said([], golden["query"]), tokenizer) == golden["ids_single"]
    assert format_.encode_prompt(said(golden["history"], golden["query"]), tokenizer) == golden["ids_multi"]


def test_prompts_have_the_ids_of_the_released_tokenizer(real_tokenizer: Glm2Tokenizer) -> None:
    golden = checks.real_golden(FAMILY)["chat"]
    format_ = golden_checkpoint(FAMILY).prompt_format
    assert format_.encode_prompt(said([], golden["query"]), real_tokenizer) == golden["ids_single"]
    assert format_.encode_prompt(said(golden["history"], golden["query"]), real_tokenizer) == golden["ids_multi"]


@pytest.mark.parametrize("case", ["train", "train_hist"])
def test_training_examples_equal_the_original(tokenizer: Glm2Tokenizer, case: str) -> None:
    """The original cuts the prompt and the answer to lengths of their own before it joins them."""
    golden, expected = golden_tensors(FAMILY), golden_json(FAMILY)["train"][case]
    format_ = golden_checkpoint(FAMILY).prompt_format
    for row, record in enumerate(expected["records"]):
        history = record["history"] if expected["use_history"] else []
        conversation = said(history, record["prompt"], record["response"])
        prompt = format_.encode_prompt(conversation.prompt(), tokenizer)
        example = format_.encode(conversation, tokenizer)
        assert example.input_ids[: len(prompt)] == prompt
        assert example.labels == [-100] * len(prompt) + list(example.input_ids[len(prompt) :])

        length = expected["lengths"][row]
        source = prompt[: expected["max_source_length"]]
        reply = [*example.input_ids[len(prompt) : -1][: expected["max_target_length"]], 2]
        assert [*source, *reply] == golden[f"{case}.input_ids"][row, :length].tolist()
        assert [-100] * len(source) + reply == golden[f"{case}.labels"][row, :length].tolist()


def test_every_round_continues_the_cached_chat_of_the_original(tokenizer: Glm2Tokenizer) -> None:
    golden = golden_json(FAMILY, "prompt_golden")
    format_ = golden_checkpoint(FAMILY, prompt_format="chatglm2-every-round").prompt_format
    turns = format_.encode_turns(said(golden["history"], golden["query"], "好"), tokenizer)
    assert turns[-1].prompt_ids == golden["stream_chat_incremental_ids"]
    assert [turn.reply_ids for turn in turns[:-1]] == [tokenizer.encode_text(answer) for _, answer in golden["history"]]

    example = format_.encode(said(golden["history"], golden["query"], "好"), tokenizer)
    supervised = [label for label in example.labels if label != -100]
    assert supervised == [token for turn in turns for token in turn.reply_ids] + [2]


def test_oldest_rounds_are_dropped_until_the_prompt_leaves_room(tokenizer: Glm2Tokenizer) -> None:
    checkpoint = golden_checkpoint(FAMILY)
    history = [[f"问题{i}" * 5, "回答" * 10] for i in range(20)]
    shorter = next(n for n in range(20) if len(_whole(checkpoint, tokenizer, history[n:])) < checkpoint.context_length)
    assert 0 < shorter < 20
    prompt = checkpoint.prompt_format.encode_prompt(said(history, "你好"), tokenizer)
    assert prompt == _whole(checkpoint, tokenizer, history[shorter:])


def _whole(checkpoint: Checkpoint, tokenizer: Glm2Tokenizer, history: list[list[str]]) -> list[int]:
    [turn] = checkpoint.prompt_format.encode_turns(said(history, "你好"), tokenizer)
    return turn.prompt_ids


def test_every_way_to_encode_gives_the_same_ids(tokenizer: Glm2Tokenizer) -> None:
    """Plain batches go through sentencepiece, everything else through `tokenizers`."""
    texts = [case["text"] for case in golden_json(FAMILY, "tokenizer_golden")["strings"]]
    batch = tokenizer(texts)
    assert tokenizer(texts, return_offsets_mapping=True)["input_ids"] == batch["input_ids"]
    assert [tokenizer(text)["input_ids"] for text in texts] == batch["input_ids"]
    assert tokenizer(texts, truncation=True, max_length=5)["input_ids"] == [ids[:5] for ids in batch["input_ids"]]
    assert tokenizer("你好", "好")["input_ids"] == [
        *tokenizer("你好")["input_ids"], *tokenizer.encode_text("好"), tokenizer.eos_token_id,
    ]  # fmt: skip
    padded = tokenizer(texts, padding=True, return_tensors="pt")
    for row, mask, ids in zip(padded["input_ids"], padded["attention_mask"], batch["input_ids"], strict=True):
        assert row[mask.bool()].tolist() == ids


def test_a_system_message_stands_before_the_first_round(tokenizer: Glm2Tokenizer) -> None:
    conversation = Conversation([Message("system", "你是助手。"), Message("user", "你好")])
    prompt = golden_checkpoint(FAMILY).prompt_format.encode_prompt(conversation, tokenizer)
    assert tokenizer.decode(prompt) == "你是助手。\n\n[Round 1]\n\n问：你好\n\n答："
