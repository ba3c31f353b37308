"""What `predict` answers: a text file with a prompt on each line, or JSON Lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_sft.conversation import Conversation, Message, Prompt, PromptFormat
from lit_sft.corpora._base import Corpus, excerpt, to_utf8
from lit_sft.corpora._fields import is_filled
from lit_sft.corpora._reading import content_of, find_files, is_table, read_records
from lit_sft.corpora._turns import CHAT_ROLES, entries_of, first_text, messages_of, said_before, system_of, text_of
from lit_sft.data.scan import EMPTY_LINE
from lit_sft.errors import BadRecord, DataError

_RECORDS = re.compile(rb'\[\s*(?:[{\[\]"]|$)|\{\s*(?:["}]|$)')

PROMPT_KEYS = ("prompt", "instruction", "question", "query")
REFERENCE_KEYS = ("reference", "output", "response", "target", "std_answer", "answer")
CATEGORY_KEYS = ("category", "class", "kind", "type")


class PromptRecords(Corpus):
    """JSON Lines of questions, with or without a reference answer and a category.

    Args:
        path: Records with the keys prompt and (optional) reference, or instruction, input, output as in BELLE; both
            with optional system, history and category. Or messages (role, content) or conversations (from, value), in
            which a last answer is the reference.
    """

    layout = (
        "one JSON object a line with the keys prompt, reference (or instruction, input, output; or messages; or "
        "conversations), system, history, category"
    )
    layouts = (frozenset({*PROMPT_KEYS, "reference", "output", "messages", "conversations"}),)

    def parse(self, record: dict[str, Any]) -> Conversation:
        """A question, and the reference answer if there is one."""
        category = str(next((record[key] for key in CATEGORY_KEYS if is_filled(record, key)), ""))
        for key, role_key, text_key in (("messages", "role", "content"), ("conversations", "from", "value")):
            if key in record:
                entries, before = entries_of(record, key), system_of(record)
                talk = messages_of(entries, role_key, text_key, CHAT_ROLES, before=before, is_prompt=True)
                return replace(talk, category=category)
        prompt = first_text(record, PROMPT_KEYS, role="prompt")
        if "prompt" not in record and is_filled(record, "input"):
            prompt = f"{prompt}\n{text_of(record, 'input', role='input')}"
        messages = [*said_before(record), Message("user", prompt)]
        if any(is_filled(record, key) for key in REFERENCE_KEYS):
            messages.append(Message("assistant", first_text(record, REFERENCE_KEYS, role="reference")))
        return Conversation(messages, category=category)


def read_prompts(path: str | Path) -> list[Conversation]:
    """The prompts of a file, in order: records if it begins as JSON Lines or an array does, else a prompt on each line.

    The content decides and not the name; either may be compressed with gzip or zstd. Parquet and Arrow hold records.

    Raises:
        DataError: If the file is missing or empty, or a record cannot be read; none is skipped, so that answers
            match the prompts line by line. Only blank lines are passed over.
    """
    path = Path(path)
    if not path.expanduser().is_file():
        raise DataError(f"prompt file not found: {path}")
    (path,) = find_files(str(path))
    if is_table(path):
        return _read_records(path)
    content = content_of(path)
    if _RECORDS.match(content.removeprefix(b"\xef\xbb\xbf").lstrip()[:4096]):
        return _read_records(path)
    try:
        text = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8. Convert it: {to_utf8(path)}") from None
    lines = [(number, line.strip()) for number, line in enumerate(text, start=1)]
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


def _read_records(path: Path) -> list[Conversation]:
    corpus = PromptRecords(str(path), unused_keys="refuse")
    (layout,) = corpus.layouts
    found: list[Conversation] = []
    for raw in read_records(path, record_keys=corpus.record_keys):
        try:
            conversation = corpus.read(raw.data, layout).record
        except BadRecord as bad:
            if bad.reason == EMPTY_LINE:
                continue
            beginning = excerpt(raw.data)[:80]
            raise DataError(f"{raw.source}: {bad.reason}: {beginning!r}. Expected {corpus.layout}") from None
        assert isinstance(conversation, Conversation)  # there is no filter
        found.append(replace(conversation, source=raw.source))
    if not found:
        raise corpus.unreadable(path, ())
    return found
