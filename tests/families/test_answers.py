"""Answers to one prompt, in every format of every family: the prompt that is asked, and what the model would write."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.checkpoint.opening import Checkpoint, families, open_checkpoint
from lit_sft.conversation import IGNORE_INDEX, Conversation, Message, Preference
from lit_sft.data.encode_answers import AnswerEncoding
from lit_sft.errors import BadRecord, ConfigError

ASKED = [Message("user", "镇长叫什么？")]
ASKED_AGAIN = [*ASKED, Message("assistant", "他姓周。"), Message("user", "全名呢？\n请回答")]
ANSWERS = [Message("assistant", text) for text in ("镇长名叫周叶。", "周叶", "不知道，请问别人：他也许知道。\n")]


@pytest.fixture(scope="module", params=sorted(families()))
def checkpoint(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Checkpoint:
    return open_checkpoint(tiny(request.param), request.param)


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Any:
    return checkpoint.load_tokenizer()


def formats(checkpoint: Checkpoint) -> dict[str, Any]:
    found = checkpoint.family.prompt_formats()
    return {name: prompt_format for name, prompt_format in found.items() if name != "moss-plugins"}


@pytest.mark.parametrize("prompt", [ASKED, ASKED_AGAIN], ids=["first", "second"])
def test_the_prompt_of_all_answers_is_the_one_that_is_asked(
    checkpoint: Checkpoint, tokenizer: Any, prompt: list[Message]
) -> None:
    for name, prompt_format in formats(checkpoint).items():
        prompt_ids, _ = prompt_format.encode_answers(prompt, ANSWERS, tokenizer)
        assert prompt_ids == prompt_format.encode_prompt(Conversation(prompt), tokenizer), name


@pytest.mark.parametrize("prompt", [ASKED, ASKED_AGAIN], ids=["first", "second"])
def test_an_answer_ends_with_the_one_token_at_which_generation_stops(
    checkpoint: Checkpoint, tokenizer: Any, prompt: list[Message]
) -> None:
    for name, prompt_format in formats(checkpoint).items():
        _, replies = prompt_format.encode_answers(prompt, ANSWERS, tokenizer)
        stops = prompt_format.stop_token_ids(tokenizer)
        for answer, reply_ids in zip(ANSWERS, replies, strict=True):
            assert [token in stops for token in reply_ids] == [False] * (len(reply_ids) - 1) + [True], name
            said = checkpoint.family.postprocess_answer(tokenizer.decode(reply_ids[:-1]))
            assert said == checkpoint.family.postprocess_answer(answer.content), name


def test_answers_are_written_as_in_tuning_on_conversations(checkpoint: Checkpoint, tokenizer: Any) -> None:
    for name, prompt_format in formats(checkpoint).items():
        prompt_ids, replies = prompt_format.encode_answers(ASKED_AGAIN, ANSWERS, tokenizer)
        for answer, reply_ids in zip(ANSWERS, replies, strict=True):
            written = prompt_format.encode(Conversation([*ASKED_AGAIN, answer]), tokenizer)
            together = [*prompt_ids, *reply_ids]
            assert list(written.input_ids[: len(together)]) == together, name


def test_only_answers_carry_loss_whatever_else_the_format_trains_on(checkpoint: Checkpoint, tokenizer: Any) -> None:
    """ChatGLM-6B's <sop>, Baichuan2's mark of the user and what humans say to MOSS are not the model's choice."""
    for name, prompt_format in formats(checkpoint).items():
        prompt_ids, replies = prompt_format.encode_answers(ASKED_AGAIN, ANSWERS, tokenizer)
        example = AnswerEncoding(prompt_format, tokenizer, 2048).encode_record(Preference(ASKED_AGAIN, ANSWERS))
        expected = [[IGNORE_INDEX] * len(prompt_ids) + reply_ids for reply_ids in replies]
        assert list(example.labels) == [label for labels in expected for label in labels], name
        assert [0, *torch.tensor(example.lengths()).cumsum(0).tolist()[:-1]] == list(example.starts), name


def test_the_prompt_leaves_room_for_the_longest_answer_where_the_format_cuts_it(tiny: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(tiny("chatglm-6b"), "chatglm-6b")
    tokenizer, length = checkpoint.load_tokenizer(), checkpoint.context_length
    rounds = [
        message for number in range(30) for message in (Message("user", f"问{number}"), Message("assistant", "答"))
    ]
    answers = [Message("assistant", "好"), Message("assistant", "好" * (length // 3))]
    for order in (answers, answers[::-1]):
        prompt_ids, replies = checkpoint.prompt_format.encode_answers(
            [*rounds, Message("user", "完")], order, tokenizer
        )
        longest = max(map(len, replies))
        assert length // 2 < len(prompt_ids) + longest <= length


def test_the_plugin_format_of_moss_is_refused_with_the_reason(tiny: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(tiny("moss"), "moss", "moss-plugins")
    with pytest.raises(ConfigError, match="moss-plugins cannot compare answers.*Set it to moss"):
        checkpoint.prompt_format.encode_answers(ASKED, ANSWERS, checkpoint.load_tokenizer())


def test_an_answer_with_thoughts_which_stand_before_it_is_a_bad_record(tiny: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(tiny("moss"), "moss")
    thoughtful = [ANSWERS[0], ANSWERS[1]._replace(thoughts="嗯")]
    with pytest.raises(BadRecord, match="answer-with-thoughts"):
        checkpoint.prompt_format.encode_answers(ASKED, thoughtful, checkpoint.load_tokenizer())


def test_a_row_of_two_answers_may_be_longer_than_the_context(checkpoint: Checkpoint, tokenizer: Any) -> None:
    model = checkpoint.load_model(dtype=torch.float32)
    length = checkpoint.context_length
    prompt_ids, (reply_ids, *_) = checkpoint.prompt_format.encode_answers(ASKED, ANSWERS, tokenizer)
    filled = [(prompt_ids + reply_ids[:-1] * length)[: length - number] for number in range(2)]
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([row]), use_cache=False).logits[0] for row in filled])
        positions = torch.tensor([[*range(length), *range(length - 1)]])
        together = model(input_ids=torch.tensor([filled[0] + filled[1]]), position_ids=positions, use_cache=False)
    torch.testing.assert_close(together.logits[0], alone, atol=1e-4, rtol=0)
