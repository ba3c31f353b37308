"""Shared by all tests: tiny checkpoints on disk, and a corpus to train them on."""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
import yaml
from hypothesis import settings

from lit_sft import open_checkpoint
from lit_sft.__main__ import main
from lit_sft.checkpoint.opening import Checkpoint, families, find_family
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.families._base import TinySize

TINY = TinySize(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, vocab_size=1200, context_length=256)
# Widths that bitsandbytes can pack on a CPU.
PACKABLE = TinySize(
    hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, vocab_size=1400, context_length=128
)

# The same examples in every run, however slow the machine is.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")


LONGEST = (
    "distributed/test_devices.py",
    "runs/test_survival.py",
    "stages/test_policy_on_every_family.py",
    "cli/test_fit.py",
    "export/test_onnx.py",
    "cpp/test_answers.py",
)
"""Minutes each."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what is slow before `-m` looks at it, and let what takes longest begin first."""
    mark_all_cases_but_one(items)
    takes_long = {item.path for item in items if item.get_closest_marker("slow")}
    first = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (first.get(item.path, len(first)), item.path not in takes_long))


def mark_all_cases_but_one(items: list[pytest.Item]) -> None:
    """The quick tests are one case of each test, chosen by its name: one of this family here, of that one there."""
    cases: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    for name, found in cases.items():
        chosen = crc32(name.encode()) % len(found)
        for item in found[:chosen] + found[chosen + 1 :]:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Nothing that tests leave must survive a power cut; a run waits for its disk twenty times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from, or left in, the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def shared_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder of all test processes in which `graphs.traced_once` keeps what it traced."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "traces"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACES", str(folder))
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in a test whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    torch.manual_seed(0)
    find_family("baichuan-7b").write_tiny(folder, demo_texts(), TINY)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of each family, made when first asked for; not to be changed."""
    written: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in written:
            written[family] = tmp_path_factory.mktemp(family)
            torch.manual_seed(0)
            families()[family].write_tiny(written[family], demo_texts(), PACKABLE)
        return written[family]

    return folder_of


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    """Twenty records of BELLE."""
    return sums_in(tmp_path)


def sums_in(folder: Path) -> Path:
    file = folder / "belle.json"
    records = [
        {"instruction": f"{a}加{b}等于几？\n", "input": "", "output": f"\n{a}加{b}等于{a + b}。"}
        for a in range(1, 5)
        for b in range(1, 6)
    ]
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return file


@pytest.fixture
def write_config(tmp_path: Path, tiny_folder: Path, corpus_file: Path) -> Callable[..., str]:
    """Write a small, quick configuration; keyword arguments change `model`, `data` and `trainer` entries."""
    return config_writer(tmp_path, tiny_folder, corpus_file)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run `first` of six epochs with LoRA, in a folder of runs of its own; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    config = config_writer(folder, tiny_folder, sums_in(folder))(trainer={"max_epochs": 6})
    assert main(["fit", "--config", config, "--name", "first"]) == 0
    (run,) = (folder / "runs").iterdir()
    return run


def config_writer(folder: Path, checkpoint: Path, corpus: Path) -> Callable[..., str]:
    """What `write_config` writes, into any folder."""

    def write(
        *,
        model: dict[str, Any] | None = None,
        data: dict[str, Any] | None = None,
        trainer: dict[str, Any] | None = None,
        **top: Any,
    ) -> str:
        config = {
            "seed_everything": 7,
            "runs": str(folder / "runs"),
            "model": {
                "class_path": "SFT",
                "init_args": {
                    "checkpoint": str(checkpoint),
                    "tuning": {"class_path": "LoRA", "init_args": {"rank": 4, "alpha": 8, "dropout": 0.1}},
                    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                    "generation": {"class_path": "Greedy", "init_args": {"max_new_tokens": 8}},
                    **(model or {}),
                },
            },
            "data": {
                "class_path": "SFTData",
                "init_args": {
                    "corpora": [{"class_path": "Belle", "init_args": {"path": str(corpus)}}],
                    "max_length": 128,
                    "micro_batch_size": 1,
                    "validation_fraction": 0.2,
                    **(data or {}),
                },
            },
            "trainer": {
                "max_epochs": 2,
                "accelerator": "cpu",
                "num_sanity_val_steps": -1,
                "log_every_n_steps": 1,
                "enable_progress_bar": False,
                **(trainer or {}),
            },
            "samples": {"count": 2},
            **top,
        }
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
        return str(file)

    return write


@pytest.fixture
def folder(tiny: Callable[[str], Path], tmp_path: Path) -> Path:
    """A Baichuan-7B of one's own to damage, its weights in one pytorch_model.bin."""
    return Path(shutil.copytree(tiny("baichuan-7b"), tmp_path / "checkpoint"))


@pytest.fixture(params=sorted(families()))
def checkpoint(request: pytest.FixtureRequest, tiny: Callable[[str], Path], tmp_path: Path) -> Checkpoint:
    """A checkpoint of each family, in a folder of one's own."""
    return open_checkpoint(shutil.copytree(tiny(request.param), tmp_path / "checkpoint"), request.param)
