"""Questions in the layouts of prompt files and of corpora: prompt and reference, instruction and output, messages.

    {"prompt": "渡船几点开？", "reference": "八点。"}

becomes user: 渡船几点开？, assistant: 八点。, which is what other answers are compared with; without a reference the
question alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lit_sft.conversation import Conversation, Message
from lit_sft.corpora._base import Corpus
from lit_sft.corpora._fields import is_filled
from lit_sft.corpora._turns import CHAT_ROLES, entries_of, first_text, messages_of, said_before, system_of, text_of

PROMPT_KEYS = ("prompt", "instruction", "question", "query", "input")
TALK_KEYS = {"messages": ("role", "content"), "conversations": ("from", "value")}
"""Key of a whole talk -> keys of a message in it: who speaks, and what is said."""
RECORD_KEYS = frozenset({*PROMPT_KEYS, *TALK_KEYS, "reference", "output"})
"""Of which a record has one at least."""
REFERENCE_KEYS = ("reference", "output", "response", "target", "std_answer", "answer")
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
        "conversations), system, history, category"
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
