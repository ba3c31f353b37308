"""`compare --reward`: what a reward model, of whatever family, says of the answers before and after."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preference_configs import reward_run

from lit_sft.__main__ import main
from lit_sft.conversation import Prompt
from lit_sft.report.comparison import Comparison, Row
from lit_sft.report.evaluation import Evaluation
from lit_sft.report.judging import judge
from lit_sft.report.markdown import markdown
from lit_sft.report.metrics import Reply
from lit_sft.report.page import page
from lit_sft.rewards._base import RewardFunction

pytestmark = pytest.mark.slow  # as a whole

WriteConfig = Callable[..., str]


class Length(RewardFunction):
    """Long answers are good; none has an opinion on silence."""

    def score(self, answers: Any) -> list[float | None]:
        return [float(len(answered.answer)) or None for answered in answers]


def side(*texts: str) -> Evaluation:
    return Evaluation({way: [Reply(text, True, 1) for text in texts] for way in ("greedy", "top_p")}, {})


def comparison_of(before: Evaluation, after: Evaluation, name: str = "length") -> Comparison:
    prompts = [Prompt([1], "p", None, f"file:{n}", "kind") for n in range(len(before.replies["greedy"]))]
    old, new = judge(prompts, before, after, Length(), name)
    rows = [
        Row(prompt.source, prompt.category, way, prompt.text, None, first, second)
        for way in old.replies
        for prompt, first, second in zip(prompts, old.replies[way], new.replies[way], strict=True)
    ]
    return Comparison("t", {}, rows, judges=[name])


def test_rewards_and_win_rate_leave_out_what_cannot_be_judged_and_count_ties_as_half() -> None:
    found = {
        (m.metric.key, m.strategy): m.difference
        for m in comparison_of(side("a", "bb", "ccc", "dd"), side("aa", "bb", "c", "")).measure()
    }
    for way in ("greedy", "top_p"):
        reward, rate = found["reward/length", way], found["win_rate/length", way]
        assert (reward.num_prompts, reward.before) == (3, 2.0)
        assert reward.after == pytest.approx(5 / 3)
        assert (rate.num_prompts, rate.before, rate.after) == (3, 0.5, 0.5)
    better = {m.metric.key: m.difference for m in comparison_of(side(*"abcdef"), side(*["long"] * 6)).measure()}
    assert (better["win_rate/length"].after, better["win_rate/length"].is_clear) == (1.0, True)
    assert better["win_rate/length"].low == 0.5


def test_page_and_markdown_show_scores_of_both_sides_first() -> None:
    comparison = comparison_of(side("a", "bb"), side("aaa", "b"), name="run|<b>")
    measured = comparison.measure()
    text, html = markdown(comparison, measured), page(comparison, measured)
    assert "    - Reward of run&#124;&#60;b&#62;: 1.00 → 3.00" in text
    assert re.search(r"\| Reward of run&#124;&#60;b&#62; +\| 1\.50 +\| 2\.00 +\| \+0\.50 +\|", text)
    assert html.index("Reward of run|&lt;b&gt;") < html.index("Stopped by itself")
    assert "Reward of run|&lt;b&gt; 1.00 → 3.00" in html
    assert "<b>&gt;" not in html


def test_a_reward_model_of_another_family_judges_both_sides(
    write_config: WriteConfig, tmp_path: Path, tiny: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    reward = reward_run(write_config, model={"checkpoint": str(tiny("chatglm2-6b"))}, trainer={"max_epochs": 1})
    assert main(["fit", "--config", write_config(trainer={"max_epochs": 1}), "--name", "policy"]) == 0
    (policy,) = (tmp_path / "runs").glob("policy-*")
    words = ["compare", "--run", str(policy), "--count", "3"]
    assert main([*words, "--reward", str(reward)]) == 0
    report = policy / "comparison"
    rows = [json.loads(line) for line in (report / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = [[row[when]["rewards"][reward.name]["score"] for row in rows] for when in ("before", "after")]
    found = {m["metric"]: m for m in json.loads((report / "metrics.json").read_text(encoding="utf-8"))["metrics"]}
    for values, when in zip(scores, ("before", "after"), strict=True):
        assert found[f"reward/{reward.name}"][when] == pytest.approx(sum(values) / 3)
    wins = [1.0 if new > old else 0.5 if new == old else 0.0 for old, new in zip(*scores, strict=True)]
    assert found[f"win_rate/{reward.name}"]["after"] == pytest.approx(sum(wins) / 3)
    assert "Judged by" in (report / "report.md").read_text(encoding="utf-8")

    # What cannot judge is refused before anything is asked.
    def said(*options: str) -> str:
        assert main([*words, *options]) == 2
        return capsys.readouterr().err

    assert "holds no reward model (reward.json)" in said("--reward", str(policy))
    assert "have one name" in said("--reward", json.dumps([str(reward), str(reward / "adapter")]))
    copy = Path(shutil.copytree(reward / "adapter", tmp_path / "exported"))
    about = json.loads((copy / "reward.json").read_text(encoding="utf-8"))
    (copy / "reward.json").write_text(json.dumps(about | {"base": "another"}), encoding="utf-8")
    assert "was trained on another model" in said("--reward", str(copy))
    (copy / "reward_head.safetensors").unlink()
    assert "but not its head" in said("--reward", str(copy))
    assert main(["compare", "--run", str(reward)]) == 2
    assert "it judges the answers, --reward RUN" in capsys.readouterr().err
