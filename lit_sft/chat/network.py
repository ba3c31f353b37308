"""The network that one talks to: a checkpoint, with an adapter that can be taken off, or what a run trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint
from lit_sft.configuration import build
from lit_sft.errors import ConfigError
from lit_sft.generation.strategies import Greedy, Strategy
from lit_sft.rewards.trained import refuse_reward_model
from lit_sft.runs.folder import read_config
from lit_sft.tuning._base import Tuning, half_or_full

if TYPE_CHECKING:
    import torch

    from lit_sft.tuning._adapter_loading import PlacedAdapter
    from lit_sft.tuning._prefix_file import StoredPrefix


@dataclass(frozen=True)
class Source:
    """What to load, and the strategy to begin with; `untuned` is the base of weights that were all tuned."""

    checkpoint: Checkpoint
    adapter: Path | None = None
    dtype: torch.dtype | None = None
    quantization: Tuning | None = None
    strategy: Strategy | None = None
    untuned: str | None = None

    @property
    def is_base(self) -> bool:
        """Whether nothing was tuned."""
        return self.adapter is None and self.untuned is None


class Network:
    """A loaded `Source`."""

    def __init__(self, source: Source) -> None:
        import torch

        self.source = source
        self.checkpoint = source.checkpoint
        self.tokenizer = source.checkpoint.load_tokenizer()
        on_gpu = torch.cuda.is_available()
        placed = None
        if source.adapter:
            placed = _placed(source.adapter, self.checkpoint)
        dtype = source.dtype or (torch.bfloat16 if on_gpu else torch.float32)
        if source.quantization:
            precision = {torch.bfloat16: "bf16-true", torch.float16: "16-true"}.get(dtype, "32-true")
            base = source.quantization.load_base(self.checkpoint, precision)
        else:
            base = self.checkpoint.load_model(dtype=dtype)
        self.model: Any = base.to("cuda" if on_gpu else "cpu")  # type: ignore[arg-type]
        self.wrapped: Any = None
        if placed:
            # peft replaces the layers in place, and a prefix is put before them, so that `model` has it too.
            self.wrapped = placed.attach(base, is_trainable=False).eval()

    @contextmanager
    def adapter(self, is_on: bool) -> Iterator[None]:
        """With the adapter, or with what it was put on."""
        if self.wrapped is None or is_on:
            yield
        else:
            with self.wrapped.disable_adapter():
                yield


def _placed(folder: Path, checkpoint: Checkpoint) -> PlacedAdapter | StoredPrefix:
    """What was trained beside a frozen base, compared with that."""
    from lit_sft.tuning._adapter_loading import place_adapter
    from lit_sft.tuning._prefix_file import is_prefix, read_prefix

    return read_prefix(folder, checkpoint) if is_prefix(folder, checkpoint) else place_adapter(folder, checkpoint)


def source_of_run(run: Path, dtype: torch.dtype | None, quantization: Tuning | None) -> Source:
    """What a run trained, in the dtype and on the quantization that it trained with unless told otherwise.

    Raises:
        ConfigError: If it is not a run, or did not finish.
    """
    config = read_config(run)
    options = config["model"]["init_args"]
    # Without the adapter that it started from, which may be gone.
    written = {key: value for key, value in options["tuning"].get("init_args", {}).items() if key != "adapter"}
    tuning = build("tuning", Tuning, {**options["tuning"], "init_args": written})
    strategy = _first_strategy(options.get("generation"))
    exported = run / tuning.export_name
    if not exported.is_dir():
        raise ConfigError(f"{run} holds no {tuning.export_name}/: it did not finish. Resume it: fit --resume {run}")
    refuse_reward_model(exported, "score answers with predict --run, or name another run")
    family = {"family": options.get("family", "auto"), "prompt_format": options.get("prompt_format")}
    dtype = dtype or half_or_full(str(config["trainer"]["precision"] or "32-true"))
    if tuning.stands_on_base:
        if tuning.quantizes_base:
            quantization = quantization or tuning
        base = open_checkpoint(options["checkpoint"], **family)
        return Source(base, exported, dtype, quantization, strategy)
    tuned = open_checkpoint(exported, **family)
    return Source(tuned, None, dtype, quantization, strategy, untuned=options["checkpoint"])


def _first_strategy(given: Any) -> Strategy:
    """Of those that a run answers with."""
    built = build("generation", Strategy | list[Strategy], given) if given else Greedy()
    return built[0] if isinstance(built, list) else built
