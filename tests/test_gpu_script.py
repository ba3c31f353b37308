"""The script for the first minutes on a GPU works before there is one."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from lit_sft.checkpoint.opening import Checkpoint

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = REPOSITORY / "experiments" / "gpu"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.mark.usefixtures("scripts")
def test_the_plan_names_each_part_with_its_time_and_question() -> None:
    plan, run = import_module("plan"), import_module("run")
    lines = run.plan(plan.PARTS, minutes=12).splitlines()
    assert len(lines) == len(plan.PARTS)
    assert lines[0].split()[:4] == ["0:00", "families", "60", "s"]
    for part, line in zip(plan.PARTS, lines, strict=True):
        assert part.question in line
        assert (SCRIPTS / f"{part.module}.py").is_file()


@pytest.mark.slow
def test_a_part_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    command = [sys.executable, str(SCRIPTS / "run.py"), "--size", "tiny", "--results", str(results), "--parts", "ratio"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(results.read_text())["parts"]["ratio"]
    assert found["plain"]["is_exactly_one"]
    assert found["checkpointed"]["is_exactly_one"]


@pytest.mark.slow
@pytest.mark.usefixtures("scripts")
def test_every_part_measures_small_networks_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of parts that differ by their configuration alone one; ratio, compiling and exports have tests of their own."""
    monkeypatch.setattr(Checkpoint, "load_model", Checkpoint.load_model)  # the parts replace it
    left_out = {"7b-lora", "7b-lora-grouped", "13b-lora", "16b-qlora", "7b-lora-compiled", "ratio", "trl", "graph"}
    parts = [part for part in import_module("plan").PARTS if part.name not in left_out]
    found = {part.name: import_module(part.module).measure(tmp_path, "tiny", **part.options) for part in parts}
    assert all(each["equal_ids"] for each in found["families"].values())
    assert found["attention"]["Baichuan-7B"]["float32_states"] < 1e-5
    assert found["repeat"] == {"two_runs": 0.0, "resumed": 0.0}
    assert found["head"]["ours"]["loss"] == pytest.approx(found["head"]["plain"]["loss"], rel=1e-5)
    assert found["head"]["ours"]["gradient"] == pytest.approx(found["head"]["plain"]["gradient"], rel=1e-4)
    for name in ("7b-qlora", "7b-full-8bit", "7b-lora-dpo", "7b-lora-grpo"):
        assert found[name]["tokens_per_second"] > 0
        assert found[name]["estimated_gb"] > 0


@pytest.mark.usefixtures("scripts")
def test_a_part_that_fails_says_why_and_one_without_its_packages_or_time_is_left_out(tmp_path: Path) -> None:
    run, plan = import_module("run"), import_module("plan")
    failing = plan.Part("unknown", 30, "unknown", "")
    assert "invalid choice" in run._run(failing, tmp_path, "tiny", 60)["failed"]
    assert run._run(plan.Part("x", 30, "x", "", needs=("no_such_package",)), tmp_path, "tiny", 60) == {
        "skipped": "no_such_package not installed"
    }
    assert run._run(failing, tmp_path, "tiny", 5) == {"skipped": "no time was left"}


@pytest.mark.usefixtures("scripts")
def test_the_pages_are_those_of_the_results() -> None:
    page = import_module("page")
    results = json.loads(page.RESULTS.read_text()) if page.RESULTS.is_file() else None
    for language, text in page.TEXTS.items():
        assert (page.DOCS / text["file"]).read_text(encoding="utf-8") == page.page(language, results)


@pytest.mark.usefixtures("scripts")
def test_a_page_shows_what_was_measured_and_what_was_not() -> None:
    page = import_module("page")
    machine = {"date": "2026-01-01", "device": "X1", "cuda": "13.0", "torch": "2", "transformers": "5"}
    ours = {"tokens_per_second": 15000.4, "estimated_gb": 22.0, "peak_gb": 20.0, "wall_seconds": 50.0}
    trl = {"tokens_per_second": 10000.0, "peak_gb": 40.0}
    parts = {"7b-lora": ours, "head": {"ours": {"milliseconds": 2.5}}, "trl": trl}
    said = page.page("en", {"machine": machine, "parts": parts})
    assert "Measured on 2026-01-01: X1, CUDA 13.0" in said
    assert "| tokens per second 15,000, estimated gb 22, peak gb 20, estimate over peak 1.1 | tokens per" in said
    assert "tokens per second ≥ 14,000, flops utilization ≥ 0.4, estimate over peak 0.9 to 1.1 |" in said
    assert "our tokens over theirs 1.5, our memory over theirs 0.5 | our tokens over theirs ≥ 1.2" in said
    assert "| ours milliseconds 2.5 |" in said
    assert "| `attention` | Is attention of packed rows that of their examples, forward and backward? | not yet" in said
