"""An adapter of the original modules in the verbs: it answers as the weights that it was merged into by hand."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from original_adapters import FUSED, merged_by_hand, random_adapter

from lit_sft.__main__ import main

pytestmark = pytest.mark.slow  # as a whole

QUESTIONS = ["一加一等于几？", "镇上的钟楼有多高？"]


@pytest.mark.parametrize("family", ["baichuan-7b", "chatglm2-6b"])
def test_every_verb_answers_as_the_weights_merged_by_hand(
    family: str,
    tiny: Callable[[str], Path],
    write_config: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = tiny(family)
    adapter = random_adapter(tmp_path / "adapter", base, FUSED[family])
    merged = merged_by_hand(tmp_path / "merged", base, adapter).path
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"{question}\n" for question in QUESTIONS), encoding="utf-8")

    def model(checkpoint: Path, adapter: Path | None = None) -> dict[str, Any]:
        tuning = {"class_path": "LoRA", "init_args": {"adapter": str(adapter)} if adapter else {}}
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.0}}
        return {"checkpoint": str(checkpoint), "tuning": tuning, "optimizer": optimizer}

    def answers(*words: str) -> list[str]:
        path = tmp_path / "answers.jsonl"
        assert main(["predict", *words, "--predictions.path", str(path)]) == 0
        return [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]

    data = {"prompts": str(prompts)}
    untuned = answers("--config", write_config(model=model(base), data=data))
    tuned = answers("--config", write_config(model=model(merged), data=data))
    assert tuned != untuned

    config = write_config(model=model(base, adapter), data=data, trainer={"max_steps": 1}, name="from_it")
    assert answers("--config", config) == tuned
    assert main(["fit", "--config", config]) == 0  # at a rate of zero
    (run,) = (tmp_path / "runs").glob("from_it-*")
    assert answers("--run", str(run)) == tuned
    assert answers("--run", str(run), "--base", "true") == untuned  # without the adapter it began from

    assert main(["compare", "--run", str(run), "--output", str(tmp_path / "report")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "report" / "answers.jsonl").read_text("utf-8").splitlines()]
    assert [row["before"]["text"] for row in rows] == untuned
    assert [row["after"]["text"] for row in rows] == tuned

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompts.read_bytes())))
    capsys.readouterr()
    assert main(["chat", "--checkpoint", str(base), "--adapter", str(adapter)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert all(line.startswith(answer.rstrip("\ufffd")) for line, answer in zip(said, tuned, strict=True))
