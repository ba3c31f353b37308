"""The recipe of MOSS-RLHF at a small scale: SFT, a reward model, then PPO by configs/overlays/moss_rlhf.yaml; curves.

python experiments/moss_rlhf/run.py
python experiments/moss_rlhf/run.py --epochs 20
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

os.chdir(Path(__file__).parents[2])  # the paths of the overlay are those of the repository

import matplotlib as mpl  # noqa: E402
import yaml  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

from lit_sft.__main__ import main  # noqa: E402

mpl.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

HERE = Path("experiments/moss_rlhf")
WORK = Path("runs/moss_rlhf")
SIZE = ["--hidden-size=64", "--intermediate-size=128", "--num-layers=2", "--num-heads=2", "--vocab-size=1200"]
LORA = {"class_path": "LoRA", "init_args": {"rank": 16, "alpha": 32, "dropout": 0.0}}
CURVES = {
    "train/reward": "reward",
    "train/objective/kl": "KL of an answer",
    "train/value/explained_variance": "explained variance",
    "train/completions/mean_length": "tokens of an answer",
}
MEASURED = ("reward", "completions/mean_length", "completions/clipped_ratio")


def fit(
    name: str, *words: str, stage: str, data: str, model: dict[str, Any], trainer: dict[str, Any], **of_data: Any
) -> Path:
    """The folder of a run."""
    options = {"max_length": 160, "validation_fraction": 0.1, "cache": str(WORK / "cache"), **of_data}
    options = {"micro_batch_size": 4, **options}
    common = {"accelerator": "cpu", "num_sanity_val_steps": -1, "gradient_clip_val": 1.0, "enable_progress_bar": False}
    config = {
        "seed_everything": 1,
        "name": name,
        "runs": str(WORK),
        "model": {"class_path": stage, "init_args": model},
        "data": {"class_path": data, "init_args": options},
        "trainer": {**common, "log_every_n_steps": 1, **trainer},
        "samples": {"count": 1},
    }
    file = WORK / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    assert main(["fit", "--config", str(file), *words]) == 0
    (run,) = WORK.glob(f"{name}-*")
    return run


def optimizer(lr: float) -> dict[str, Any]:
    return {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr}}


def corpus(kind: str, file: str) -> list[dict[str, Any]]:
    return [{"class_path": kind, "init_args": {"path": f"lit_sft/demo/{file}"}}]


def before_ppo() -> tuple[str, Path]:
    """A tiny model that answers, and a reward model on it."""
    assert main(["tiny", "--output", str(WORK / "random"), *SIZE]) == 0
    base = fit(
        "sft", stage="SFT", data="SFTData", corpora=corpus("Belle", "belle_train.json"),
        model={"checkpoint": str(WORK / "random"), "tuning": {"class_path": "Full"}, "optimizer": optimizer(5e-3)},
        trainer={"max_epochs": 10, "limit_val_batches": 4},
    )  # fmt: skip
    checkpoint = str(base / "model")
    reward = fit(
        "reward", stage="Reward", data="PreferenceData", corpora=corpus("AlpacaPairs", "preference_train.jsonl"),
        model={"checkpoint": checkpoint, "tuning": LORA, "optimizer": optimizer(2e-3), "centering": 0.01},
        trainer={"max_epochs": 3},
    )  # fmt: skip
    return checkpoint, reward


def ppo(checkpoint: str, reward: Path, num_epochs: int) -> Path:
    """The overlay; what is changed below is the size, and the rate that a tiny model needs."""
    model = {"checkpoint": checkpoint, "tuning": LORA, "optimizer": optimizer(1e-3)}
    changes: dict[str, Any] = {
        "model": {"init_args": {
            "rewards": [{"class_path": "Trained", "init_args": {"path": str(reward)}}],
            "optimizer": {"init_args": {"lr": 1e-3}},
        }},
        "data": {"init_args": {
            "corpora": corpus("AlpacaPairs", "preference_train.jsonl"), "max_new_tokens": 32, "validation_fraction": 0.2
        }},
        "trainer": {"max_epochs": num_epochs},
    }  # fmt: skip
    file = WORK / "small.yaml"
    file.write_text(yaml.safe_dump(changes, allow_unicode=True), encoding="utf-8")
    words = ["--config", "configs/overlays/moss_rlhf.yaml", "--config", str(file)]
    return fit("ppo", *words, stage="PPO", data="PromptData", model=model, trainer={}, corpora=[])


def scalars(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run))
    events.Reload()
    return events


def draw(run: Path) -> None:
    """The curves, and a table of the first and last ten rollouts."""
    events = scalars(run)
    figure, axes = plt.subplots(1, len(CURVES), figsize=(4 * len(CURVES), 3), layout="constrained")
    print("| | first 10 rollouts | last 10 |\n|---|---|---|")
    for axis, (tag, title) in zip(axes, CURVES.items(), strict=True):
        values = [event.value for event in events.Scalars(tag)]
        axis.plot(values)
        axis.set(title=title, xlabel="rollout")
        print(f"| {title} | {sum(values[:10]) / 10:.2f} | {sum(values[-10:]) / 10:.2f} |")
    figure.savefig(HERE / "curves.png", dpi=80)
    held_out = {tag: [event.value for event in events.Scalars(f"val/{tag}")] for tag in MEASURED}
    print("\n| held-out prompts | before | after |\n|---|---|---|")
    for tag, values in held_out.items():
        print(f"| {tag} | {values[0]:.2f} | {values[-1]:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6, help="of ten rollouts of 16 prompts")
    options = parser.parse_args()
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    checkpoint, reward = before_ppo()
    draw(ppo(checkpoint, reward, options.epochs))
