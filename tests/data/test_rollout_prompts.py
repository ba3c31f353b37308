"""Prompts in, batches of prompts for a policy to answer out."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fakes import USER, LetterText
from goldens import GOLDEN_MODELS, golden_checkpoint
from rankings import judged, ranked, written

from lit_sft.__main__ import main
from lit_sft.conversation import IGNORE_INDEX, Conversation, Prompt
from lit_sft.corpora._base import Corpus
from lit_sft.corpora.belle import Belle
from lit_sft.corpora.cvalues_prompts import CValuesPrompts
from lit_sft.corpora.moss_rlhf_prompts import MossRlhfPrompts
from lit_sft.corpora.prompt_records import PromptRecords
from lit_sft.data import order
from lit_sft.data.batch import PromptBatch
from lit_sft.data.order import Position
from lit_sft.data.rollout_prompts import PromptData
from lit_sft.errors import ConfigError


def belle(tmp_path: Path, count: int, question: str = "q{:02d}") -> Belle:
    records = [{"instruction": question.format(n), "input": "", "output": f"a{n}"} for n in range(count)]
    file = tmp_path / "belle.json"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return Belle(str(file))


def data_of(*corpora: Corpus, **options: Any) -> PromptData:
    options = {"max_length": 32, "max_new_tokens": 16, "micro_batch_size": 2, "validation_fraction": 0.0, **options}
    data = PromptData(LetterText(), list(corpora), **options)
    data.setup("fit")
    return data


def prompts_of(batches: Any) -> list[Prompt]:
    return [prompt for batch in batches for prompt in batch.prompts]


def texts(batches: Any) -> list[list[str]]:
    return [[prompt.text for prompt in batch.prompts] for batch in batches]


def known(prompts: list[Prompt]) -> set[tuple[str, str | None]]:
    return {(prompt.text, prompt.reference) for prompt in prompts}


def test_a_batch_has_what_the_network_reads_what_was_said_and_the_answer_that_is_known(tmp_path: Path) -> None:
    data = data_of(belle(tmp_path, 2))
    (batch,) = data.train_dataloader()
    assert isinstance(batch, PromptBatch)
    for row, prompt in enumerate(batch.prompts):
        assert prompt.input_ids == [USER, *map(ord, prompt.text)] == batch.input_ids[row].tolist()
        assert [(message.role, message.content) for message in prompt.messages] == [("user", prompt.text)]
        assert prompt.source == batch.sources[row]
        assert prompt.category == "Belle"
    assert known(batch.prompts) == {("q00", "a0"), ("q01", "a1")}
    assert (batch.labels == IGNORE_INDEX).all()
    assert (batch.num_tokens, batch.num_supervised) == (8, 0)
    assert pickle.loads(pickle.dumps(batch)).prompts == batch.prompts  # as from a worker
    assert batch.to(torch.device("cpu")).prompts == batch.prompts


def test_prompts_come_from_corpora_of_every_kind(tmp_path: Path) -> None:
    rankings = written(
        tmp_path / "r.jsonl", [ranked("r", "good", "bad"), judged("g", "yes", True), judged("b", "no", False)]
    )
    (tmp_path / "c.jsonl").write_text('{"prompt": "c", "domain_en": "law", "id_": 1}\n', encoding="utf-8")
    (tmp_path / "m.json").write_text('[["m"], ["n", "answer", "m"], ["o", "answer"]]', encoding="utf-8")
    cvalues, moss = CValuesPrompts(str(tmp_path / "c.jsonl")), MossRlhfPrompts(str(tmp_path / "m.json"))
    file = tmp_path / "p.jsonl"
    file.write_text('{"question": "p", "answer": "known"}\n{"messages": [{"role": "user", "content": "t"}]}\n')
    data = data_of(rankings, cvalues, moss, PromptRecords(str(file)), micro_batch_size=9)
    (batch,) = data.train_dataloader()
    assert known(batch.prompts) == {
        *(("r", "good"), ("g", "yes"), ("b", None), ("c", None)),
        *(("m", None), ("n\nanswer\nm", None), ("o", "answer"), ("p", "known"), ("t", None)),
    }
    assert {prompt.category for prompt in batch.prompts} == {"Rankings", "law", "MossRlhfPrompts", "PromptRecords"}


def test_a_prompt_without_room_for_the_answer_is_left_out_and_counted(tmp_path: Path) -> None:
    questions = written(tmp_path / "r.jsonl", [judged("?" * (n + 1), "yes", True) for n in range(20)])
    data = data_of(questions, max_length=32, max_new_tokens=20, micro_batch_size=1, max_bad_fraction=0.5)
    lengths = sorted(len(prompt.input_ids) for prompt in prompts_of(data.train_dataloader()))
    assert lengths == [*range(2, 13)]
    assert data.quarantine.skipped == {"prompt-too-long": 9}


def test_every_batch_of_training_is_whole_and_no_prompt_comes_twice_in_an_epoch(tmp_path: Path) -> None:
    data = data_of(belle(tmp_path, 23), micro_batch_size=4)
    epochs = []
    for epoch in range(2):
        data.order.set_epoch(epoch)
        batches = list(data.train_dataloader())
        assert [len(batch.prompts) for batch in batches] == [4] * 5
        assert batches[-1].epoch_progress == 1
        epochs.append([prompt.text for prompt in prompts_of(batches)])
        assert len(set(epochs[-1])) == 20
    assert epochs[0] != epochs[1]


def test_two_ranks_share_the_prompts_of_one_step_as_one_rank_with_twice_as_many_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = belle(tmp_path, 23)
    whole = [
        [prompt.text for prompt in batch.prompts] for batch in data_of(corpus, micro_batch_size=6).train_dataloader()
    ]
    shares = []
    for rank in range(2):
        monkeypatch.setattr(PromptData, "_ranks", lambda self, rank=rank: {"num_ranks": 2, "rank": rank})
        shares.append(
            [[p.text for p in batch.prompts] for batch in data_of(corpus, micro_batch_size=3).train_dataloader()]
        )
    assert [first + second for first, second in zip(*shares, strict=True)] == whole


def test_a_run_goes_on_with_the_batch_it_would_have_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "WINDOW", 8)
    corpus = belle(tmp_path, 40)
    data = data_of(corpus, micro_batch_size=3)
    whole = texts(data.train_dataloader())
    assert len(whole) == 2 * 5  # of each window what makes whole batches
    resumed = data_of(corpus, micro_batch_size=3)
    resumed.load_state_dict({**vars(data.order.position_after(0, 5)), "data": data.identity()})
    assert texts(resumed.train_dataloader()) == whole[5:]
    other = data_of(corpus, micro_batch_size=3, max_new_tokens=17)
    with pytest.raises(ConfigError, match="in the middle of an epoch of other data or other batches: encoding"):
        other.load_state_dict({**vars(Position(0, 5, 2, 3)), "data": data.identity()})


def test_held_out_prompts_are_each_asked_once_with_their_references(tmp_path: Path) -> None:
    data = data_of(belle(tmp_path, 30), validation_fraction=0.3)
    held_out = prompts_of(data.val_dataloader())
    trained = prompts_of(data.train_dataloader())
    assert len({prompt.text for prompt in held_out}) == len(held_out) > 2
    assert not known(held_out) & known(trained)
    assert all(prompt.reference == f"a{int(prompt.text[1:])}" for prompt in held_out)


def test_what_is_forgotten_is_measured_on_answers(tmp_path: Path) -> None:
    data = data_of(belle(tmp_path, 3))
    assert data.forgetting_dataloader() == []
    data.forgetting = [belle(tmp_path, 3)]
    batches = list(data.forgetting_dataloader())
    assert sum(batch.num_supervised for batch in batches) == 3 * len("a0.")


def test_a_configuration_names_it_and_tuning_on_answers_refuses_it(
    write_config: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(write_config(data={"max_new_tokens": 8, "micro_batch_size": 2}))
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["data"]["class_path"] = "PromptData"
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    assert main(["fit", "--config", str(file)]) == 2
    assert "PromptData has no answers that SFT could learn. Set data.class_path to SFTData" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1 and below data.max_length, which is 32"),
        ({"max_new_tokens": 32}, "max_new_tokens is 32"),
        ({"packing": True}, "data.packing is true"),
        ({"micro_batch_size": 5}, "4 prompts to train on .* no whole batch of data.micro_batch_size 5 for 1 device"),
        ({"max_new_tokens": 29}, "fits into data.max_length = 32 .*4 skipped: prompt-too-long"),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        data_of(belle(tmp_path, 4), **options)


@pytest.mark.parametrize("folder", GOLDEN_MODELS)
def test_every_family_reads_what_it_would_be_asked(folder: str, tmp_path: Path) -> None:
    checkpoint = golden_checkpoint(folder)
    # MOSS's own system prompt would fill the context of a tiny checkpoint.
    questions = [{"system": "简短。", **judged("渡船几点开？" * n, "八点。", True)} for n in range(1, 5)]
    room: dict[str, Any] = {"max_length": checkpoint.context_length, "max_new_tokens": 8, "max_bad_fraction": 0.9}
    corpora: list[Corpus] = [written(tmp_path / "r.jsonl", questions)]
    data = PromptData(checkpoint, corpora, micro_batch_size=1, validation_fraction=0.0, **room)
    data.setup("fit")
    prompts = prompts_of(data.train_dataloader())
    assert prompts
    for prompt in prompts:
        asked = Conversation(prompt.messages)
        assert prompt.input_ids == checkpoint.prompt_format.encode_prompt(asked, data.tokenizer)
        assert len(prompt.input_ids) + 8 <= checkpoint.context_length
