"""What `predict` answers: records in JSON, a table with a header, or a text file with a prompt on each line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from lit_sft.conversation import Conversation, Message, Prompt, PromptFormat
from lit_sft.corpora._base import excerpt
from lit_sft.corpora._encodings import encoding_of, remedy_for
from lit_sft.corpora._reading import content_of, find_files, is_table, read_records
from lit_sft.corpora._splitting import BYTE_ORDER_MARK
from lit_sft.corpora.prompt_records import PROMPT_KEYS, RECORD_KEYS, TALK_KEYS, PromptRecords
from lit_sft.data.delimited import Header, header_of, rows_of
from lit_sft.data.scan import EMPTY_LINE
from lit_sft.errors import BadRecord, DataError

_RECORDS = re.compile(rb'\[\s*(?:[{\[\]"]|$)|\{\s*(?:["}]|$)')

_LINE_END = re.compile(r"\r\n|\n|\r")
"""Of every system, Excel on a Mac among them; not U+2028 and its like, which stand within sentences."""

_TEXTS = re.compile(rb'\[\s*"')

TABLE_NAME = re.compile(r"\.[ct]sv(\.gz|\.zst)?$", re.IGNORECASE)


def read_prompts(path: str | Path) -> list[Conversation]:
    """The prompts of a file, in order.

    Its content decides what it is, not its name: JSON Lines or an array of records, an array of texts, a table (CSV or
    TSV) whose header names a column of prompts, else a prompt on each line; each may be compressed with gzip or zstd.
    Parquet and Arrow hold records.

    Raises:
        DataError: If the file is missing or empty, or a record cannot be read; none is skipped, so that answers
            match the prompts line by line. Only blank lines are passed over.
    """
    path = Path(path)
    if path.expanduser().is_dir():
        raise DataError(f"prompt file {path} is a folder; give a file in it")
    if not path.expanduser().is_file():
        raise DataError(f"prompt file not found: {path}")
    (path,) = find_files(str(path))
    content = b"" if is_table(path) else content_of(path)
    head = content.removeprefix(BYTE_ORDER_MARK).lstrip()[:4096]
    if _TEXTS.match(head) and _is_array_of_texts(content):
        texts = ((raw.source, raw.data.removeprefix(BYTE_ORDER_MARK)) for raw in read_records(path))
        return _read_all(path, ((source, b'{"prompt": %b}' % text) for source, text in texts))
    if is_table(path) or _RECORDS.match(head):
        return _read_all(path, ((raw.source, raw.data) for raw in read_records(path, record_keys=RECORD_KEYS)))
    text = _decoded(path, content)
    header = header_of(text, {*PROMPT_KEYS, *TALK_KEYS})
    if header:
        return _read_table(path, text, header)
    if TABLE_NAME.search(path.name):
        raise DataError(
            f"{path} has no header with a column of prompts in its first line. Name it "
            f"{', '.join((*PROMPT_KEYS, *TALK_KEYS)[:-1])} or {[*TALK_KEYS][-1]}"
        )
    lines = [(number, line.strip()) for number, line in enumerate(_LINE_END.split(text), start=1)]
    found = [Conversation([Message("user", line)], f"{path}:{number}") for number, line in lines if line]
    if not found:
        raise DataError(f"prompt file is empty: {path}")
    return found


def encode_prompts(
    conversations: Iterable[Conversation], prompt_format: PromptFormat, tokenizer: Any
) -> Iterator[Prompt]:
    """Ids of each conversation up to where the assistant must speak."""
    for conversation in conversations:
        asked = conversation.prompt()
        try:
            input_ids = prompt_format.encode_prompt(asked, tokenizer)
            whole = prompt_format.whole_prompt(asked, tokenizer)
            reference = conversation.reference()
            answered = prompt_format.encode_turns(conversation, tokenizer)[-1] if reference else None
        except BadRecord as bad:
            raise DataError(f"{conversation.source}: the model's prompt format cannot write it: {bad}") from None
        yield Prompt(
            input_ids=input_ids,
            text="\n".join(message.content for message in asked.messages),
            reference=reference,
            source=conversation.source,
            category=conversation.category,
            reference_ids=answered.reply_ids if answered else (),
            is_truncated=len(input_ids) < len(whole),
            messages=asked.messages,
        )


def _is_array_of_texts(content: bytes) -> bool:
    try:
        texts = orjson.loads(content.removeprefix(BYTE_ORDER_MARK))
    except orjson.JSONDecodeError:
        return False
    return isinstance(texts, list) and all(isinstance(text, str) for text in texts)


def _decoded(path: Path, content: bytes) -> str:
    try:
        if encoding_of(content[:4096]).startswith("UTF-"):  # of ASCII alone, so that it is UTF-8, too
            raise DataError(f"{path} is not UTF-8. {remedy_for(path)}")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8. {remedy_for(path)}") from None


def _read_table(path: Path, text: str, header: Header) -> list[Conversation]:
    try:
        rows = [(f"{path}:{line}", orjson.dumps(row)) for line, row in rows_of(text, header, {"history", *TALK_KEYS})]
    except BadRecord as bad:
        raise DataError(f"{path} cannot be read as a table: {bad.detail}") from None
    return _read_all(path, rows)


def _read_all(path: Path, records: Iterable[tuple[str, bytes]]) -> list[Conversation]:
    """The conversations of records, each with its source."""
    corpus = PromptRecords(str(path), unused_keys="refuse")
    (layout,) = corpus.layouts
    found: list[Conversation] = []
    for source, data in records:
        try:
            conversation = corpus.read(data, layout).record
        except BadRecord as bad:
            if bad.reason == EMPTY_LINE:
                continue
            if bad.reason == "not-utf-8":
                raise DataError(f"{source}: not UTF-8. {remedy_for(path)}") from None
            expected = f"{corpus.layout}; the same as columns of a table; or texts"
            raise DataError(f"{source}: {bad.reason}: {excerpt(data)[:80]!r}. Expected {expected}") from None
        assert isinstance(conversation, Conversation)  # there is no filter
        found.append(replace(conversation, source=source))
    if not found:
        raise corpus.unreadable(path, ())
    return found
