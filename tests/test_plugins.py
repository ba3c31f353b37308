"""A member is a class in a folder, or in another package that says so; nothing else lists it."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import dict_to_namespace
from transformers import LogitsProcessorList

from lit_sft import plugins
from lit_sft.__main__ import main
from lit_sft.cli.compare import _safety_files
from lit_sft.configuration import BASE_CLASSES
from lit_sft.conversation import Conversation, Message
from lit_sft.corpora._base import Corpus
from lit_sft.corpora.belle import Belle
from lit_sft.corpora.safety_prompts import SafetyPrompts
from lit_sft.errors import ConfigError
from lit_sft.generation._processors import Draw
from lit_sft.generation.strategies import Sampling
from lit_sft.plugins import discover, members
from lit_sft.preflight.memory import num_trained
from lit_sft.preflight.network import measure_network
from lit_sft.preflight.plan import plan_of
from lit_sft.tuning._base import Footprint
from lit_sft.tuning.lora import LoRA

MODULE = '''
"""A corpus, a tuning, a strategy and a family of another package."""

from lit_sft.conversation import Conversation, Message
from lit_sft.corpora._base import Corpus
from lit_sft.families.baichuan.rotary import Baichuan7B
from lit_sft.generation.strategies import Greedy
from lit_sft.preferences.trl_pairs import TrlPairs
from lit_sft.tuning.lora import LoRA


class Riddles(Corpus):
    layout = "riddle, solution"
    layouts = (frozenset({"riddle", "solution"}),)

    def parse(self, record):
        return Conversation([Message("user", record["riddle"]), Message("assistant", record["solution"])])


class RiddlePairs(TrlPairs):
    pair_keys = ("solution", "guess")


class OnlyQueries(LoRA):
    def __init__(self, rank: int = 2) -> None:
        super().__init__(rank=rank, targets=["q_proj"])


class Brief(Greedy):
    def __init__(self, max_new_tokens: int = 2) -> None:
        super().__init__(max_new_tokens)


class Sphinx7B(Baichuan7B):
    name = "sphinx-7b"

    @classmethod
    def matches(cls, config):
        return config["model_type"] == "sphinx"
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Installs a package with these entry points, as pip leaves one."""

    def install(entry_points: str) -> None:
        site = tmp_path / "site"
        info = site / "riddles-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "riddles_for_tests.py").write_text(MODULE, encoding="utf-8")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: riddles\nVersion: 1.0\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()

    yield install
    sys.modules.pop("riddles_for_tests", None)


@pytest.mark.slow
def test_members_of_an_installed_package_train_under_their_short_names(
    package: Callable[[str], None], tiny_folder: Path, tmp_path: Path
) -> None:
    package(
        "[lit_sft.corpora]\nriddles = riddles_for_tests:Riddles\n"
        "[lit_sft.tuning]\nqueries = riddles_for_tests:OnlyQueries\n"
        "[lit_sft.generation]\nbrief = riddles_for_tests:Brief\n"
        "[lit_sft.families]\nsphinx = riddles_for_tests:Sphinx7B\n"
    )
    riddles = tmp_path / "riddles.jsonl"
    lines = [json.dumps({"riddle": f"{n} 加 {n} 是几？", "solution": str(2 * n)}, ensure_ascii=False) for n in range(8)]
    riddles.write_text("\n".join(lines), encoding="utf-8")
    config = {
        "model": {
            "class_path": "SFT",
            "init_args": {
                "checkpoint": str(tiny_folder),
                "family": "sphinx-7b",
                "tuning": {"class_path": "OnlyQueries"},
                "generation": {"class_path": "Brief"},
            },
        },
        "data": {
            "class_path": "SFTData",
            "init_args": {
                "corpora": [{"class_path": "Riddles", "init_args": {"path": str(riddles)}}],
                "max_length": 64,
                "num_workers": 0,
            },
        },
        "trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    assert main(["fit", "--config", str(tmp_path / "config.yaml"), "--runs", str(tmp_path / "runs")]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["family"] == "sphinx-7b"
    (adapter,) = (tmp_path / "runs").glob("*/adapter/adapter_config.json")
    stored = json.loads(adapter.read_text(encoding="utf-8"))
    assert (stored["r"], stored["target_modules"]) == (2, ["q_proj"])


def test_what_the_packages_add_is_read_once_for_all_folders(
    package: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    package("[lit_sft.tuning]\nqueries = riddles_for_tests:OnlyQueries\n")
    read: list[object] = []

    def reading() -> Iterator[Distribution]:
        for installed in distributions():
            read.append(installed.metadata["Name"])
            yield installed

    monkeypatch.setattr(plugins, "distributions", reading)
    found = [discover(*bases) for bases in BASE_CLASSES.values()]
    assert any("OnlyQueries" in members for members in found)
    assert read.count("riddles") == 1


def test_a_layout_of_preference_data_may_come_from_another_package(package: Callable[[str], None]) -> None:
    package("[lit_sft.preferences]\nriddles = riddles_for_tests:RiddlePairs\n")
    assert discover(*BASE_CLASSES["corpora"])["RiddlePairs"]("a.jsonl").chosen_key == "solution"


def test_an_entry_point_that_is_not_a_member_is_named(package: Callable[[str], None]) -> None:
    package("[lit_sft.corpora]\nriddles = riddles_for_tests:OnlyQueries\n")
    with pytest.raises(ConfigError, match="riddles = riddles_for_tests:OnlyQueries of lit_sft.corpora is not a Corpus"):
        discover("lit_sft.corpora._base.Corpus")


def test_a_new_file_or_folder_is_a_member_and_what_begins_with_an_underscore_or_is_shared_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "room_for_tests"
    (room / "folder").mkdir(parents=True)
    (room / "_shared").mkdir()
    (room / "shared").mkdir()
    (room / "__init__.py").touch()
    class_text = "from lit_sft.corpora._base import Corpus\nclass {0}(Corpus):\n    def parse(self, record): ...\n"
    for place, name in (("file", "InAFile"), ("folder/__init__", "InAFolder"), ("folder/inner", "Inside")):
        (room / f"{place}.py").write_text(class_text.format(name), encoding="utf-8")
    for place in ("_base", "_shared/__init__", "_shared/inner", "folder/_base", "shared/__init__", "shared/inner"):
        (room / f"{place}.py").write_text(class_text.format("Hidden"), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert set(members("room_for_tests", Corpus)) == {"InAFile", "InAFolder", "Inside"}  # type: ignore[type-abstract]


def test_a_new_strategy_brings_its_own_processors() -> None:
    class Cold(Sampling):
        def _choice(self) -> dict[str, object]:
            return {"do_sample": True}

        def _cut_off(self) -> list[object]:  # type: ignore[override]
            return [lambda ids, scores: scores.masked_fill(scores < scores.amax(-1, keepdim=True), -torch.inf)]

    chain = Cold().processors([0], [[1, 2]])
    assert isinstance(chain[-1], Draw)
    drawn = LogitsProcessorList(chain)(torch.LongTensor([[1, 2]]), torch.tensor([[0.1, 0.3, 0.2]]))
    assert drawn.argmax() == 1


def test_a_new_tuning_is_estimated_by_what_it_says(tiny_folder: Path) -> None:
    from lit_sft.checkpoint.opening import open_checkpoint

    class OnlyHead(LoRA):
        def footprint(self, family_targets: object) -> Footprint:
            return Footprint(rank=3, targets=("down_proj",))

    family = open_checkpoint(tiny_folder).family
    size = measure_network(family)
    content = {
        "model": {"class_path": "lit_sft.stages.sft.SFT", "init_args": {"gradient_checkpointing": False}},
        "data": {"class_path": "lit_sft.data.sft.SFTData", "init_args": {"micro_batch_size": 1, "max_length": 8}},
        "trainer": {"strategy": "auto", "precision": "32-true", "accumulate_grad_batches": 1},
    }
    plans = [
        plan_of(dict_to_namespace(content), tuning, family, 1, is_gpu=False)
        for tuning in (OnlyHead(), LoRA(rank=3, targets=["down_proj"]))
    ]
    assert num_trained(size, plans[0]) == num_trained(size, plans[1]) > 0


def test_a_corpus_says_of_itself_whether_it_is_about_safety(tmp_path: Path) -> None:
    class Risky(Corpus):
        is_about_safety = True

        def parse(self, record: dict[str, object]) -> Conversation:
            return Conversation([Message("user", "")])

    files = [str(tmp_path / name) for name in ("a.jsonl", "b.json", "c.json")]
    for file in files:
        Path(file).touch()
    risky, plain, safety = (cls(file) for cls, file in zip((Risky, Belle, SafetyPrompts), files, strict=True))
    asked: Any = SimpleNamespace(corpora=[risky, plain], test_corpora=[safety])
    assert _safety_files(asked) == [f"{files[0]}:", f"{files[2]}:"]


def test_merge_and_chat_ask_a_tuning_what_it_exports() -> None:
    """Neither names a class, so that a tuning of another package is merged and chatted with, too."""
    exported = {
        name: (tuning.exports_adapter, tuning.quantizes_base)  # type: ignore[attr-defined]
        for name, tuning in discover("lit_sft.tuning._base.Tuning").items()
    }
    assert exported == {
        **dict.fromkeys(("Full", "Freeze", "PTuning"), (False, False)),
        "LoRA": (True, False),
        "QLoRA": (True, True),
    }
    for module in ("export.merge", "chat.network"):
        assert not exported.keys() & set(vars(importlib.import_module(f"lit_sft.{module}")))
