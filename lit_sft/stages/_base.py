"""What every stage of training shares: the network, its optimizer, what a checkpoint holds, and the guards."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lit_sft.checkpoint.files import is_exported
from lit_sft.checkpoint.opening import open_checkpoint
from lit_sft.data.batch import Batch
from lit_sft.distributed.fsdp2 import FSDP2, shard, whole
from lit_sft.errors import ConfigError, TrainingError
from lit_sft.families._base import Behavior
from lit_sft.preflight.memory import HeadUse
from lit_sft.stages._compile import check_compilation, compile_blocks
from lit_sft.stages._resuming import Resuming
from lit_sft.stages.schedules import Cosine, Schedule
from lit_sft.tuning._base import Tuning

log = logging.getLogger(__name__)

OptimizerFactory = Callable[[Any], Optimizer]
"""Takes parameter groups."""


class Stage(Resuming):
    """A causal LM under a tuning.

    Args:
        checkpoint: Model folder in its original layout.
        tuning: Which weights train.
        family: Name of the model family, or `auto` to recognize it from config.json.
        prompt_format: Name of one of the family's ways to write a conversation; its default if not given.
        optimizer: The optimizer; its weight decay spares norms and biases.
        schedule: The learning rate over the run; a cosine after a short warm-up if not given.
        gradient_checkpointing: Compute activations again in the backward pass: about a third slower, far less memory.
        compile: Compile the decoder blocks (torch.compile): faster steps after a first one that takes a minute.
    """

    network_methods: ClassVar[tuple[str, ...]] = ()
    """Methods beside `forward` that set the network to work."""

    head_use: ClassVar[HeadUse] = "likelihood"
    """What it makes of the hidden states, by which memory is estimated."""

    min_accumulation: ClassVar[int] = 1
    """Micro-batches that a step needs at least, and any multiple of it."""

    best_by: ClassVar[tuple[str, Literal["min", "max"]]] = ("val/loss", "min")
    """Metric by which validations are compared, and whether its lowest or its highest value is the best."""

    shown_metrics: Mapping[str, str] = {"val/loss": "loss"}
    """What summaries and the table of runs show of a validation: metric -> how it is called."""

    def __init__(
        self,
        checkpoint: str,
        tuning: Tuning,
        *,
        family: str = "auto",
        prompt_format: str | None = None,
        optimizer: OptimizerFactory = lambda parameters: AdamW(parameters, lr=2e-4, fused=True),
        schedule: Schedule | None = None,
        gradient_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.checkpoint = open_checkpoint(checkpoint, family, prompt_format)
        self.checkpoint.weight_files  # noqa: B018 - a folder without weights is found before the data is read
        tuning.check(self.checkpoint)
        self.tuning = tuning
        self.make_optimizer = optimizer
        self.schedule = schedule or Cosine()
        self.gradient_checkpointing = gradient_checkpointing
        self.is_compiled = compile
        self.model: nn.Module | None = None
        self.behavior = Behavior()
        self.stopped_because: str | None = None
        """Why the stage itself ended the training, if it did."""
        self._epoch_progress = 0.0
        self._base_rates: list[float] = []
        self._loaded_tokenizer: PreTrainedTokenizerBase | None = None
        self._has_trained = False
        self._as_base = ExitStack()

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers network."""
        return self.tuning.causal_lm(self.model)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer, loaded when first needed."""
        if self._loaded_tokenizer is None:
            self._loaded_tokenizer = self.checkpoint.load_tokenizer()
        return self._loaded_tokenizer

    def setup(self, stage: str) -> None:
        """Refuse a strategy or a precision that cannot train, and a run whose end a schedule cannot know.

        Raises:
            ConfigError: For another way of sharding than `fsdp2`, for `16-true`, for neither epochs nor steps, and for
                `compile` where it cannot.
        """
        self._check_strategy()
        if self.is_compiled:
            check_compilation(self.tuning, self.trainer.strategy.root_device)
        if stage != "fit":
            return
        if is_exported(self.checkpoint.path):
            raise ConfigError(
                f"{self.checkpoint.path} is an exported graph, which answers and does not train: "
                "take the checkpoint that it was made of"
            )
        if self.trainer.max_epochs == -1 and self.trainer.max_steps == -1:
            raise ConfigError("the learning rate follows the share of the run: set trainer.max_epochs or max_steps")
        if str(self.trainer.precision) == "16-true":
            raise ConfigError(
                "trainer.precision 16-true cannot train: gradients and updates below 6e-8 become zero and sums above "
                "65,504 infinite. Use bf16-mixed, bf16-true or 16-mixed"
            )

    def check_first_batch(self, batch: Batch) -> str | None:
        """What is wrong with the first batch of a training, and the remedy, in one sentence; nothing if not given."""
        return None

    def configure_model(self) -> None:
        """Load the weights; Lightning may call it more than once.

        The processes of a machine do so one after the other, each bringing its weights to its device before the next
        begins: there is one whole model in the memory of a machine at any time, and its files are read from disk once.
        """
        if self.model is None:
            with self.one_rank_at_a_time():
                self._load()

    def _load(self) -> None:
        if is_exported(self.checkpoint.path) and self.tuning.exports_adapter:
            raise ConfigError(
                f"{self.checkpoint.path} is an exported graph, which has no layers for an adapter of "
                f"{type(self.tuning).__name__}: set model.tuning to Full, which answers with it as it is"
            )
        precision = self._trainer.precision if self._trainer else "32-true"
        model = self.tuning.load(self.checkpoint, str(precision))
        if self.gradient_checkpointing:
            # use_reentrant=False also reaches the adapters of a base whose inputs need no gradient.
            self.tuning.causal_lm(model).activation_checkpointing_enable({"use_reentrant": False})
        self.model = model
        self.add_parts()
        strategy = self._trainer.strategy if self._trainer else None
        is_sharded = isinstance(strategy, FSDP2)
        if strategy and not is_sharded:
            self.to(strategy.root_device)
        model.eval()  # adapters come with dropout
        if not is_exported(self.checkpoint.path):
            self.behavior = self.checkpoint.family.behavior(self.causal_lm)
        self._check_packing()
        # from_pretrained returns networks in evaluation mode, and Lightning leaves it so.
        model.train()
        self._log_sizes(model)
        kinds = set(self.causal_lm._no_split_modules or ())
        blocks = [module for module in model.modules() if type(module).__name__ in kinds]
        if self.is_compiled:
            compile_blocks(blocks)
        if is_sharded:
            shard(self, blocks, self.network_methods)

    def add_parts(self) -> None:
        """Put beside the loaded network what the stage needs, before it goes to its device and is shared out."""
        return

    def _check_packing(self) -> None:
        """Refuse to pack before the first step, which may by chance hold no packed row."""
        batching = getattr(getattr(self._trainer, "datamodule", None), "batching", None)
        if batching and batching.packing and self.trainer.state.fn == "fit":
            self.refuse_mixing()

    def refuse_mixing(self) -> None:
        """Whoever hands packed rows to the network asks first.

        Raises:
            ConfigError: If their examples would see each other.
        """
        if self.behavior.mixing:
            raise ConfigError(
                f"{self.checkpoint.path}: packed examples see each other in a network of model type "
                f"{self.causal_lm.config.model_type} (hidden states differ by {self.behavior.mixing:.2%}). "
                "Set packing: false in the data's init_args"
            )

    def _log_sizes(self, model: nn.Module) -> None:
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        num_total, num_trained = sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)
        log.info(
            "%s: %s parameters, %s train (%.2f%%)",
            self.checkpoint.family.name, f"{num_total:,}", f"{num_trained:,}", 100 * num_trained / max(1, num_total),
        )  # fmt: skip

    @contextmanager
    def one_rank_at_a_time(self) -> Iterator[None]:
        """Let the processes of a machine through one by one."""
        if self._trainer is None:
            yield
            return
        strategy = self._trainer.strategy
        for _ in range(self._trainer.local_rank):
            strategy.barrier()
        yield
        for _ in range(self._trainer.num_devices - self._trainer.local_rank):
            strategy.barrier()

    def _check_strategy(self) -> None:
        """Refuse what would fail, or train something else, in the middle of a run."""
        strategy = self.trainer.strategy
        if isinstance(strategy, (FSDPStrategy, ModelParallelStrategy)) and not isinstance(strategy, FSDP2):
            # The first neither measures nor clips the norm of all gradients, and wants weights of one type; the
            # checkpoints of the second only as many devices can read.
            raise ConfigError(f"trainer.strategy {type(strategy).__name__} is not supported: set it to fsdp2")
        if not isinstance(strategy, FSDP2):
            return
        reason = self.tuning.why_not_sharded()
        if str(self.trainer.precision) == "16-mixed":
            reason = "no device sees all gradients that overflow in 16-mixed: use precision bf16-mixed or bf16-true"
        if reason:
            raise ConfigError(f"trainer.strategy fsdp2 does not work here. {reason}")

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move, but leave all types as the tuning chose them for the precision.

        Under `bf16-true` Lightning asks for bfloat16 throughout, after it restored a checkpoint: that would round the
        trained adapters, and the angles of rotary positions.
        """
        kwargs.pop("dtype", None)
        return super().to(*args, **kwargs) if args or kwargs else self

    def on_validation_start(self) -> None:
        """A tuning that is fresh may be noise: what nothing trained is measured as the base."""
        super().on_validation_start()
        self._begin_as_base()

    def on_validation_end(self) -> None:
        """From here on with all that trains."""
        self._as_base.close()
        super().on_validation_end()

    def on_test_start(self) -> None:
        """As `on_validation_start`."""
        self._begin_as_base()

    def on_test_end(self) -> None:
        """As `on_validation_end`."""
        self._as_base.close()

    def on_predict_start(self) -> None:
        """As `on_validation_start`."""
        self._begin_as_base()

    def on_predict_end(self) -> None:
        """As `on_validation_end`."""
        self._as_base.close()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """It holds what trained."""
        super().on_load_checkpoint(checkpoint)
        self._has_trained = True

    def _begin_as_base(self) -> None:
        if not (self._has_trained or self.tuning.begins_as_base or self.tuning.adapter):
            self._as_base.enter_context(self.tuning.base_of(self.model))

    def on_train_start(self) -> None:
        """Guard against the silent loss of dropout and gradient checkpointing.

        Raises:
            TrainingError: If a part of the network is in evaluation mode.
        """
        asleep = [name for name, module in self.named_modules() if name.startswith("model") and not module.training]
        if asleep:
            raise TrainingError(f"{asleep[0]} and {len(asleep) - 1} other modules are in evaluation mode in training")
        self._has_trained = True
        super().on_train_start()

    def configure_optimizers(self) -> Optimizer:
        """The optimizer over what trains."""
        groups: defaultdict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups[self.lr_multiplier(name), parameter.ndim >= 2].append(parameter)
        optimizer = self.make_optimizer(
            [
                {"params": parameters, **({} if is_decayed else {"weight_decay": 0.0})}
                for (_, is_decayed), parameters in groups.items()
            ]
        )
        if isinstance(self.trainer.strategy, FSDP2) and type(optimizer).__module__.startswith("bitsandbytes."):
            raise ConfigError(
                f"trainer.strategy fsdp2 does not work here. {type(optimizer).__name__} of bitsandbytes updates no "
                "sharded weight: use torch.optim.AdamW, whose states are sharded too"
            )
        # A fused optimizer offers to undo the loss scaling of fp16 in its step; the mean over the tokens and the
        # clipping need it undone before, and Lightning does so unless the optimizer offers it.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        self._base_rates = [
            group["lr"] * factor for group, (factor, _) in zip(optimizer.param_groups, groups, strict=True)
        ]
        self.configure_loaded_optimizer(optimizer)
        return optimizer

    def lr_multiplier(self, name: str) -> float:
        """Learning rate of the parameter `name`, as a multiple of the optimizer's."""
        return self.tuning.lr_multiplier(name)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Keep the share of the epoch that is done with this batch; what ends the epoch first counts."""
        self._epoch_progress = max(batch.epoch_progress, (batch_idx + 1) / self.trainer.num_training_batches)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Set the learning rate by the position in the run alone, so that a resumed run has that of a whole one."""
        before, self.progress = self.progress, self._share_with_this_step()
        factor = self.schedule.factor(before, self.progress)
        for group, rate in zip(optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor

    def _share_with_this_step(self) -> float:
        """What ends the run first counts: its steps or its epochs."""
        trainer = self.trainer
        shares = []
        if trainer.max_steps != -1:
            shares.append((trainer.global_step + 1) / trainer.max_steps)
        if trainer.max_epochs != -1:
            assert trainer.max_epochs is not None
            shares.append((trainer.current_epoch + self._epoch_progress) / trainer.max_epochs)
        # Beyond its end a schedule would turn the rate negative, or up again.
        return min(1.0, max(shares))

    def part_of(self, batch: Batch) -> Batch:
        """What of a batch was trained on; its tokens are those of the step."""
        return batch

    def seconds_beside(self) -> float:
        """Spent on other things than training since it was last asked; the speed of training leaves them out."""
        return 0.0

    def export(self, folder: Path, state: dict[str, Any]) -> Path:
        """Write what trained in the standard format of its kind.

        Args:
            folder: Of the run.
            state: Whole weights of this stage by name.

        Returns:
            The folder in it that was written.
        """
        weights = {name.removeprefix("model."): weight for name, weight in state.items() if name.startswith("model.")}
        beside = partial(self.write_parts, state=state)
        return self.tuning.export(self.model, folder, self.checkpoint, weights, beside=beside)

    def write_parts(self, folder: Path, state: dict[str, Any]) -> None:
        """Write beside the exported weights what the stage put beside the network."""
        return

    def gradient_norm(self) -> torch.Tensor:
        """Euclidean norm of all gradients."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        return whole(nn.utils.get_total_norm(gradients))


def is_logged(trainer: Trainer, step: int) -> bool:
    """Whether the metrics of an optimizer step, counted from 1, are written down."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and (step % every == 0 or trainer.should_stop)
