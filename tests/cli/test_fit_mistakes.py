"""What cannot be is refused in one line that says what to change; a bug of ours is a traceback."""

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_sft.__main__ import main
from lit_sft.cli.mistakes import full_disks_told_once, mistake_behind
from lit_sft.errors import ConfigError
from lit_sft.preflight.plan import refuse_mps

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]


@pytest.fixture
def mistake(write_config: WriteConfig, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `fit` with one thing wrong; the one line that the user sees."""

    def run(*options: str, **changes: Any) -> str:
        assert main(["fit", "--config", write_config(**changes), *options]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        return lines[0]

    return run


class TestMistakes:
    def test_missing_checkpoint_folder(self, mistake: Any) -> None:
        assert "checkpoint folder not found: models/none" in mistake(model={"checkpoint": "models/none"})

    def test_folder_without_weights(self, mistake: Any, tiny_folder: Path, tmp_path: Path) -> None:
        folder = tmp_path / "empty"
        shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.bin"))
        assert f"{folder} holds no weights" in mistake(model={"checkpoint": str(folder)})

    def test_folder_that_is_not_a_model(self, mistake: Any, tmp_path: Path) -> None:
        assert "holds no config.json" in mistake(model={"checkpoint": str(tmp_path)})

    def test_unknown_family(self, mistake: Any) -> None:
        line = mistake(model={"family": "baichuan-8b"})
        assert "unknown family 'baichuan-8b'. Did you mean 'baichuan-7b'? Accepted: auto, baichuan" in line

    def test_missing_data_file(self, mistake: Any) -> None:
        line = mistake(data={"corpora": [{"class_path": "Belle", "init_args": {"path": "none.json"}}]})
        assert "data file not found: none.json" in line

    def test_empty_data_file(self, mistake: Any, corpus_file: Path) -> None:
        corpus_file.write_text("")
        assert f"data file is empty: {corpus_file}" in mistake()

    def test_file_in_which_no_record_parses(self, mistake: Any, corpus_file: Path) -> None:
        corpus_file.write_text('{"a": 1}\n')
        line = mistake()
        assert f"no record of {corpus_file} could be read as Belle (unknown-layout)" in line
        assert "keys instruction, input, output" in line

    def test_misspelt_keys_are_answered_with_the_accepted_ones(self, mistake: Any) -> None:
        line = mistake(model={"tuning": {"class_path": "LoRA", "init_args": {"rnak": 4}}})
        assert "model.tuning: option 'rnak' is not accepted. Did you mean 'rank'? Accepted:" in line
        assert "Did you mean 'max_length'?" in mistake(data={"max_lenght": 4})
        assert "Did you mean 'trainer.max_epochs'?" in mistake("--trainer.max_epoch", "3")
        assert "Did you mean 'trainer.max_epochs'?" in mistake(trianer={"max_epochs": 3})

    def test_names_of_other_programs_are_answered_with_ours_and_their_place(self, mistake: Any) -> None:
        assert "Did you mean 'rank'?" in mistake(model={"tuning": {"class_path": "LoRA", "init_args": {"r": 4}}})
        assert "Did you mean 'model.init_args.optimizer.init_args.lr'?" in mistake("--lr", "1e-4")
        assert "Did you mean 'trainer.max_epochs'?" in mistake("--num_train_epochs=3")
        assert "Did you mean 'data.init_args.micro_batch_size'?" in mistake(batch_size=4)

    def test_a_class_that_is_left_out_is_written_down(self, mistake: Any) -> None:
        written = "{class_path: LoRA, init_args: {rank: 8}}"
        assert f"model.tuning names no class. Write tuning: {written}. Accepted:" in mistake(model={"tuning": {"r": 8}})

    def test_misspelt_options_of_an_optimizer_are_answered_with_those_of_the_optimizer(self, mistake: Any) -> None:
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"learning_rate": 1e-3}}
        line = mistake(model={"optimizer": optimizer})
        assert "model.optimizer: option 'learning_rate' is not accepted" in line
        assert "Did you mean 'lr'?" in line
        assert "neftune_alpha" not in line

    def test_unknown_class(self, mistake: Any) -> None:
        line = mistake(model={"tuning": {"class_path": "LoRa"}})
        assert "model.tuning: there is no class 'LoRa'. Did you mean 'LoRA'?" in line

    def test_unknown_optimizer(self, mistake: Any) -> None:
        line = mistake(model={"optimizer": {"class_path": "bitsandbytes.optim.AdamW9bit"}})
        assert line == "error: model.optimizer: module 'bitsandbytes.optim' has no attribute 'AdamW9bit'"

    def test_wrong_type(self, mistake: Any) -> None:
        assert mistake(data={"max_length": "long"}) == "error: data.max_length expects int, not long"
        optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": "2e-4x"}}
        assert mistake(model={"optimizer": optimizer}) == "error: model.optimizer.lr expects float, not 2e-4x"
        assert mistake(trainer={"max_epochs": "many"}) == "error: trainer.max_epochs expects int, not many"

    def test_lora_target_that_matches_nothing(self, mistake: Any) -> None:
        line = mistake(model={"tuning": {"class_path": "LoRA", "init_args": {"targets": ["q_proj", "W_pack"]}}})
        assert "LoRA target 'W_pack' of the original code is q_proj, k_proj, v_proj in this network" in line

    def test_rows_longer_than_the_context(self, mistake: Any) -> None:
        assert "data.max_length is 4096, but the model reads 256 tokens" in mistake(data={"max_length": 4096})

    def test_fp16_training(self, mistake: Any) -> None:
        assert "trainer.precision 16-true cannot train" in mistake(trainer={"precision": "16-true"})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--ckpt_path", "none.ckpt"], "--ckpt_path none.ckpt is not a file"),
            (["--run", "x"], "--run and --base are for validate, test and predict"),
            (["--name", "../x"], "--name '../x' is not the name of a folder"),
            (["--runs", "/proc/none"], "no run folder can be made in /proc/none"),
            (["--trainer.accelerator", "gpuu"], "gpuu"),
            (["--trainer.val_check_interval", "100"], "val_check_interval"),
            (["--data.init_args.num_workers", "-1"], "data.num_workers is -1"),
            (["--data.init_args.max_length", "0"], "data.max_length is 0"),
            (["--samples.count", "-1"], "samples.count is -1"),
            (["--data.init_args.corpora", "[]"], "data.corpora is empty"),
        ],
        ids=lambda value: value[0] if isinstance(value, list) else "",
    )
    def test_options_that_cannot_work(self, mistake: Any, options: list[str], message: str) -> None:
        assert message in mistake(*options)

    def test_checkpoint_that_is_none(self, mistake: Any, corpus_file: Path) -> None:
        assert "the checkpoint is damaged" in mistake("--ckpt_path", str(corpus_file))

    def test_prompts_that_are_not_utf8(
        self, write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "gbk.txt").write_bytes("hello\n你好\n".encode("gbk"))
        words = ["--config", write_config(), "--data.init_args.prompts", str(tmp_path / "gbk.txt")]
        assert main(["predict", *words]) == 2
        assert "gbk.txt:2: not UTF-8" in capsys.readouterr().err

    def test_missing_configuration(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["fit", "--config", "none.yaml"]) == 2
        assert "none.yaml" in capsys.readouterr().err


def refused_by(action: Callable[[], object]) -> str | None:
    try:
        action()
    except Exception as error:
        found = mistake_behind(error)
        return str(found) if found else None
    return None


def test_a_thread_that_meets_a_full_disk_is_silent_and_any_other_error_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda ended: shown.append(str(ended.exc_value)))

    def fail(error: Exception) -> None:
        raise error

    with full_disks_told_once():
        for error in (OSError(errno.ENOSPC, "full"), OSError(errno.EACCES, "denied"), ValueError("other")):
            thread = threading.Thread(target=fail, args=[error])
            thread.start()
            thread.join()
    assert shown == ["[Errno 13] denied", "other"]


def test_what_lightning_refuses_in_a_configuration_is_one_line(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--trainer.val_check_interval=100", "--trainer.devices=0"):
        assert main(["fit", "--config", write_config(), option]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("kind", [ValueError, MisconfigurationException])
def test_what_our_own_code_gives_lightning_is_a_traceback(kind: type[Exception]) -> None:
    """A frame of ours stands between the command line and Lightning."""

    def named(module: str, function: Callable[[], object]) -> Callable[[], object]:
        scope: dict[str, Any] = {"__name__": module, "function": function}
        exec("def call():\n    function()", scope)
        return scope["call"]  # type: ignore[no-any-return]

    scope: dict[str, Any] = {"__name__": "lightning.pytorch.trainer", "kind": kind}
    exec("def fail():\n    raise kind('bad')", scope)
    ours = named("lit_sft.stages.sft", scope["fail"])
    assert refused_by(named("lit_sft.cli.fit", named("lightning.pytorch.loops", ours))) is None
    assert refused_by(named("lit_sft.cli.fit", scope["fail"])) == "bad"


def test_a_bug_while_a_mistake_is_handled_is_a_bug() -> None:
    def fail() -> None:
        try:
            raise ConfigError("the user's")
        except ConfigError:
            raise KeyError("ours")  # noqa: B904 - what is tested

    def passed_on() -> None:
        try:
            raise ConfigError("the user's")
        except ConfigError as error:
            raise RuntimeError("passed on") from error

    assert refused_by(fail) is None
    assert refused_by(passed_on) == "the user's"


def test_an_apple_gpu_is_refused_with_the_remedy(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["fit", "--config", write_config(), "--trainer.accelerator", "mps"]) == 2
    assert "Set it to cpu" in capsys.readouterr().err
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuse_mps("cpu")
    for accelerator in ("auto", "gpu"):
        with pytest.raises(ConfigError, match="MPS"):
            refuse_mps(accelerator)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_an_accelerator_that_is_not_there_is_refused_with_the_remedy(
    write_config: WriteConfig, capsys: pytest.CaptureFixture[str], accelerator: str
) -> None:
    assert main(["fit", "--config", write_config(), "--trainer.accelerator", accelerator]) == 2
    assert "trainer.accelerator: torch finds no such device. Set it to auto or cpu" in capsys.readouterr().err
