"""Corpora in, batches out."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import LetterText

from lit_sft.corpora.belle import Belle
from lit_sft.corpora.firefly import Firefly
from lit_sft.data.datamodule import SFTData
from lit_sft.errors import ConfigError, DataError


def data_of(tmp_path: Path, outputs: list[str], **options: Any) -> SFTData:
    file = tmp_path / "belle.json"
    records = [{"instruction": f"q{i:02d}", "input": "", "output": output} for i, output in enumerate(outputs)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"max_length": 32, "micro_batch_size": 4, "validation_fraction": 0.25, **options}
    data = SFTData(LetterText(), [Belle(str(file))], **options)
    data.setup("fit")
    return data


def sources(batches: Any) -> list[str]:
    return [source for batch in batches for source in batch.sources]


def test_every_record_is_seen_once_in_training_or_validation(tmp_path: Path) -> None:
    data = data_of(tmp_path, ["answer"] * 21)
    seen = sources(data.train_dataloader()) + sources(data.val_dataloader())
    assert sorted(seen) == sorted(f"{tmp_path}/belle.json:{line}" for line in range(1, 22))


def test_the_order_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    def order(seed: int, epoch: int) -> list[str]:
        loader = data_of(tmp_path, ["answer"] * 30, seed=seed, validation_fraction=0.0).train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # a DistributedSampler
        return sources(loader)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_worker_processes_give_the_same_batches(tmp_path: Path) -> None:
    alone, workers = (
        [batch.input_ids.tolist() for batch in data_of(tmp_path, ["answer"] * 20, num_workers=n).train_dataloader()]
        for n in (0, 2)
    )
    assert alone == workers


def test_an_example_that_does_not_fit_is_counted_not_lost(tmp_path: Path) -> None:
    data = data_of(tmp_path, ["a", "b" * 40, "c"], max_length=8, validation_fraction=0.0)
    assert data.quarantine.repaired == {"reply-cut": 1}
    data = data_of(tmp_path, ["a", "b", "c"], max_length=5, validation_fraction=0.0)
    assert data.quarantine.repaired == {"reply-cut": 3}


def test_no_example_that_fits_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="prompt-too-long.*Raise data.max_length"):
        data_of(tmp_path, ["a", "b"], max_length=4)


def test_a_corpus_with_too_many_bad_records_stops_with_a_table_of_reasons(tmp_path: Path) -> None:
    outputs = ["a"] * 17 + ["", "", ""]
    with pytest.raises(DataError, match=r"3 of 20 records of .* are bad: 3 no-answer \(first .*belle.json:18\)"):
        data_of(tmp_path, outputs)
    assert data_of(tmp_path, outputs, max_bad_fraction=0.15).quarantine.skipped == {"no-answer": 3}


def test_what_does_not_fit_is_not_bad(tmp_path: Path) -> None:
    file = tmp_path / "long.json"
    records = [{"instruction": "q" * length, "output": "a"} for length in (1, 1, 40)]
    file.write_text("".join(json.dumps(record) + "\n\n" for record in records))
    data = SFTData(LetterText(), [Belle(str(file))], max_length=8, validation_fraction=0.0, max_bad_fraction=0.0)
    data.setup("fit")
    assert data.quarantine.skipped == {"empty-line": 3, "prompt-too-long": 1}


def test_exact_duplicates_can_be_dropped_over_all_corpora(tmp_path: Path) -> None:
    belle, firefly = tmp_path / "belle.json", tmp_path / "firefly.jsonl"
    belle.write_text('{"instruction": "q\\n", "output": "a"}\n{"instruction": "q", "output": "b"}\n')
    firefly.write_text(
        '{"kind": "BELLE", "input": "q", "target": "a"}\n{"kind": "BELLE", "input": "p", "target": "a"}\n'
    )

    def read(**options: Any) -> SFTData:
        corpora = [Belle(str(belle)), Firefly(str(firefly))]
        data = SFTData(LetterText(), corpora, max_length=32, validation_fraction=0.0, **options)
        data.setup("fit")
        return data

    assert len(sources(read().train_dataloader())) == 4
    deduplicated = read(deduplicate=True)
    assert sorted(sources(deduplicated.train_dataloader())) == [f"{belle}:1", f"{belle}:2", f"{firefly}:2"]
    assert deduplicated.num_duplicates == 1


def test_rows_longer_than_the_context_of_the_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_length is 65, but the model reads 64"):
        SFTData(LetterText(), [Belle("x")], max_length=65)


def test_held_out_prompts_are_those_of_the_test_corpora_where_there_are_some(tmp_path: Path) -> None:
    test = tmp_path / "test.json"
    test.write_text("".join(f'{{"instruction": "t{i}", "input": "", "output": "a{i}"}}\n' for i in range(3)))
    data = data_of(tmp_path, ["answer"] * 8, test_corpora=[Belle(str(test))])
    assert [(prompt.text, prompt.reference) for prompt in data.held_out_prompts(2)] == [("t0", "a0"), ("t1", "a1")]


def test_held_out_prompts_come_with_their_reference(tmp_path: Path) -> None:
    data = data_of(tmp_path, [f"answer{i}" for i in range(8)])
    prompt = data.held_out_prompts(1)[0]
    number = int(prompt.text[1:])
    assert prompt.reference == f"answer{number}"
    assert prompt.source.endswith(f":{number + 1}")
