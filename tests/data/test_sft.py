"""Corpora in, batches out."""

import json
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from threading import Event, current_thread, main_thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import LetterText

from lit_sft.corpora._base import Corpus
from lit_sft.corpora.belle import Belle
from lit_sft.corpora.firefly import Firefly
from lit_sft.data import deciding_code, order
from lit_sft.data.encoder import Encoding
from lit_sft.data.sft import SFTData
from lit_sft.data.tokens import TokenStore
from lit_sft.errors import ConfigError, DataError


def data_of(tmp_path: Path, outputs: list[str], corpus: dict[str, Any] | None = None, **options: Any) -> SFTData:
    file = tmp_path / "belle.json"
    records = [{"instruction": f"q{i:02d}", "input": "", "output": output} for i, output in enumerate(outputs)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"max_length": 32, "micro_batch_size": 4, "validation_fraction": 0.25, **options}
    data = SFTData(LetterText(), [Belle(str(file), **(corpus or {}))], **options)
    data.setup("fit")
    return data


def sources(batches: Any) -> list[str]:
    return [source for batch in batches for source in batch.sources]


def test_every_record_is_seen_once_in_training_or_validation(tmp_path: Path) -> None:
    data = data_of(tmp_path, ["answer"] * 21)
    seen = sources(data.train_dataloader()) + sources(data.val_dataloader())
    assert sorted(seen) == sorted(f"{tmp_path}/belle.json:{line}" for line in range(1, 22))


@pytest.mark.parametrize(("device", "is_packed"), [("cpu", False), ("cuda", True)])
def test_unless_told_rows_are_packed_on_a_gpu_only(tmp_path: Path, device: str, is_packed: bool) -> None:
    data = data_of(tmp_path, ["answer"] * 4)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=SimpleNamespace(type=device)))  # type: ignore[assignment]
    assert data.batching.packing == is_packed
    data.packing = not is_packed
    assert data.batching.packing != is_packed


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


def test_too_many_records_that_do_not_fit_stop_as_bad_ones_do_and_empty_lines_do_not(tmp_path: Path) -> None:
    short, long = tmp_path / "short.json", tmp_path / "long.json"
    for file, lengths in ((short, [1, 2]), (long, [3, 40, 41])):
        records = [{"instruction": "q" * length, "output": "a"} for length in lengths]
        file.write_text("".join(json.dumps(record) + "\n\n" for record in records))

    def set_up(max_bad_fraction: float) -> SFTData:
        corpora: list[Corpus] = [Belle(str(short)), Belle(str(long))]
        data = SFTData(LetterText(), corpora, max_length=8, validation_fraction=0.0, max_bad_fraction=max_bad_fraction)
        data.setup("fit")
        return data

    message = r"Belle-2: 2 of 3 records do not fit \(2 prompt-too-long\), with data.max_length = 8. Raise it"
    with pytest.raises(DataError, match=message):
        set_up(0.5)
    assert set_up(0.7).quarantine.skipped == {"empty-line": 5, "prompt-too-long": 2}


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
    assert len(deduplicated.split.duplicates[0]) == 1


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


def rows(batches: Any) -> list[Any]:
    return [(batch.input_ids.tolist(), batch.labels.tolist(), batch.sources) for batch in batches]


@pytest.mark.parametrize("packing", [True, False])
def test_batches_are_the_same_cold_or_warm_and_with_any_number_of_workers(tmp_path: Path, packing: bool) -> None:
    """A second run finds what the first one prepared, in whatever order that was."""
    outputs = [f"{'x' * (i % 23)}{i}" for i in range(300)]
    cold = [
        rows(
            data_of(tmp_path, outputs, packing=packing, num_workers=n, cache=str(tmp_path / f"{n}")).train_dataloader()
        )
        for n in (0, 1, 2)
    ]
    warm = rows(data_of(tmp_path, outputs, packing=packing, cache=str(tmp_path / "0")).train_dataloader())
    assert cold[0] == cold[1] == cold[2] == warm


def test_what_the_second_run_needs_is_not_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [f"answer {i}" for i in range(30)]
    first = rows(data_of(tmp_path, outputs).train_dataloader())
    monkeypatch.setattr(Encoding, "encode", None)
    assert rows(data_of(tmp_path, outputs).train_dataloader()) == first


@pytest.mark.parametrize(
    "options",
    [{"max_length": 24}, {"loss_on": "all"}, {"outputs": ["another"] * 30}, {"corpus": {"min_characters": 1}}],
)
def test_what_was_prepared_for_something_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    data_of(tmp_path, ["answer"] * 30)
    encode, encoded = Encoding.encode, list[int]()

    def counted(self: Encoding, *args: Any) -> Any:
        encoded.append(1)
        return encode(self, *args)

    monkeypatch.setattr(Encoding, "encode", counted)
    data_of(tmp_path, **{"outputs": ["answer"] * 30, **options})
    assert encoded


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    assert len(sources(data_of(tmp_path, ["answer"] * 30, validation_fraction=0.0).train_dataloader())) == 30
    assert len(sources(data_of(tmp_path, ["answer"] * 31, validation_fraction=0.0).train_dataloader())) == 31


def test_a_run_starts_before_all_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a window of 10 examples of 400, the first batch needs no more than 10, and all come in the end."""
    monkeypatch.setattr(order, "WINDOW", 10)
    data = data_of(tmp_path, [f"answer {i}" for i in range(400)], validation_fraction=0.0, cache=str(tmp_path))
    (store,) = (corpus.store for corpus in data.prepared.corpora)
    assert store.is_ready(np.arange(400)).sum() == 10
    assert len(sources(data.train_dataloader())) == 400


def test_what_is_held_out_does_not_wait_for_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "WINDOW", 10)
    data = data_of(tmp_path, [f"answer {i}" for i in range(400)], num_workers=2, cache=str(tmp_path))
    append, go_on = TokenStore.append, Event()

    def slow(self: TokenStore, encoded: Any) -> None:
        if current_thread() is not main_thread():
            assert go_on.wait(60)
        append(self, encoded)

    monkeypatch.setattr(TokenStore, "append", slow)
    data.prepared.encoder.begin(data.mixture.epoch(0))
    validated = sources(data.val_dataloader())
    assert not go_on.is_set()
    go_on.set()
    assert len(validated) + len(sources(data.train_dataloader())) == 400


def test_an_error_in_the_background_stops_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "WINDOW", 10)
    data = data_of(tmp_path, [f"answer {i}" for i in range(400)], num_workers=2, cache=str(tmp_path))

    def fail(*args: Any) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(TokenStore, "append", fail)
    data.prepared.encoder.begin(data.mixture.epoch(0))
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        data.prepared.encoder.await_begun(data.mixture.epoch(0))


def test_a_corpus_can_count_more_or_less_than_once(tmp_path: Path) -> None:
    double, few = tmp_path / "double.json", tmp_path / "few.json"
    for file in (double, few):
        file.write_text("".join(f'{{"instruction": "{file.stem[0]}{i:02d}", "output": "a"}}\n' for i in range(10)))
    corpora: list[Corpus] = [Belle(str(double), weight=2.0), Belle(str(few), count=4)]
    data = SFTData(LetterText(), corpora, max_length=32, validation_fraction=0.0)
    data.setup("fit")
    epochs = []
    for number in range(5):
        loader = data.train_dataloader()
        data.order.set_epoch(number)
        epochs.append(sources(loader))
    for epoch in epochs:
        assert sorted(s for s in epoch if "double" in s) == sorted([f"{double}:{i}" for i in range(1, 11)] * 2)
        assert len([s for s in epoch if "few" in s]) == 4
    # Ten records, four at a time: after five epochs each was seen twice.
    assert sorted(s for epoch in epochs for s in epoch if "few" in s) == sorted(
        [f"{few}:{i}" for i in range(1, 11)] * 2
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0}, "must be above 0"),
        ({"count": -1}, "must be above 0"),
        ({"weight": 2, "count": 3}, "both a weight"),
    ],
)
def test_a_corpus_that_counts_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Belle("x.json", **options)


def test_batches_name_their_corpora(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"instruction": "q", "output": "a"}\n')
    data = SFTData(LetterText(), [Belle(str(file)), Belle(str(file))], max_length=32, validation_fraction=0.0)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch.corpora == ["Belle", "Belle-2"]
    assert sorted(set(batch.corpus_ids.flatten().tolist())) == [0, 1]


def test_processes_of_one_machine_encode_each_record_once(tmp_path: Path) -> None:
    """The second process waits for what the first one encodes."""
    outputs = [f"answer {i}" for i in range(40)]
    first = data_of(tmp_path, outputs, validation_fraction=0.0)
    second = SFTData(LetterText(), first.corpora, max_length=32, micro_batch_size=4, validation_fraction=0.0)
    device = SimpleNamespace(type="cpu")
    second.trainer = SimpleNamespace(  # type: ignore[assignment]
        local_rank=1, global_rank=1, world_size=2, is_global_zero=False,
        overfit_batches=0.0, val_check_interval=1.0,
        limit_train_batches=1.0, strategy=SimpleNamespace(root_device=device),
    )  # fmt: skip
    second.setup("fit")
    assert sources(second.train_dataloader())


@pytest.mark.parametrize("cache", ["/dev/null/x", "{tmp}/file"], ids=["no-folder", "a-file"])
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, cache: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"the cache folder .* cannot be used .* name another place with data.cache"):
        data_of(tmp_path, ["answer"] * 4, cache=cache.format(tmp=tmp_path))


@pytest.mark.parametrize("name", ["offsets.npy", "meta.json", "verdicts.npy", "names.json", "checksums.json"])
@pytest.mark.parametrize("damage", [lambda data: data[:3], lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]])
def test_what_is_damaged_in_the_cache_is_made_anew(tmp_path: Path, name: str, damage: Any) -> None:
    data = data_of(tmp_path, ["answer"] * 4, cache=str(tmp_path / "cache"))
    for file in (tmp_path / "cache").glob(f"*/*/{name}"):
        whole = file.read_bytes()
        file.write_bytes(damage(whole))
        again = SFTData(LetterText(), data.corpora, max_length=32, cache=str(tmp_path / "cache"))
        again.setup("fit")
        assert sources(again.train_dataloader())
        assert file.read_bytes() == whole


def test_tokens_of_another_version_of_a_library_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_of(tmp_path, ["answer"] * 4, cache=str(tmp_path / "cache"))
    monkeypatch.setattr(deciding_code, "version", lambda name: "0.0" if name == "sentencepiece" else version(name))
    deciding_code.code_digest.cache_clear()
    data_of(tmp_path, ["answer"] * 4, cache=str(tmp_path / "cache"))
    deciding_code.code_digest.cache_clear()
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 2


def test_a_home_folder_may_be_written_in_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data_of(tmp_path, ["answer"] * 4)
    data = SFTData(LetterText(), [Belle("~/belle.json")], max_length=32, cache="~/cache")
    data.setup("fit")
    assert (tmp_path / "cache" / "tokens").is_dir()


def test_a_file_is_read_once_by_whatever_name(tmp_path: Path) -> None:
    data_of(tmp_path, ["answer"] * 4)
    (tmp_path / "link.json").symlink_to(tmp_path / "belle.json")
    assert len(Belle([str(tmp_path / "belle.json"), str(tmp_path / "link.json")]).files) == 1


def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to(tmp_path / "nothing.json")
    with pytest.raises(DataError, match="cannot be read: a broken link"):
        _ = Belle(str(tmp_path / "*.json")).files


def test_a_test_corpus_is_held_to_the_same_rules(tmp_path: Path) -> None:
    test = tmp_path / "test.json"
    test.write_text('{"instruction": "q", "output": "a"}\n' + "{\n" * 9)
    data = data_of(tmp_path, ["answer"] * 8)
    data.test_corpora = [Belle(str(test))]
    with pytest.raises(DataError, match="9 of 10 records of .*test.json are bad"):
        data.setup("test")


def test_every_file_is_named_by_its_content(tmp_path: Path) -> None:
    test = tmp_path / "test.json"
    test.write_text('{"instruction": "q", "output": "a"}\n')
    data = data_of(tmp_path, ["answer"] * 8, test_corpora=[Belle(str(test))])
    files = (tmp_path / "belle.json", test)
    assert data.fingerprints() == {str(file): sha256(file.read_bytes()).hexdigest() for file in files}


def test_test_records_that_are_trained_on_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    test = tmp_path / "test.json"
    lines = [f'{{"instruction": "q{i:02d}", "output": "answer"}}\n' for i in (1, 3, 90)]
    test.write_text("".join(lines))
    data_of(tmp_path, ["answer"] * 8, validation_fraction=0.0, test_corpora=[Belle(str(test))])
    assert "2 of 3 records of data.test_corpora are also trained on" in caplog.text


def test_a_corpus_of_which_everything_is_held_out_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation_fraction 0.6 holds out all 1 records"):
        data_of(tmp_path, ["answer"], validation_fraction=0.6)


def test_a_file_that_is_cut_while_it_is_used_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "WINDOW", 4)
    data = data_of(tmp_path, ["answer"] * 40, cache=str(tmp_path / "cache"))
    (tmp_path / "belle.json").write_text("")
    with pytest.raises(DataError, match="belle.json:.* changed while it was used"):
        list(data.train_dataloader())
