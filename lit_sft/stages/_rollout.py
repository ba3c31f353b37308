"""What stages share that learn from their own answers: prompts are answered, the answers rewarded, then trained on.

A batch of prompts makes a rollout, K answers to each. The batch comes again for each part of the rollout, so that
Lightning's own loop, accumulation and checkpoints do for reinforcement learning what they do for everything else: with
the first part answers are drawn, rewarded and measured, and lie in a buffer until the last is trained. The buffer is
part of a training checkpoint: a run goes on within a rollout as if it had never been interrupted.
"""

from __future__ import annotations

import copy
import logging
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lit_sft.data.batch import Batch, PromptBatch
from lit_sft.distributed.fsdp2 import FSDP2
from lit_sft.distributed.processes import gather
from lit_sft.errors import ConfigError
from lit_sft.generation.rollouts import Rollout
from lit_sft.losses.kl import k1
from lit_sft.losses.logprobs import token_log_probs
from lit_sft.losses.policy import PolicyLoss, policy_totals
from lit_sft.losses.segments import Segments
from lit_sft.rewards._together import Scores
from lit_sft.stages._policy_sums import PolicySums
from lit_sft.stages._rewarded import Rewarded
from lit_sft.stages._rollout_buffer import Part, RolloutBuffer
from lit_sft.stages._rollout_metrics import Measured
from lit_sft.stages._sequences import answer_places, refuse_dropout, refuse_random_layers, sequence_numbers
from lit_sft.stages._summed import SummedLoss, Totals
from lit_sft.tuning._base import Tuning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


class ReadAnswers(NamedTuple):
    """What a network has read of a part: N tokens of R answers.

    `hidden` [N, H] are the states that predict them, `targets` [N] they; `segments` lays them out as [R, T].
    """

    hidden: Tensor
    targets: Tensor
    segments: Segments


class RolloutStage(Rewarded, SummedLoss):  # type: ignore[misc]  # held out are prompts, not batches of tokens
    """A policy that learns from what its own answers are worth.

    Args:
        checkpoint: Model folder in its original layout.
        tuning: Which weights train.
        num_answers: Drawn to each prompt, K.
        num_parts: Micro-batches of a rollout, P; a multiple of `trainer.accumulate_grad_batches`.
        num_iterations: How many times a rollout is trained on, I.
        packing: Several answers in a row. If not given, they are packed on a GPU, unless the network cannot keep them
            apart, and not on a CPU.
        max_kl: Training stops when the mean KL of an answer from the reference, in nats, is above it.
        kwargs: What every stage takes whose answers are rewarded.
    """

    head_use = "log-probabilities"

    def __init__(
        self,
        checkpoint: str,
        tuning: Tuning,
        *,
        num_answers: int = 8,
        num_parts: int = 8,
        num_iterations: int = 1,
        packing: bool | None = None,
        max_kl: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(checkpoint, tuning, **kwargs)
        refuse_dropout(tuning, self.checkpoint)
        counts = {"num_answers": num_answers, "num_parts": num_parts, "num_iterations": num_iterations}
        for name, value in counts.items():
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if max_kl is not None and max_kl <= 0:
            raise ConfigError(f"max_kl is {max_kl}; it must be above 0")
        self.num_answers = num_answers
        self.num_parts = num_parts
        self.num_iterations = num_iterations
        self.packing = packing
        self.max_kl = max_kl
        self.reference_network: PreTrainedModel | None = None
        """What training starts from, where the policy cannot answer as it any more: full tuning."""
        self.rollout: RolloutBuffer | None = None
        """What is trained on; None between two rollouts."""
        self.num_rollouts = 0
        """Begun so far."""
        self.num_tokens = 0
        """Drawn so far, on all devices."""
        self._trained: Batch | None = None
        self._seconds_beside = 0.0

    # What a stage of this kind says of itself.

    @property
    def parts_of_pass(self) -> int:
        """Micro-batches in which every answer is trained on once."""
        return self.num_parts

    @property
    def parts_of_rollout(self) -> int:
        """How many micro-batches a rollout is trained in; the data hands its prompts out as often."""
        return self.parts_of_pass * self.num_iterations

    @property
    def needs_old(self) -> bool:
        """Whether log-probabilities of the answers are needed as they are before the first step."""
        return True

    @property
    def needs_reference(self) -> bool:
        """Whether those of the reference are."""
        return self.max_kl is not None

    @abstractmethod
    def credit(self, rollout: RolloutBuffer, own: Measured, everybody: Measured) -> None:
        """Add the columns that the losses read, advantages above all; nothing records gradients.

        Args:
            rollout: With the columns `old` and `reference` [S, T] where they are needed.
            own: What is known of its answers, those of this device.
            everybody: The same of all devices, rank after rank.
        """

    @abstractmethod
    def totals(self, rollout: RolloutBuffer, turn: int) -> Totals:
        """Sums over a micro-batch of the rollout.

        Args:
            rollout: It.
            turn: Which of the `parts_of_rollout`, from 0.
        """

    # Set-up.

    def setup(self, stage: str) -> None:
        """Refuse what would train another policy than the one that answers, or cut a step out of two rollouts.

        Raises:
            ConfigError: With the reason.
        """
        super().setup(stage)
        if stage != "fit":
            return
        if str(self.trainer.precision) == "16-mixed":
            raise ConfigError(
                "trainer.precision is 16-mixed: probabilities of whole answers, which are compared, leave the range "
                "of float16. Use bf16-mixed or 32-true"
            )
        accumulation = self.trainer.accumulate_grad_batches
        if self.parts_of_pass % accumulation:
            raise ConfigError(
                f"a rollout is trained on in {self.parts_of_pass} micro-batches (num_parts {self.num_parts}), which is "
                f"not a multiple of trainer.accumulate_grad_batches {accumulation}: an optimizer step would be cut out "
                "of two passes. Change one of them"
            )
        num_prompts = self.prompt_data.micro_batch_size
        if num_prompts * self.num_answers < self.num_parts:
            raise ConfigError(
                f"num_parts is {self.num_parts}, but data.micro_batch_size {num_prompts} prompts with num_answers "
                f"{self.num_answers} make fewer answers. Lower it"
            )

    def _check_strategy(self) -> None:
        super()._check_strategy()
        if isinstance(self.trainer.strategy, FSDP2):
            raise ConfigError(
                "trainer.strategy fsdp2 does not work here. Answers are drawn token by token, and each token would "
                "gather every block from all devices. Set it to ddp, with QLoRA if the model does not fit"
            )

    def add_parts(self) -> None:
        """What answers as the reference, and reward models on the same base."""
        refuse_random_layers(self.causal_lm, self.checkpoint)
        if self.needs_reference and self.tuning.keeps_reference:
            self.tuning.keep_reference(self.model)
        elif self.needs_reference:
            self.reference_network = copy.deepcopy(self.causal_lm).requires_grad_(False).train()
        for number, reward in enumerate(self.rewards):
            reward.join(self.tuning, self.model, self.checkpoint, f"reward_{number}")

    def check_first_batch(self, batch: Any) -> str | None:
        """Are there prompts in it?"""
        return None if isinstance(batch, PromptBatch) else "the first batch holds no prompts"

    @property
    def is_on_policy(self) -> bool:
        """Whether a rollout is one optimizer step, so that nothing changes between drawing and training."""
        trainer = self._trainer
        accumulation = trainer.accumulate_grad_batches if trainer else 1
        return self.num_iterations == 1 and self.parts_of_pass == accumulation

    # Training.

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:  # type: ignore[override]
        """Draw answers if the batch comes for the first time; the summed loss of a part, scaled."""
        if batch.turn == 0:
            self._begin(batch)
        assert self.rollout is not None
        assert self.rollout.sources == batch.sources
        loss = super().training_step(batch, batch_idx)
        if batch.turn + 1 == self.parts_of_rollout:
            self.rollout = None
        return loss

    def forward(self, batch: PromptBatch) -> Totals:  # type: ignore[override]
        """Sums over a part of the rollout."""
        assert self.rollout is not None
        return self.totals(self.rollout, batch.turn)

    @torch.no_grad()
    def _begin(self, batch: PromptBatch) -> None:
        """Draw answers, score them, and measure what losses are made of."""
        began = time.perf_counter()
        first = self.trainer.global_rank * len(batch.prompts)
        numbers = range(first, first + len(batch.prompts))
        answers = self.draw(batch.prompts, numbers, self.num_rollouts, self.num_answers)
        drawn = time.perf_counter()
        scores = self.scores(batch.prompts, answers)
        rollout = RolloutBuffer.of(
            batch, answers, number=self.num_rollouts, num_parts=self.num_parts, is_packed=self._packs()
        )
        self.num_rollouts += 1
        if self.needs_old:
            rollout.fill("old", lambda part: self.log_probs(part)[0], self.device)
        if self.reference_network is not None:
            rollout.fill("reference", lambda part: self.log_probs(part, self.reference_network)[0], self.device)
        elif self.needs_reference:
            with self.tuning.reference_of(self.model):
                rollout.fill("reference", lambda part: self.log_probs(part)[0], self.device)
        own = self._measured(rollout, scores, answers)
        everybody = Measured.together(gather(own))
        self.credit(rollout, own, everybody)
        self.rollout = rollout
        self.num_tokens += int(everybody.lengths.sum())
        self._log_rollout(everybody, seconds=drawn - began)
        self._seconds_beside += time.perf_counter() - began

    def part_of(self, batch: Batch) -> Batch:
        """The micro-batch of answers."""
        return self._trained or batch

    def seconds_beside(self) -> float:
        """Those in which answers were drawn, scored and measured."""
        seconds, self._seconds_beside = self._seconds_beside, 0.0
        return seconds

    def _measured(self, rollout: RolloutBuffer, scores: Scores, answers: Sequence[Sequence[Rollout]]) -> Measured:
        old, reference = rollout.columns.get("old"), rollout.columns.get("reference")
        drawn = [torch.tensor(answer.logprobs) for of_prompt in answers for answer in of_prompt]
        return Measured(
            scores,
            rollout.answer_lengths,
            rollout.is_ended,
            kl=None if old is None or reference is None else k1(old, reference).sum(1),
            differences=None if old is None else old[rollout.mask] - torch.cat(drawn),
        )

    def read(self, part: Part, network: PreTrainedModel | None = None) -> ReadAnswers:
        """The part as a network reads it, the policy as it is now if none is given."""
        batch = self._trained = part.batch
        if batch.position_ids is not None:
            self.refuse_mixing()
        hidden = (
            (network or self.causal_lm)
            .get_decoder()(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
            .last_hidden_state
        )
        places = answer_places(batch)
        return ReadAnswers(
            hidden.flatten(0, 1).index_select(0, places - 1),
            batch.input_ids.flatten()[places],
            Segments.of(sequence_numbers(batch)[places], len(part.members), part.width),
        )

    def log_probs(
        self, part: Part, network: PreTrainedModel | None = None, *, differentiates_entropy: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the tokens of a part and entropies there, and the mask, [R, T] each.

        Args:
            part: On the device.
            network: Which says so; the policy as it is now if not given.
            differentiates_entropy: Whether the loss is made of entropies, too.
        """
        read = self.read(part, network)
        found = token_log_probs(
            read.hidden,
            read.targets,
            self.behavior.head(network or self.causal_lm),
            temperature=self.temperature,
            is_measured=torch.is_grad_enabled(),
            differentiates_entropy=differentiates_entropy,
        )
        return read.segments.grid(found.logps), read.segments.grid(found.entropy), read.segments.mask

    def policy_sums(self, loss: PolicyLoss, part: Part, rollout: RolloutBuffer) -> PolicySums:
        """The loss of the policy on a part, and what is measured of it."""
        logps, entropy, mask = self.log_probs(part, differentiates_entropy=loss.entropy_weight > 0)
        advantages = rollout.of_part("advantages", part)
        assert advantages is not None
        found = policy_totals(
            loss,
            logps,
            mask,
            advantages,
            old=rollout.of_part("old", part),
            reference=rollout.of_part("reference", part),
            entropy=entropy if loss.entropy_weight else None,
            max_tokens=self.prompt_data.max_new_tokens,
        )
        return PolicySums.of(found, mask, entropy, part, rollout)

    def _packs(self) -> bool:
        if self.packing is not None:
            return self.packing
        return self.device.type == "cuda" and not self.behavior.mixing

    def _log_rollout(self, measured: Measured, *, seconds: float) -> None:
        """What came of a rollout; the KL of a policy that left its reference ends the run."""
        metrics = measured.metrics(self.num_answers)
        self.log_dict({f"train/{name}": value for name, value in metrics.items()}, prog_bar=True)
        self.log("train/num_tokens", float(self.num_tokens))
        self.log("speed/rollout_tokens_per_second", int(measured.lengths.sum()) / seconds, prog_bar=True)
        kl = metrics.get("objective/kl", 0.0)
        if self.max_kl is not None and kl > self.max_kl:
            self.stopped_because = (
                f"in rollout {self.num_rollouts} the KL of an answer from the reference was {kl:.3g}, above max_kl "
                f"{self.max_kl:.3g}. Lower the learning rate, or raise beta"
            )
            log.warning("training stops: %s", self.stopped_because)
            self.trainer.should_stop = True

    # Checkpoints.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the rollout that is trained on, of every device."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["rollout"] = {
            "num_rollouts": self.num_rollouts,
            "num_tokens": self.num_tokens,
            "num_iterations": self.num_iterations,
            "buffers": gather(self.rollout and self.rollout.state()),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on within it.

        Raises:
            ConfigError: If it was made with other options, or by another number of devices.
        """
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn != "fit":
            return
        stored = checkpoint["rollout"]
        self.num_rollouts, self.num_tokens = stored["num_rollouts"], stored["num_tokens"]
        buffers = stored["buffers"]
        if buffers[0] is None:
            return
        if len(buffers) != self.trainer.world_size:
            raise ConfigError(
                f"the checkpoint stands within a rollout of {len(buffers)} device(s), which {self.trainer.world_size} "
                f"cannot share. Use {len(buffers)}"
            )
        rollout = RolloutBuffer(**buffers[self.trainer.global_rank])
        made = {
            "num_answers": rollout.num_answers,
            "num_parts": rollout.num_parts,
            "num_iterations": stored["num_iterations"],
        }
        differing = [
            f"{name} {value}, now {getattr(self, name)}" for name, value in made.items() if getattr(self, name) != value
        ]
        if differing:
            raise ConfigError(
                f"the checkpoint stands within a rollout of {', '.join(differing)}. Resume with what it was made with"
            )
        self.rollout = rollout
