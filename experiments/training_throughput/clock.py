"""Callbacks that a configuration of this project names, to see what a step does with its time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch
from lightning import Callback, LightningModule, Trainer


class Losses(Callback):
    """Keeps the loss of each step, which is logged to file only now and then."""

    found: ClassVar[list[float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.found.append(float(trainer.callback_metrics["train/loss"]))


class Shares(Callback):
    """Seconds of each part of all steps but the first, on which kernels are chosen and memory is taken.

    On a GPU the device is waited for at each border, so that a part has what it started; the sum is longer than that
    of a run without.
    """

    found: ClassVar[dict[str, float]] = {}
    parts = ("data", "forward", "backward", "gradients", "optimizer")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = 0.0
        optimizer = trainer.optimizers[0]
        optimizer.step = self._timed_step(optimizer.step)  # type: ignore[method-assign]
        pl_module.training_step = self._timed("forward", pl_module.training_step)  # type: ignore[method-assign]
        self._reset()

    def _reset(self) -> None:
        self.found.clear()
        self.found.update(dict.fromkeys((*self.parts, "steps", "all"), 0.0))

    def on_before_backward(self, *args: Any) -> None:
        self._backward_began = _now()

    def on_after_backward(self, *args: Any) -> None:
        self._backward_ended = _now()
        self.found["backward"] += self._backward_ended - self._backward_began

    def on_train_batch_start(self, *args: Any) -> None:
        if self._began:
            self.found["data"] += _now() - self._ended

    def on_train_batch_end(self, *args: Any) -> None:
        self._ended = _now()
        if self._began:
            self.found["steps"] += 1
            self.found["all"] = self._ended - self._began
        else:
            self._reset()
            self._began = self._ended

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = _now()
            result = function(*args, **kwargs)
            self.found[part] += _now() - began
            return result

        return timed

    def _timed_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Lightning has the optimizer call forward, backward, and what is done with the gradients."""

        def timed(closure: Callable[[], Any]) -> Any:
            def inner() -> Any:
                result = closure()
                self._closed = _now()
                self.found["gradients"] += self._closed - self._backward_ended
                return result

            result = step(closure=inner)
            self.found["optimizer"] += _now() - self._closed
            return result

        return timed


class FirstStep(Callback):
    """Writes how old the process is when its first optimizer step is done, and ends it.

    Args:
        path: File to write.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, *args: Any) -> None:
        Path(self.path).write_text(str(time.time() - psutil.Process().create_time()))
        os._exit(0)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
