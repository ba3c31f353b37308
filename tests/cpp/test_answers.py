"""The C++ program answers an exported folder as Python answers the checkpoint: text in, text out, for every family."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from binaries import binary
from goldens import GOLDEN_MODELS, golden_checkpoint
from graphs import traced_once

from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.configuration import build
from lit_sft.conversation import Conversation, Message
from lit_sft.export import text_side
from lit_sft.export.check import Sample
from lit_sft.export.folder import Form, Source, export_onnx
from lit_sft.generation.generate import generate_answers
from lit_sft.generation.strategies import Strategy

pytestmark = pytest.mark.slow

ROOM = 12

TALKS = [
    [Message("user", "贝币")],
    [Message("user", "问"), Message("assistant", "答"), Message("user", "How are you?")],
    [Message("user", "叶 币\n是什么")],
]
if "LIT_SFT_SLOW" in os.environ:
    demo = [text[:40] for text in demo_texts() if text]
    TALKS += [[Message("user", text)] for text in demo[:30]]
    said = zip(demo[30:47], demo[47:64], demo[64:81], strict=True)
    TALKS += [[Message("user", a), Message("assistant", b), Message("user", c)] for a, b, c in said]

STRATEGIES: list[dict[str, Any]] = [
    {"class_path": "Greedy", "init_args": {}},
    {"class_path": "BeamSearch", "init_args": {"num_beams": 3}},
    {"class_path": "TopP", "init_args": {"top_p": 0.8, "temperature": 0.9, "seed": 3}},
    {"class_path": "TopK", "init_args": {"top_k": 20, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2}},
]


class Exported:
    """A checkpoint and its folder."""

    def __init__(self, checkpoint: Checkpoint, folder: Path, dtype: str = "float32") -> None:
        self.checkpoint = checkpoint
        self.folder = folder
        self.tokenizer = checkpoint.load_tokenizer()
        self.model: Any = checkpoint.load_model(dtype=torch.float32)
        samples = [Sample(ids, [-100] * len(ids)) for ids in self.prompts()[:1]]
        with traced_once(has_text=True), pytest.MonkeyPatch.context() as patch:  # the text side has its own tests
            patch.setattr(text_side.write_text_side, "__kwdefaults__", {"num_texts": 1, "num_conversations": 1})
            export_onnx(Source(checkpoint, samples), folder, Form(dtype))

    def prompts(self) -> list[list[int]]:
        return [
            self.checkpoint.prompt_format.encode_prompt(Conversation(talk), self.tokenizer)[: self.longest]
            for talk in TALKS
        ]

    @property
    def longest(self) -> int:
        return self.checkpoint.context_length

    def by_python(self, options: dict[str, Any]) -> list[tuple[str, str, int]]:
        strategy = build("generation", Strategy, options)
        strategy.max_new_tokens = ROOM
        stop = self.checkpoint.prompt_format.stop_token_ids(self.tokenizer)
        answers = [
            generate_answers(
                self.model, self.tokenizer, [ids], strategy, stop_token_ids=stop, context_length=self.longest
            )[0]
            for ids in self.prompts()
        ]
        return [(each.text, each.finish_reason, each.num_tokens) for each in answers]


def run(verb: str, folder: Path, records: Sequence[Any], *options: str) -> subprocess.CompletedProcess[str]:
    """A verb of the program, one thread, JSON lines in."""
    lines = "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in records)
    return subprocess.run(
        [binary(), verb, "--model", folder, "--quiet", "--threads", "1", *options],
        input=lines, capture_output=True, text=True, env={**os.environ, "LIT_SFT_ORT": str(runtime())},
    )  # fmt: skip


def runtime() -> Path:
    return Path(pytest.importorskip("onnxruntime").__file__).parent


def rows(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def messages(talk: Sequence[Message]) -> dict[str, Any]:
    return {"messages": [{"role": each.role, "content": each.content} for each in talk]}


@pytest.fixture(scope="module", params=[*GOLDEN_MODELS, "native"])
def exported(
    request: pytest.FixtureRequest, tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    binary()
    name = request.param
    checkpoint = open_checkpoint(tiny(name)) if name == "native" else golden_checkpoint(name)
    return Exported(checkpoint, tmp_path_factory.mktemp("exported") / name)


@pytest.mark.parametrize("options", STRATEGIES, ids=[each["class_path"] for each in STRATEGIES])
def test_answers_are_those_of_python(exported: Exported, options: dict[str, Any]) -> None:
    arguments = ["--strategy", options["class_path"], "--max_new_tokens", str(ROOM)]
    for name, value in options["init_args"].items():
        arguments += [f"--{name}", str(value)]
    found = rows(run("generate", exported.folder, [messages(talk) for talk in TALKS], *arguments))
    assert [(each["answer"], each["finish_reason"], each["answer_tokens"]) for each in found] == exported.by_python(
        options
    )


def test_log_probabilities_are_those_of_the_network(exported: Exported) -> None:
    prompt = exported.prompts()[0][-100:]  # the instruction of MOSS fills the context
    answer = [7, 11, 300]
    (found,) = rows(run("score", exported.folder, [{"ids": prompt, "answer_ids": answer}], "--ids"))
    with torch.no_grad():
        logits = exported.model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0].log_softmax(-1)
    expected = [float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(answer)]
    assert found["logprobs"] == pytest.approx(expected, abs=1e-3)
    assert found["logprob"] == pytest.approx(sum(expected), abs=1e-3)


@pytest.mark.parametrize("name", ["baichuan-7b", "moss-16b"])
def test_integers_answer_as_they_do_in_python(name: str, tmp_path: Path) -> None:
    binary()
    exported = Exported(golden_checkpoint(name), tmp_path / name, "int4")
    exported.model = open_checkpoint(exported.folder).load_model()
    greedy = ["--strategy", "Greedy", "--max_new_tokens", str(ROOM)]
    found = rows(run("generate", exported.folder, [messages(talk) for talk in TALKS], *greedy))
    expected = exported.by_python({"class_path": "Greedy", "init_args": {}})
    assert [(each["answer"], each["finish_reason"], each["answer_tokens"]) for each in found] == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for what no family changes."""
    binary()
    return Exported(golden_checkpoint("baichuan-7b"), tmp_path_factory.mktemp("one") / "model").folder


def test_a_stop_text_ends_an_answer_and_is_not_part_of_it(folder: Path) -> None:
    asked = messages(TALKS[0])
    (whole,) = rows(run("generate", folder, [asked], "--max_new_tokens", "12"))
    stop = whole["answer"][2:4]
    (cut,) = rows(run("generate", folder, [asked], "--max_new_tokens", "12", "--stop", stop))
    assert cut["answer"] == whole["answer"][: whole["answer"].index(stop)]
    assert cut["finish_reason"] == "stop"


def test_a_chat_remembers_and_goes_on(folder: Path) -> None:
    done = run("chat", folder, ["贝币", "/reset", "贝币", "/nonsense", "/exit", "never"], "--max_new_tokens", "8")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()[:1], done.stdout.splitlines()[-1:]
    assert first == second
    assert "unknown command /nonsense" in done.stderr


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("no json", "-:1 is not a JSON object"),
        ({"ids": [1]}, "prompt is missing"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "role must be"),
        ({"messages": 3}, "a list of objects"),
        ('{"messages": ' + "[" * 400_000 + "]" * 400_000 + "}", "brackets in more than 64 others"),
    ],
    ids=["no json", "ids", "role", "number", "bomb"],
)
def test_a_prompt_that_cannot_be_read_is_refused_in_one_line(folder: Path, record: Any, said: str) -> None:
    refused = run("generate", folder, [record])
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


def set_value(key: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "generation.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return change


def shorten(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size - 1)


def flip(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_value("version", 2), "is of version 2"),
        (set_value("graph", "portable"), "without --portable"),
        (set_value("vocab_size", 1 << 40), "vocab_size"),
        (set_value("context_length", -1), "context_length"),
        (set_value("stop_token_ids", [99999]), "stop_token_ids"),
        (set_value("layers", [{"num_heads": 1, "key_dim": 1, "value_dim": 1}]), "is not the graph"),
        (set_value("strategy", {"class_path": "TopP", "init_args": {"top_p": 7}}), "top_p is 7"),
        (lambda folder: (folder / "generation.json").write_text("[" * 100_000), "has brackets in more than"),
        (lambda folder: (folder / "generation.json").write_text("[1"), "is not a JSON object"),
        (lambda folder: (folder / "model.onnx").unlink(), "holds no model.onnx"),
        (lambda folder: (folder / "model.onnx.data").unlink(), "model.onnx.data is missing"),
        (shorten("model.onnx.data"), "bytes and not the"),
        (shorten("model.onnx"), "bytes and not the"),
        (flip("model.onnx"), "is damaged"),
        (flip("tokenizer/text.model"), "text.model"),
    ],
)
def test_a_broken_folder_is_refused_in_one_line(
    folder: Path, tmp_path: Path, change: Callable[[Path], Any], said: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    change(broken)
    refused = run("generate", broken, [messages(TALKS[0])])
    assert refused.returncode == 2, (refused.stdout, refused.stderr)
    assert said in refused.stderr
    assert refused.stderr.startswith("error: ")
    assert refused.stderr.count("\n") == 1


def test_a_runtime_that_is_missing_is_named_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [binary(), "bench", "--model", folder, "--quiet", "--runtime", tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "libonnxruntime.so" in done.stderr
