"""Every number of a preview, on small corpora whose dirt is known."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import LetterText

from lit_sft.corpora.belle import Belle
from lit_sft.corpora.firefly import Firefly
from lit_sft.corpora.jsonl_chat import JsonlChat
from lit_sft.data.sft import SFTData
from lit_sft.preview import statistics
from lit_sft.preview.statistics import Statistics, measure


def belle(question: str, answer: str) -> str:
    return json.dumps({"instruction": question, "input": "", "output": answer})


def firefly(question: str, answer: str) -> str:
    return json.dumps({"kind": "QA", "input": question, "target": answer})


def chat(*texts: str) -> str:
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    return json.dumps({"messages": messages})


def data_of(*corpora: Any, **options: Any) -> SFTData:
    defaults = {"max_length": 12, "micro_batch_size": 2, "validation_fraction": 0.0, "max_bad_fraction": 1.0}
    return SFTData(LetterText(), list(corpora), **(defaults | options))


def measured(*corpora: Any, num_devices: int = 1, accumulation: int = 1, **options: Any) -> Statistics:
    return measure(data_of(*corpora, **options), num_devices=num_devices, accumulation=accumulation)


@pytest.fixture
def dirty(tmp_path: Path) -> list[Any]:
    """Two corpora with one of everything that can be wrong."""
    first, second = tmp_path / "belle.json", tmp_path / "firefly.jsonl"
    lines = [
        belle("qqq", "aaaa"),  # 4 tokens of prompt, 5 of answer
        belle("qqq", "aaaa"),
        belle("qqq", "bbbb") + "\r",
        belle("q", "a"),  # 2 characters: filtered
        belle("qqq", ""),
        '{"instruction": ',
        "",
        belle("qqq", "a" * 20),  # the answer does not fit
        belle("q" * 12, "aaaa"),  # nor does this prompt
    ]
    first.write_bytes("".join(line + "\n" for line in lines).encode())
    second.write_text("".join(line + "\n" for line in [firefly("qqq", "aaaa"), firefly("qq", "ccccc")]))
    return [Belle(str(first), min_characters=3), Firefly(str(second))]


def test_records_are_counted_by_what_became_of_them(dirty: list[Any]) -> None:
    found = measured(*dirty)
    first, second = found.corpora
    assert (first.name, first.num_records, first.num_usable, first.num_left_out) == ("Belle", 9, 5, 1)
    assert first.skipped == {"no-answer": 1, "broken-json": 1, "empty-line": 1}
    assert first.repaired == {"crlf": 1}
    assert (first.num_repeats_inside, first.num_repeats_across) == (1, 0)
    assert (second.num_records, second.num_usable) == (2, 2)
    assert (second.num_repeats_inside, second.num_repeats_across) == (0, 1)
    assert (found.total.num_records, found.total.num_usable, found.total.num_train) == (11, 7, 7)
    assert found.total.skipped.total() == 3
    for corpus in (*found.corpora, found.total):
        assert corpus.num_records == corpus.num_usable + corpus.num_left_out + corpus.skipped.total()


def test_tokens_are_counted_as_the_network_reads_them(dirty: list[Any]) -> None:
    found = measured(*dirty)
    first, second = (corpus.encoded for corpus in found.corpora)
    # Three of nine tokens, and one cut to twelve, of which eight are the answer.
    assert (first.num_tokens, first.num_supervised) == (9 * 3 + 12, 5 * 3 + 8)
    assert (first.cut, first.unfit) == ({"reply-cut": 1.0}, {"prompt-too-long": 1.0})
    assert first.characters_per_token == pytest.approx(7 / 9)
    assert (second.num_tokens, second.num_supervised) == (9 + 9, 5 + 6)
    assert found.total.encoded.num_tokens == first.num_tokens + second.num_tokens
    assert first.percentiles() == [9, 9, 9, 9, 12, 12, 12]
    assert first.histogram(12, 12).tolist() == [0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 1]


def test_turns_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    file.write_text(chat("qq", "aa", "qq", "aa") + "\n" + chat("qq", "aa", "qqqqq", "aa") + "\n")
    found = measured(JsonlChat(str(file)))
    assert found.total.encoded.cut == {"turns-dropped": 1.0}
    assert found.total.encoded.num_tokens == 12 + 6


def test_the_first_token_carries_no_loss_whatever_the_options_say(tmp_path: Path) -> None:
    file = tmp_path / "belle.json"
    file.write_text(belle("qqq", "aaaa") + "\n")
    assert measured(Belle(str(file)), loss_on="all").total.encoded.num_supervised == 8


def test_training_and_validation_share_nothing_and_repeats_are_named(tmp_path: Path) -> None:
    file = tmp_path / "belle.json"
    file.write_text("".join(belle("q", f"a{i % 10}") + "\n" for i in range(30)))
    kept = measured(Belle(str(file)), validation_fraction=0.2)
    assert (kept.total.num_train, kept.total.num_validation) == (24, 6)
    assert (kept.split.num_shared, kept.split.num_repeats, kept.split.dropped) == (0, 4, False)
    dropped = measured(Belle(str(file)), validation_fraction=0.2, deduplicate=True)
    assert (dropped.total.num_train, dropped.total.num_validation) == (8, 2)
    assert (dropped.split.num_shared, dropped.split.num_repeats, dropped.split.dropped) == (0, 4, True)


def test_what_training_and_validation_share_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "belle.json"
    file.write_text("".join(belle("q", f"a{i % 10}") + "\n" for i in range(30)))
    data = data_of(Belle(str(file)))
    everything = data.split.train
    object.__setattr__(data.split, "validation", (everything[0][:2], everything[1][:2]))
    assert measure(data, num_devices=1, accumulation=1).split.num_shared == 6


def test_an_epoch_is_cut_as_training_cuts_it(tmp_path: Path) -> None:
    file = tmp_path / "belle.json"
    file.write_text("".join(belle("q", "a" * (i % 5 + 1)) + "\n" for i in range(50)))
    for packing in (True, False):
        data = data_of(Belle(str(file), weight=2), packing=packing)
        epoch = measure(data, num_devices=1, accumulation=1).epoch
        batches = list(data.train_dataloader())
        shapes = [batch.input_ids.shape for batch in batches]
        num_tokens = sum(batch.num_tokens for batch in batches)
        assert (epoch.num_examples, epoch.num_tokens, epoch.num_micro_batches) == (100, num_tokens, len(batches))
        assert epoch.padding_share == pytest.approx(1 - num_tokens / sum(rows * columns for rows, columns in shapes))
        assert epoch.row_fill == pytest.approx(num_tokens / (12 * sum(rows for rows, _ in shapes)))
        sources = [f"{file}:{record + 1}" for row in epoch.first for _, record in row]
        assert sources == batches[0].sources
        shared = measure(data, num_devices=2, accumulation=3).epoch
        assert shared.num_steps == -(-len(batches) // 6)


@pytest.mark.slow
def test_a_large_corpus_is_sampled_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = tmp_path / "belle.json", tmp_path / "firefly.jsonl"
    large.write_text("".join(belle(f"{i:04d}", "a" * (i % 4 + 1)) + "\n" for i in range(2000)))
    small.write_text("".join(firefly(f"{i:04d}", "a") + "\n" for i in range(50)))
    corpora = [Belle(str(large)), Firefly(str(small))]
    exact = measured(*corpora, cache=str(tmp_path / "exact"))
    assert not exact.total.is_sampled
    monkeypatch.setattr(statistics, "SAMPLE", 400)
    monkeypatch.setattr(statistics, "WINDOW", 200)
    monkeypatch.setattr("lit_sft.data.order.WINDOW", 200)
    data = data_of(*corpora, cache=str(tmp_path / "rough"))
    rough = measure(data, num_devices=1, accumulation=1)
    assert [corpus.is_sampled for corpus in (*rough.corpora, rough.total)] == [True, False, True]
    assert rough.epoch.is_sampled
    assert len(rough.corpora[0].encoded.lengths) == 400
    assert np.count_nonzero(data.prepared.corpora[0].store.table["seal"]) < 450
    assert rough.corpora[1].encoded.num_tokens == exact.corpora[1].encoded.num_tokens
    assert rough.total.num_train == exact.total.num_train == 2050
    for name in ("num_tokens", "num_supervised"):
        assert getattr(rough.total.encoded, name) == pytest.approx(getattr(exact.total.encoded, name), rel=0.05)
    assert rough.epoch.num_micro_batches == pytest.approx(exact.epoch.num_micro_batches, rel=0.05)
    assert rough.epoch.num_tokens == pytest.approx(exact.epoch.num_tokens, rel=0.05)


def test_nothing_that_fits_is_shown_and_no_error(tmp_path: Path) -> None:
    file = tmp_path / "belle.json"
    file.write_text(belle("q" * 30, "a") + "\n")
    found = measured(Belle(str(file)))
    assert found.total.encoded.unfit == {"prompt-too-long": 1.0}
    assert found.total.encoded.percentiles() == []
    assert found.epoch.first == []
    assert found.epoch.num_steps == 0
    assert np.isfinite(found.epoch.padding_share)
