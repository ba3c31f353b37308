"""GRPO by a contestant, in a process of its own: `contestants.py NAME '{"folder": ..., ...}'`.

What it prints last is one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "preference_throughput"))

from contestants import RANK, TARGETS, TRAINER, Clock, words

BETA = 0.05


def ours(folder: Path, options: dict[str, Any]) -> list[float]:
    """This project by its command line; the mean reward of each rollout."""
    from rewarded import Rewards

    from lit_sft.cli.fit import main

    num_answers = options["prompts"] * options["answers"]
    config = {
        "seed_everything": options["seed"],
        "name": "fit",
        "runs": str(folder / "ours"),
        "model": {
            "class_path": "Policy",
            "init_args": {
                "checkpoint": str(folder / "model"),
                "family": "native",
                "tuning": {"class_path": "LoRA", "init_args": {"rank": RANK, "alpha": 2 * RANK, "targets": TARGETS}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.0}},
                "schedule": {"class_path": "Constant", "init_args": {"warmup_fraction": 0.0}},
                "algorithm": "dapo",
                "clip_high": 0.2,
                "kl": "loss",
                "beta": BETA,
                "rewards": [{"class_path": "rewarded.Even"}],
                "num_answers": options["answers"],
                "num_parts": num_answers // options["rows"],
            },
        },
        "data": {
            "class_path": "PromptData",
            "init_args": {
                "corpora": [{"class_path": "PromptRecords", "init_args": {"path": str(folder / "prompts.jsonl")}}],
                "max_length": options["longest"] + options["max_new_tokens"],
                "max_new_tokens": options["max_new_tokens"],
                "micro_batch_size": options["prompts"],
                "validation_fraction": 0.0,
                "cache": str(folder / "cache"),
            },
        },
        "trainer": {
            **TRAINER,
            "max_steps": options["steps"],
            "accumulate_grad_batches": num_answers // options["rows"],
            "callbacks": [{"class_path": "rewarded.Rewards"}],
        },
        "samples": {"count": 0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    main(["fit", "--config", str(folder / "config.json")])
    return Rewards.found


def trl(folder: Path, options: dict[str, Any]) -> list[float]:
    """TRL's GRPOTrainer, with adapters by peft and the adapter taken off as the reference."""
    from datasets import Dataset
    from peft import LoraConfig
    from rewarded import share
    from transformers import AutoTokenizer, LlamaForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    prompts = json.loads((folder / "prompts.json").read_text())
    trainer = GRPOTrainer(
        model=LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        reward_funcs=lambda completions, **_: [share(answer) for answer in completions],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            max_steps=options["steps"],
            per_device_train_batch_size=options["rows"],
            gradient_accumulation_steps=options["prompts"] * options["answers"] // options["rows"],
            num_generations=options["answers"],
            max_completion_length=options["max_new_tokens"],
            temperature=1.0,
            beta=BETA,
            loss_type="dapo",
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=options["seed"],
        ),
        train_dataset=Dataset.from_list([{"prompt": f"Human: {words(ids)} Assistant:"} for ids in prompts]),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM"),
    )
    trainer.train()
    return [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]


if __name__ == "__main__":
    arguments = json.loads(sys.argv[2])
    clock = Clock(arguments["steps"])
    rewards = {"ours": ours, "trl": trl}[sys.argv[1]](Path(arguments.pop("folder")), arguments)
    found = {"rewards": rewards, "wall_s": clock.wall, "cpu_s": clock.cpu, "memory_mib": clock.memory}
    print(f"\n{json.dumps(found)}", flush=True)
