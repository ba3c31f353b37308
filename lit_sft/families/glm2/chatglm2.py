"""ChatGLM2-6B (THUDM/chatglm2-6b, 2023) and its long and code variants; what it shares with its successor: `_glm2.py`.

It has no chat tokens: rounds are numbered text, and only </s> ends an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lit_sft.conversation import Conversation, EncodedTurn, Message, PromptFormat
from lit_sft.families.glm2.family import ChatGLM2ForCausalLM, Glm2Family
from lit_sft.families.shared.history import truncate_history
from lit_sft.families.shared.prompt_pieces import text, token

ASK = "{system}[Round {n}]\n\n问：{asked}\n\n答："
"""A question."""


@dataclass(frozen=True)
class RoundsFormat(PromptFormat):
    r"""The original's form: `[Round 1]\n\n问：...\n\n答：...\n\n[Round 2]...`, tokenized as one text.

    The last answer alone has ids of its own, followed by </s>, and alone carries loss, as in the original fine-tuning;
    a conversation of many rounds is therefore one turn. Of a prompt that does not fit the context the oldest rounds
    are dropped, and the rest is numbered from 1 again. A system message, which the original lacks, stands first.
    """

    context_length: int

    def encode_turns(self, conversation: Conversation, tokenizer: Any) -> list[EncodedTurn]:
        """One turn: [gMASK] sop, the history and the last question; the last answer."""
        rounds = conversation.turns()
        text = ""
        for number, (read, answer) in enumerate(rounds, start=1):
            text += _question(number, read)
            if answer is not None and number < len(rounds):
                text += f"{answer.content}\n\n"
        answer = rounds[-1][1] if rounds else None
        reply_ids = [] if answer is None else [*tokenizer.encode_text(answer.content), tokenizer.eos_token_id]
        is_supervised = answer is None or answer.is_supervised
        prompt_ids = [*tokenizer.prefix_ids, *tokenizer.encode_text(text)]
        return [EncodedTurn(prompt_ids, reply_ids, is_supervised=is_supervised)]

    def encode_prompt(self, conversation: Conversation, tokenizer: Any) -> list[int]:
        """Ids that end with `答：`, of as many of the last rounds as leave room for an answer."""
        return truncate_history(conversation, super().encode_prompt, tokenizer, self.context_length)

    def describe(self, tokenizer: Any) -> dict[str, Any]:
        """All up to the last `答：` is one text."""
        return {
            "unit": "turn",
            "whole": True,
            "start": [token(index) for index in tokenizer.prefix_ids],
            "system_end": "\n\n",
            "ask": [text(ASK)],
            "answer": [text("{content}\n\n")],
            "answered": [text("{content}"), token(tokenizer.eos_token_id)],
            "fit": {"most": self.context_length - 1, "drop": "rounds"},
        }

    def stop_token_ids(self, tokenizer: Any) -> list[int]:
        """Only </s>."""
        return [tokenizer.eos_token_id]


class EveryRoundFormat(RoundsFormat):
    """The same form in the ids of the original's chat with a cache, with loss on every answer.

    There the next question continues the ids of the answer before it, with neither </s> nor the dummy prefix in
    between. An answer in the middle thus has no end to learn; the last one has.
    """

    def encode_turns(self, conversation: Conversation, tokenizer: Any) -> list[EncodedTurn]:
        """A turn for each round."""
        turns = []
        for number, (read, answer) in enumerate(conversation.turns(), start=1):
            question = _question(number, read)
            if number == 1:
                prompt_ids = [*tokenizer.prefix_ids, *tokenizer.encode_text(question)]
            else:
                # The first id is the dummy prefix.
                prompt_ids = tokenizer.encode_text(f"\n\n{question}")[1:]
            reply_ids = [] if answer is None else tokenizer.encode_text(answer.content)
            is_supervised = answer is None or answer.is_supervised
            turns.append(EncodedTurn(prompt_ids, reply_ids, is_supervised=is_supervised))
        return turns

    def describe(self, tokenizer: Any) -> dict[str, Any]:
        """Questions and answers are a text each."""
        return {
            "unit": "turn",
            "start": [token(index) for index in tokenizer.prefix_ids],
            "system_end": "\n\n",
            "ask": [text(ASK)],
            "ask_later": [{**text(f"\n\n{ASK}"), "without_first_id": True}],
            "answer": [text("{content}")],
            "fit": {"most": self.context_length - 1, "drop": "rounds"},
        }

    def closing_ids(self, tokenizer: Any) -> list[int]:
        """</s> after the last answer."""
        return [tokenizer.eos_token_id]


def _question(number: int, read: list[Message]) -> str:
    system = "".join(f"{message.content}\n\n" for message in read if message.role == "system")
    asked = "\n".join(message.content for message in read if message.role != "system")
    return ASK.format(system=system, n=number, asked=asked)


class ChatGLM2(Glm2Family):
    """ChatGLM2-6B, chat model of six billion parameters that reads 32768 tokens."""

    name = "chatglm2-6b"
    released: ClassVar = {
        "chatglm2-6b": {
            "model_type": "chatglm", "hidden_size": 4096, "ffn_hidden_size": 13696, "num_layers": 28,
            "num_attention_heads": 32, "kv_channels": 128, "multi_query_attention": True, "multi_query_group_num": 2,
            "padded_vocab_size": 65024, "seq_length": 32768, "add_qkv_bias": True, "add_bias_linear": False,
            "rmsnorm": True, "original_rope": True, "post_layer_norm": True, "layernorm_epsilon": 1e-5,
            "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0,
        }
    }  # fmt: skip
    version = "2"
    network = ChatGLM2ForCausalLM

    def prompt_formats(self) -> dict[str, PromptFormat]:
        """Loss on the last answer, as in the original fine-tuning, or on every answer."""
        return {
            "chatglm2": RoundsFormat(self.context_length),
            "chatglm2-every-round": EveryRoundFormat(self.context_length),
        }

    @classmethod
    def tiny_config(cls) -> dict[str, Any]:
        """The name is what tells the versions apart."""
        return {"_name_or_path": "THUDM/chatglm2-6b", "transformers_version": "4.27.1"}
