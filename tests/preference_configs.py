"""Configurations of runs on answers that are compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from rankings import ranked, written

from lit_sft.__main__ import main

RECORDS = [ranked(f"question {i}", f"please {i % 5}", f"go away {i % 3}" + "!" * (i % 4)) for i in range(24)]
LORA = {"class_path": "LoRA", "init_args": {"rank": 4, "alpha": 8, "dropout": 0.0}}


def preference_config(
    write_config: Callable[..., str],
    stage: dict[str, Any],
    *,
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    records: list[dict[str, Any]] = RECORDS,
    **top: Any,
) -> str:
    """A small, quick configuration of a stage on ranked answers; `model`, `data` and `trainer` change its entries."""
    file = Path(write_config(model={"tuning": LORA, **(model or {})}, data=data, trainer=trainer, **top))
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    options = content["model"]["init_args"] | stage.get("init_args", {})
    if stage["class_path"] == "Reward":
        del options["generation"]
    content["model"] = {"class_path": stage["class_path"], "init_args": options}
    corpus = written(file.with_name("pairs.jsonl"), records)
    content["data"]["class_path"] = "PreferenceData"
    content["data"]["init_args"]["corpora"] = [{"class_path": "rankings.Rankings", "init_args": {"path": corpus.path}}]
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return str(file)


def reward_run(write_config: Callable[..., str], name: str = "reward", **changes: Any) -> Path:
    """A finished run of a reward model."""
    config = preference_config(write_config, {"class_path": "Reward"}, **changes)
    assert main(["fit", "--config", config, "--name", name]) == 0
    (run,) = Path(config).parent.glob(f"runs/{name}-*")
    return run
