"""SFTData: corpora in, batches out."""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from lit_sft.conversation import Batch, Conversation, Example, Prompt, TextInterface
from lit_sft.corpora._base import Corpus, Finding
from lit_sft.data.collate import collate
from lit_sft.data.encode import LossOn, encode_conversation
from lit_sft.data.order import EpochOrder, Position
from lit_sft.data.prompts import encode_prompts, read_prompts
from lit_sft.data.quarantine import Quarantine
from lit_sft.data.split import fingerprint, split_off
from lit_sft.errors import BadRecord, ConfigError, DataError

log = logging.getLogger(__name__)


class SFTData(LightningDataModule):
    """Conversations of one or more corpora, tokenized, with the loss on the answers.

    Args:
        text: How the model reads text; linked to the checkpoint of the model.
        corpora: What to train on.
        max_length: Tokens of a row at most; longer conversations lose whole turns from the end.
        micro_batch_size: Rows of a batch on one device.
        loss_on: `assistant`: every answer; `last`: the last answer only; `all`: prompts too.
        validation_fraction: Share of the distinct conversations that is held out for validation.
        test_corpora: What `test` measures and `predict` answers; the validation split if not given.
        prompts: What `predict` answers instead: a text file with a prompt on each line, or JSON Lines.
        on_bad_record: `skip`: count it and go on; `error`: stop at the first.
        max_bad_fraction: Stop if a larger share of the records of a corpus is bad: it is then the wrong file or class.
        deduplicate: Keep only the first of the conversations that say exactly the same, in all corpora together.
        num_workers: Processes that assemble batches.
        seed: Seed of order and split; linked to `seed_everything`.
    """

    def __init__(
        self,
        text: TextInterface,
        corpora: list[Corpus],
        max_length: int = 2048,
        micro_batch_size: int = 4,
        loss_on: LossOn = "assistant",
        validation_fraction: float = 0.01,
        test_corpora: list[Corpus] | None = None,
        prompts: str | None = None,
        on_bad_record: Literal["skip", "error"] = "skip",
        max_bad_fraction: float = 0.05,
        deduplicate: bool = False,
        num_workers: int = 0,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.text = text
        self.corpora = corpora
        self.test_corpora = test_corpora or []
        self.max_length = max_length
        self.micro_batch_size = micro_batch_size
        self.loss_on: LossOn = loss_on
        self.validation_fraction = validation_fraction
        self.prompts = prompts
        self.max_bad_fraction = max_bad_fraction
        self.deduplicate = deduplicate
        self.num_workers = num_workers
        self.seed = seed
        self.quarantine = Quarantine(stop_at_first=on_bad_record == "error")
        self.num_duplicates = 0
        self.tokenizer: Any = None
        self._train: list[Example] = []
        self._validation: list[Example] = []
        self._test: list[Example] = []
        self._prompts: list[Prompt] = []
        self._start = Position()
        self._check_options()

    @property
    def files(self) -> list[Path]:
        """Data files, for fingerprints."""
        return [file for corpus in [*self.corpora, *self.test_corpora] for file in corpus.files]

    def setup(self, stage: str) -> None:
        """Read, tokenize and split; Lightning calls it on every process before the weights are loaded."""
        if self.tokenizer is None:
            self.tokenizer = self.text.load_tokenizer()
        if stage in {"fit", "validate"} and not self._train:
            self._train, self._validation = self._read_and_split()
            log.info(
                "%d conversations to train on, %d to validate on; %d left out by filters, %d duplicates; %s",
                len(self._train), len(self._validation),
                sum(corpus.num_left_out for corpus in self.corpora), self.num_duplicates, self.quarantine,
            )  # fmt: skip
        if stage == "test" and not self._test:
            self._test = self._read(self.test_corpora)[0] if self.test_corpora else self._read_and_split()[1]
        if stage == "predict" and not self._prompts:
            conversations = read_prompts(self.prompts) if self.prompts else self._held_out()
            self._prompts = list(encode_prompts(conversations, self.text.prompt_format, self.tokenizer))
        if stage == "fit" and self.trainer is not None and self.trainer.is_global_zero:
            self.quarantine.write(Path(self.trainer.default_root_dir) / "quarantine.jsonl")

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled anew each epoch; a resumed run goes on with the batch it would have had."""
        world_size, rank = self._world()
        order = EpochOrder(
            self._train,
            start=self._start,
            micro_batch_size=self.micro_batch_size,
            num_replicas=world_size,
            rank=rank,
            seed=self.seed,
        )
        return self._loader(self._train, order)

    def val_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """Similar lengths together, so that little is padded; no loader if nothing is held out."""
        return self._held_out_loader(self._validation) if self._validation else []

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test corpora, or the validation split."""
        return self._held_out_loader(self._test)

    def state_dict(self) -> dict[str, int]:
        """The position in the data, for the checkpoint."""
        if self.trainer is None:
            return {}
        fit = self.trainer.fit_loop
        epochs: Any = fit.epoch_progress.current
        # A run that max_steps ends within an epoch has, for Lightning, done with that epoch.
        num_batches = 0 if epochs.ready == epochs.processed else fit.epoch_loop.batch_progress.current.ready
        return {"epoch": epochs.processed, "num_batches": num_batches, "micro_batch_size": self.micro_batch_size}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on at the position of a checkpoint; Lightning calls it before the loader is made.

        Raises:
            ConfigError: In the middle of an epoch that was cut into batches of another size.
        """
        if state["num_batches"] and state["micro_batch_size"] != self.micro_batch_size:
            raise ConfigError(
                f"the checkpoint stands in the middle of an epoch with data.micro_batch_size "
                f"{state['micro_batch_size']}; go on with that, not {self.micro_batch_size}"
            )
        self._start = Position(state["epoch"], state["num_batches"])

    def predict_dataloader(self) -> DataLoader[list[Prompt]]:
        """Prompts in order; the network's side pads them."""
        return DataLoader(cast(Dataset[list[Prompt]], self._prompts), batch_size=self.micro_batch_size, collate_fn=list)

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Prompts are lists of ids: generation pads them and moves the result."""
        if isinstance(batch, list):
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def held_out_prompts(self, count: int) -> list[Prompt]:
        """The first `count` of what `predict` answers: test corpora, or the validation split where there are none."""
        if self.test_corpora:
            said = (said for corpus in self.test_corpora for said in corpus.conversations(_ignore))
            conversations = list(islice(said, count))
        else:
            wanted = {example.source for example in self._validation[:count]}
            conversations = _from_sources(self.corpora, wanted)
        return list(encode_prompts(conversations, self.text.prompt_format, self.tokenizer))

    def _held_out(self) -> list[Conversation]:
        if self.test_corpora:
            return [conversation for corpus in self.test_corpora for conversation in corpus.conversations(_ignore)]
        validation = self._read_and_split()[1]
        if not validation:
            raise ConfigError(
                "predict has nothing to answer: give data.prompts, data.test_corpora or "
                "a data.validation_fraction above 0"
            )
        return _from_sources(self.corpora, {example.source for example in validation})

    def _read_and_split(self) -> tuple[list[Example], list[Example]]:
        examples, fingerprints = self._read(self.corpora)
        train, validation = split_off(fingerprints, self.validation_fraction)
        return [examples[index] for index in train], [examples[index] for index in validation]

    def _read(self, corpora: Sequence[Corpus]) -> tuple[list[Example], list[bytes]]:
        examples: list[Example] = []
        fingerprints: list[bytes] = []
        seen: set[bytes] = set()
        for corpus in corpora:
            for conversation in self._conversations(corpus):
                mark = fingerprint(conversation, self.seed)
                if self.deduplicate and mark in seen:
                    self.num_duplicates += 1
                    continue
                seen.add(mark)
                example = self._encode(conversation)
                if example is not None:
                    examples.append(example)
                    fingerprints.append(mark)
        if not examples:
            raise ConfigError(
                f"no conversation of {', '.join(str(corpus.path) for corpus in corpora)} fits into "
                f"data.max_length = {self.max_length} with a token of an answer ({self.quarantine}). "
                "Raise data.max_length"
            )
        return examples, fingerprints

    def _conversations(self, corpus: Corpus) -> Iterator[Conversation]:
        num_good = 0
        bad: Counter[str] = Counter()
        first: dict[str, str] = {}

        def report(finding: Finding) -> None:
            self.quarantine.report(finding)
            if not finding.is_kept and finding.reason != "empty-line":
                bad[finding.reason] += 1
                first.setdefault(finding.reason, finding.source)

        for conversation in corpus.conversations(report):
            num_good += 1
            yield conversation
        num_records = num_good + corpus.num_left_out + bad.total()
        if bad.total() > self.max_bad_fraction * num_records:
            table = ", ".join(f"{count} {reason} (first {first[reason]})" for reason, count in bad.most_common())
            raise DataError(
                f"{bad.total()} of {num_records} records of {corpus.path} are bad: {table}. Check the file and the "
                f"class that reads it, or raise data.max_bad_fraction = {self.max_bad_fraction:g}"
            )

    def _encode(self, conversation: Conversation) -> Example | None:
        excerpt = conversation.messages[0].content[:200]
        try:
            example = encode_conversation(
                conversation,
                self.text.prompt_format,
                self.tokenizer,
                max_length=self.max_length,
                loss_on=self.loss_on,
            )
        except BadRecord as bad:
            self.quarantine.report(Finding(conversation.source, bad.reason, excerpt, is_kept=False))
            return None
        if example.truncation:
            self.quarantine.report(Finding(conversation.source, example.truncation, excerpt, is_kept=True))
        return Example(array("i", example.input_ids), array("i", example.labels), example.source, example.truncation)

    def _check_options(self) -> None:
        if not self.corpora:
            raise ConfigError(
                "data.corpora is empty; name at least one, such as {class_path: Belle, init_args: {path: ...}}"
            )
        if self.max_length > self.text.context_length:
            raise ConfigError(
                f"data.max_length is {self.max_length}, but the model reads {self.text.context_length} tokens at most. "
                f"Set data.max_length to {self.text.context_length} or less"
            )
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(
                f"data.validation_fraction is {self.validation_fraction}; it must be at least 0 and below 1"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"data.max_bad_fraction is {self.max_bad_fraction}; it must be from 0 to 1")
        for name, least in (("max_length", 2), ("micro_batch_size", 1), ("num_workers", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name} is {getattr(self, name)}; it must be at least {least}")

    def _world(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _held_out_loader(self, examples: list[Example]) -> DataLoader[Batch]:
        """A rank's share, in which no example stands twice."""
        world_size, rank = self._world()
        return self._loader(sorted(examples, key=len)[rank::world_size])

    def _loader(self, examples: list[Example], order: Sampler[Any] | None = None) -> DataLoader[Batch]:
        pad_token_id = self.tokenizer.pad_token_id
        collate_fn: Callable[[list[Example]], Batch] = partial(
            _collate, pad_token_id=self.tokenizer.eos_token_id if pad_token_id is None else pad_token_id
        )
        return DataLoader(
            cast(Dataset[Batch], examples),
            batch_size=self.micro_batch_size,
            sampler=order,
            num_workers=self.num_workers,
            collate_fn=collate_fn,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            persistent_workers=self.num_workers > 0,
        )


def _collate(examples: list[Example], pad_token_id: int) -> Batch:
    return collate([[example] for example in examples], pad_token_id)


def _from_sources(corpora: Iterable[Corpus], sources: set[str]) -> list[Conversation]:
    """The conversations at these places, read again: texts are not kept in memory."""
    return [
        conversation
        for corpus in corpora
        for conversation in corpus.conversations(_ignore)
        if conversation.source in sources
    ]


def _ignore(finding: Finding) -> None:
    """What is wrong with the file was reported when it was first read."""
