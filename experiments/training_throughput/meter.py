"""The same clock for all: it sees batches leave a DataLoader, optimizers step and a checkpoint opened by whoever."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from inputs import EOS, IGNORED, PAD, Example
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM

MIB = 1 << 20


class Meter:
    """Times the optimizer steps of this process, from where the first batch is asked for.

    Args:
        num_steps: Steps after which the clock stops.
    """

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.losses: list[Any] = []
        """Mean loss of each step, which the contestant adds: a number or a tensor."""
        self._batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._num_done = 0
        self._memory_before: int | None = None
        self._found: dict[str, float] = {}

    def install(self) -> None:
        """Watch whatever this process does from now on."""
        opened = LlamaForCausalLM.from_pretrained.__func__
        handed_out = DataLoader.__iter__

        def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
            self.before_model()
            return opened(cls, *args, **kwargs)

        LlamaForCausalLM.from_pretrained = classmethod(from_pretrained)
        DataLoader.__iter__ = lambda loader: self.watch(handed_out(loader))  # type: ignore[method-assign]
        register_optimizer_step_post_hook(lambda *_: self._after_step())

    def before_model(self) -> None:
        """What the process holds so far is not the model's."""
        if self._memory_before is None:
            # The kernel forgets the peak that importing left.
            Path("/proc/self/clear_refs").write_text("5")
            self._memory_before = _status("VmRSS")

    def watch(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Start the clock, and keep what is handed out; loaders of anything but batches count as preparation."""
        if not self._batches:
            _synchronize()
            self._found = {"startup_s": time.time() - psutil.Process().create_time()}
            self._cpu, self._wall = time.process_time(), time.perf_counter()
        for batch in batches:
            fields = batch if isinstance(batch, Mapping) else getattr(batch, "__dict__", {})
            if {"input_ids", "labels"} <= fields.keys() and len(self._batches) < self.num_steps:
                self._batches.append((fields["input_ids"], fields["labels"]))
            yield batch

    def _after_step(self) -> None:
        self._num_done += 1
        if self._num_done != self.num_steps:
            return
        _synchronize()
        self._found["wall_s"] = time.perf_counter() - self._wall
        self._found["cpu_s"] = time.process_time() - self._cpu
        if torch.cuda.is_available():
            self._found["memory_mib"] = torch.cuda.max_memory_allocated() / MIB
        else:
            assert self._memory_before is not None
            self._found["memory_mib"] = (_status("VmHWM") - self._memory_before) / MIB

    def result(self, examples: list[Example]) -> dict[str, Any]:
        """What was measured.

        Raises:
            AssertionError: If other steps were made than asked for, or other conversations trained.
        """
        assert self._num_done == self.num_steps == len(self._batches) == len(self.losses), (
            f"{self._num_done} steps, {len(self._batches)} batches and {len(self.losses)} losses, not {self.num_steps}"
        )
        supervised = [int((labels != IGNORED).sum()) for _, labels in self._batches]
        return {
            **self._found,
            "steps": self.num_steps,
            "conversations": self._check(examples),
            "tokens": sum(int((ids != PAD).sum()) for ids, _ in self._batches),
            "positions": sum(ids.numel() for ids, _ in self._batches),
            "supervised": supervised,
            "losses": [float(loss) for loss in self.losses],
        }

    def _check(self, examples: list[Example]) -> int:
        """Everything trained is one of the conversations, whole, with its labels, and none of them twice; how many."""
        known = Counter(_key(example.input_ids, example.labels) for example in examples)
        trained: Counter[Any] = Counter()
        for ids, labels in self._batches:
            for row, targets in zip(ids.tolist(), labels.tolist(), strict=True):
                trained.update(_cut(row, targets))
        assert trained <= known, f"{(trained - known).total()} of {trained.total()} conversations are others"
        return trained.total()


def _cut(row: list[int], labels: list[int]) -> Iterator[Any]:
    """The conversations of a row, each of which ends with EOS."""
    start = 0
    for place, token in enumerate(row):
        if token == EOS:
            yield _key(row[start : place + 1], labels[start : place + 1])
            start = place + 1
    assert {*row[start:], *labels[start:]} <= {PAD, IGNORED}, "a conversation has no end"


def _key(ids: list[int], labels: list[int]) -> Any:
    return tuple(ids), tuple(labels)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _status(name: str) -> int:
    """Bytes, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@torch.no_grad()
def held_out_loss(model: Any, examples: list[Example]) -> float:
    """Mean over all supervised tokens, one conversation after the other, by the code of transformers."""
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    total, count = 0.0, 0
    for example in examples:
        ids = torch.tensor([example.input_ids], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, example.num_prompt - 1 : -1].float()
        targets = ids[0, example.num_prompt :]
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        count += len(targets)
    return total / count
