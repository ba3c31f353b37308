"""Your own conversations, in the form of OpenAI or of ShareGPT.

    {"messages": [{"role": "system", "content": "你是小向导。"},
                  {"role": "user", "content": "渡船几点开？"}, {"role": "assistant", "content": "八点。"}]}
    {"system": "你是小向导。",
     "conversations": [{"from": "human", "value": "渡船几点开？"}, {"from": "gpt", "value": "八点。"}]}

become system: 你是小向导。, user: 渡船几点开？, assistant: 八点。 After at most one system message user and assistant
take turns, and the assistant speaks last; a record in which they do not is refused, not put right: as
`roles-out-of-order` or `no-last-answer`. `system` may stand beside `messages`, too. An answer with `"loss": false`,
`"weight": 0` or `"train": false` beside its text is read by the model and carries no loss. Tool
calls are refused too, as `unknown-role` or `no-answer`.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Conversation, Role
from lit_sft.corpora._base import Corpus
from lit_sft.corpora._turns import entries_of, messages_of, system_of

OPENAI_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


class JsonlChat(Corpus):
    """Conversations in the form of OpenAI (`messages`) or ShareGPT (`conversations`)."""

    layout = "one JSON object a line with the key messages (role, content) or conversations (from, value)"
    layouts = (frozenset({"messages"}), frozenset({"conversations"}))

    def parse(self, record: dict[str, Any]) -> Conversation:
        """The messages as they stand."""
        if "messages" in record:
            entries = entries_of(record, "messages")
            return messages_of(entries, "role", "content", OPENAI_ROLES, before=system_of(record))
        entries = entries_of(record, "conversations")
        return messages_of(entries, "from", "value", SHAREGPT_ROLES, before=system_of(record))
