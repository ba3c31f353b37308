"""ChatGLM3-6B equals the original implementation: network, tokenizer, chat and fine-tuning format."""

import json
from typing import Any

import glm2_checks as checks
import pytest
from goldens import golden_checkpoint, golden_json, golden_tensors

from lit_sft import Conversation, Message
from lit_sft.families.glm2.chatglm3 import ROLES
from lit_sft.families.glm2.tokenizer import Glm2Tokenizer

FAMILY = "chatglm3-6b"


@pytest.fixture(scope="module")
def tokenizer() -> Glm2Tokenizer:
    loaded = golden_checkpoint(FAMILY).load_tokenizer()
    assert isinstance(loaded, Glm2Tokenizer)
    return loaded


@pytest.fixture(scope="module")
def real_tokenizer() -> Glm2Tokenizer:
    checks.real_golden(FAMILY)
    return Glm2Tokenizer(str(checks.REAL_MODEL), roles=ROLES, has_named_controls=True)


def message(item: dict[str, Any]) -> Message:
    """A message of the original's chat; tools are listed after the content of a system message."""
    role: Any = "tool" if item["role"] == "observation" else item["role"]
    content = item["content"]
    if "tools" in item:
        content += "\n" + json.dumps(item["tools"], indent=4, ensure_ascii=False)
    return Message(role, content, name=item.get("metadata", ""))


def asked(history: list[dict[str, Any]] | None, query: str, role: str = "user") -> Conversation:
    return Conversation([message(item) for item in [*(history or []), {"role": role, "content": query}]])


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


def test_loss_of_the_chat_format_equals_the_original() -> None:
    mask = golden_tensors(FAMILY)["train_chat.attention_mask"]
    checks.check_loss_and_gradients(FAMILY, "train_chat", mask=mask)


def test_greedy_ids_equal_the_original() -> None:
    checks.check_greedy(FAMILY)


def test_texts_have_the_original_ids_and_decodes(tokenizer: Glm2Tokenizer) -> None:
    checks.check_texts(tokenizer, golden_json(FAMILY, "tokenizer_golden"))
    checks.check_batches(tokenizer, golden_json(FAMILY, "tokenizer_golden"))


def test_texts_have_the_ids_of_the_released_tokenizer(real_tokenizer: Glm2Tokenizer) -> None:
    checks.check_texts(real_tokenizer, checks.real_golden(FAMILY))
    checks.check_batches(real_tokenizer, checks.real_golden(FAMILY))


@pytest.mark.parametrize("real", [False, True], ids=["tiny", "released"])
def test_roles_are_parsed_only_on_request(request: pytest.FixtureRequest, real: bool) -> None:
    tokenizer = request.getfixturevalue("real_tokenizer" if real else "tokenizer")
    golden = checks.real_golden(FAMILY) if real else golden_json(FAMILY, "tokenizer_golden")
    tokenizer.encode_special_tokens = True
    for case in golden["strings"]:
        ids = tokenizer(case["text"], add_special_tokens=False)["input_ids"]
        assert ids == case["ids_encode_special_tokens"], case["text"]
        assert tokenizer.encode_text(case["text"]) == case["ids"], case["text"]
    tokenizer.encode_special_tokens = False
    assert not {*tokenizer("<|user|>")["input_ids"]} & {*tokenizer.convert_tokens_to_ids(list(ROLES))}


def test_prompts_equal_the_original(tokenizer: Glm2Tokenizer) -> None:
    golden = golden_json(FAMILY, "prompt_golden")
    format_ = golden_checkpoint(FAMILY).prompt_format
    for name, case in golden["cases"].items():
        conversation = asked(case["history"], golden["query"], case["role"])
        prompt = format_.encode_prompt(conversation, tokenizer)
        assert prompt == case["input_ids"], name
        assert tokenizer.decode(prompt) == case["decoded"], name


def test_prompts_have_the_ids_of_the_released_tokenizer(real_tokenizer: Glm2Tokenizer) -> None:
    golden = checks.real_golden(FAMILY)["chat"]
    format_ = golden_checkpoint(FAMILY).prompt_format
    assert format_.encode_prompt(asked(None, golden["query"]), real_tokenizer) == golden["ids_single"]
    assert format_.encode_prompt(asked(golden["history"], golden["query"]), real_tokenizer) == golden["ids_multi"]


def test_single_messages_equal_the_original(tokenizer: Glm2Tokenizer) -> None:
    format_ = golden_checkpoint(FAMILY).prompt_format
    prefix, assistant = tokenizer.prefix_ids, tokenizer.convert_tokens_to_ids("<|assistant|>")
    for case in golden_json(FAMILY, "prompt_golden")["single_message"]:
        single = message({"role": case["role"], "metadata": case["metadata"], "content": case["message"]})
        ids = [token for turn in format_.encode_turns(Conversation([single]), tokenizer) for token in
               (*turn.prompt_ids, *turn.reply_ids)]  # fmt: skip
        end = [] if single.role == "assistant" else [assistant]
        assert ids == [*prefix, *case["ids"], *end], case


def test_training_examples_equal_the_original(tokenizer: Glm2Tokenizer) -> None:
    expected = golden_json(FAMILY)["train_chat"]
    format_ = golden_checkpoint(FAMILY).prompt_format
    for feature in expected["features"]:
        conversation = Conversation([message(item) for item in feature["conversation"]])
        example = format_.encode(conversation, tokenizer)
        assert example.input_ids[: expected["max_total_length"]] == feature["input_ids"]
        assert example.labels[: expected["max_total_length"]] == feature["labels"]


def test_a_tool_call_and_its_result_are_one_round(tokenizer: Glm2Tokenizer) -> None:
    """The call ends with <|observation|>, which carries loss; the result does not."""
    conversation = Conversation(
        [
            Message("user", "天气？"),
            Message("assistant", "tool_call(city='北京')", name="get_weather"),
            Message("tool", "晴", name="get_weather"),
            Message("assistant", "晴天。"),
        ]
    )
    example = golden_checkpoint(FAMILY).prompt_format.encode(conversation, tokenizer)
    supervised = tokenizer.decode([label for label in example.labels if label != -100])
    assert supervised == "get_weather\n tool_call(city='北京')<|observation|> \n 晴天。"
    assert example.labels[-1] == tokenizer.eos_token_id


def test_oldest_rounds_are_dropped_but_the_system_message_stays(tokenizer: Glm2Tokenizer) -> None:
    system = {"role": "system", "content": "你是助手。"}
    history = [
        item
        for number in range(20)
        for item in ({"role": "user", "content": f"问题{number}"}, {"role": "assistant", "content": "回答" * 8})
    ]
    checkpoint = golden_checkpoint(FAMILY)
    prompt = checkpoint.prompt_format.encode_prompt(asked([system, *history], "你好"), tokenizer)
    text = str(tokenizer.decode(prompt))
    assert len(prompt) < checkpoint.context_length
    assert text.startswith("[gMASK]sop<|system|> \n 你是助手。<|user|> \n 问题")
    assert "问题19" in text
    assert "问题0<" not in text
    dropped = text.count("<|user|>")
    longer = asked([system, *history[-2 * dropped :]], "你好")
    [*turns] = checkpoint.prompt_format.encode_turns(longer, tokenizer)
    assert sum(len(turn.prompt_ids) + len(turn.reply_ids) for turn in turns) >= checkpoint.context_length


def test_answers_end_where_another_speaks(tokenizer: Glm2Tokenizer) -> None:
    stop = golden_checkpoint(FAMILY).prompt_format.stop_token_ids(tokenizer)
    assert stop == [2, *(tokenizer.convert_tokens_to_ids(role) for role in ("<|user|>", "<|observation|>"))]
