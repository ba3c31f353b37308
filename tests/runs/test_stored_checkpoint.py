"""What is read of a stored checkpoint, and what is refused; what stays when one cannot be written."""

import errno
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_sft.__main__ import main
from lit_sft.callbacks import checkpoint_file
from lit_sft.callbacks.checkpoint_file import CheckpointFile
from lit_sft.errors import ConfigError, TrainingError
from lit_sft.runs import folder
from lit_sft.runs.folder import newest_checkpoint

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]


def runs_named(tmp_path: Path, name: str) -> list[Path]:
    return sorted((tmp_path / "runs").glob(f"{name}-*"))


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)  # type: ignore[no-any-return]


def test_a_checkpoint_that_is_cut_off_changed_or_of_other_data_or_model_is_refused(
    write_config: WriteConfig, tmp_path: Path, corpus_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(trainer={"max_epochs": 1})
    assert main(["fit", "--config", config, "--name", "a"]) == 0
    checkpoint = runs_named(tmp_path, "a")[0] / "checkpoints" / "last.ckpt"
    content = checkpoint.read_bytes()
    damaged = tmp_path / "damaged.ckpt"
    flipped = bytearray(content)
    weight = max(last(checkpoint.parents[1])["state_dict"].values(), key=torch.Tensor.numel)
    flipped[content.index(weight.numpy().tobytes())] ^= 1
    for bad in (content[: len(content) // 2], content[:-1], bytes(flipped), b""):
        damaged.write_bytes(bad)
        assert main(["fit", "--config", config, "--ckpt_path", str(damaged)]) == 2
        assert "damaged or cut off" in capsys.readouterr().err
    rank = ["--model.init_args.tuning.init_args.rank", "2"]
    assert main(["fit", "--config", config, "--ckpt_path", str(checkpoint), *rank]) == 2
    assert "of another model or tuning" in capsys.readouterr().err
    lines = corpus_file.read_text().splitlines(keepends=True)
    corpus_file.write_text("".join(lines[:-1]))
    assert main(["fit", "--config", config, "--ckpt_path", str(checkpoint)]) == 2
    assert "at the end of an epoch of other data or other batches: corpora: ['Belle " in capsys.readouterr().err


def test_a_damaged_last_checkpoint_is_passed_over_for_the_best(write_config: WriteConfig, tmp_path: Path) -> None:
    config = write_config(trainer={"max_steps": 3, "val_check_interval": 2})
    assert main(["fit", "--config", config, "--name", "a"]) == 0
    (run,) = runs_named(tmp_path, "a")
    weights = last(run)["state_dict"]
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert main(["fit", "--resume", str(run)]) == 0
    assert all(torch.equal(weight, last(run)["state_dict"][name]) for name, weight in weights.items())


def test_going_on_reads_the_checkpoint_through_once(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(trainer={"max_steps": 1})
    assert main(["fit", "--config", config]) == 0
    (run,) = runs_named(tmp_path, Path(config).stem)
    read = count_checks(monkeypatch)
    assert main(["fit", "--resume", str(run), "--trainer.max_steps", "2"]) == 0
    assert len(read) == 1


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_first_reads_a_checkpoint_through_and_tells_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, is_whole: bool
) -> None:
    path, own = tmp_path / "best.ckpt", tmp_path / ("best.ckpt" if rank == 0 else "last.ckpt")
    CheckpointFile().save_checkpoint({"step": 1}, path)
    if not is_whole:
        path.write_bytes(path.read_bytes()[:-40])

    def broadcast(verdict: list[Path | None], src: int) -> None:
        verdict[0] = path if is_whole else None

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    monkeypatch.setattr(checkpoint_file, "read_checkpoint", lambda path: {"read": path})
    read = count_checks(monkeypatch)
    if is_whole:
        assert CheckpointFile().load_checkpoint(own) == {"read": path}
    else:
        with pytest.raises(ConfigError, match="damaged or cut off"):
            CheckpointFile().load_checkpoint(own)
    assert len(read) == (rank == 0)


def count_checks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read through from now on."""
    read: list[Path] = []
    original = folder.is_whole_archive

    def watched(path: Path) -> bool:
        read.append(path)
        return original(path)

    monkeypatch.setattr(folder, "is_whole_archive", watched)
    monkeypatch.setattr(checkpoint_file, "is_whole_archive", watched)
    return read


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    CheckpointFile().save_checkpoint({"step": 1}, path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TrainingError, match=f"last.ckpt could not be written: No space left .* is kept: {path}"):
        CheckpointFile().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_too_small_is_an_error_before_training(
    write_config: WriteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert main(["fit", "--config", write_config()]) == 2
    assert "on a disk with 1e-06 GB free" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_a_copied_best_checkpoint_is_not_taken_for_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("last.ckpt", "best.ckpt"):  # the copy of the best is newer
        torch.save({"is_within_step": False}, folder / name)
    os.utime(folder / "last.ckpt", (1, 1))
    assert newest_checkpoint(tmp_path) == folder / "last.ckpt"


@pytest.mark.parametrize("content", [{}, [1], torch.zeros(2), {"state_dict": {}}, {"global_step": "a"}, 7])
def test_a_sound_archive_of_something_else_is_refused_in_one_line(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match="is not a training checkpoint"):
        CheckpointFile().load_checkpoint(tmp_path / "x.ckpt")


def test_a_zip_of_texts_is_refused_in_one_line(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(ConfigError, match="is not a training checkpoint"):
        CheckpointFile().load_checkpoint(tmp_path / "x.ckpt")


def test_a_disk_without_second_names_has_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "best").write_text("weights")
    checkpoint_file.link(tmp_path / "best", tmp_path / "last")
    assert (tmp_path / "last").read_text() == "weights"
