"""What every data module of corpora shares: scan, split, order, loaders, and the position in the data."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from lit_sft.conversation import Example, TextInterface
from lit_sft.corpora._base import Corpus
from lit_sft.data._options import check_options
from lit_sft.data.batch import Batch
from lit_sft.data.cache_place import cache_folder
from lit_sft.data.collate import collate
from lit_sft.data.encoder import Encoding, Selection, fingerprint_of
from lit_sft.data.fitting import check_fitting
from lit_sft.data.intervals import intervals_in_batches
from lit_sft.data.order import Batching, EpochOrder, HeldOutOrder, MicroBatch, Mixture, Position
from lit_sft.data.prepared import Collate, Prepared, scan_corpora
from lit_sft.data.quarantine import Quarantine
from lit_sft.data.scan import ScannedCorpus
from lit_sft.data.split import Split, all_good, split_corpora, split_keys
from lit_sft.data.table import preparation_table, unused_keys
from lit_sft.errors import ConfigError

log = logging.getLogger(__name__)

NOTHING_HELD_OUT = "has no records: give data.test_corpora or a data.validation_fraction above 0"


class CorpusData(LightningDataModule, ABC):
    """Records of one or more corpora as batches, in an order that only seed, epoch and position decide.

    A data module says how a record becomes an example (`encoding`) and, where the default does not do, how examples
    become a batch (`collate`). By what records are told apart, in the split and as duplicates, they say themselves.
    Where the examples are of several sequences, `sequences_in_row` says how many of `max_length` a row takes.

    Args:
        text: How the model reads text; linked to the checkpoint of the model.
        corpora: What to train on.
        max_length: Tokens of an example at most; longer conversations lose whole turns from the end. Where answers are
            compared, tokens of the prompt with one of them; longer ones are left out.
        micro_batch_size: Rows of `max_length` tokens that a device takes at once.
        packing: Fill each row with several examples, which do not see each other. Otherwise an example has a row of its
            own, beside others of similar length, as many as fit into the same number of tokens. If not given, rows are
            packed on a GPU, and not on a CPU, where that is as fast or faster.
        validation_fraction: Share of the distinct conversations, or prompts of compared answers, that is held out for
            validation.
        test_corpora: What `test` measures and `predict` answers; the validation split if not given.
        on_bad_record: `skip`: count it and go on; `error`: tokenize everything before training and stop at the first.
        max_bad_fraction: Stop if a larger share of the records of a corpus is bad, which is then the wrong file or
            class, or does not fit into `max_length`.
        deduplicate: Keep only the first of the records that say exactly the same, in all corpora together.
        num_workers: Processes that read, tokenize and assemble batches; 0 to do it between the training steps.
        cache: Folder for what is prepared once; `~/.cache/lit_sft` if not given, or, where that lies on a network file
            system, a folder on the machine's own disk.
        seed: Seed of order and split; linked to `seed_everything`.
    """

    sequences_in_row: ClassVar[int] = 1
    """Sequences of `max_length` tokens that fit into a row."""

    prepared_class: ClassVar[type[Prepared]] = Prepared
    """What makes micro-batches of the examples."""

    def __init__(
        self,
        text: TextInterface,
        corpora: list[Corpus],
        *,
        max_length: int = 2048,
        micro_batch_size: int = 4,
        packing: bool | None = None,
        validation_fraction: float = 0.01,
        test_corpora: list[Corpus] | None = None,
        on_bad_record: Literal["skip", "error"] = "skip",
        max_bad_fraction: float = 0.05,
        deduplicate: bool = False,
        num_workers: int = 0,
        cache: str | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.text = text
        self.corpora = corpora
        self.test_corpora = test_corpora or []
        self.max_length = max_length
        self.micro_batch_size = micro_batch_size
        self.packing = packing
        self.validation_fraction = validation_fraction
        self.on_bad_record = on_bad_record
        self.max_bad_fraction = max_bad_fraction
        self.deduplicate = deduplicate
        self.num_workers = num_workers
        self.cache = cache_folder(cache)
        self.seed = seed
        self._order: EpochOrder | None = None
        self._start = Position()
        self._check_options()

    @property
    @abstractmethod
    def encoding(self) -> Encoding:
        """How a record becomes an example."""

    @staticmethod
    def collate(
        rows: Sequence[Sequence[Example]], pad_token_id: int, *, corpora: Sequence[str], epoch_progress: float
    ) -> Batch:
        """How rows of examples become a batch; called in worker processes, which do not have the data module."""
        return collate(rows, pad_token_id, corpora=corpora, epoch_progress=epoch_progress)

    @cached_property
    def scanned(self) -> list[ScannedCorpus]:
        """The training corpora with all that is in them.

        Raises:
            DataError: If one cannot be read, or too much of it is bad.
        """
        return self._scan(self.corpora)

    @cached_property
    def scanned_tests(self) -> list[ScannedCorpus]:
        """The same for the test corpora."""
        return self._scan(self.test_corpora)

    @cached_property
    def split(self) -> Split:
        """Which of their records train, and which are held out."""
        return split_corpora(self.scanned, self.validation_fraction, self.seed, deduplicate=self.deduplicate)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's."""
        return self.text.load_tokenizer()

    @property
    def batching(self) -> Batching:
        """How examples become micro-batches."""
        packing = self._is_on_gpu() if self.packing is None else self.packing
        return Batching(self.sequences_in_row * self.max_length, self.micro_batch_size, packing)

    @cached_property
    def prepared(self) -> Prepared:
        """The training corpora as examples."""
        return self._prepare(self.scanned)

    @cached_property
    def tested(self) -> Prepared:
        """The test corpora as examples."""
        return self._prepare(self.scanned_tests)

    @property
    def quarantine(self) -> Quarantine:
        """What was wrong with them, as far as they have been encoded."""
        return self.prepared.quarantine

    @property
    def order(self) -> EpochOrder:
        """The micro-batches of this process, from where training goes on."""
        if self._order is None:
            self._order = EpochOrder(
                self.mixture, self.batching, self.prepared.encoder, start=self._start, **self._ranks()
            )
        return self._order

    @property
    def mixture(self) -> Mixture:
        """What an epoch consists of."""
        train = self.split.train
        sizes = np.bincount(train[0], minlength=len(self.corpora)).tolist()
        counts = [
            corpus.count or max(1, round(corpus.weight * size)) if size else 0
            for corpus, size in zip(self.corpora, sizes, strict=True)
        ]
        return Mixture(train, sizes, counts, self.seed)

    def setup(self, stage: str) -> None:
        """Find out what is in the data; Lightning calls it on every process before the weights are loaded."""
        if stage == "fit":
            self._set_up_training()
        elif stage == "test" and self.test_corpora:
            found = self.tested.quarantine
            if self.on_bad_record == "error":
                found.refuse_any()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled anew each epoch; a resumed run goes on with the batch it would have had."""
        return self._loader(self.prepared, self.order)

    def sample(self, count: int = 64) -> Batch:
        """Examples from all over the first window of the first epoch, a row each; of a batch lengths are alike."""
        window = self.order.first_window(0)
        self.prepared.encoder.need(window)
        usable = np.flatnonzero(self.prepared.encoder.num_tokens(window))
        chosen = usable[np.linspace(0, len(usable) - 1, min(count, len(usable))).astype(np.int64)]
        corpus_of, records = (part[chosen].tolist() for part in window)
        return self.prepared[MicroBatch([[place] for place in zip(corpus_of, records, strict=True)], 0.0)]

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Similar lengths together, so that little is padded; no loader if nothing is held out."""
        validation = self.split.validation
        if not len(validation[0]) and self.trainer is not None and self.trainer.state.fn == "validate":
            raise ConfigError(f"validate {NOTHING_HELD_OUT}")
        return self._held_out_loader(self.prepared, validation) if len(validation[0]) else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test corpora, or the validation split."""
        if not self.test_corpora:
            if not len(self.split.validation[0]):
                raise ConfigError(f"test {NOTHING_HELD_OUT}")
            return self._held_out_loader(self.prepared, self.split.validation)
        return self._held_out_loader(self.tested, all_good(self.scanned_tests))

    def every_record(self, stage: str) -> DataLoader[Batch]:
        """All that a stage of the trainer sees (`fit`, `validate`, `test`), each record once, in no order."""
        if stage == "test":
            return self.test_dataloader()
        parts = [self.split.validation, *([self.split.train] if stage == "fit" else [])]
        corpus_of, records = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return self._held_out_loader(self.prepared, (corpus_of, records))

    def teardown(self, stage: str) -> None:
        """List what encoding found after training began."""
        if stage == "fit":
            self._write_quarantine()

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, for the checkpoint, and what gives it a meaning."""
        if self.trainer is None or self._order is None:
            return {}
        fit = self.trainer.fit_loop
        # How many are done is another number in each hook, and wrong where max_steps ends the run within an epoch.
        epoch = max(0, fit.epoch_progress.current.ready - 1)
        is_over = fit.epoch_loop._num_ready_batches_reached()
        num_batches = fit.epoch_loop.batch_progress.current.ready
        position = Position(epoch + 1) if is_over else self._order.position_after(epoch, num_batches)
        return {**asdict(position), "data": self.identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at the position of a checkpoint; Lightning calls it before the loader is made.

        Raises:
            ConfigError: For other data, and in the middle of an epoch for data that was cut into other batches.
        """
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return  # it measures or answers all there is
        own, stored = self.identity(), state["data"]
        differing = {name for name in own if stored.get(name) != own[name]}
        if not state["num_batches"]:
            differing -= {*asdict(self.batching), "encoding", "counts"}
        if differing:
            where = "in the middle" if state["num_batches"] else "at the end"
            values = "; ".join(f"{name}: {stored.get(name)}, now {own[name]}" for name in sorted(differing))
            raise ConfigError(
                f"the checkpoint stands {where} of an epoch of other data or other batches: {values}. "
                "Resume with the data and options of its run"
            )
        self._start = Position(**{name: state[name] for name in asdict(self._start)})
        self._order = None

    def notes(self) -> list[str]:
        """What is to be known of the training corpora beside the counts, a line each."""
        return []

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of every data file, by path."""
        corpora = [*self.scanned, *self.scanned_tests]
        return {str(file.file): file.sha256 for corpus in corpora for file in corpus.records.files}

    def _set_up_training(self) -> None:
        if self.on_bad_record == "error":
            self.quarantine.refuse_any()
            self.prepared.encoder.need(self.split.train)
            self.quarantine.refuse_any()
        self._check_examples()
        self._warn_of_tested()
        if self.trainer is not None:
            intervals_in_batches(self.trainer, self.order.num_batches_estimated())
        self._write_quarantine()
        if self.packing is None:
            log.info("data.packing is %s, the default on this device", str(self.batching.packing).lower())
        table = preparation_table(self.prepared.corpora, self.split, deduplicate=self.deduplicate)
        log.info("%s", "\n".join([table, *self.notes()]))

    def _check_examples(self) -> None:
        """Encode the first window: is there anything to learn?"""
        if not len(self.split.train[0]):
            raise ConfigError(
                f"data.validation_fraction {self.validation_fraction} holds out all {len(self.split.validation[0])} "
                "records. Lower it, or give more data"
            )
        first = self.order.first_window(self._start.epoch)
        self.prepared.encoder.need(first)
        if not self.prepared.encoder.num_tokens(first).any():
            raise ConfigError(
                f"no record of {', '.join(str(corpus.path) for corpus in self.corpora)} fits into "
                f"data.max_length = {self.max_length} with what is to be learned ({self.quarantine}). "
                "Raise data.max_length"
            )
        check_fitting(self.prepared.corpora, self.split.train, self.max_bad_fraction, self.max_length)

    def _warn_of_tested(self) -> None:
        """Say how many of the records that `test` measures are trained on."""
        if not self.test_corpora:
            return
        trained = split_keys(self.scanned, self.split.train)
        tested = split_keys(self.scanned_tests, all_good(self.scanned_tests))
        num_seen = int(np.isin(tested, trained).sum())
        if num_seen:
            log.warning("%d of %d records of data.test_corpora are also trained on", num_seen, len(tested))

    def _write_quarantine(self) -> None:
        if self.trainer is not None and self.trainer.is_global_zero:
            self.quarantine.write(Path(self.trainer.default_root_dir) / "quarantine.jsonl")

    def _held_out(self) -> tuple[Sequence[ScannedCorpus], Selection]:
        """What is not trained on: the test corpora, or the validation split where there are none."""
        if self.test_corpora:
            return self.scanned_tests, all_good(self.scanned_tests)
        return self.scanned, self.split.validation

    def _scan(self, corpora: Sequence[Corpus]) -> list[ScannedCorpus]:
        scanned = scan_corpora(corpora, self.cache, self.num_workers)
        for corpus in scanned:
            corpus.check(self.max_bad_fraction)
            for line in unused_keys(corpus):
                log.warning("%s", line)
        return scanned

    def _prepare(
        self, scanned: Sequence[ScannedCorpus], encoding: Encoding | None = None, rows_to_batch: Collate | None = None
    ) -> Prepared:
        """Corpora as examples, if nothing else is given of the kind that is trained on."""
        return self.prepared_class(
            scanned,
            self.text,
            encoding or self.encoding,
            rows_to_batch or self.collate,
            self.cache,
            num_workers=self.num_workers,
            is_first=self.trainer is None or self.trainer.local_rank == 0,
        )

    def _held_out_loader(self, prepared: Prepared, records: Selection) -> DataLoader[Batch]:
        return self._loader(prepared, HeldOutOrder(records, self.batching, prepared.encoder, **self._ranks()))

    def _loader(self, prepared: Prepared, order: Any) -> DataLoader[Batch]:
        pins = self.trainer is not None and self._is_on_gpu()
        return prepared.loader(order, num_workers=self.num_workers, pin_memory=pins)

    def _is_on_gpu(self) -> bool:
        """Whether the network is, or where there is no trainer, would be."""
        if self.trainer is None:
            return torch.cuda.is_available()
        return bool(self.trainer.strategy.root_device.type == "cuda")

    def _ranks(self) -> dict[str, int]:
        trainer = self.trainer
        return {"num_ranks": trainer.world_size if trainer else 1, "rank": trainer.global_rank if trainer else 0}

    def identity(self) -> dict[str, Any]:
        """What the order of the batches depends on."""
        return {
            **asdict(self.batching),
            "validation_fraction": self.validation_fraction,
            "deduplicate": self.deduplicate,
            "seed": self.seed,
            "counts": self.mixture.counts,
            "encoding": fingerprint_of(self.text, self.encoding)[:8],
            "corpora": [f"{corpus.name} {corpus.fingerprint[:8]}" for corpus in self.scanned],
        }

    def _check_options(self) -> None:
        """Refuse what cannot be; a kind of data adds what it refuses."""
        check_options(self)
