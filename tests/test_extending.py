"""The parts of ten lines that docs/extend.md shows work as they stand there."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import DOCS, Page
from reading import read

from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.conversation import Conversation, Message
from lit_sft.families._base import TinySize
from lit_sft.objectives._base import Answers
from lit_sft.rewards._base import Answered

SIZE = TinySize(hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2, vocab_size=400, context_length=64)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """All of the page in one module."""
    folder = tmp_path_factory.mktemp("parts")
    blocks = [text for language, text in Page(DOCS / "extend.md").blocks if language == "python"]
    (folder / "parts_of_the_page.py").write_text("\n\n".join(blocks), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield import_module("parts_of_the_page")


@pytest.fixture(scope="module")
def alpaca(parts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "alpaca"
    folder.mkdir()
    torch.manual_seed(0)
    parts.Alpaca.write_tiny(folder, ["渡船几点开？八点。"] * 4, SIZE)
    return folder


def test_a_corpus_reads_its_records(parts: Any, tmp_path: Path) -> None:
    file = tmp_path / "riddles.jsonl"
    file.write_text('{"riddle": "什么东西越洗越脏？", "solution": "水。"}\n{"riddle": "？", "solution": ""}\n')
    conversations, findings = read(parts.Riddles(str(file)))
    assert [conversation.messages for conversation in conversations] == [
        [Message("user", "什么东西越洗越脏？"), Message("assistant", "水。")]
    ]
    assert findings == [("2", "no-answer")]


def test_a_reward_scores_answers(parts: Any) -> None:
    assert parts.Polite(weight=2.0).score([Answered([], "请坐。"), Answered([], "坐。")]) == [1.0, 0.0]


def test_an_objective_has_a_loss_and_the_metrics_of_its_kind(parts: Any) -> None:
    answers = Answers(torch.tensor([-1.0, -2.0], requires_grad=True), torch.tensor([3, 3]), torch.tensor([-2.0, -2.0]))
    objective = parts.SquaredHinge(beta=0.5)
    found = objective(answers, torch.tensor([[0, 1]]))
    torch.testing.assert_close(found.losses, torch.tensor([0.25]))  # (1 - 0.5 * (1 - 0)) squared
    assert len(objective.measures) == found.measures.shape[1]


def test_a_family_writes_prompts_in_its_own_way(parts: Any, alpaca: Path) -> None:
    family = parts.Alpaca(alpaca, {"model_type": "llama", "prompt": "alpaca"})
    assert parts.Alpaca.matches({"prompt": "alpaca"})
    tokenizer = family.load_tokenizer()
    conversation = Conversation([Message("user", "几点？"), Message("assistant", "八点。")])
    (turn,) = family.prompt_format.encode_turns(conversation, tokenizer)
    assert tokenizer.decode(turn.prompt_ids) == "### Instruction:\n几点？\n\n### Response:\n"
    assert turn.reply_ids[-1] == tokenizer.eos_token_id


def test_a_tuning_trains_what_it_says(parts: Any, alpaca: Path) -> None:
    model = parts.Norms().load(open_checkpoint(alpaca, "native"), "32-true")
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("norm" in name for name in trained)


def test_a_strategy_says_how_it_chooses(parts: Any) -> None:
    assert parts.Short().options()["max_new_tokens"] == 16
    assert parts.Short().name == "short"
