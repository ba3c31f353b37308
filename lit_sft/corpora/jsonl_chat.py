"""Your own conversations, in the form of OpenAI or of ShareGPT.

    {"messages": [{"role": "system", "content": "你是小向导。"},
                  {"role": "user", "content": "渡船几点开？"}, {"role": "assistant", "content": "八点。"}]}
    {"system": "你是小向导。",
     "conversations": [{"from": "human", "value": "渡船几点开？"}, {"from": "gpt", "value": "八点。"}]}

become system: 你是小向导。, user: 渡船几点开？, assistant: 八点。 After at most one system message user and assistant
take turns, and the assistant speaks last; a record in which they do not is refused, not put right: as
`roles-out-of-order` or `no-last-answer`. Tool calls are refused too, as `unknown-role` or `no-answer`.
"""

from __future__ import annotations

from typing import Any

from lit_sft.conversation import Conversation, Message, Role
from lit_sft.corpora._base import Corpus
from lit_sft.corpora._turns import entries_of, in_order, messages_of, optional_text

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
            return messages_of(entries_of(record, "messages"), "role", "content", OPENAI_ROLES)
        talk = messages_of(entries_of(record, "conversations"), "from", "value", SHAREGPT_ROLES)
        system = optional_text(record, "system", role="system")
        return in_order([Message("system", system), *talk.messages]) if system else talk
