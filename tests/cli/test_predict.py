"""`predict`: each prompt once and in order, whatever happens in between."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from started import run_words, start

from lit_sft.__main__ import main
from lit_sft.callbacks import prediction_writer
from lit_sft.callbacks._answered import AnsweredPrompts, refuse_foreign
from lit_sft.errors import ConfigError
from lit_sft.stages.sft import SFT

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]
Predict = Callable[..., int]

PREDICTIONS = "predictions-tiny.jsonl"
"""Without a run the file is named after the model."""

NUM_PROMPTS = 24
WAYS = [
    {"class_path": "TopP", "init_args": {"max_new_tokens": 4}},
    {"class_path": "Greedy", "init_args": {"max_new_tokens": 3, "name": "plain"}},
]


def answer_file(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / PREDICTIONS).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def config(write_config: WriteConfig, tmp_path: Path) -> str:
    """Prompts of very different lengths, of which about six fit into a batch, each answered in two ways."""
    prompts = tmp_path / "prompts.jsonl"
    records = [{"prompt": f"{'镇' * (7 * n % 24)}加{n}", "category": f"kind {n % 2}"} for n in range(NUM_PROMPTS)]
    prompts.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return write_config(model={"generation": WAYS}, data={"prompts": str(prompts)}, predictions={"token_budget": 200})


@pytest.fixture
def predict(config: str, tmp_path: Path) -> Predict:
    """Predict into a folder."""

    def run(folder: str, *options: str) -> int:
        return main(["predict", "--config", config, "--runs", str(tmp_path / folder), *options])

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of the prompts that the model is given together."""
    batches: list[list[str]] = []
    answer = SFT.answer

    def spy(stage: SFT, prompts: Any) -> Any:
        batches.append([prompt.text for prompt in prompts])
        return answer(stage, prompts)

    monkeypatch.setattr(SFT, "answer", spy)
    return batches


def test_long_prompts_are_answered_first_and_rows_stand_in_the_order_of_the_file(
    predict: Predict, tmp_path: Path, asked: list[list[str]]
) -> None:
    assert predict("a") == 0
    rows = answer_file(tmp_path / "a")
    assert [(row["source"], row["strategy"]) for row in rows] == [
        (f"{tmp_path / 'prompts.jsonl'}:{n + 1}", way)
        for n in range(NUM_PROMPTS)
        for way in ("top_p(top_p=0.9, max_new_tokens=4)", "plain")
    ]
    assert [row["category"] for row in rows[:4]] == ["kind 0", "kind 0", "kind 1", "kind 1"]
    sizes, longest = [len(batch) for batch in asked], [max(map(len, batch)) for batch in asked]
    assert sum(sizes) == NUM_PROMPTS
    assert longest == sorted(longest, reverse=True)
    assert sizes[0] < sizes[-2]


def test_answers_do_not_depend_on_what_fits_into_memory(predict: Predict, tmp_path: Path) -> None:
    assert predict("a") == predict("b", "--predictions.token_budget", "1") == 0
    assert answer_file(tmp_path / "a") == answer_file(tmp_path / "b")


def test_the_bar_shows_the_time_left_and_the_speed(predict: Predict, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict("a", "--trainer.enable_progress_bar", "true") == 0
    bars = [part for part in re.split(r"[\r\n]", capsys.readouterr().err) if part.startswith("predicting")]
    assert re.match(rf"predicting 100% \d+/\d+ \[00:\d\d<00:00\], {2 * NUM_PROMPTS} answers \S+ tok/s", bars[-1])


def place_of(rank: int, port: int) -> dict[str, str]:
    """The environment of one of two processes, as torchrun starts them."""
    return {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2"),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "x",
    }


def test_two_devices_that_are_killed_leave_one_file_with_which_one_device_goes_on(
    config: str, predict: Predict, tmp_path: Path, asked: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    assert predict("whole") == 0
    asked.clear()
    folder = tmp_path / "killed"
    kill = json.dumps([{"class_path": "fakes.KillInPredict", "init_args": {"batches": 1}}])
    words = ["predict", "--config", config, "--runs", str(folder), "--trainer.callbacks", kill]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [tmp_path / f"log-{rank}" for rank in range(2)]
    processes = [start(run_words, words, log=log, environment=place_of(rank, port)) for rank, log in enumerate(logs)]
    for process in processes:
        process.join(400)
    assert processes[0].exitcode == -9, logs[0].read_text()
    assert processes[1].exitcode not in {0, None}
    assert [path.name for path in folder.iterdir()] == [f"{PREDICTIONS}.partial"]
    lines = (folder / f"{PREDICTIONS}.partial").read_text(encoding="utf-8").splitlines()
    before = [json.loads(line)["number"] for line in lines[1:-1]]  # behind the header, before the torn line

    assert predict("killed") == 0
    assert "going on: " in caplog.text
    again = [text for batch in asked for text in batch]
    assert len(set(before)) + len(set(again)) == len(before) + len(again) == NUM_PROMPTS
    assert min(len(before), len(again)) > 4
    assert answer_file(folder) == answer_file(tmp_path / "whole")
    assert [path.name for path in folder.iterdir()] == [PREDICTIONS]


class TestInterrupted:
    """After the first batch."""

    @pytest.fixture(autouse=True)
    def interrupted(self, predict: Predict, caplog: pytest.LogCaptureFixture) -> None:
        assert predict("a", "--trainer.limit_predict_batches", "1") == 0
        assert f"4 of {NUM_PROMPTS} prompts are answered, in " in caplog.text

    def test_no_file_has_the_final_name_until_all_is_answered(self, predict: Predict, tmp_path: Path) -> None:
        assert not (tmp_path / "a" / PREDICTIONS).exists()
        assert predict("a") == predict("b") == 0
        assert answer_file(tmp_path / "a") == answer_file(tmp_path / "b")

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (["--trainer.precision", "bf16-mixed"], "precision"),
            (["--model.init_args.generation", '{"class_path": "Greedy"}'], "strategies"),
            (["--model.init_args.tuning.init_args.alpha", "9"], "tuning"),
            (["--data.init_args.prompts", "OTHER"], "prompts"),
            (["--model.init_args.checkpoint", "COPY"], "model"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_answers_to_something_else_are_not_taken_up(
        self, predict: Predict, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str],
        options: list[str], named: str,
    ) -> None:  # fmt: skip
        (tmp_path / "other.txt").write_text("你好\n", encoding="utf-8")
        copy = tmp_path / "copy" / tiny_folder.name  # its file has the same name
        copy.mkdir(parents=True)
        for file in tiny_folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        places = {"OTHER": str(tmp_path / "other.txt"), "COPY": str(copy)}
        partial = tmp_path / "a" / f"{PREDICTIONS}.partial"
        before = partial.read_bytes()
        assert predict("a", *(places.get(option, option) for option in options)) == 2
        error = capsys.readouterr().err
        assert f"holds 4 prompts that an interrupted predict answered with other {named}. " in error
        assert "--predictions.path" in error
        assert partial.read_bytes() == before

    def test_nor_are_answers_under_other_trained_weights(
        self, config: str, predict: Predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["fit", "--config", config, "--runs", str(tmp_path / "runs"), "--samples.count", "0"]) == 0
        (checkpoint,) = (tmp_path / "runs").glob("*/checkpoints/last.ckpt")
        assert predict("a", "--ckpt_path", str(checkpoint)) == 2
        assert "that an interrupted predict answered with other tuned weights. " in capsys.readouterr().err

    def test_ctrl_c_says_how_to_go_on(
        self, predict: Predict, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def press(*args: Any) -> None:
            raise KeyboardInterrupt

        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(SFT, "answer", press)
            assert predict("a") == 130
        assert f"4 of {NUM_PROMPTS} prompts are answered, in " in caplog.text
        assert predict("a") == predict("b") == 0
        assert answer_file(tmp_path / "a") == answer_file(tmp_path / "b")


def test_a_mistake_before_the_first_answer_leaves_nothing_behind(predict: Predict, tmp_path: Path) -> None:
    assert predict("a", "--ckpt_path", str(tmp_path / "prompts.jsonl")) == 2
    assert not list((tmp_path / "a").iterdir())


def test_a_row_says_whether_its_prompt_was_cut(write_config: WriteConfig, tmp_path: Path) -> None:
    long = [{"role": "user", "content": "镇" * 90}, {"role": "assistant", "content": "湖" * 90}]
    last = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps({"messages": m}, ensure_ascii=False) + "\n" for m in (long * 2 + last, last)))
    corpora = [{"class_path": "JsonlChat", "init_args": {"path": str(file)}}]
    config = write_config(data={"test_corpora": corpora})
    assert main(["predict", "--config", config, "--runs", str(tmp_path / "a")]) == 0
    cut, whole = answer_file(tmp_path / "a")
    assert (cut["is_truncated"], whole["is_truncated"]) == (True, False)
    assert cut["prompt_tokens"] < 256
    assert cut["prompt"].startswith("镇")


class TestAnsweredPrompts:
    def test_a_torn_line_is_answered_again(self, tmp_path: Path) -> None:
        path = tmp_path / "x.partial"
        first = AnsweredPrompts(path, {"prompts": 1})
        first.add({3: [{"answer": "c"}], 1: [{"answer": "a"}, {"answer": "b"}]})
        first.close()
        whole = path.read_bytes()
        for end in range(len(whole) - 30, len(whole)):
            path.write_bytes(whole[:end])
            again = AnsweredPrompts(path, {"prompts": 1})
            assert again.numbers == {3}
            again.add({1: [{"answer": "a"}, {"answer": "b"}]})
            assert len(again.finish(tmp_path / "x")) == 3
            assert (tmp_path / "x").read_text() == '{"answer": "a"}\n{"answer": "b"}\n{"answer": "c"}\n'
            (tmp_path / "x").unlink()

    def test_another_process_is_not_disturbed(self, tmp_path: Path) -> None:
        path = tmp_path / "x.partial"
        holds = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(); input()"
        command = [sys.executable, "-c", holds, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout
            other.stdout.readline()
            with pytest.raises(ConfigError, match="another process is using .*x.partial"):
                AnsweredPrompts(path, {})
            other.communicate("\n")

    def test_a_file_of_something_else_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "x.partial"
        header = '{"answers_depend_on": {}}\n'
        contents = [
            '{"answer": "a"}\n',
            "notes",
            "[1]\n",
            "\n",
            header + '{"rows": []}\n',
            header + '{"number": "a", "rows": []}\n',
        ]
        for content in [*contents, '{"answers_depend_on": 1}\n']:
            path.write_text(content)
            with pytest.raises(ConfigError, match="not a file of an interrupted predict"):
                AnsweredPrompts(path, {})
            assert path.read_text() == content

    def test_a_link_or_a_pipe_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "mine").write_text("")
        (tmp_path / "link").symlink_to("mine")
        os.mkfifo(tmp_path / "pipe")
        for name in ("link", "pipe"):
            with pytest.raises(ConfigError, match="not a regular file"):
                AnsweredPrompts(tmp_path / name, {})
            with pytest.raises(ConfigError, match="not a regular file"):
                refuse_foreign(tmp_path / name)
        assert (tmp_path / "link").is_symlink()

    @pytest.mark.parametrize("content", ["notes", '{"prompt": "a"}\n', "seed_everything: 7\n", "[]"])
    def test_only_predictions_are_replaced(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "x").write_text(content)
        with pytest.raises(ConfigError, match="something else than predictions"):
            refuse_foreign(tmp_path / "x")
        row = dict.fromkeys(("source", "prompt", "strategy", "answer", "finish_reason"))
        (tmp_path / "x").write_text(json.dumps(row) + "\n")
        refuse_foreign(tmp_path / "x")


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="token_budget is 0"):
        prediction_writer.PredictionWriter(token_budget=0)
