"""Chat with what a run trained: through a pipe, as `predict` answers."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_sft.__main__ import main

pytestmark = pytest.mark.slow  # as a whole

QUESTION = "镇上的钟楼有多高？"


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Lines of answers to lines of text."""

    def ask(options: list[str], *lines: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in lines).encode())))
        capsys.readouterr()
        assert main(["chat", *options]) == 0
        said = capsys.readouterr()
        assert "error" not in said.err
        return said.out.splitlines()

    return ask


@pytest.mark.parametrize(
    ("family", "tuning"),
    [
        ("baichuan-7b", {"class_path": "LoRA", "init_args": {"rank": 4}}),
        ("baichuan-7b", {"class_path": "QLoRA", "init_args": {"rank": 4, "double_quant": False}}),
        ("chatglm2-6b", {"class_path": "PTuning", "init_args": {"pre_seq_len": 16}}),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value["class_path"]),
)
def test_a_run_answers_as_predict_does_with_its_adapter_and_without(
    family: str,
    tuning: dict[str, object],
    tiny: Callable[[str], Path],
    piped: Callable[..., list[str]],
    write_config: Callable[..., str],
    tmp_path: Path,
) -> None:
    model: dict[str, object] = {"checkpoint": str(tiny(family)), "tuning": tuning}
    if tuning["class_path"] == "PTuning":  # a tiny network hardly listens to a small prefix
        model["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 5.0}}
    assert main(["fit", "--config", write_config(model=model, trainer={"max_epochs": 3})]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    (tmp_path / "prompts.txt").write_text(QUESTION + "\n", encoding="utf-8")
    asked = ["--run", str(run), "--data.init_args.prompts", str(tmp_path / "prompts.txt")]
    expected = []
    for base in ("false", "true"):
        assert main(["predict", *asked, "--base", base, "--predictions.path", str(tmp_path / base)]) == 0
        expected.append(json.loads((tmp_path / base).read_text(encoding="utf-8"))["answer"])
    tuned, untuned = (answer.rstrip("\ufffd") for answer in expected)
    assert tuned != untuned

    # Each line is a conversation of its own: the same question has the same answer.
    written = tuned.strip().replace("\n", "\\n")
    assert piped(["--run", str(run)], QUESTION, QUESTION) == [written, written]
    if tuning["class_path"] == "LoRA":
        folders = ["--checkpoint", str(tiny("baichuan-7b")), "--adapter", str(run / "adapter")]
        (answer,) = piped(folders, QUESTION)
        assert answer.startswith(written)
