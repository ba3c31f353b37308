"""Stand-ins: a model that reads letters for the data layer, a user who interrupts."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from lit_sft.conversation import Conversation, EncodedTurn, PromptFormat, TextInterface

END = 1
USER = 2


class LetterTokenizer:
    """A character is its code point; ids below 10 are control tokens."""

    pad_token_id = 0
    eos_token_id = END

    def encode_text(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        return "".join(chr(token) for token in ids if token >= 10)


class LetterFormat(PromptFormat):
    """USER question, answer END."""

    def encode_turns(self, conversation: Conversation, tokenizer: Any) -> list[EncodedTurn]:
        turns = []
        for read, answer in conversation.turns():
            prompt = [USER, *tokenizer.encode_text("".join(message.content for message in read))]
            reply = [] if answer is None else [*tokenizer.encode_text(answer.content), END]
            turns.append(EncodedTurn(prompt, reply, is_supervised=answer is None or answer.is_supervised))
        return turns

    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        return [END]


class LetterText(TextInterface):
    """A checkpoint that reads letters."""

    prompt_format = LetterFormat()
    context_length = 64
    tokenizer_files: list[Path] = []  # noqa: RUF012 - as the interface has it

    def load_tokenizer(self) -> LetterTokenizer:
        return LetterTokenizer()


class Interrupt(Callback):
    """Somebody presses Ctrl-C after an optimizer step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


class DrawInValidation(Callback):
    """Random numbers of every kind are drawn while a model is measured."""

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        random.random()
        np.random.rand()  # noqa: NPY002 - the one that others draw from
        torch.rand(1)


class Ask(Callback):
    """A scheduler asks a process to end while a step is made."""

    number = signal.SIGTERM

    def __init__(self, step: int, rank: int = 0) -> None:
        self.step = step
        self.rank = rank

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step - 1 and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.number)


class AskInValidation(Ask):
    """It asks in the middle of a validation."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        pass

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not trainer.sanity_checking:
            os.kill(os.getpid(), self.number)


class FailingLogger(CSVLogger):
    """Its server is not there."""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")


class SwanLabLogger(CSVLogger):
    """Stands for SwanLab's, whose package is not installed here."""

    def __init__(self, project: str, mode: str, save_dir: str = ".") -> None:
        super().__init__(save_dir)
        self.texts: list[tuple[str, list[str], int]] = []

    def log_text(self, key: str, texts: list[str], step: int) -> None:
        self.texts.append((key, texts, step))


class Kill(Ask):
    """The process ends at once."""

    number = signal.SIGKILL


class KillInSave(Ask):
    """It ends with half of a checkpoint written."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step != self.step - 1:
            return

        def half(checkpoint: Any, file: Any) -> None:
            file.write(b"0" * 1000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half  # type: ignore[assignment]


class KillInPredict(Callback):
    """The first process ends with a line of a result half written."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == self.batches and trainer.is_global_zero:
            (partial,) = Path(trainer.default_root_dir).glob("*.partial")
            with partial.open("a", encoding="utf-8") as file:
                file.write('{"number": 0, "rows": [{"source"')
            os.kill(os.getpid(), signal.SIGKILL)


class ScaledHalf(MixedPrecision):
    """`16-mixed` as on a GPU, with its loss scaler, on a CPU."""

    def __init__(self, scale: float = 2.0**16) -> None:
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))
