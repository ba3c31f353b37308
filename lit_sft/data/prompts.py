"""What `predict` answers: a text file with a prompt on each line, or JSON Lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lit_sft.conversation import Conversation, Message, Prompt, PromptFormat
from lit_sft.corpora._base import Corpus, Finding
from lit_sft.corpora._turns import optional_text, text_of
from lit_sft.errors import BadRecord, DataError


class PromptRecords(Corpus):
    """JSON Lines of questions, with or without a reference answer and a category.

    Args:
        path: Records with the keys prompt and (optional) reference, or instruction, input, output as in BELLE; both
            with an optional category.
    """

    layout = "one JSON object a line with the keys prompt, reference (or instruction, input, output), category"
    layouts = (frozenset({"prompt", "reference", "instruction", "output"}),)

    def parse(self, record: dict[str, Any]) -> Conversation:
        """A question, and the reference answer if there is one."""
        key, reference_key = ("prompt", "reference") if "prompt" in record else ("instruction", "output")
        prompt = text_of(record, key, role="prompt")
        if key == "instruction" and record.get("input"):
            prompt = f"{prompt}\n{text_of(record, 'input', role='input')}"
        messages = [Message("user", prompt)]
        if record.get(reference_key):
            messages.append(Message("assistant", text_of(record, reference_key, role="reference")))
        return Conversation(messages, category=optional_text(record, "category", role="category"))


def read_prompts(path: str | Path) -> list[Conversation]:
    """The prompts of a file, in order: JSON Lines if its name ends in .json or .jsonl, else a prompt on each line.

    Raises:
        DataError: If the file is missing or empty, or a record cannot be read; none is skipped, so that answers
            match the prompts line by line. Only blank lines are passed over.
    """
    path = Path(path)
    if path.suffix in {".json", ".jsonl"}:
        return list(PromptRecords(str(path)).conversations(_refuse))
    if not path.is_file():
        raise DataError(f"prompt file not found: {path}")
    try:
        text = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8; convert the file, for example with iconv") from None
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
        )


def _refuse(finding: Finding) -> None:
    if not finding.is_kept and finding.reason != "empty-line":
        raise DataError(f"{finding.source}: {finding.reason}: {finding.excerpt[:80]!r}")
