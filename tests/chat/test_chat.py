"""Chat: through a pipe, in a terminal, and what it shows of an answer."""

import io
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import golden_checkpoint
from peft import LoraConfig, get_peft_model
from reading import read

from lit_sft import open_checkpoint
from lit_sft.__main__ import main
from lit_sft.chat.network import Network, Source
from lit_sft.chat.session import Session
from lit_sft.chat.stream import AnswerStream
from lit_sft.conversation import Conversation
from lit_sft.corpora.jsonl_chat import JsonlChat
from lit_sft.errors import ConfigError, UserError
from lit_sft.families.baichuan.prompts import HumanAssistantFormat
from lit_sft.generation.generate import generate_answers
from lit_sft.generation.strategies import BeamSearch, Greedy, TopP

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def adapter(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT folder that changes every answer."""
    torch.manual_seed(1)
    checkpoint = open_checkpoint(tiny("baichuan-7b"))
    model = get_peft_model(
        checkpoint.load_model(), LoraConfig(r=4, target_modules=list(checkpoint.family.lora_targets))
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def session(folder: Path, adapter: Path | None = None) -> tuple[Session, list[str]]:
    pieces: list[str] = []
    source = Source(open_checkpoint(folder), adapter, strategy=Greedy(max_new_tokens=8))
    return Session(Network(source), pieces.append), pieces


def test_base_and_tuned_switch_the_adapter_in_place(tiny: Tiny, adapter: Path) -> None:
    talk, pieces = session(tiny("baichuan-7b"), adapter)
    answers = []
    for command in ("/tuned", "/base", "/tuned"):
        pieces.clear()
        talk.command(command)
        talk.command("/reset")
        talk.answer("你好")
        answers.append("".join(pieces))
    plain, plain_pieces = session(tiny("baichuan-7b"))
    plain.answer("你好")
    assert answers[0] == answers[2] != answers[1] == "".join(plain_pieces)


def test_what_is_streamed_is_what_predict_answers_and_is_read_in_the_next_turn(tiny: Tiny) -> None:
    talk, pieces = session(tiny("chatglm2-6b"))
    talk.answer("你好")
    network = talk.network
    (expected,) = generate_answers(
        network.model,
        network.tokenizer,
        [talk._ids(talk.messages[:1])],
        talk.strategy,
        stop_token_ids=network.checkpoint.prompt_format.stop_token_ids(network.tokenizer),
        context_length=network.checkpoint.context_length,
    )
    assert "".join(pieces).strip() == expected.text.rstrip("\ufffd")
    assert [message.role for message in talk.messages] == ["user", "assistant"]
    talk.command("/strategy BeamSearch num_beams=2 max_new_tokens=4")
    assert isinstance(talk.strategy, BeamSearch)
    talk.answer("再见")
    assert len(talk.messages) == 4


def test_rounds_that_no_longer_fit_are_told(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    talk, _ = session(tiny("chatglm2-6b"))
    for _round in range(6):
        talk.answer("镇上的图书馆叫什么名字？" * 3)
    assert "does not read its first 1 rounds" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the question fills the context of 128 tokens"):
        talk.answer("图书馆" * 200)


def test_saved_conversation_is_read_back_by_the_corpus(tiny: Tiny, tmp_path: Path) -> None:
    talk, _ = session(tiny("chatglm2-6b"))
    talk.command("/system 你是小向导。")
    talk.answer("你好")
    file = tmp_path / "saved.jsonl"
    talk.command(f"/save {file}")
    (saved,), findings = read(JsonlChat(str(file)))
    assert not findings
    assert [message.content for message in saved.messages] == ["你是小向导。", *(m.content for m in talk.messages)]


def test_strategy_is_set_and_mistakes_leave_it_as_it_was(tiny: Tiny) -> None:
    talk, _ = session(tiny("baichuan-7b"))
    talk.command("/strategy TopP top_p=0.8 temperature=0.7")
    assert isinstance(talk.strategy, TopP)
    assert (talk.strategy.top_p, talk.strategy.temperature) == (0.8, 0.7)
    before = talk.strategy
    for line, message in {
        "/strategy TopQ": "there is no class 'TopQ'",
        "/strategy TopP top_q=1": "option 'top_q' is not accepted. Did you mean 'top_p'",
        "/strategy TopP top_p=2": "top_p is 2.0; it must be above 0",
        "/strategy TopP 0.8": "give options as name=value",
        "/tuned": "there is no adapter",
        "/save x": "nothing was said yet",
        "/rest": "unknown command /rest. Did you mean 'reset'",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            talk.command(line)
        assert "\n" not in str(error.value)
    assert talk.strategy is before


class Bytes:
    """A tokenizer of single bytes, as byte tokens are; 256 is a control token."""

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


def test_half_a_character_and_control_tokens_are_never_shown() -> None:
    pieces: list[str] = []
    stream = AnswerStream(Bytes(), [7], golden_checkpoint("chatglm-6b").family.postprocess_answer, 8, pieces.append)
    stream.put(torch.tensor([[1, 2, 3]]))
    raw = "今年是[[训练时间]],你好\x1b!再见"
    for byte in [*raw.encode(), 256, "镇".encode()[0], 7]:
        stream.put(torch.tensor([byte]))
        assert "\ufffd" not in "".join(pieces)
    stream.end()
    assert "".join(pieces) == "今年是2023年，你好！再见"
    assert len(pieces) > 5


@pytest.mark.slow
def test_a_pipe_gets_one_line_for_each_line_and_each_is_a_conversation_of_its_own(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    lines = "你好\n\n/etc/hosts 是什么文件？\n你好\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    asked: list[list[str]] = []
    encode = HumanAssistantFormat.encode_prompt

    def watched(self: HumanAssistantFormat, conversation: Conversation, tokenizer: Any) -> list[int]:
        asked.append([message.content for message in conversation.messages])
        return encode(self, conversation, tokenizer)

    monkeypatch.setattr(HumanAssistantFormat, "encode_prompt", watched)
    assert main(["chat", "--checkpoint", str(tiny("baichuan-7b"))]) == 0
    said = capsysbinary.readouterr().out
    first, blank, path, again = said.decode().removesuffix("\n").split("\n")
    assert asked == [["你好"], ["/etc/hosts 是什么文件？"], ["你好"]]
    assert first == again != ""
    assert blank == ""
    assert path
    assert b"\x1b" not in said
    assert b"> " not in said


@pytest.mark.slow
def test_a_terminal_survives_ctrl_c_and_ends_with_ctrl_d(tiny: Tiny) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lit_sft", "chat", "--checkpoint", str(tiny("baichuan-7b"))]
    # A shell starts what runs in the background with SIGINT ignored, and who is started inherits that.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    finally:
        signal.signal(signal.SIGINT, inherited)
    os.close(theirs)
    seen = b""

    def wait_for(mark: bytes) -> bytes:
        nonlocal seen
        end = time.monotonic() + 120
        while mark not in seen and select.select([ours], [], [], max(0.0, end - time.monotonic()))[0]:
            seen += os.read(ours, 4096)
        assert mark in seen, seen
        before, _, seen = seen.partition(mark)
        return before

    def interrupt() -> bytes:
        process.send_signal(signal.SIGINT)
        # At the prompt, a signal that comes just before readline waits for a key shows only with the next key.
        os.write(ours, b"\n")
        return wait_for(b"> ")

    def ask_and_interrupt(seconds: float) -> bytes:
        os.write(ours, "你好\n".encode())
        wait_for("你好".encode())
        time.sleep(seconds)
        return interrupt()

    try:
        wait_for(b"> ")
        interrupt()
        # Beams of many tokens show nothing for a while, so that the signal meets an answer.
        os.write(ours, b"/strategy BeamSearch num_beams=20 max_new_tokens=100\n")
        wait_for(b"BeamSearch max_new_tokens")
        wait_for(b"> ")
        # On a busy machine it may come before or after the answer, where it does no harm.
        assert any(b"stopped" in ask_and_interrupt(seconds) for seconds in (0.3, 0.1, 0.03) * 4)
        os.write(ours, b"/help\n")
        wait_for(b"Ctrl-C stops an answer")
        wait_for(b"> ")
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
        assert b"Traceback" not in seen
    finally:
        process.kill()
        process.wait()
        os.close(ours)
