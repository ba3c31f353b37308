"""From the answers to multiple-choice questions to accuracies: by subject, by category, and their mean."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from lit_sft.benchmarks.multiple_choice import LETTERS, MultipleChoice


def choice(log_probs: list[float]) -> str:
    """The likeliest letter, the first of those that tie."""
    return LETTERS[log_probs.index(max(log_probs))]


def accuracies(benchmark: type[MultipleChoice], rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Accuracies in percent; those of categories, and the mean, are means over subjects, as both benchmarks have them.

    Args:
        benchmark: It.
        rows: With `subject`, `choice` and `answer`.
    """
    hits: dict[str, list[bool]] = {}
    for row in rows:
        hits.setdefault(row["subject"], []).append(row["choice"] == row["answer"])
    subjects: dict[str, dict[str, Any]] = {
        subject: {
            "name": benchmark.called(subject),
            "questions": len(found),
            "correct": sum(found),
            "accuracy": 100 * fmean(found),
        }
        for subject, found in sorted(hits.items())
    }
    categories = {
        name: fmean(found)
        for name, members in benchmark.groups().items()
        if (found := [content["accuracy"] for subject, content in subjects.items() if subject in members])
    }
    mean = fmean(content["accuracy"] for content in subjects.values())
    return {"mean": mean, "categories": categories, "subjects": subjects}


def table(results: dict[str, Any]) -> str:
    """The same to read, with what was published beside."""
    lines = [f"{results['benchmark']}, {results['split']}, {results['shots']}-shot, {results['form']}", ""]
    if "mean" in results:
        lines += [f"{'mean':<44}{results['mean']:>8.2f}"]
        lines += [f"{name:<44}{value:>8.2f}" for name, value in results["categories"].items()]
        lines += ["", f"{'subject':<44}{'percent':>8}{'correct':>10}"]
        for subject, found in results["subjects"].items():
            lines.append(f"{subject:<44}{found['accuracy']:>8.2f}{found['correct']:>5}/{found['questions']:<5}")
    if results["published"]:
        lines += ["", "published, by other protocols"]
        for row in results["published"]:
            lines.append(f"  {row['model']:<22}{row['protocol']:<10}{row['mean']:>7.2f}  {row['source']}")
    return "\n".join(lines) + "\n"
