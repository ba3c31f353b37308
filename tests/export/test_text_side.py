"""Tokenizer and prompt format of an exported model, as data for other languages."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from goldens import GOLDEN_MODELS, SHARED, golden_checkpoint

from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint
from lit_sft.checkpoint.tiny import demo_texts, write_tiny
from lit_sft.conversation import Conversation, Message
from lit_sft.errors import BadRecord
from lit_sft.export.prompt_data import PromptData, fill
from lit_sft.export.text_proof import DifferentIdsError, prove_prompts, prove_tokenizer
from lit_sft.export.text_side import write_text_side
from lit_sft.export.tokenizer_data import DataTokenizer
from lit_sft.families._base import TinySize
from lit_sft.families.chatglm.tokenizer import ChatGLM6BTokenizer
from lit_sft.families.glm2.tokenizer import Glm2Tokenizer
from lit_sft.families.native.family import Native

DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMMED = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
    "{{ '{{' + m['role'] + '}} ' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
)
LAST_ONLY = "{% for m in messages[-1:] %}{{ m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}"
JOINED_TOOLS = (
    "{% for m in messages %}{% if m['role'] == 'tool' %}"
    "{% if loop.index0 == 0 or messages[loop.index0 - 1]['role'] != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n[' + m['content'] + ']' }}"
    "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with byte-level BPE and ChatML."""
    folder = tmp_path_factory.mktemp("text") / "llama"
    size = TinySize(hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2, vocab_size=400)
    write_tiny(folder, Native, demo_texts()[:200], size, seed=0)
    return folder


def opened(name: str, llama: Path, prompt_format: str | None = None) -> Checkpoint:
    if name == "llama":
        return open_checkpoint(llama, "native", prompt_format)
    return golden_checkpoint(name, prompt_format=prompt_format)


@pytest.mark.parametrize("name", [*GOLDEN_MODELS, "llama"])
def test_every_format_of_every_family_is_data_that_writes_the_same_ids(name: str, llama: Path, tmp_path: Path) -> None:
    for prompt_format in opened(name, llama).family.prompt_formats():
        checkpoint = opened(name, llama, prompt_format)
        folder = tmp_path / prompt_format
        folder.mkdir()
        tokenizer = checkpoint.load_tokenizer()
        figures = write_text_side(checkpoint.family, tokenizer, folder, num_texts=60, num_conversations=40)
        assert figures["tokenizer"]["texts"] == 60
        assert figures["prompt"]["format"] == prompt_format
        assert figures["prompt"]["equal"] > 10
        assert figures["prompt"]["equal"] + figures["prompt"]["refused"] == 40
        data = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
        assert data["stop"] == checkpoint.prompt_format.stop_token_ids(tokenizer)


def described(checkpoint: Checkpoint) -> tuple[dict[str, Any], DataTokenizer, Any]:
    tokenizer = checkpoint.load_tokenizer()
    reader = DataTokenizer(checkpoint.family.tokenizer_data(tokenizer))
    return checkpoint.prompt_format.describe(tokenizer), reader, tokenizer


@pytest.mark.parametrize("name", ["baichuan2-7b", "chatglm-6b", "chatglm2-6b", "chatglm3-6b", "moss-16b"])
def test_an_error_in_the_data_is_found(name: str, llama: Path) -> None:
    checkpoint = opened(name, llama)
    data, reader, tokenizer = described(checkpoint)
    prove_prompts(PromptData(data, reader), checkpoint.prompt_format, tokenizer, 30)
    key = next(key for key in ("assistant", "answer") if key in data)
    wrong = [
        {**data, key: data[key][::-1] if len(data[key]) > 1 else [{"text": "{content}"}]},
        {**data, "fit": {**data["fit"], "most": data["fit"]["most"] // 2}},
    ]
    for changed in wrong:
        with pytest.raises(DifferentIdsError, match="writes a conversation otherwise"):
            prove_prompts(PromptData(changed, reader), checkpoint.prompt_format, tokenizer, 100)


def with_template(llama: Path, folder: Path, template: str) -> tuple[Checkpoint, Any]:
    shutil.copytree(llama, folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    checkpoint = open_checkpoint(folder, "native")
    return checkpoint, checkpoint.load_tokenizer()


@pytest.mark.parametrize("template", [DEFAULT_SYSTEM, TRIMMED, JOINED_TOOLS])
def test_a_regular_chat_template_is_found_out_by_rendering(template: str, llama: Path, tmp_path: Path) -> None:
    checkpoint, tokenizer = with_template(llama, tmp_path / "llama", template)
    figures = write_text_side(checkpoint.family, tokenizer, tmp_path, num_texts=10, num_conversations=100)
    assert figures["prompt"].get("equal", 0) > 10, figures
    data = json.loads((tmp_path / "prompt.json").read_text(encoding="utf-8"))
    assert data.get("default_system") == ("Be kind." if template == DEFAULT_SYSTEM else None)
    assert ("system-message" in data["refuse"]) == (template == TRIMMED)
    # It says in one go what several tools said, which is more than a text around each message.
    assert ("tool-message" in data["refuse"]) == (template == JOINED_TOOLS)


def test_a_template_that_is_not_regular_is_refused_with_the_reason(llama: Path, tmp_path: Path) -> None:
    checkpoint, tokenizer = with_template(llama, tmp_path / "llama", LAST_ONLY)
    figures = write_text_side(checkpoint.family, tokenizer, tmp_path, num_texts=10, num_conversations=20)
    assert "the chat template is not regular" in figures["prompt"]["refused"]
    assert (tmp_path / "tokenizer" / "config.json").is_file()
    assert not (tmp_path / "prompt.json").exists()


def test_a_tokenizer_of_another_kind_is_refused_with_the_reason(llama: Path, tmp_path: Path) -> None:
    from tokenizers import normalizers

    checkpoint = open_checkpoint(llama, "native")
    tokenizer = checkpoint.load_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    figures = write_text_side(checkpoint.family, tokenizer, tmp_path)
    assert "other than byte-level BPE" in figures["tokenizer"]["refused"]
    assert "other than byte-level BPE" in figures["prompt"]["refused"]
    assert not [*tmp_path.iterdir()]


def test_a_conversation_without_a_question_is_refused(llama: Path) -> None:
    data, reader, _ = described(opened("baichuan2-7b", llama))
    with pytest.raises(BadRecord, match="nothing-to-answer"):
        PromptData(data, reader).encode(Conversation([Message("system", "你好")]))


def test_slots_are_filled_once_and_braces_can_be_written() -> None:
    slots = {"content": "{name}", "name": "", "thoughts": "deep"}
    assert fill("{{{content}}} {name|None} {thoughts|None}", slots) == "{{name}} None deep"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the released sentencepiece models: set LIT_SFT_SHARED")
def test_released_tokenizers_are_data_too() -> None:
    for file in SHARED.glob("reference/tokenizers/*.model"):
        is_first = "ice_text" in file.name
        tokenizer: Any = ChatGLM6BTokenizer(str(file)) if is_first else Glm2Tokenizer(str(file))
        prove_tokenizer(DataTokenizer(tokenizer.data()), tokenizer, 100)
