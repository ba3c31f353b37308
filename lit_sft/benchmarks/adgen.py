"""ADGEN (Shao et al. 2019): texts of advertisements from attributes, the example of ChatGLM's fine-tuning scripts.

A record is `{"content": "类型#上衣*版型#宽松", "summary": "这件上衣的款式非常的宽松……"}`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lit_sft.benchmarks.text_scores import bleu_4, rouge
from lit_sft.conversation import Conversation, Message
from lit_sft.errors import DataError

if TYPE_CHECKING:
    from lit_sft.chat.network import Network
    from lit_sft.generation.strategies import Strategy


@dataclass(frozen=True)
class Advertisement:
    """Attributes, and the text that was written of them."""

    id: str
    content: str
    summary: str


def read(file: Path) -> list[Advertisement]:
    """The records of a file, in order.

    Raises:
        DataError: If it cannot be read, naming the line.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            found.append(Advertisement(str(number), str(record["content"]), str(record["summary"])))
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{file}:{number}: expected a JSON object with content and summary") from None
    if not found:
        raise DataError(f"{file} holds no record")
    return found


def answered(network: Network, asked: list[Advertisement], strategy: Strategy) -> list[dict[str, Any]]:
    """A row for each, answered in one batch, with the scores of its text."""
    from lit_sft.generation.generate import generate_answers

    checkpoint, tokenizer = network.checkpoint, network.tokenizer
    prompts = [
        checkpoint.prompt_format.encode_prompt(Conversation([Message("user", each.content)]), tokenizer)
        for each in asked
    ]
    answers = generate_answers(
        network.model,
        tokenizer,
        prompts,
        strategy,
        stop_token_ids=checkpoint.prompt_format.stop_token_ids(tokenizer),
        context_length=checkpoint.context_length,
    )
    rows = []
    for each, answer in zip(asked, answers, strict=True):
        text = checkpoint.family.postprocess_answer(answer.text)
        scores = {"bleu-4": bleu_4(text, each.summary), **rouge(text, each.summary)}
        rows.append({"subject": "adgen", "id": each.id, "answer": text, "reference": each.summary, **scores})
    return rows


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Of each score."""
    return {name: fmean(row[name] for row in rows) for name in ("bleu-4", "rouge-1", "rouge-2", "rouge-l")}
