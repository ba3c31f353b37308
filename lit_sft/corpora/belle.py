r"""BELLE 0.5M (`Belle_open_source_0.5M.json`, BelleGroup/train_0.5M_CN): JSON Lines in spite of its suffix.

    {"instruction": "把下面的词翻译成英文：\n渡船\n", "input": "", "output": "\nferry"}

becomes user: 把下面的词翻译成英文：\n渡船, assistant: ferry. Sixty percent of the real prompts end in blanks, and many
answers begin with them: they are stripped at both ends and kept inside. `input` is empty in the released file;
where it is not, it follows the instruction on a new line.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Conversation
from lit_sft.corpora._base import Corpus, single_turn, text_of
from lit_sft.errors import BadRecord


class Belle(Corpus):
    """Instructions and answers in the layout of BELLE.

    Args:
        path: JSON Lines file with the keys instruction, input, output.
    """

    layout = "instruction, input, output"

    def parse(self, record: dict[str, Any]) -> Conversation:
        """One question, one answer."""
        prompt = text_of(record, "instruction", role="prompt")
        answer = text_of(record, "output", role="answer")
        extra = record.get("input") or ""
        if not isinstance(extra, str):
            raise BadRecord("input-not-text")
        return single_turn(f"{prompt}\n{extra.strip()}" if extra.strip() else prompt, answer)
