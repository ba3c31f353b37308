"""A problem with a known answer for the network of any family: which of sixteen tokens to say."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from policies import data_of, fitted
from torch import Tensor, nn

from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.generation.generate import decode_answer
from lit_sft.rewards._base import Answered, RewardFunction
from lit_sft.stages._rollout import RolloutStage
from lit_sft.stages.policy import Policy
from lit_sft.stages.schedules import Cosine
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

BETA = 0.3
NUM_LIKELY = 16

SHARP: dict[str, Any] = {"sharpness": 200.0, "rank": 4, "alpha": 1000}
"""So that what must be learned is a small turn of the state and a small second factor of each adapter: what a network
does to them is nearly linear then, whatever its family."""


class Worth(RewardFunction):
    """From 0 to 1, by the text of an answer."""

    def score(self, answers: Sequence[Answered]) -> list[float | None]:
        return [hashlib.sha256(answered.answer.encode()).digest()[0] / 255 for answered in answers]


class FewWords(LoRA):
    """A network that answers one prompt with a few tokens only: the rows of all others point away from its state.

    A step of descent on the logit of one of the few moves the logits of the others by nothing, and all by as much, so
    that a policy is near the best one in tens of steps.

    Args:
        prompt: Its ids.
        sharpness: By how much logits differ for a turn of the state; if not given, rows are random.
        kwargs: Of the adapters.
    """

    def __init__(self, prompt: Sequence[int], sharpness: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt
        self.sharpness = sharpness

    def load(self, checkpoint: Checkpoint, precision: str) -> Any:
        model = super().load(checkpoint, precision)
        network = self.causal_lm(model)
        state = network.get_decoder()(input_ids=torch.tensor([self.prompt]), use_cache=False).last_hidden_state[0, -1]
        along = (state / state.norm() ** 2).detach()  # a row of it has the logit 1
        head = network.get_output_embeddings()
        # A weight of its own, also where that of the embedding was its.
        head.weight = nn.Parameter(-20 * along.repeat(len(head.weight), 1), False)
        likely = torch.arange(20, len(head.weight), (len(head.weight) - 20) // NUM_LIKELY)[:NUM_LIKELY]
        if self.sharpness is None:
            head.weight.data[likely] = torch.randn(NUM_LIKELY, len(state)) / state.detach().norm()
        else:
            # Rows that the head itself makes one long would all be alike if they were sharper.
            sharpness = self.sharpness if type(head) is nn.Linear else 5.0
            level = torch.linspace(6, 4, NUM_LIKELY)[:, None] * along
            head.weight.data[likely] = level + sharpness * apart(state, model)
        return model


def apart(state: Tensor, model: nn.Module) -> Tensor:
    """Rows [16, H], at right angles to the state, each of which descent moves by itself, and all by as much."""
    along = (state / state.norm() ** 2).detach()
    random = torch.randn(len(state), NUM_LIKELY)
    across = torch.linalg.qr(random - torch.outer(along, state.detach() @ random))[0].T / state.detach().norm()
    turned = slopes(across @ state, model)
    similarity = turned @ turned.T
    even = torch.linalg.solve_triangular(torch.linalg.cholesky(similarity), across, upper=False)
    rows: Tensor = (similarity.trace() / NUM_LIKELY).sqrt() * even
    return rows


def probabilities(stage: Any, prompt: Sequence[int]) -> Tensor:
    """Of each token as the answer to the prompt [V]."""
    with torch.no_grad():
        logits: Tensor = stage.causal_lm(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
    return logits.double().softmax(-1)


def worth_of_tokens(count: int, tokenizer: Any, stop: Sequence[int]) -> Tensor:
    """Of each token as an answer [V]."""
    answers = [Answered([], decode_answer([] if token in stop else [token], tokenizer)) for token in range(count)]
    return torch.tensor([value or 0.0 for value in Worth().score(answers)], dtype=torch.float64)


def slopes(numbers: Tensor, network: nn.Module) -> Tensor:
    """Gradients of numbers [N] with respect to all that trains, [N, P]."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    rows = [torch.autograd.grad(number, weights, retain_graph=True, allow_unused=True) for number in numbers]
    return torch.stack([torch.cat([part.flatten() for part in row if part is not None]) for row in rows])


def largest_rate(stage: Any, prompt: Sequence[int]) -> float:
    """That of descent at which the logit of a token moves by about what is missing to it, were it drawn every time."""
    logits = stage.causal_lm(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1]
    likely = logits.topk(NUM_LIKELY).values
    return 8.0 * (NUM_LIKELY - 1) / float(slopes(likely - likely.mean(), stage).square().sum())


class FewWordsInFourBits(FewWords, QLoRA):
    """The same on a base in 4 bits."""


class Learned(NamedTuple):
    """What a fit has changed: the total variation from the best policy, and the share of the best token in answers.

    `regret` is what the policy has less than the best one of what is maximized: reward, less beta times the KL.
    """

    distance_before: float
    distance_after: float
    share_before: float
    share_after: float
    regret: float


def learned(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    num_steps: int,
    lr: float | None = None,
    num_answers: int = 32,
    stage_class: type[RolloutStage] = Policy,
    tuning_class: type[FewWords] = FewWords,
    **options: Any,
) -> Learned:
    """What a fit of a policy changes. The best token is that whose share the best policy raises most.

    The best policy is softmax(log reference + reward / beta). At it all answers have one advantage, 0, so that near it
    what is drawn makes little noise, and gradients fall by orders of magnitude: plain descent gets there in tens of
    steps. Adam does not: what it remembers of the first gradients shortens the last steps.

    Args:
        checkpoint: Of any family.
        folder: For files.
        num_steps: Of the optimizer.
        lr: Of AdamW; of descent if not given, as large as the network allows.
        num_answers: Of a rollout.
        stage_class: What learns.
        tuning_class: What trains.
        options: Of the stage.
    """
    torch.manual_seed(3)
    # All steps in one epoch: Lightning registers what is logged anew in each, which takes longer than a step.
    options_of_data: dict[str, Any] = {"count": 1, "max_new_tokens": 1, "micro_batch_size": 1}
    asked, data = (data_of(checkpoint, folder, epoch=epoch, **options_of_data) for epoch in (1, num_steps))
    asked.setup("fit")
    (batch,) = asked.train_dataloader()
    (prompt,) = batch.prompts
    stage: Any = stage_class(
        str(checkpoint.path),
        tuning_class(prompt.input_ids, **({"rank": 8} if lr else SHARP)),
        family=checkpoint.family.name,
        rewards=[Worth()],
        num_answers=num_answers,
        num_parts=1,
        beta=BETA,
        optimizer=lambda parameters: (
            torch.optim.SGD(parameters, lr=largest_rate(stage, prompt.input_ids), momentum=0.5)
            if lr is None
            else torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
        ),
        schedule=Cosine(warmup_fraction=0.0),
        **options,
    )
    stage.configure_model()
    tokenizer = stage.tokenizer
    before = probabilities(stage, prompt.input_ids)
    worth = worth_of_tokens(len(before), tokenizer, checkpoint.prompt_format.stop_token_ids(tokenizer))
    fitted(stage, data, folder, max_steps=num_steps, accumulate_grad_batches=stage.parts_of_pass)
    after = probabilities(stage, prompt.input_ids)
    return compared(before, after, worth)


def compared(before: Tensor, after: Tensor, worth: Tensor) -> Learned:
    """Two policies [V] with the best one, softmax(log reference + reward / beta)."""
    best = (before.log() + worth / BETA).softmax(-1)
    value = (after * (worth - BETA * (after / before).log())).sum()
    rewarded = int((best / before).where(before > 1e-3, 0).argmax())
    distances = [float((policy - best).abs().sum() / 2) for policy in (before, after)]
    regret = float(BETA * (before.log() + worth / BETA).logsumexp(0) - value)
    return Learned(distances[0], distances[1], float(before[rewarded]), float(after[rewarded]), regret)
