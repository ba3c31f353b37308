"""What a reward model says of the answers before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lit_sft.conversation import Prompt
from lit_sft.report.evaluation import Evaluation
from lit_sft.report.metrics import Judgment, Reply
from lit_sft.rewards._base import Answered, RewardFunction


def judge(
    prompts: Sequence[Prompt], before: Evaluation, after: Evaluation, reward: RewardFunction, name: str
) -> tuple[Evaluation, Evaluation]:
    """Both sides with the judgments of a reward model on each pair of answers, by its name.

    Args:
        prompts: What was asked.
        before: The answers to them.
        after: The same after tuning.
        reward: Gives each answer a score.
        name: Of the reward model.
    """
    strategies = list(before.replies)
    sides = [[reply for strategy in strategies for reply in side.replies[strategy]] for side in (before, after)]
    asked = [prompt for _ in strategies for prompt in prompts]
    scores = reward.score([_answered(*pair) for side in sides for pair in zip(asked, side, strict=True)])
    judged: list[tuple[Reply, Reply]] = []
    for old, new, score, new_score in zip(*sides, scores[: len(asked)], scores[len(asked) :], strict=True):
        if score is None or new_score is None:
            judged.append((old, new))
            continue
        win = 1.0 if new_score > score else 0.5 if new_score == score else 0.0
        judged.append((_with(old, name, Judgment(score, 0.5)), _with(new, name, Judgment(new_score, win))))
    parts = [judged[start : start + len(prompts)] for start in range(0, len(judged), max(1, len(prompts)))]
    old_replies, new_replies = (
        {strategy: [pair[place] for pair in part] for strategy, part in zip(strategies, parts, strict=True)}
        for place in (0, 1)
    )
    return replace(before, replies=old_replies), replace(after, replies=new_replies)


def _answered(prompt: Prompt, reply: Reply) -> Answered:
    return Answered(prompt.messages, reply.text, reply.has_stopped, reply.num_tokens, prompt.reference)


def _with(reply: Reply, name: str, judgment: Judgment) -> Reply:
    return replace(reply, rewards={**reply.rewards, name: judgment})
