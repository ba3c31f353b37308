"""Bad records are counted and listed."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import LetterFormat, LetterText

from lit_sft.conversation import Conversation
from lit_sft.corpora.belle import Belle
from lit_sft.data import quarantine
from lit_sft.data.sft import SFTData
from lit_sft.errors import BadRecord, DataError

GOOD = '{"instruction": "q", "input": "", "output": "answer"}'


def data_of(tmp_path: Path, lines: list[str], **options: str) -> SFTData:
    file = tmp_path / "belle.json"
    file.write_bytes("".join(line + "\n" for line in lines).encode())
    data = SFTData(
        LetterText(),
        [Belle(str(file))],
        max_length=8,
        validation_fraction=0.0,
        max_bad_fraction=1.0,
        **options,  # type: ignore[arg-type]
    )
    data.setup("fit")
    return data


def test_skipped_and_repaired_records_are_counted_apart_and_listed_with_their_place(tmp_path: Path) -> None:
    lines = [GOOD, '{"instruction', GOOD + "\r", GOOD.replace("answer", "too long"), GOOD.replace('"q"', '"qqqqqqqq"')]
    data = data_of(tmp_path, lines)
    data.quarantine.write(tmp_path / "run" / "quarantine.jsonl")
    *listed, counts = map(json.loads, (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines())
    assert [(line["source"], line["reason"], line["is_kept"]) for line in listed] == [
        (f"{tmp_path}/belle.json:2", "broken-json", False),
        (f"{tmp_path}/belle.json:3", "crlf", True),
        (f"{tmp_path}/belle.json:1", "reply-cut", True),
        (f"{tmp_path}/belle.json:3", "reply-cut", True),
        (f"{tmp_path}/belle.json:4", "reply-cut", True),
        (f"{tmp_path}/belle.json:5", "prompt-too-long", False),
    ]
    assert listed[0]["excerpt"] == '{"instruction'
    assert counts == {
        "counts": {
            "skipped": {"broken-json": 1, "prompt-too-long": 1},
            "kept_after_repair": {"reply-cut": 3, "crlf": 1},
        }
    }


def test_all_are_counted_though_not_all_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MAX_LISTED", 2)
    data = data_of(tmp_path, [GOOD.replace("answer", "a") + "\r"] * 5)
    assert len(list(data.quarantine.findings())) == 2
    assert data.quarantine.repaired == {"crlf": 5}


@pytest.mark.parametrize(
    ("bad", "reason"), [('{"instruction', "broken-json"), (GOOD.replace('"q"', '"qqqqqqqq"'), "prompt-too-long")]
)
def test_on_request_the_first_lost_record_stops_the_run(tmp_path: Path, bad: str, reason: str) -> None:
    with pytest.raises(DataError, match=f"belle.json:2: {reason}"):
        data_of(tmp_path, [GOOD, bad, GOOD], on_bad_record="error")


def test_what_a_format_says_about_records_does_not_become_their_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat template may refuse every record with another text."""

    def refuse(self: Any, conversation: Conversation, tokenizer: Any) -> Any:
        if "x" in conversation.messages[0].content:
            raise BadRecord("refused", f"said of {conversation.messages[0].content}")
        return encode(self, conversation, tokenizer)

    encode = LetterFormat.encode_turns
    monkeypatch.setattr(LetterFormat, "encode_turns", refuse)
    data = data_of(tmp_path, [GOOD.replace("answer", "a"), *(GOOD.replace('"q"', f'"x{n}"') for n in range(300))])
    assert data.quarantine.skipped == {"refused": 300}
    listed = {finding.source: finding.detail for finding in data.quarantine.findings()}
    assert listed[f"{tmp_path}/belle.json:299"] == "said of x297"


def test_a_repaired_record_or_an_empty_line_does_not_stop_it(tmp_path: Path) -> None:
    data_of(tmp_path, [GOOD + "\r", "", GOOD], on_bad_record="error")
