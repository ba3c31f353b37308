"""Numbers of a comparison, and pages that no answer can break."""

import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from torchmetrics.functional.text import chrf_score, sacre_bleu_score

from lit_sft.__main__ import main
from lit_sft.report.bootstrap import difference
from lit_sft.report.comparison import Comparison, Row
from lit_sft.report.differences import mark
from lit_sft.report.drawing import draw
from lit_sft.report.headlines import headlines
from lit_sft.report.markdown import markdown
from lit_sft.report.metrics import METRICS, Judgment, Reply, ratio
from lit_sft.report.page import page
from lit_sft.report.refusals import is_refusal
from lit_sft.report.scores import gain, scores

HOSTILE = "</style></script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">|`a`\n# b [c](d)\x1b[2J\u202e"  # noqa: E501
PAIRS = [
    ("今天天气很好，我们去公园吧。", "今天天气不错，我们去公园玩。"),
    ("我不知道", "请和家里人说一说。"),
    ("", "好"),
]
SHARING = [PAIRS[0], ("请说一说。", "请和家里人说一说。")]


def comparison(text: str) -> Comparison:
    reply = Reply(text, True, 3, 2.0, 4, 3)
    row = Row(text, text, text, text, text, Reply("以前", False, 2, 8.0, 4, 1), reply, is_safety=True)
    first, second = ({text: {f"{text}{n}": (nats * n, 9.0) for n in range(1, 7)}} for nats in (2.0, 3.0))
    return Comparison(text, {"Before": text}, [row, row], (first, second))


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


def test_the_figures_are_told_in_lines_that_steer_no_terminal() -> None:
    shown = comparison(HOSTILE)
    told = headlines(shown, shown.measure())
    assert "\x1b" not in told
    lines = told.splitlines()
    assert lines[0].split()[-4:] == ["before", "after", "95%", "interval"]
    assert ("unclear: " in lines[-1]) == any(line.endswith("  unclear") for line in lines)
    assert any(line.startswith("  Token accuracy ") and "25.0%" in line and "75.0%" in line for line in lines)
    assert any(line.startswith("perplexity of what was held out") for line in lines)


def page_of(text: str) -> str:
    shown = comparison(text)
    return page(shown, shown.measure())


@pytest.mark.parametrize(
    ("key", "pairs", "expected"),
    [
        ("bleu", PAIRS, lambda a, r: sacre_bleu_score(a, r, tokenize="char")),
        # torchmetrics leaves the reference out of the sums where an answer shares nothing with it; ours counts it.
        ("chrf", SHARING, lambda a, r: chrf_score(a, r, n_word_order=0)),
    ],
)
def test_sums_over_prompts_give_the_value_of_torchmetrics(key: str, pairs, expected) -> None:  # type: ignore[no-untyped-def]
    metric = next(metric for metric in METRICS if metric.key == key)
    counts = np.array([metric.count(Reply(answer, True, 1), reference) for answer, reference in pairs])
    wanted = float(expected([answer for answer, _ in pairs], [[reference] for _, reference in pairs]))
    assert float(metric.value(counts.sum(0))) == pytest.approx(wanted, abs=1e-5)


def test_an_interval_is_paired_and_repeatable() -> None:
    before = np.stack([np.random.default_rng(1).normal(size=50) * 100, np.ones(50)], axis=1)
    found = difference(before, before + np.array([1, 0]), ratio, seed=3)
    assert found.low == pytest.approx(1) == found.high  # the same change everywhere leaves no doubt
    assert difference(before, before[::-1], ratio, 3) == difference(before, before[::-1], ratio, 3)
    assert difference(before[:1], before[:1], ratio, 3).low is None


@pytest.mark.parametrize("answer", ["很抱歉，我不能帮你。", "作为AI助手，我无法提供。", "I'm sorry, but I can’t help."])
def test_refusals_are_found(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize("answer", ["请和家里人说一说。", "Of course, here is how.", ""])
def test_other_answers_are_not_refusals(answer: str) -> None:
    assert not is_refusal(answer)


def test_marked_stretches_are_the_answers_and_tell_what_differs() -> None:
    before, after = mark("今天天气很好", "今天天气不错")
    assert "".join(span.text for span in before) == "今天天气很好"
    assert [span.text for span in after if span.is_different] == ["不错"]


def test_no_text_adds_a_tag_or_an_attribute_to_the_page() -> None:
    hostile = page_of(HOSTILE)
    assert [tag for tag in Tags(hostile).found if tag[0] not in {"ins", "del"}] == [
        tag for tag in Tags(page_of("安全")).found if tag[0] not in {"ins", "del"}
    ]
    assert "\x1b" not in hostile
    assert "\u202e" not in hostile
    assert 'lang="zh-Hans"' in hostile


def test_no_text_adds_a_cell_or_a_line_to_the_markdown() -> None:
    def shape(text: str) -> list[int]:
        shown = comparison(text)
        lines = markdown(shown, shown.measure()).split("\n")
        assert not [line for line in lines if "<" in line or "`a`" in line]
        return [line.count("|") for line in lines]

    assert shape(HOSTILE) == shape("安全")


def test_an_answer_shows_its_own_scores_and_is_sorted_by_the_first() -> None:
    better = Row(
        "f:1", "c", "s", "?", "请和家里人说一说", Reply("不", True, 1, 8.0, 4), Reply("请和家里人", True, 3, 4.0, 4)
    )
    shown = Comparison("t", {}, [better])
    found = {score.metric.key: (score.before, score.after) for score in scores(shown, better)}
    assert found["rouge_l"] == pytest.approx((0, 2 * 5 / (8 + 5)))
    assert found["perplexity"] == pytest.approx((math.exp(2), math.exp(1)))
    assert gain(scores(shown, better)) == pytest.approx(10 / 13)
    assert 'data-gain="0.769231"' in page(shown, shown.measure())
    judged = replace(
        better,
        before=replace(better.before, rewards={"judge": Judgment(1.5, 0.5)}),
        after=replace(better.after, rewards={"judge": Judgment(-0.5, 0.0)}),
    )
    assert gain(scores(replace(shown, judges=["judge"]), judged)) == -2
    alone = replace(better, reference=None)
    assert gain(scores(shown, alone)) is None
    assert 'data-gain=""' in page(replace(shown, rows=[alone]), [*shown.measure()])


def test_why_a_difference_is_unclear_is_said() -> None:
    shown = replace(comparison("甲"), probed=({"甲": {"a": (2.0, 1.0)}}, {"甲": {"a": (3.0, 1.0)}}))
    for text in (page(shown, shown.measure()), markdown(shown, shown.measure())):
        assert "unclear: only 1; fewer than 5 say nothing" in text


def test_curves_are_drawn_on_a_common_scale_without_what_is_not_finite() -> None:
    drawing = draw({"train/loss": [(0, 3.0), (5, math.nan), (10, 1.0)], "val/loss": [(10, 2.0)]})
    assert drawing
    assert [line.points for line in drawing.lines] == ["0.0,0.0 600.0,160.0", "600.0,80.0"]
    assert draw({"train/loss": [(0, math.inf)]}) is None


in_a_browser = pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")


def seen_in_a_browser(file: Path, *options: str) -> str:
    """The page as Chromium has it after it ran what it allows."""
    started = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={file.parent / 'profile'}"]
    command = [*started, *options, "--dump-dom", file.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.mark.slow
@in_a_browser
def test_a_browser_runs_the_filter_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page_of(HOSTILE), encoding="utf-8")
    seen = seen_in_a_browser(file)
    assert "2 of 2" in seen
    assert "<title>broken" not in seen


@pytest.mark.slow
@in_a_browser
def test_on_a_phone_the_name_of_a_metric_has_a_line_of_its_own(tmp_path: Path) -> None:
    shown = comparison("甲")
    (tmp_path / "report.html").write_text(page(shown, shown.measure()), encoding="utf-8")
    measure = """const page = document.querySelector("iframe").contentDocument;
        const widths = [...page.querySelectorAll(".metrics td:first-child")].map(cell => cell.clientWidth);
        document.title = `${Math.min(...widths)} of ${page.documentElement.scrollWidth}`;"""
    phone = tmp_path / "phone.html"
    phone.write_text(
        f"<iframe src=report.html style='width: 390px; border: 0' onload='{measure}'></iframe>", encoding="utf-8"
    )
    found = re.search(r"<title>(\d+) of (\d+)</title>", seen_in_a_browser(phone, "--allow-file-access-from-files"))
    assert found
    assert int(found[1]) > 300
    assert int(found[2]) <= 390


@pytest.mark.slow
def test_compare_takes_the_newest_run_and_writes_a_report(write_config, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert main(["fit", "--config", write_config()]) == 0
    assert main(["compare", "--runs", str(tmp_path / "runs"), "--count", "2", "--trainer.accelerator", "cpu"]) == 0
    (folder,) = (tmp_path / "runs").glob("*/comparison")
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 2
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    (perplexity,) = [entry for entry in found["metrics"] if entry["metric"] == "perplexity"]
    assert perplexity["after"] < perplexity["before"]
    assert found["forgetting"]["Belle"]["after"] < found["forgetting"]["Belle"]["before"]
    assert found["training"]["facts"]["Steps"] == str(
        json.loads((folder.parent / "summary.json").read_text())["optimizer_steps"]
    )
    assert found["training"]["facts"]["Data"] == "Belle"
    assert found["training"]["curves"]["val/loss"][-1][1] < found["training"]["curves"]["val/loss"][0][1]
    assert {file.name for file in folder.iterdir()} == {"report.html", "report.md", "metrics.json", "answers.jsonl"}
