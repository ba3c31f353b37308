"""What the reference said of each answer, where it cannot be asked again: full tuning changes the weights themselves.

A number for each answer, computed once before the first step and kept in the cache folder under the name of all that it
depends on, so that a run which goes on finds it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import Trainer
from torch import Tensor

from lit_sft.bars import bar
from lit_sft.data._base import CorpusData
from lit_sft.data.batch import PairBatch
from lit_sft.data.cache import build_once, digest
from lit_sft.distributed.processes import gather
from lit_sft.errors import DataError

if TYPE_CHECKING:
    from lit_sft.stages.preference import Preference

FILE = "logps.json"


@dataclass
class StoredReference:
    """Log-probabilities of all answers that a stage of the trainer sees.

    Args:
        file: Where they stand.
        logps: By corpus and source of a record, of each of its answers in order.
    """

    file: Path
    logps: dict[tuple[str, str], list[float]]

    @classmethod
    def made_by(cls, stage: Preference) -> StoredReference:
        """Those under the weights that the stage has now; all processes take part."""
        data: CorpusData = stage.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it, undeclared
        folder = data.cache / "reference" / _key(stage, data)
        if not all(gather((folder / FILE).is_file())):
            own = _ask(stage, data)
            # Processes of a machine wait for each other, and all but the first find it written.
            everybody = {key: values for part in gather(own) for key, values in part.items()}
            build_once(folder, lambda partial: _write(partial, everybody))
        return cls.read(build_once(folder, _never) / FILE)

    @classmethod
    def read(cls, file: Path) -> StoredReference:
        """Those in a file.

        Raises:
            DataError: If it does not hold a list of corpus, source and numbers.
        """
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            return cls(file, {(corpus, source): [*map(float, values)] for corpus, source, values in stored})
        except (ValueError, TypeError, RecursionError):
            raise _damaged(file) from None

    def of(self, batch: PairBatch) -> Tensor:
        """Those of a batch [S], float32.

        Raises:
            DataError: If the file lacks an answer.
        """
        values = [value for key in _keys(batch) for value in self.logps.get(key, [])]
        if len(values) != len(batch.sequences):
            raise _damaged(self.file)
        return torch.tensor(values, dtype=torch.float32, device=batch.input_ids.device)


def _damaged(file: Path) -> DataError:
    return DataError(f"the stored log-probabilities of the reference in {file} are damaged. Remove it")


def _ask(stage: Preference, data: CorpusData) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    loader = data.every_record(function_of(stage.trainer))
    for batch in bar(iterable=loader, desc="log-probabilities of the reference", unit=" batches", delay=2):
        moved: Any = batch.to(stage.device)
        with torch.no_grad(), stage.trainer.precision_plugin.forward_context():
            logps = stage.log_probs(moved).tolist()
        records = batch.sequences.tolist()
        for key in (keys := _keys(batch)):
            found[key] = []
        for record, value in zip(records, logps, strict=True):
            found[keys[record]].append(value)
    return found


def function_of(trainer: Trainer) -> str:
    """What the trainer is asked to do: `fit`, `validate` or `test`."""
    assert trainer.state.fn is not None
    return str(trainer.state.fn.value)


def _keys(batch: PairBatch) -> list[tuple[str, str]]:
    """Corpus and source of each record."""
    corpus_of = dict(zip(batch.sequences.tolist(), batch.sequence_corpora.tolist(), strict=True))
    return [(batch.corpora[corpus_of[place]], source) for place, source in enumerate(batch.sources)]


def _key(stage: Preference, data: CorpusData) -> str:
    """The name of all that the numbers depend on."""
    objective = stage.objective
    return digest(
        stage.checkpoint.fingerprint(),
        str(stage.trainer.precision),
        function_of(stage.trainer),
        type(objective).summed.__qualname__,
        {name: str(value) for name, value in vars(objective).items()},
        data.identity(),
        data.fingerprints(),
    )


def _write(folder: Path, logps: dict[tuple[str, str], list[float]]) -> None:
    rows = [[corpus, source, values] for (corpus, source), values in logps.items()]
    (folder / FILE).write_text(json.dumps(rows), encoding="utf-8")


def _never(folder: Path) -> None:
    raise RuntimeError(f"{folder} was written a moment ago")
