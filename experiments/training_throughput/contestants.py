"""The same training by each contestant, in a process of its own: `contestants.py NAME '{"folder": ..., "steps": ...}'`.

Each function trains in its usual way and returns the trained network; the meter watches from outside. What it prints
last is one JSON object.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from inputs import IGNORED, PAD, SIZES, Example, Size, read_examples
from meter import Meter, held_out_loss
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

CLIP = 1.0
LOG_EVERY = 10

CHUNK = {"cpu": 128, "cuda": 2048}
"""Positions whose logits the bare loop holds at once: on a CPU what is fastest, as fewer fit into its caches."""


class Task(NamedTuple):
    """What is to be trained, and where it lies."""

    folder: Path
    size: Size
    steps: int
    seed: int
    examples: list[Example]
    meter: Meter

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and of all that is computed with them."""
        found: torch.dtype = getattr(torch, self.size.dtype)
        return found

    @property
    def scratch(self) -> Path:
        """For what a contestant writes; removed after it."""
        path = self.folder / "scratch"
        path.mkdir(exist_ok=True)
        return path

    @property
    def batch_size(self) -> int:
        """Conversations that have about as many tokens as a step of the others, padding not counted."""
        mean = sum(len(example.input_ids) for example in self.examples) / len(self.examples)
        return round(self.size.budget / mean)

    def load_model(self) -> Any:
        """The common checkpoint as transformers opens it."""
        return LlamaForCausalLM.from_pretrained(self.folder / "model", dtype=self.dtype)


def fit(task: Task, *, packing: bool, clock: bool = False) -> Any:
    """This project by its command line: it reads the texts, tokenizes them, and exports what it trained."""
    from clock import Losses

    from lit_sft.cli.fit import main

    folder = Path(tempfile.mkdtemp(dir=task.scratch))
    config = _fit_config(task, folder, packing)
    # By name, as a user would add one: what is timed gets them from a file.
    config["trainer"]["callbacks"] = [{"class_path": f"clock.{name}"} for name in ["Losses", *["Shares"] * clock]]
    (folder / "config.json").write_text(json.dumps(config))
    main(["fit", "--config", str(folder / "config.json")])
    task.meter.losses += Losses.found
    (exported,) = folder.glob("fit-*/model")
    return LlamaForCausalLM.from_pretrained(exported, dtype=task.dtype)


def _fit_config(task: Task, folder: Path, packing: bool) -> dict[str, Any]:
    optimizer = {"lr": task.size.learning_rate, "weight_decay": 0.0, "fused": True}  # as the shipped configurations
    corpus = {"class_path": "JsonlChat", "init_args": {"path": str(task.folder / "conversations.jsonl")}}
    model = {
        "checkpoint": str(task.folder / "model"),
        "family": "native",
        "tuning": {"class_path": "Full"},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": optimizer},
        "schedule": {"class_path": "Constant", "init_args": {"warmup_fraction": 0.0}},
    }
    data = {
        "corpora": [corpus],
        "max_length": task.size.row_length,
        "micro_batch_size": task.size.num_rows,
        "packing": packing,
        "validation_fraction": 0.0,
        "cache": str(folder / "cache"),
    }
    trainer = {
        "max_steps": task.steps,
        "gradient_clip_val": CLIP,
        "precision": "32-true" if task.dtype == torch.float32 else "bf16-true",
        "devices": 1,
        "log_every_n_steps": LOG_EVERY,
        "enable_progress_bar": False,
        "enable_checkpointing": False,  # the peers save nothing either; the export of the end is not timed
    }
    return {
        "seed_everything": task.seed,
        "name": "fit",
        "runs": str(folder),
        "model": {"class_path": "SFT", "init_args": model},
        "data": {"class_path": "SFTData", "init_args": data},
        "trainer": trainer,
        "samples": {"count": 0},
    }


def trl(task: Task, *, packing: bool = False, grouped: bool = False) -> Any:
    """TRL's SFTTrainer on token ids, whose labels leave the prompt out."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"input_ids": example.input_ids, "labels": example.labels} for example in task.examples]
    options = SFTConfig(
        **_common_options(task, grouped=grouped),
        max_length=task.size.row_length,
        packing=packing,
    )
    if packing:
        options.per_device_train_batch_size = task.size.num_rows
    trainer = _recording(SFTTrainer, task.meter)(
        model=task.load_model(),
        args=options,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(task.folder / "model"),
    )
    trainer.train()
    return trainer.model


def transformers_trainer(task: Task) -> Any:
    """The Trainer of transformers with its padding collator."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    rows = [{"input_ids": example.input_ids, "labels": example.labels} for example in task.examples]
    tokenizer = AutoTokenizer.from_pretrained(task.folder / "model")
    trainer = _recording(Trainer, task.meter)(
        model=task.load_model(),
        args=TrainingArguments(**_common_options(task)),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
    )
    trainer.train()
    return trainer.model


def _common_options(task: Task, grouped: bool = False) -> dict[str, Any]:
    """What both trainers must be told to train as the others do; the optimizer is their own default, AdamW, fused."""
    return {
        "output_dir": tempfile.mkdtemp(dir=task.scratch),
        "max_steps": task.steps,
        "per_device_train_batch_size": task.batch_size,
        "learning_rate": task.size.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": CLIP,
        "gradient_checkpointing": False,
        # The weights have the precision that is wanted already: no autocast on top of it.
        "bf16": False,
        "train_sampling_strategy": "group_by_length" if grouped else "random",
        "logging_steps": LOG_EVERY,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": task.seed,
    }


def _recording(trainer: type[Any], meter: Meter) -> type[Any]:
    """The trainer, whose losses go to the meter without waiting for their values."""

    class Recording(trainer):  # type: ignore[misc]
        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            loss: Tensor = super().training_step(*args, **kwargs)
            meter.losses.append(loss.detach())
            return loss

    return Recording


def bare(task: Task) -> Any:
    """The limit: what must be computed, and nothing else."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = task.load_model().to(device).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=task.size.learning_rate, weight_decay=0.0, fused=True)
    for batch in task.meter.watch(_grouped(task)):
        ids, labels = batch["input_ids"], batch["labels"].flatten()
        # Found where the labels lie, so that no device is waited for; never the first of a row, which is a prompt's.
        places = (labels != IGNORED).nonzero().squeeze(1)
        targets = labels[places]
        ids, places, targets = (tensor.to(device, non_blocking=True) for tensor in (ids, places, targets))
        # Nothing looks to the right, so padding there needs no mask.
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        loss = HeadLoss.apply(hidden.index_select(0, places - 1), model.lm_head.weight, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        task.meter.losses.append(loss.detach())
    return model


def _grouped(task: Task) -> Iterator[dict[str, Tensor]]:
    """Batches of similar lengths, each as large as the budget lets it be with its padding, in random order."""
    by_length = sorted(task.examples, key=lambda example: -len(example.input_ids))
    batches = []
    while by_length:
        count = task.size.budget // len(by_length[0].input_ids)
        batches.append(by_length[:count])
        by_length = by_length[count:]
    random.Random(task.seed).shuffle(batches)
    for batch in batches[: task.steps]:
        padded = {}
        for name, fill in (("input_ids", PAD), ("labels", IGNORED)):
            rows = [torch.tensor(getattr(example, name)) for example in batch]
            padded[name] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)
        yield padded


class HeadLoss(torch.autograd.Function):
    """Output head and mean cross-entropy in one: gradients are made where the logits are, so that none is made twice.

    The gradient of a logit is its probability, less one for the target. The normalizer of the probabilities and the
    target are dealt with in the small products, so that the logits are gone through once for their maximum, once for
    the exponential and once for the sum.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of hidden states [N, H] with a head [V, H] and targets [N]."""
        count = len(targets)
        total = hidden.new_zeros((), dtype=torch.float32)
        hidden_gradient, head_gradient = torch.empty_like(hidden), torch.zeros_like(head)
        chunk = min(count, CHUNK[hidden.device.type])
        memory = hidden.new_empty(chunk, len(head))  # once: fresh pages cost a tenth of the time
        for start in range(0, count, chunk):
            part, wanted = hidden[start : start + chunk], targets[start : start + chunk]
            logits = torch.mm(part, head.T, out=memory[: len(part)]).float()  # [chunk, V]
            target_logits = logits.gather(1, wanted[:, None])
            largest = logits.amax(1, keepdim=True)
            powers = logits.sub_(largest).exp_()
            sums = powers.sum(1, keepdim=True)
            total += (sums.log() + largest - target_logits).sum()
            powers, scale = powers.to(head.dtype), (1 / (sums * count)).to(head.dtype)
            hidden_gradient[start : start + chunk] = (powers @ head) * scale - head[wanted] / count
            head_gradient.addmm_(powers.T, part * scale)
            head_gradient.index_add_(0, wanted, part, alpha=-1 / count)
        ctx.save_for_backward(hidden_gradient, head_gradient)
        return total / count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The loss is the last thing computed, so what arrives is one."""
        hidden_gradient, head_gradient = ctx.saved_tensors
        return hidden_gradient, head_gradient, None


CONTESTANTS: dict[str, Callable[[Task], Any]] = {
    "fit-packed": partial(fit, packing=True),
    "fit-grouped": partial(fit, packing=False),
    "trl-padded": trl,
    "trl-grouped": partial(trl, grouped=True),
    "trl-packed": partial(trl, packing=True),
    "trainer": transformers_trainer,
    "bare": bare,
}
CLOCKED: dict[str, Callable[[Task], Any]] = {
    "fit-packed-clock": partial(fit, packing=True, clock=True),
    "fit-grouped-clock": partial(fit, packing=False, clock=True),
}


def main(name: str, folder: str, size: str, steps: int, seed: int) -> dict[str, Any]:
    """Train, and say what was measured."""
    examples = read_examples(Path(folder), "train")
    meter = Meter(steps)
    meter.install()
    task = Task(Path(folder), SIZES[size], steps, seed, examples, meter)
    model = (CONTESTANTS | CLOCKED)[name](task)
    found = meter.result(examples)
    found["held_out_loss"] = held_out_loss(model, read_examples(Path(folder), "held_out"))
    if name in CLOCKED:
        from clock import Shares

        found["shares"] = Shares.found
    return found


if __name__ == "__main__":
    found = main(sys.argv[1], **json.loads(sys.argv[2]))
    print(f"\n{json.dumps(found)}", flush=True)
