"""DPO or a reward model by each contestant, in a process of its own: `contestants.py NAME '{"folder": ..., ...}'`.

What it prints last is one JSON object.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

sys.path.insert(0, str(Path(__file__).parents[1] / "training_throughput"))

from inputs import ASSISTANT, EOS, HUMAN, PAD

RANK = 8
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
BETA = 0.1
MIB = 1 << 20
TRAINER = {
    "gradient_clip_val": 1.0,
    "precision": "32-true",
    "log_every_n_steps": 1,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
}
"""What each fit of ours has."""


class Task(NamedTuple):
    """What is to be trained, and where it lies; `pairs` are (prompt, chosen, rejected), words each."""

    folder: Path
    steps: int
    pairs_of_a_step: int
    learning_rate: float
    seed: int
    pairs: list[tuple[list[int], list[int], list[int]]]

    @property
    def scratch(self) -> str:
        """For what a contestant writes."""
        return tempfile.mkdtemp(dir=self.folder)


class Clock:
    """Seconds between the first and the last optimizer step, which leaves out what the first one prepares.

    `wall` is what a user waits, `cpu` what the process worked, which other work on the machine does not change.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.began, self.wall = steps, 0, 0.0, 0.0
        self.began_cpu = self.cpu = 0.0
        Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak that importing left
        self.before = status("VmRSS")
        register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, *_: Any) -> None:
        self.done += 1
        if self.done == 1:
            self.began, self.began_cpu = time.perf_counter(), time.process_time()
        if self.done == self.steps:
            self.wall = time.perf_counter() - self.began
            self.cpu = time.process_time() - self.began_cpu
            self.memory = (status("VmHWM") - self.before) / MIB


def status(name: str) -> int:
    """Bytes, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def words(ids: list[int]) -> str:
    """The text of which these are the ids."""
    return " ".join(f"w{token}" for token in ids)


def ours(task: Task, *, stage: str, packing: bool) -> dict[str, Any]:
    """This project by its command line."""
    from watched import Watched

    from lit_sft.cli.fit import main

    folder = task.scratch
    optimizer = {"lr": task.learning_rate, "weight_decay": 0.0, "fused": True}
    longest = max(len(p) + max(len(c), len(r)) + 3 for p, c, r in task.pairs)
    config = {
        "seed_everything": task.seed,
        "name": "fit",
        "runs": folder,
        "model": {
            "class_path": stage,
            "init_args": {
                "checkpoint": str(task.folder / "model"),
                "family": "native",
                "tuning": {"class_path": "LoRA", "init_args": {"rank": RANK, "alpha": 2 * RANK, "targets": TARGETS}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": optimizer},
                "schedule": {"class_path": "Constant", "init_args": {"warmup_fraction": 0.0}},
                **({"objective": {"class_path": "DPO", "init_args": {"beta": BETA}}} if stage == "Preference" else {}),
            },
        },
        "data": {
            "class_path": "PreferenceData",
            "init_args": {
                "corpora": [{"class_path": "TrlPairs", "init_args": {"path": str(task.folder / "pairs.jsonl")}}],
                "max_length": longest,
                # As many pairs of mean length as a step of the others has.
                "micro_batch_size": max(1, round(task.pairs_of_a_step * mean_tokens(task) / (2 * longest))),
                "packing": packing,
                "validation_fraction": 0.0,
                "cache": f"{folder}/cache",
            },
        },
        "trainer": {
            **TRAINER,
            "max_steps": task.steps,
            "devices": 1,
            "callbacks": [{"class_path": "watched.Watched"}],
        },
        "samples": {"count": 0},
    }
    (Path(folder) / "config.json").write_text(json.dumps(config))
    main(["fit", "--config", f"{folder}/config.json"])
    return {"losses": Watched.losses, "pairs": sum(Watched.pairs[1:]), "tokens": sum(Watched.tokens[1:])}


def mean_tokens(task: Task) -> float:
    """Of a pair, both sides."""
    return sum(2 * (len(p) + 2) + len(c) + len(r) + 2 for p, c, r in task.pairs) / len(task.pairs)


def rows_of(task: Task) -> list[dict[str, str]]:
    """The pairs as TRL reads them."""
    return [
        {"prompt": f"Human: {words(p)} Assistant:", "chosen": f" {words(c)}", "rejected": f" {words(r)}"}
        for p, c, r in task.pairs
    ]


def trl(task: Task, *, trainer: str) -> dict[str, Any]:
    """TRL's trainer of the name, with adapters by peft and the adapter taken off as the reference."""
    import trl as library
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification

    is_dpo = trainer == "DPO"
    opened = LlamaForCausalLM if is_dpo else partial_class(LlamaForSequenceClassification)
    model = opened.from_pretrained(task.folder / "model", dtype=torch.float32)
    options: dict[str, Any] = {
        "output_dir": task.scratch,
        "max_steps": task.steps,
        "per_device_train_batch_size": task.pairs_of_a_step,
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": task.seed,
        "max_length": None,
        **({"beta": BETA} if is_dpo else {}),
    }
    adapted = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=TARGETS,
        task_type="CAUSAL_LM" if is_dpo else "SEQ_CLS",
        modules_to_save=None if is_dpo else ["score"],
    )
    found = getattr(library, f"{trainer}Trainer")(
        model=model,
        args=getattr(library, f"{trainer}Config")(**options),
        train_dataset=Dataset.from_list(rows_of(task)),
        processing_class=AutoTokenizer.from_pretrained(task.folder / "model"),
        peft_config=adapted,
    )
    found.train()
    steps = [entry for entry in found.state.log_history if "loss" in entry]
    return {
        "losses": [step["loss"] for step in steps],
        "pairs": task.pairs_of_a_step * (task.steps - 1),
        "tokens": steps[-1]["num_tokens"] - steps[0]["num_tokens"],  # without padding
    }


def partial_class(kind: Any) -> Any:
    """A classifier of one number."""

    class One:
        from_pretrained = partial(kind.from_pretrained, num_labels=1)

    return One


def bare(task: Task, *, is_dpo: bool) -> dict[str, Any]:
    """The limit: for DPO a pass of the reference and one of the policy with logits of the answers only, for a reward
    model one pass without logits, and nothing else."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM, LlamaModel

    opened: Any = LlamaForCausalLM if is_dpo else LlamaModel
    model = opened.from_pretrained(task.folder / "model", dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS)).train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    head = torch.nn.Linear(model.config.hidden_size, 1, bias=False)
    if not is_dpo:
        torch.nn.init.normal_(head.weight, std=(model.config.hidden_size + 1) ** -0.5)
        parameters += head.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=task.learning_rate, weight_decay=0.0, fused=True)
    losses = []
    num_pairs = num_tokens = 0
    for step, (ids, starts, ends) in enumerate(_batches(task)):
        if is_dpo:
            with torch.no_grad(), model.disable_adapter():
                reference = _log_probs(model, ids, starts, ends)
            values = BETA * (_log_probs(model, ids, starts, ends) - reference)
        else:
            hidden = model.get_base_model()(input_ids=ids, use_cache=False).last_hidden_state
            values = head(hidden[torch.arange(len(ids)), ends - 1]).squeeze(1)
        chosen, rejected = values.view(-1, 2).unbind(1)
        loss = -F.logsigmoid(chosen - rejected).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        num_pairs += len(chosen) if step else 0
        num_tokens += int(ends.sum()) if step else 0
    return {"losses": losses, "pairs": num_pairs, "tokens": num_tokens}


def _log_probs(model: Any, ids: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Of each row [S], of the tokens from its start to its end."""
    network = model.get_base_model()
    hidden = network.model(input_ids=ids, use_cache=False).last_hidden_state
    columns = torch.arange(ids.shape[1])
    is_answer = (columns >= starts[:, None]) & (columns < ends[:, None])
    rows, places = is_answer.nonzero(as_tuple=True)
    logps = [
        -F.cross_entropy(network.lm_head(part), target, reduction="none")
        for part, target in zip(hidden[rows, places - 1].split(128), ids[rows, places].split(128), strict=True)
    ]
    return torch.zeros(len(ids)).index_add(0, rows, torch.cat(logps))


def _batches(task: Task) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Pairs of similar lengths, chosen and rejected in turns."""
    order = sorted(range(len(task.pairs)), key=lambda n: sum(map(len, task.pairs[n])))
    size = task.pairs_of_a_step
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    for number in torch.randperm(len(groups), generator=torch.Generator().manual_seed(task.seed))[
        : task.steps
    ].tolist():
        rows = [
            ([HUMAN, *prompt, ASSISTANT, *answer, EOS], len(prompt) + 2)
            for prompt, *answers in (task.pairs[n] for n in groups[number])
            for answer in answers
        ]
        padded = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids, _ in rows], True, PAD)
        yield padded, torch.tensor([start for _, start in rows]), torch.tensor([len(ids) for ids, _ in rows])


CONTESTANTS: dict[str, Callable[[Task], dict[str, Any]]] = {
    "dpo-packed": partial(ours, stage="Preference", packing=True),
    "dpo-grouped": partial(ours, stage="Preference", packing=False),
    "trl-dpo": partial(trl, trainer="DPO"),
    "bare-dpo": partial(bare, is_dpo=True),
    "reward-packed": partial(ours, stage="Reward", packing=True),
    "reward-grouped": partial(ours, stage="Reward", packing=False),
    "trl-reward": partial(trl, trainer="Reward"),
    "bare-reward": partial(bare, is_dpo=False),
}


def import_all(name: str) -> None:
    """What a contestant runs on, before memory is counted: optimizers import a compiler when they first step."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], fused=True).step()
    modules = ["peft", "transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto"]
    if name.startswith("trl"):
        modules += ["datasets", "trl.trainer.dpo_trainer", "trl.trainer.reward_trainer"]
    elif not name.startswith("bare"):
        modules += ["lit_sft.cli.fit", "lit_sft.stages.preference", "lit_sft.stages.reward", "lit_sft.data.preference"]
    for module in modules:
        importlib.import_module(module)


def main(name: str, folder: str, **options: Any) -> dict[str, Any]:
    """Train, and say what was measured."""
    pairs = json.loads((Path(folder) / "pairs.json").read_text())
    import_all(name)
    clock = Clock(options["steps"])
    found = CONTESTANTS[name](Task(Path(folder), pairs=pairs, **options))
    return {**found, "wall_s": clock.wall, "cpu_s": clock.cpu, "memory_mib": clock.memory}


if __name__ == "__main__":
    found = main(sys.argv[1], **json.loads(sys.argv[2]))
    print(f"\n{json.dumps(found)}", flush=True)
