"""What others call an option or a verb of ours: peft, transformers, LLaMA-Factory, and who writes from memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

OTHER_NAMES = {
    **dict.fromkeys(("r", "lora_r", "lora_rank"), "rank"),
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    **dict.fromkeys(("target_modules", "lora_target", "lora_target_modules"), "targets"),
    "use_rslora": "rslora",
    "use_dora": "dora",
    "loraplus_lr_ratio": "lora_plus_ratio",
    **dict.fromkeys(("adapter_name_or_path", "lora_path", "peft_path"), "adapter"),
    **dict.fromkeys(("learning_rate", "learningrate"), "lr"),
    **dict.fromkeys(("model_name_or_path", "model_path", "base_model", "pretrained"), "checkpoint"),
    "template": "prompt_format",
    **dict.fromkeys(("batch_size", "per_device_train_batch_size", "train_batch_size"), "micro_batch_size"),
    **dict.fromkeys(("cutoff_len", "max_seq_length", "max_seq_len", "model_max_length", "seq_len"), "max_length"),
    **dict.fromkeys(("dataset", "datasets", "train_file", "data_path"), "corpora"),
    **dict.fromkeys(("val_size", "val_fraction"), "validation_fraction"),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs"), "max_epochs"),
    **dict.fromkeys(("steps", "num_steps", "num_train_steps"), "max_steps"),
    **dict.fromkeys(("gradient_accumulation_steps", "grad_accum", "accumulation_steps"), "accumulate_grad_batches"),
    **dict.fromkeys(("max_grad_norm", "gradient_clip", "grad_clip"), "gradient_clip_val"),
    **dict.fromkeys(("bf16", "fp16", "dtype", "torch_dtype"), "precision"),
    **dict.fromkeys(("eval_steps", "eval_interval"), "val_check_interval"),
    "logging_steps": "log_every_n_steps",
    **dict.fromkeys(("gpus", "num_gpus"), "devices"),
    **dict.fromkeys(("output_dir", "output", "save_dir"), "runs"),
    **dict.fromkeys(("run_name", "experiment_name"), "name"),
    "seed": "seed_everything",
    "resume_from_checkpoint": "resume",
}
"""Their name -> ours."""

OTHER_VERBS = {
    **dict.fromkeys(("train", "finetune", "fine-tune", "sft", "dpo", "ppo", "grpo", "rm"), "fit"),
    **dict.fromkeys(("infer", "inference", "generate"), "predict"),
    **dict.fromkeys(("api", "server"), "serve"),
    **dict.fromkeys(("cli", "talk", "webchat"), "chat"),
    **dict.fromkeys(("eval", "benchmark"), "evaluate"),
    **dict.fromkeys(("list", "ls"), "runs"),
    "convert": "export",
}
"""What they call a verb -> ours."""


def ours(name: str, names: Iterable[str]) -> str | None:
    """The one of our `names`, dotted or not, that ends in what somebody calls `name`."""
    last = name.rpartition(".")[2].replace("-", "_")
    wanted = {last, OTHER_NAMES.get(last, last)}
    return next((known for known in names if known.rpartition(".")[2] in wanted), None)


def renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under our names."""
    return {OTHER_NAMES.get(name, name): value for name, value in options.items()}
