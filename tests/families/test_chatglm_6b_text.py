"""ChatGLM-6B reads and writes text as the original implementation, in both vocabulary revisions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import GOLDEN, SHARED, golden_checkpoint, golden_json, golden_model, golden_tensors

from lit_sft import Conversation, Message, open_checkpoint
from lit_sft.families.chatglm.tokenizer import ChatGLM6BTokenizer, read_whitespace, write_whitespace
from lit_sft.generation.generate import _answer

REVISIONS = ["chatglm-6b", "chatglm-6b-v0"]
MODEL_FILES = {"chatglm-6b": "ice_text.v11.model", "chatglm-6b-v0": "ice_text.v0.model"}


@pytest.fixture(scope="module", params=REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def tokenizer(revision: str) -> Any:
    return golden_checkpoint(revision).load_tokenizer()


def said(*texts: str, system: str = "") -> Conversation:
    roles = ["user", "assistant"]
    messages = [Message(roles[index % 2], text) for index, text in enumerate(texts)]  # type: ignore[arg-type]
    return Conversation([Message("system", system), *messages] if system else messages)


def record_of(record: dict[str, Any], use_history: bool) -> Conversation:
    history = [text for turn in record["history"] for text in turn] if use_history else []
    return said(*history, record["prompt"], record["response"])


# Tokenizer


def check_tokenizer(tokenizer: Any, golden: dict[str, Any]) -> None:
    for case in golden["strings"]:
        text, ids = case["text"], case["ids"]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, text
        assert tokenizer(text)["input_ids"] == case["ids_special"], text
        assert tokenizer.convert_ids_to_tokens(ids) == case["tokens"], text
        assert tokenizer.tokenize(text) == case["tokens"], text
        assert tokenizer.decode(ids) == case["decode"], text
        assert tokenizer.decode(case["ids_special"]) == case["decode_special"], text
        assert tokenizer.decode(case["ids_special"], skip_special_tokens=True) == case["decode_skip"], text
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == case["decode_nocleanup"], text


def check_padding(tokenizer: Any, golden: dict[str, Any], model: Any = None) -> None:
    for case in golden["padded"]:
        batch = tokenizer(case["texts"], padding=True, return_tensors="pt")
        assert batch["input_ids"].tolist() == case["input_ids"]
        real, blocked = batch["attention_mask"].bool(), torch.tensor(case["attention_mask"]).bool()[:, 0]
        assert torch.equal(real, ~blocked.diagonal(dim1=1, dim2=2))
        if model is None:
            continue
        layout = model.transformer.layout(batch["input_ids"], real)
        assert torch.equal(layout.allowed()[:, 0][real], ~blocked[real])
        for ids, own, expected in zip(case["input_ids"], layout.positions.tolist(), case["position_ids"], strict=True):
            # Given both marks, the original tokenizer takes the place of [MASK], the original network that of [gMASK].
            if not {tokenizer.mask_token_id, tokenizer.gmask_token_id} <= set(ids):
                assert own == expected


def test_every_text_has_the_original_ids_and_decodes(revision: str, tokenizer: Any) -> None:
    check_tokenizer(tokenizer, golden_json(revision, "tokenizer_golden"))


def test_padded_batches_are_those_of_the_original(revision: str, tokenizer: Any) -> None:
    check_padding(tokenizer, golden_json(revision, "tokenizer_golden"), golden_model(revision))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the released ice_text.model files: set LIT_SFT_SHARED")
def test_the_released_vocabularies_have_the_original_ids_and_decodes(revision: str) -> None:
    golden = json.loads((SHARED / f"reference/tokenizers/{revision}.json").read_text(encoding="utf-8"))
    is_first = revision.endswith("v0")
    tokenizer = ChatGLM6BTokenizer(
        str(SHARED / "reference/tokenizers" / MODEL_FILES[revision]),
        num_image_tokens=20000 if is_first else 0,
        parsed_tokens=("<sop>", "</s>" if is_first else "<eop>", "[MASK]", "<pad>", "<unk>"),
    )
    assert tokenizer.vocab_size == golden["vocab_size"]
    check_tokenizer(tokenizer, golden)
    check_padding(tokenizer, golden)
    chat = golden["chat"]
    prompt_format = golden_checkpoint(revision).family.prompt_formats()["chatglm"]
    history = [text for turn in chat["history"] for text in turn]
    assert prompt_format.encode_prompt(said(chat["query"]), tokenizer) == chat["ids_single"]
    assert prompt_format.encode_prompt(said(*history, chat["query"]), tokenizer) == chat["ids_multi"]


def test_what_users_write_has_the_ids_of_the_original_unless_it_spells_a_control_token(
    revision: str, tokenizer: Any
) -> None:
    for case in golden_json(revision, "tokenizer_golden")["strings"]:
        if not any(token in case["text"] for token in tokenizer.parsed_tokens):
            assert tokenizer.encode_text(case["text"]) == case["ids"]


def test_many_texts_at_once_have_the_ids_of_each(tokenizer: Any) -> None:
    texts = ["你好", "", "a  b\tc\n", "😀"]
    assert tokenizer.encode_texts(texts) == [tokenizer.encode_text(text) for text in texts]


@pytest.mark.parametrize("length", [1, 2, 79, 80, 81, 82, 160, 161, 163])
def test_runs_of_blanks_survive(length: int) -> None:
    text = f"a{' ' * length}b\n\tc"
    assert read_whitespace(write_whitespace(text)) == text
    assert "  " not in write_whitespace(text)


def test_generated_answers_are_spared_the_clean_up(tokenizer: Any) -> None:
    text = "if x == ' a ' : print ( x , ' !' )"
    assert _answer(tokenizer.encode_text(text), tokenizer, {tokenizer.eos_token_id}).text == text


def test_eop_ends_an_answer_in_both_revisions(revision: str, tokenizer: Any) -> None:
    assert (
        tokenizer.eos_token_id
        == golden_json(revision)["ids"]["eop"]
        == golden_checkpoint(revision).config["eos_token_id"]
    )


def test_rows_beyond_the_vocabulary_have_no_text(revision: str, tokenizer: Any) -> None:
    last_row = golden_checkpoint(revision).config["vocab_size"] - 1
    assert tokenizer.decode([*tokenizer.encode_text("你好"), last_row]) == "你好"


def test_a_saved_tokenizer_is_read_back(revision: str, tokenizer: Any, tmp_path: Path) -> None:
    shutil.copy(GOLDEN / revision / "checkpoint" / "config.json", tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = open_checkpoint(tmp_path).load_tokenizer()
    text = "你好  [MASK] </s> <eop>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


# Prompts


def test_prompts_are_those_of_the_original_chat(revision: str, tokenizer: Any) -> None:
    golden = golden_json(revision, "prompt_golden")
    checkpoint = golden_checkpoint(revision)
    chat = checkpoint.prompt_format
    history = [tuple(turn) for turn in golden["history"]]
    assert chat.prompt([], golden["query"]) == golden["prompt_single_turn_no_history"]  # type: ignore[attr-defined]
    assert chat.prompt(history, golden["query"]) == golden["prompt_multi_turn"]  # type: ignore[attr-defined]
    past = [text for turn in golden["history"] for text in turn]
    assert chat.encode_prompt(said(golden["query"]), tokenizer) == golden["ids_single"]
    assert chat.encode_prompt(said(*past, golden["query"]), tokenizer) == golden["ids_multi"]
    rounds: Any = golden_checkpoint(revision, prompt_format="chatglm-rounds").prompt_format
    assert rounds.prompt([], golden["query"]) == golden["finetune_history_column_but_empty"]
    assert rounds.prompt(history, golden["query"]) == golden["finetune_with_history_column"]


@pytest.mark.parametrize("case", ["train", "train_hist"])
def test_training_rows_are_those_of_the_original_script(revision: str, tokenizer: Any, case: str) -> None:
    golden, settings = golden_tensors(revision), golden_json(revision)["train"][case]
    name = "chatglm-rounds" if settings["use_history"] else "chatglm"
    prompt_format = golden_checkpoint(revision, prompt_format=name).prompt_format
    for index, record in enumerate(settings["records"]):
        (turn,) = prompt_format.encode_turns(record_of(record, settings["use_history"]), tokenizer)
        prompt = turn.prompt_ids[:-2][: settings["max_source_length"] - 1] + turn.prompt_ids[-2:]
        reply = turn.reply_ids[:-1][: settings["max_target_length"] - 2] + turn.reply_ids[-1:]
        length = settings["lengths"][index]
        assert prompt + reply == golden[f"{case}.input_ids"][index, :length].tolist()
        labels = [-100] * (len(prompt) - 1) + [tokenizer.bos_token_id] + reply
        assert labels == golden[f"{case}.labels"][index, :length].tolist()
        assert turn.labels()[-len(turn.reply_ids) - 2 :] == [-100, tokenizer.bos_token_id, *turn.reply_ids]


def test_a_system_message_stands_before_the_first_question() -> None:
    checkpoint = golden_checkpoint("chatglm-6b")
    tokenizer: Any = checkpoint.load_tokenizer()

    def prompt_of(conversation: Conversation) -> str:
        ids = checkpoint.prompt_format.encode_prompt(conversation, tokenizer)
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    assert prompt_of(said("hi", system="Be kind.")) == "Be kind.\nhi"
    expected = "[Round 0]\n问:Be kind.\nhi\n答:yes\n[Round 1]\n问:no\n答:"
    assert prompt_of(said("hi", "yes", "no", system="Be kind.")) == expected


def test_the_oldest_rounds_are_dropped_where_the_history_does_not_fit() -> None:
    checkpoint = golden_checkpoint("chatglm-6b")
    tokenizer: Any = checkpoint.load_tokenizer()
    conversation = said(
        *(f"{role} {index}" for index in range(9) for role in ("ask", "say")), "last", system="Be kind."
    )
    ids = checkpoint.prompt_format.encode_prompt(conversation, tokenizer)
    assert len(ids) < checkpoint.context_length
    text = tokenizer.decode(ids)
    assert text.startswith("[Round 0]\n问:Be kind.\nask ")
    assert "ask 0" not in text
    assert "ask 8" in text


def test_chat_answers_are_polished_as_in_the_original(revision: str) -> None:
    for raw, polished in golden_json(revision, "prompt_golden")["process_response"]:
        assert golden_checkpoint(revision).family.postprocess_answer(raw) == polished


def test_a_remembered_id_is_forgotten_when_tokens_are_added() -> None:
    tokenizer = golden_checkpoint("chatglm-6b").load_tokenizer()
    assert tokenizer.convert_tokens_to_ids("<ferry>") == tokenizer.unk_token_id
    tokenizer.add_tokens(["<ferry>"])
    added = tokenizer.added_tokens_encoder["<ferry>"]
    assert tokenizer.convert_tokens_to_ids("<ferry>") == added
    assert tokenizer.convert_tokens_to_ids(["<ferry>", "<eop>"]) == [added, tokenizer.eos_token_id]
