"""ChatGLM3-6B (THUDM/chatglm3-6b, 2023), its base and long variants; what it shares with ChatGLM2-6B: `_glm2.py`.

Weights, config.json keys and pieces are those of ChatGLM2-6B; four control tokens for roles make the chat another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lit_sft.conversation import IGNORE_INDEX, Conversation, EncodedTurn, Message, PromptFormat
from lit_sft.families.glm2.family import ChatGLM2ForCausalLM, Glm2Family, register_weights
from lit_sft.families.shared.history import truncate_history
from lit_sft.families.shared.prompt_pieces import text, token

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
"""Control tokens after those of ChatGLM2-6B, in the order of their ids."""


class ChatGLM3ForCausalLM(ChatGLM2ForCausalLM):
    """The same network; its name in a saved config.json tells the versions apart."""


register_weights(ChatGLM3ForCausalLM)


@dataclass(frozen=True)
class RolesFormat(PromptFormat):
    """`[gMASK] sop`, then for each message its role token, metadata and a newline, and the content.

    Metadata (`Message.name`) of an assistant message is the tool it calls; a message of role `tool` is an observation.
    Role token, metadata line and content are encoded separately, as in the original. Nothing but the next role token
    ends an answer, so the token after it carries loss, </s> after the last, and <|assistant|> itself does not: the
    original fine-tuning (finetune_hf) does the same. Of a prompt that does not fit the context the oldest rounds are
    dropped; a system message at the beginning stays.
    """

    context_length: int

    def encode_turns(self, conversation: Conversation, tokenizer: Any) -> list[EncodedTurn]:
        """A turn for each assistant message, its metadata line included."""
        turns: list[EncodedTurn] = []
        assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
        for read, answer in conversation.turns():
            prompt_ids = [] if turns else list(tokenizer.prefix_ids)
            for message in read:
                role = "observation" if message.role == "tool" else message.role
                prompt_ids += [tokenizer.convert_tokens_to_ids(f"<|{role}|>"), *_said("", message, tokenizer)]
            prompt_ids.append(assistant)
            labels = None
            if turns:
                # This role token ended the answer before.
                labels = [prompt_ids[0], *[IGNORE_INDEX] * (len(prompt_ids) - 1)]
            reply_ids = [] if answer is None else _said(answer.name, answer, tokenizer)
            is_supervised = answer is None or answer.is_supervised
            ends = bool(turns)
            turns.append(EncodedTurn(prompt_ids, reply_ids, labels, ends_previous=ends, is_supervised=is_supervised))
        return turns

    def encode_prompt(self, conversation: Conversation, tokenizer: Any) -> list[int]:
        """Ids that end with <|assistant|>, of as many of the last rounds as leave room for an answer."""
        return truncate_history(conversation, super().encode_prompt, tokenizer, self.context_length)

    def describe(self, tokenizer: Any) -> dict[str, Any]:
        """Role, metadata and content message by message."""

        def said(role: str, metadata: str = "") -> list[dict[str, Any]]:
            mark = token(tokenizer.convert_tokens_to_ids(f"<|{role}|>"))
            return [mark, text(f"{metadata}\n"), text("{content}")]

        return {
            "unit": "message",
            "start": [token(index) for index in tokenizer.prefix_ids],
            "system": said("system"),
            "user": said("user"),
            "assistant": said("assistant", "{name}"),
            "tool": said("observation"),
            "speak": said("assistant")[:1],
            "fit": {"most": self.context_length - 1, "drop": "rounds"},
        }

    def closing_ids(self, tokenizer: Any) -> list[int]:
        """</s> after the last answer."""
        return [tokenizer.eos_token_id]

    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        """</s>, or the role that speaks after the assistant."""
        return [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(["<|user|>", "<|observation|>"])]


def _said(metadata: str, message: Message, tokenizer: Any) -> list[int]:
    return [*tokenizer.encode_text(f"{metadata}\n"), *tokenizer.encode_text(message.content)]


class ChatGLM3(Glm2Family):
    """ChatGLM3-6B, chat model of six billion parameters that reads 8192 tokens and calls tools."""

    name = "chatglm3-6b"
    version = "3"
    network = ChatGLM3ForCausalLM
    roles = ROLES

    def prompt_formats(self) -> dict[str, PromptFormat]:
        """Its own."""
        return {"chatglm3": RolesFormat(self.context_length)}

    @classmethod
    def tiny_config(cls) -> dict[str, Any]:
        """The name is what tells the versions apart."""
        return {"_name_or_path": "THUDM/chatglm3-6b", "transformers_version": "4.30.2"}
