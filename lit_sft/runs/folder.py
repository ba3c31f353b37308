"""Run folders: `runs/<name>/` holds everything that one `fit` was made of and made.

config.yaml       resolved configuration; `fit --config` on it repeats the run
manifest.json     versions, git commit, seed, fingerprints of tokenizer and data
summary.json      held-out metrics and sample answers, before and after
quarantine.jsonl  records that were skipped or repaired, with file:line and reason
events.out.*      curves and sample answers for TensorBoard, which calls a run as the folder of its events
.lock             held by the process that writes there, as long as it lives
checkpoints/      last.ckpt and best.ckpt: what trained, optimizer, position in the data
adapter/, model/  what trained in the standard format: PEFT adapter, or whole model
predictions.jsonl answers of the last `predict`; predictions-base.jsonl those of the model before tuning; .partial what
                  an interrupted one has answered
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from lit_sft.config_file import read_configuration
from lit_sft.errors import ConfigError

log = logging.getLogger(__name__)

CONFIG = "config.yaml"
MANIFEST = "manifest.json"
SUMMARY = "summary.json"
CURVES = "events.out.tfevents.*"
"""Pattern of the files in which TensorBoard finds the curves of a run."""

PREDICTIONS = "predictions.jsonl"
BASE_PREDICTIONS = "predictions-base.jsonl"
LAST_CHECKPOINT = "checkpoints/last.ckpt"
BEST_CHECKPOINT = "checkpoints/best.ckpt"
WITHIN_STEP = "is_within_step"
"""Key of a checkpoint that says whether gradients which it does not hold were being summed when it was saved."""


WRITTEN = (
    "seed_everything", "trainer.precision", "data.init_args", "model.class_path", "model.init_args.checkpoint",
    "model.init_args.tuning.class_path",
)  # fmt: skip
"""Places of a configuration that verbs look at."""


def new_run(runs: Path, name: str) -> Path:
    """Make the folder `<name>-<date>-<time>`, counted on if two start in one second: no two runs share one.

    Raises:
        ConfigError: If the name is a path, or the folder cannot be made.
    """
    if Path(name).name != name:
        raise ConfigError(f"--name {name!r} is not the name of a folder; it must not hold a path")
    base = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        folder = runs / (base if number == 1 else f"{base}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            if not folder.is_dir():
                raise _unwritable(runs, error) from None
            number += 1
        except OSError as error:
            raise _unwritable(runs, error) from None
        else:
            return folder


def newest_run(runs: Path, name: str = "") -> Path:
    """The run that started last and got as far as a checkpoint, of this name if one is given.

    Raises:
        ConfigError: If there is none, saying what to give instead.
    """
    finished = [
        folder
        for folder in runs.glob("*")
        if _is_named(folder, name) and is_run(folder) and (folder / LAST_CHECKPOINT).is_file()
    ]
    if not finished:
        raise ConfigError(
            f"no run with a checkpoint in {runs}/. Train one with `fit --config configs/...yaml`, "
            "name one with --run DIR, or answer with a base model: --config configs/...yaml"
        )
    return max(finished, key=lambda folder: (folder / CONFIG).stat().st_mtime)


def unfinished_run(runs: Path, name: str) -> Path | None:
    """The run of this name that started last and is not finished; None if none of this name was ever begun.

    Raises:
        ConfigError: If all of them are finished.
    """
    begun = [folder for folder in runs.glob("*") if _is_named(folder, name) and is_run(folder)]
    unfinished = [folder for folder in begun if not (folder / SUMMARY).is_file()]
    if begun and not unfinished:
        raise ConfigError(
            f"--resume auto looked for a run {name}-DATE-TIME without {SUMMARY} in {runs}/, but all {len(begun)} are "
            f"finished, {max(folder.name for folder in begun)} last. Leave --resume out for a new run"
        )
    return max(unfinished, key=lambda folder: (folder / CONFIG).stat().st_mtime, default=None)


def _is_named(folder: Path, name: str) -> bool:
    """Whether a run has this name, and not one that begins like it; every run has the name ""."""
    return not name or re.fullmatch(re.escape(name) + r"-\d{8}-\d{6}(-\d+)?", folder.name) is not None


def newest_checkpoint(run: Path, *, is_checked: bool = True) -> Path | None:
    """The whole checkpoint with which a run goes on: the last one, else the best if it ends with an optimizer step.

    Args:
        run: The run folder.
        is_checked: Whether to read it through; processes that later take that of the first one need not.
    """
    last, best = run / LAST_CHECKPOINT, run / BEST_CHECKPOINT
    if not is_checked:
        return next((path for path in (last, best) if path.is_file()), None)
    if last.is_file():
        if is_whole_archive(last):
            return last
        log.warning("%s is damaged or cut off, looking for another", last)
    if best.is_file():
        if not is_whole_archive(best):
            log.warning("%s is damaged or cut off", best)
        elif _is_within_step(best):
            log.warning("%s was saved within an optimizer step: training cannot resume from it", best)
        else:
            return best
    return None


def _is_within_step(checkpoint: Path) -> bool:
    import torch  # not for the verbs that only look for runs

    stored = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return isinstance(stored, dict) and bool(stored.get(WITHIN_STEP))


def is_whole_archive(path: Path) -> bool:
    """Whether a file that torch.save wrote is all there and has the checksums that it had."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError):
        return False


def check_writable(folder: Path) -> None:
    """Write something, for permissions and free space do not tell everything.

    Raises:
        ConfigError: If that fails.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 65536)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written to: {error.strerror or error}") from None


def read_config(run: Path) -> dict[str, Any]:
    """What a run was made of.

    Raises:
        ConfigError: If it is not a run, or its configuration is not one that `fit` wrote.
    """
    if not is_run(run):
        raise ConfigError(f"{run} is not a run folder: it holds no {CONFIG}")
    config: dict[str, Any] = yaml.safe_load(read_configuration(run / CONFIG))
    for place in WRITTEN:
        found: Any = config
        for key in place.split("."):
            if not isinstance(found, dict) or key not in found:
                raise ConfigError(
                    f"{run / CONFIG} is damaged: it has no {place}, which fit writes. Give the run the configuration "
                    "that it was made with"
                )
            found = found[key]
    return config


def is_run(folder: Path) -> bool:
    """Whether a fit got as far as to record its configuration there."""
    return (folder / CONFIG).is_file()


def command(name: str) -> str:
    """A program of the environment that runs this, as one can type it here."""
    path = Path(sys.executable).with_name(name)
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _unwritable(runs: Path, error: OSError) -> ConfigError:
    return ConfigError(f"no run folder can be made in {runs}: {error.strerror or error}. Give another with --runs")
