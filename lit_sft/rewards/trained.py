"""A reward model that a run has trained."""

from __future__ import annotations

import gc
import json
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint
from lit_sft.errors import BadRecord, ConfigError
from lit_sft.files import read_object
from lit_sft.rewards._base import Answered, RewardFunction

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from lit_sft.tuning._base import Tuning

log = logging.getLogger(__name__)

HEAD_FILE = "reward_head.safetensors"
"""The head, beside adapter or model."""

REWARD_FILE = "reward.json"
"""What the head belongs to, and how its rewards lie."""


class Trained(RewardFunction):
    """Scores of a reward model, as many standard deviations above the mean of the answers it was validated on.

    Args:
        path: Folder of a run of the stage `Reward`, or what it exported: `adapter` or `model` in it.
        checkpoint: Model folder on which an adapter was trained; the one of the run if not given.
        precision: Lightning's word for that of the network, such as `bf16-mixed`.
        kwargs: What every reward takes.
    """

    def __init__(self, path: str, checkpoint: str | None = None, precision: str = "32-true", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.folder = exported(Path(path))
        self.about = read_about(self.folder)
        self.precision = precision
        self.checkpoint = self._open(checkpoint)
        self._read_head()  # a damaged one is refused before any network is loaded
        self._loaded: tuple[PreTrainedModel, nn.Module] | None = None
        self._tokenizer: Any = None
        self._in_use: Callable[[], AbstractContextManager[Any]] | None = None
        """On the network of a policy: while it is open, the reward model computes there."""

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        """The score of each answer; None where it is not finite, does not fit, or the format cannot write it."""
        import torch

        from lit_sft.rewards._scoring import score_sequences

        sequences = [self._sequence(answered) for answered in answers]
        network, head = self.load()
        with torch.no_grad(), self._in_use() if self._in_use else nullcontext():
            found = iter(score_sequences(network, head, [ids for ids in sequences if ids]))
        scores = (self.normalized(next(found)) if ids else math.nan for ids in sequences)
        return [score if math.isfinite(score) else None for score in scores]

    def normalized(self, score: float) -> float:
        """In standard deviations from the mean, where the run has measured both."""
        std = self.about.get("std")
        return (score - float(self.about["mean"])) / float(std) if std else score

    def join(self, tuning: Tuning, model: Any, checkpoint: Checkpoint, name: str) -> bool:
        """Score as a frozen adapter beside that of the policy: the base is in memory once."""
        if reason := self._why_apart(tuning, checkpoint):
            log.warning("the reward model %s is loaded as a second network: %s", self.folder, reason)
            return False
        if self.about["quantization"] != tuning.quantization():
            log.warning(
                "%s was trained on a base with the quantization %s and scores on one with %s: its scores are a little "
                "different", self.folder, self.about["quantization"], tuning.quantization(),
            )  # fmt: skip
        tuning.add(model, name, checkpoint, folder=self.folder)
        self._loaded = tuning.causal_lm(model), self._read_head()
        self._in_use = partial(tuning.using, model, name)
        return True

    def _why_apart(self, tuning: Tuning, checkpoint: Checkpoint) -> str | None:
        """Why it cannot be an adapter there."""
        if not self.is_adapter:
            return "all of its weights have trained"
        if not tuning.exports_adapter:
            return "the policy has no adapters"
        if checkpoint.fingerprint() != self.about["base"]:
            return f"it was trained on another model than {checkpoint.path}"
        return None

    def load(self) -> tuple[PreTrainedModel, nn.Module]:
        """Network and head, loaded when first needed."""
        from lit_sft.rewards._scoring import device_of

        if self._loaded is None:
            network = self._network()
            self._loaded = network.eval(), self._read_head()
        network, head = self._loaded
        return network, head.to(device_of(network))

    def to(self, device: Any) -> None:
        """Move a network of its own."""
        network, _ = self.load()
        if not self.is_joined:
            network.to(device)

    def unload(self) -> None:
        """Leave the memory to others, unless the network is a policy's; the next score loads it again."""
        if self.is_joined:
            return
        self._loaded = None
        gc.collect()

    def _read_head(self) -> nn.Module:
        from lit_sft.tuning._heads import ScalarHead, hidden_size_of

        hidden_size = hidden_size_of(self.checkpoint.family.skeleton())
        return ScalarHead.load(self.folder / HEAD_FILE, hidden_size).requires_grad_(False)

    def _network(self) -> PreTrainedModel:
        from lit_sft.tuning.full import Full
        from lit_sft.tuning.lora import LoRA
        from lit_sft.tuning.qlora import QLoRA

        if not self.is_adapter:
            return Full().load_base(self.checkpoint, self.precision).requires_grad_(False)
        options: dict[str, Any] = {"adapter": str(self.folder), "dropout": 0.0}
        quantization = self.about["quantization"]
        tuning = LoRA(**options) if quantization is None else QLoRA(**quantization, **options)
        model = tuning.load(self.checkpoint, self.precision)
        return tuning.causal_lm(model.requires_grad_(False))

    @property
    def is_joined(self) -> bool:
        """Whether it scores on the network of a policy."""
        return self._in_use is not None

    @property
    def is_adapter(self) -> bool:
        """Whether the reward model is an adapter beside a base."""
        return (self.folder / "adapter_config.json").is_file()

    def _open(self, given: str | None) -> Checkpoint:
        if not self.is_adapter:
            return open_checkpoint(self.folder, self.about["family"], self.about["prompt_format"])
        path = given or read_object(self.folder / "adapter_config.json").get("base_model_name_or_path")
        if not path or not Path(path).is_dir():
            raise ConfigError(
                f"{self.folder}: its base {path} is not here. Name the model folder on which it was trained"
            )
        checkpoint = open_checkpoint(path, self.about["family"], self.about["prompt_format"])
        if checkpoint.fingerprint() != self.about["base"]:
            raise ConfigError(
                f"{self.folder} was trained on another model than {path}, whose scores would mean nothing. Name the "
                "model folder that it was trained on"
            )
        return checkpoint

    def _sequence(self, answered: Answered) -> list[int]:
        from lit_sft.rewards._scoring import encode_answer

        if self._tokenizer is None:
            self._tokenizer = self.checkpoint.load_tokenizer()
        try:
            ids = encode_answer(answered.prompt, answered.answer, self.checkpoint.prompt_format, self._tokenizer)
        except BadRecord:
            return []
        return ids if len(ids) <= self.checkpoint.context_length else []


def exported(path: Path) -> Path:
    """The folder with the head: of a run, or itself.

    Raises:
        ConfigError: If there is none.
    """
    for folder in (path, path / "adapter", path / "model"):
        if (folder / REWARD_FILE).is_file():
            if not (folder / HEAD_FILE).is_file():
                raise ConfigError(
                    f"{folder} holds {REWARD_FILE} but not its head {HEAD_FILE}, without which it scores nothing"
                )
            return folder
    raise ConfigError(
        f"{path} holds no reward model ({REWARD_FILE}). Name the folder of a finished run of the stage Reward"
    )


def refuse_reward_model(folder: Path, remedy: str) -> None:
    """Refuse what a run of a reward model exported, where something that answers is wanted.

    Raises:
        ConfigError: With the remedy.
    """
    if (folder / REWARD_FILE).is_file():
        raise ConfigError(f"{folder} is a reward model, which scores answers and writes none: {remedy}")


def read_about(folder: Path) -> dict[str, Any]:
    """What reward.json says.

    Raises:
        ConfigError: If it is damaged.
    """
    file = folder / REWARD_FILE
    kinds: dict[str, Any] = {"family": str, "prompt_format": str, "base": str, "quantization": dict | None}
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        fault = next((name for name, kind in kinds.items() if not isinstance(about[name], kind)), "")
    except (ValueError, LookupError, TypeError) as error:
        fault = str(error)
    if fault:
        raise ConfigError(f"{file} is not what a run of the stage Reward writes: {fault}")
    found: dict[str, Any] = about
    return found


def trained_rewards(paths: str | Sequence[str] | None, precision: str) -> dict[str, Trained]:
    """Reward models by the names of their runs; no weights are loaded.

    Raises:
        ConfigError: If one is none, its base is not here or another, or two have one name.
    """
    found: dict[str, Trained] = {}
    for path in [paths] if isinstance(paths, str) else paths or []:
        reward = Trained(path, precision=precision)
        is_inside = reward.folder.name in {"adapter", "model"}
        name = (reward.folder.resolve().parent if is_inside else reward.folder.resolve()).name
        if name in found:
            raise ConfigError(f"--reward: {found[name].folder} and {reward.folder} have one name; rename a folder")
        found[name] = reward
    return found
