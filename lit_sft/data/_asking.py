"""What a data module needs whose prompts can be asked: by `predict`, `compare`, and for the samples of a fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import chain
from typing import Any, TypeVar, cast

from torch.utils.data import DataLoader, Dataset

from lit_sft.conversation import Conversation, Prompt, TextInterface
from lit_sft.corpora._base import Corpus
from lit_sft.data._base import NOTHING_HELD_OUT, CorpusData
from lit_sft.data.batch import Batch
from lit_sft.data.encode import with_best_answer
from lit_sft.data.prepared import records_of
from lit_sft.data.prompts import encode_prompts, read_prompts
from lit_sft.data.split import all_good
from lit_sft.distributed.fsdp2 import num_shares
from lit_sft.errors import ConfigError

T = TypeVar("T")


class AskingData(CorpusData):
    """Corpora of conversations, whose held-out questions can be asked.

    Args:
        text: How the model reads text; linked to the checkpoint of the model.
        corpora: What to train on.
        prompts: What `predict` answers instead: records in JSON, a table with a header, or a prompt on each line. A
            reward model scores the answers that stand there.
        forgetting: What `compare` measures besides, to see what was forgotten; never trained on.
        kwargs: What every data module takes.
    """

    def __init__(
        self,
        text: TextInterface,
        corpora: list[Corpus],
        *,
        prompts: str | None = None,
        forgetting: list[Corpus] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(text, corpora, **kwargs)
        self.prompts = prompts
        self.forgetting = forgetting or []
        self.predict_prompts: list[Prompt] = []
        """What `predict` answers, in order; known when it is set up."""
        self.predict_batches: list[list[int]] = []
        """Numbers of the prompts of each batch that this process answers; in order until they are planned."""

    def setup(self, stage: str) -> None:
        """Read the prompts, too."""
        super().setup(stage)
        if stage == "predict" and not self.predict_prompts:
            # Lightning sets up the data first, so the stage itself cannot say it in time.
            module = self.trainer.lightning_module if self.trainer else None
            self.predict_prompts = self._encoded_prompts(with_all_answers=getattr(module, "scores_answers", False))
            self.predict_batches = _chunks(list(range(len(self.predict_prompts))), self.micro_batch_size)

    def plan_batches(
        self, group: Callable[[Sequence[int]], list[list[int]]], *, answered: Collection[int] = ()
    ) -> list[list[int]]:
        """Settle which prompts are answered together and, of several processes, by which.

        Args:
            group: Puts prompts together, by the number of tokens of each [N]: lists of their numbers.
            answered: Numbers of those that are left out. Batches are cut as if there were none, for half precision
                rounds by what stands beside.

        Returns:
            Of each step the numbers of the prompts that all processes together answer in it.
        """
        assert self.trainer is not None
        batches = group([len(prompt.input_ids) for prompt in self.predict_prompts])
        left = [[number for number in batch if number not in answered] for batch in batches]
        num_processes = num_shares(self.trainer)
        steps = _chunks([batch for batch in left if batch], num_processes)
        own = self.trainer.global_rank % num_processes
        # All take part in each step, for they exchange their rows in it.
        self.predict_batches = [step[own] if own < len(step) else [] for step in steps]
        return [list(chain.from_iterable(step)) for step in steps]

    def predict_dataloader(self) -> DataLoader[list[Prompt]] | list[Any]:
        """Prompts that are answered together; the network's side pads them."""
        batches = [[self.predict_prompts[number] for number in batch] for batch in self.predict_batches]
        return DataLoader(cast(Dataset[list[Prompt]], batches), batch_size=None, collate_fn=list) if batches else []

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Prompts are lists of ids: generation pads them and moves the result."""
        return batch if isinstance(batch, list) else super().transfer_batch_to_device(batch, device, dataloader_idx)

    def held_out_prompts(self, count: int | None = None) -> list[Prompt]:
        """The first `count` questions that are held out, or all: of the test corpora, or of the validation split."""
        corpora, (corpus_of, records) = self._held_out()
        found = records_of(corpora, (corpus_of[:count], records[:count]))
        return self._encoded([with_best_answer(record) for record in found])

    def held_out_answers(self) -> list[Prompt]:
        """Every answer of every record that is held out, the best of a record first, as the reference of its prompt."""
        found = records_of(*super()._held_out())
        return self._encoded([answered for record in found for answered in record.conversations()])

    def forgetting_dataloader(self) -> DataLoader[Batch] | list[Any]:
        """What shows forgetting: the corpora for it, or the validation split where there are none."""
        if not self.forgetting:
            return self.val_dataloader()
        scanned = self._scan(self.forgetting)
        return self._held_out_loader(self._prepare(scanned), all_good(scanned))

    def _encoded_prompts(self, *, with_all_answers: bool) -> list[Prompt]:
        if self.prompts:
            return self._encoded(read_prompts(self.prompts))
        found = self.held_out_answers() if with_all_answers else self.held_out_prompts()
        if not found:
            raise ConfigError(f"predict {NOTHING_HELD_OUT}, or data.prompts")
        return found

    def _encoded(self, conversations: Iterable[Conversation]) -> list[Prompt]:
        return list(encode_prompts(conversations, self.text.prompt_format, self.tokenizer))


def _chunks(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
