"""A corpus of ranked and judged answers, its records of letters."""

import json
from pathlib import Path
from typing import Any, ClassVar

from lit_sft.conversation import Judged, Message, Preference
from lit_sft.corpora._base import Corpus


class Rankings(Corpus):
    """`{"prompt": ..., "answers": [best, ..., worst]}`, or `{"prompt": ..., "answer": ..., "good": true}`."""

    record_type = Preference
    layout = "prompt, answers"
    layouts: ClassVar = (frozenset({"answers", "answer"}),)

    def parse(self, record: dict[str, Any]) -> Preference | Judged:
        before = [Message("system", record["system"])] if "system" in record else []
        prompt = [*before, Message("user", record["prompt"])]
        if "answer" in record:
            return Judged(prompt, Message("assistant", record["answer"]), record["good"])
        answers = [Message("assistant", answer) for answer in record["answers"]]
        return Preference(prompt, answers, record.get("margin"))


def ranked(prompt: str, *answers: str, **others: Any) -> dict[str, Any]:
    return {"prompt": prompt, "answers": answers, **others}


def judged(prompt: str, answer: str, good: bool) -> dict[str, Any]:
    return {"prompt": prompt, "answer": answer, "good": good}


def written(file: Path, records: list[dict[str, Any]]) -> Rankings:
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return Rankings(str(file))
