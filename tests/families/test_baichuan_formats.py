"""The chat formats of Baichuan equal the original builders, id by id."""

from collections.abc import Sequence
from typing import Any

import pytest
from goldens import golden_checkpoint, golden_json

from lit_sft import Conversation, Message
from lit_sft.conversation import IGNORE_INDEX
from lit_sft.errors import BadRecord, ConfigError
from lit_sft.families.baichuan.prompts import BaichuanChatFormat, ChatLimits

CHAT = ["baichuan-13b", "baichuan2-7b", "baichuan2-13b"]
USER, ASSISTANT, EOS = 195, 196, 2


def conversation(messages: Sequence[dict[str, str]]) -> Conversation:
    return Conversation([Message(message["role"], message["content"]) for message in messages])  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=CHAT)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(family: str) -> Any:
    return golden_checkpoint(family, family).load_tokenizer()


@pytest.fixture(scope="module")
def chat(family: str) -> BaichuanChatFormat:
    prompt_format = golden_checkpoint(family, family).prompt_format
    assert isinstance(prompt_format, BaichuanChatFormat)
    return prompt_format


def test_prompts_equal_build_chat_input(family: str, tokenizer: Any, chat: BaichuanChatFormat) -> None:
    for case in golden_json(family, "chat_golden")["build_chat_input"]:
        assert chat.encode_prompt(conversation(case["messages"]), tokenizer) == case["input_ids"], case["messages"]


def test_examples_equal_the_official_fine_tuning_script(family: str, tokenizer: Any, chat: BaichuanChatFormat) -> None:
    official = golden_json(family, "chat_golden")["baichuan2_official_finetune_preprocessing"]
    roles: dict[str, Any] = {"human": "user", "gpt": "assistant"}
    for sample in official["samples"]:
        said = [Message(roles[turn["from"]], turn["value"]) for turn in sample["conversations"]]
        example = chat.encode(Conversation(said), tokenizer)
        length = official["model_max_length"]
        padding = length - len(example)
        assert (list(example.input_ids) + [0] * padding)[:length] == sample["input_ids"]
        assert (list(example.labels) + [IGNORE_INDEX] * padding)[:length] == sample["labels"]


def test_first_release_ends_every_answer() -> None:
    checkpoint = golden_checkpoint("baichuan-13b", "baichuan-13b", "chat-eos")
    tokenizer = checkpoint.load_tokenizer()
    for case in golden_json("baichuan-13b", "chat_golden")["v1_build_chat_input_with_eos"]:
        ids = checkpoint.prompt_format.encode_prompt(conversation(case["messages"]), tokenizer)
        assert ids == case["input_ids"], case["messages"]


@pytest.fixture
def short(tokenizer: Any) -> BaichuanChatFormat:
    return BaichuanChatFormat(ChatLimits(USER, ASSISTANT, context_length=48, max_new_tokens=8))


def ids_of(tokenizer: Any, *messages: Message) -> list[int]:
    marks = {"user": [USER], "assistant": [ASSISTANT], "system": []}
    return [token for m in messages for token in marks[m.role] + tokenizer.encode_text(m.content)]


def test_history_is_cut_by_rounds_and_keeps_the_system_message(tokenizer: Any, short: BaichuanChatFormat) -> None:
    system, old = Message("system", "简短"), [Message("user", "一二三四五六七八" * 5), Message("assistant", "好")]
    new = [Message("user", "你"), Message("assistant", "好"), Message("user", "你好")]
    assert short.encode_prompt(Conversation([system, *old, *new]), tokenizer) == [
        *ids_of(tokenizer, system, *new),
        ASSISTANT,
    ]


def test_newest_round_stays_and_loses_its_left_end(tokenizer: Any, short: BaichuanChatFormat) -> None:
    asked = Message("user", "你好" * 30)
    ids = short.encode_prompt(Conversation([Message("system", "简短"), asked]), tokenizer)
    assert ids == [*ids_of(tokenizer, asked), ASSISTANT][-40:]


def test_no_room_for_a_prompt_is_an_error(tokenizer: Any) -> None:
    format_ = BaichuanChatFormat(ChatLimits(USER, ASSISTANT, context_length=24, max_new_tokens=24))
    with pytest.raises(ConfigError, match="max_new_tokens 24"):
        format_.encode_prompt(Conversation([Message("user", "你好")]), tokenizer)


def test_nothing_ends_an_answer_behind_a_system_message(tokenizer: Any, chat: BaichuanChatFormat) -> None:
    said = [Message("system", "简短"), Message("user", "你好"), Message("assistant", "好"), Message("user", "再见"),
            Message("assistant", "再见")]  # fmt: skip
    example = chat.encode(Conversation(said), tokenizer)
    at_marks = [label for token, label in zip(example.input_ids, example.labels, strict=True) if token == USER]
    assert at_marks == [IGNORE_INDEX, EOS]
    assert example.labels[-1] == EOS


def test_empty_system_message_changes_nothing(tokenizer: Any, chat: BaichuanChatFormat) -> None:
    """No mark behind it carries a label, as behind any system message."""
    said = [Message("user", "你好"), Message("assistant", "好")]
    example = chat.encode(Conversation([Message("system", ""), *said]), tokenizer)
    reply = [*tokenizer.encode_text("好"), EOS]
    assert list(example.input_ids) == list(chat.encode(Conversation(said), tokenizer).input_ids)
    assert list(example.labels) == [IGNORE_INDEX] * (len(example) - len(reply)) + reply


@pytest.mark.parametrize("family", CHAT)
def test_role_marks_come_from_the_generation_config(family: str) -> None:
    limits = golden_checkpoint(family, family).family.chat_limits()  # type: ignore[attr-defined]
    params = golden_json(family, "chat_golden")["build_chat_input_params"]
    assert (limits.user_token_id, limits.assistant_token_id) == (USER, ASSISTANT)
    assert (limits.context_length, limits.max_new_tokens) == (params["model_max_length"], params["max_new_tokens"])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([Message("user", "你好"), Message("system", "简短")], "system-message-not-first"),
        ([Message("user", "你好"), Message("tool", "{}")], "tool-message"),
    ],
)
def test_what_the_original_refuses_is_refused(
    tokenizer: Any, chat: BaichuanChatFormat, messages: list[Message], reason: str
) -> None:
    with pytest.raises(BadRecord, match=reason):
        chat.encode(Conversation(messages), tokenizer)


def test_plain_format_has_a_blank_before_the_reply(family: str, tokenizer: Any) -> None:
    """From the dummy prefix of the first generation, written out for the second, which has none."""
    plain = golden_checkpoint(family, family, "human-assistant").prompt_format
    example = plain.encode(Conversation([Message("user", "你好"), Message("assistant", "好")]), tokenizer)
    assert tokenizer.convert_ids_to_tokens(example.input_ids)[-3:] in (["▁", "好", "</s>"], [":", "▁好", "</s>"])


@pytest.mark.parametrize("family", ["baichuan-7b", *CHAT])
def test_plain_format_drops_the_oldest_rounds(family: str) -> None:
    checkpoint = golden_checkpoint(family, family, "human-assistant")
    limits = checkpoint.family.chat_limits()  # type: ignore[attr-defined]
    tokenizer, plain = checkpoint.load_tokenizer(), checkpoint.prompt_format
    system, asked = Message("system", "简短"), Message("user", "最后的问题")
    rounds = [[Message("user", f"问题{n}"), Message("assistant", f"答{n}。" * 5)] for n in range(400)]

    def prompt_of(num_rounds: int) -> list[int]:
        newest = [message for said in rounds[len(rounds) - num_rounds :] for message in said]
        return plain.encode_prompt(Conversation([system, *newest, asked]), tokenizer)

    cut = prompt_of(len(rounds))
    fitting = [ids for ids in map(prompt_of, range(20)) if len(ids) <= limits.max_input()]
    assert cut == max(fitting, key=len)
    assert len(cut) <= limits.context_length - limits.max_new_tokens
    # One question is never cut.
    assert len(plain.encode_prompt(Conversation([Message("user", "问" * 2000)]), tokenizer)) > limits.context_length


def test_the_plain_format_refuses_what_tools_say() -> None:
    checkpoint = golden_checkpoint("baichuan-7b")
    said = Conversation([Message("user", "q"), Message("tool", "r"), Message("assistant", "a")])
    with pytest.raises(BadRecord, match="tool-message"):
        checkpoint.prompt_format.encode(said, checkpoint.load_tokenizer())
