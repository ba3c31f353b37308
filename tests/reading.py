"""What the tests of all corpora need: write records, read them back."""

import json
from pathlib import Path
from typing import Any

from lit_sft.conversation import Conversation
from lit_sft.corpora._base import Corpus, Finding


def said(conversation: Conversation) -> list[tuple[str, str]]:
    """(role, text) of each message."""
    return [(message.role, message.content) for message in conversation.messages]


def read(corpus: Corpus) -> tuple[list[Conversation], list[tuple[str, str]]]:
    """Conversations, and (place behind the file name, reason) of each finding."""
    findings: list[Finding] = []
    conversations = list(corpus.conversations(findings.append))
    return conversations, [(place(finding.source), finding.reason) for finding in findings]


def place(source: str) -> str:
    return source.rsplit(":", 1)[1]


def write_lines(file: Path, *records: Any) -> str:
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(file)
