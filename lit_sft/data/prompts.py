"""What `predict` answers: records in JSON, a table with a header, or a text file with a prompt on each line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from lit_sft.conversation import Conversation, Message, Prompt, PromptFormat
from lit_sft.corpora._base import Corpus, excerpt, to_utf8
from lit_sft.corpora._fields import is_filled
from lit_sft.corpora._reading import content_of, find_files, is_table, read_records
from lit_sft.corpora._splitting import BYTE_ORDER_MARK
from lit_sft.corpora._turns import CHAT_ROLES, entries_of, first_text, messages_of, said_before, system_of, text_of
from lit_sft.data.delimited import Header, header_of, rows_of
from lit_sft.data.scan import EMPTY_LINE
from lit_sft.errors import BadRecord, DataError

_RECORDS = re.compile(rb'\[\s*(?:[{\[\]"]|$)|\{\s*(?:["}]|$)')

_TEXTS = re.compile(rb'\[\s*"')

PROMPT_KEYS = ("prompt", "instruction", "question", "query", "input")
TALK_KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
"""Key of a whole talk -> keys of a message in it: who speaks, and what is said."""
RECORD_KEYS = frozenset({*PROMPT_KEYS, *TALK_KEYS, "reference", "output"})
"""Of which a record has one at least."""
REFERENCE_KEYS = ("reference", "output", "response", "target", "std_answer", "answer")
TABLE_NAME = re.compile(r"\.[ct]sv(\.gz|\.zst)?$", re.IGNORECASE)
CATEGORY_KEYS = ("category", "class", "kind", "type")


class PromptRecords(Corpus):
    """Questions, with or without a reference answer and a category.

    Args:
        path: Records with the keys prompt (or question, query, input) and (optional) reference, or instruction, input,
            output as in BELLE; all with optional system, history and category. Or messages (role, content) or
            conversations (from, value), in which a last answer is the reference.
    """

    layout = (
        "one JSON object a line with the keys prompt, reference (or instruction, input, output; or messages; or "
        "conversations), system, history, category; the same as columns of a table; or texts"
    )
    layouts = (RECORD_KEYS,)

    def parse(self, record: dict[str, Any]) -> Conversation:
        """A question, and the reference answer if there is one."""
        category = str(next((record[key] for key in CATEGORY_KEYS if is_filled(record, key)), ""))
        for key, (role_key, text_key) in TALK_KEYS.items():
            if key in record:
                entries, before = entries_of(record, key), system_of(record)
                talk = messages_of(entries, role_key, text_key, CHAT_ROLES, before=before, is_prompt=True)
                return replace(talk, category=category)
        asked = next((key for key in PROMPT_KEYS if is_filled(record, key)), "prompt")
        prompt = text_of(record, asked, role="prompt")
        if asked not in {"prompt", "input"} and is_filled(record, "input"):
            prompt = f"{prompt}\n{text_of(record, 'input', role='input')}"
        messages = [*said_before(record), Message("user", prompt)]
        if any(is_filled(record, key) for key in REFERENCE_KEYS):
            messages.append(Message("assistant", first_text(record, REFERENCE_KEYS, role="reference")))
        return Conversation(messages, category=category)


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
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1)]
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
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8. Convert it: {to_utf8(path)}") from None


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
            raise DataError(f"{source}: {bad.reason}: {excerpt(data)[:80]!r}. Expected {corpus.layout}") from None
        assert isinstance(conversation, Conversation)  # there is no filter
        found.append(replace(conversation, source=source))
    if not found:
        raise corpus.unreadable(path, ())
    return found
