"""The C++ server as clients of OpenAI see it: its answers are those of Python, and its words those of `serve`."""

import http.client
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from binaries import binary
from goldens import golden_checkpoint
from graphs import traced_once

from lit_sft.conversation import Conversation, Message
from lit_sft.export import text_side
from lit_sft.export.check import Sample
from lit_sft.export.folder import Source, export_onnx
from lit_sft.generation.generate import Answer, generate_answers
from lit_sft.generation.strategies import Greedy, Strategy, TopK, TopP

pytestmark = pytest.mark.slow

KEY = "a-key"
QUESTIONS = ["贝币", "How are you?", "叶 币\n是什么", "2加2等于几？", "渡船几点开？"]
GREEDY = Greedy(max_new_tokens=12)
PATIENCE = 240
"""Seconds after which a server that does not answer, or a program that does not end, fails its test."""


class Exported:
    """A checkpoint, its folder, and what Python answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = golden_checkpoint("baichuan-7b")
        self.tokenizer = self.checkpoint.load_tokenizer()
        self.model: Any = self.checkpoint.load_model(dtype=torch.float32)
        ids = self.ids(QUESTIONS[0])
        export_onnx(Source(self.checkpoint, [Sample(ids, [-100] * len(ids))]), folder)

    def ids(self, question: str) -> list[int]:
        conversation = Conversation([Message("user", question)])
        return self.checkpoint.prompt_format.encode_prompt(conversation, self.tokenizer)

    def answer(self, ids: list[int], strategy: Strategy) -> Answer:
        (answer,) = generate_answers(
            self.model,
            self.tokenizer,
            [ids],
            strategy,
            stop_token_ids=self.checkpoint.prompt_format.stop_token_ids(self.tokenizer),
            context_length=self.checkpoint.context_length,
        )
        return answer


class Served:
    """A server in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        runtime = Path(pytest.importorskip("onnxruntime").__file__).parent
        self.process = subprocess.Popen(
            [binary("lit-sft-server"), "--model", folder, "--quiet", "--threads", "1", "--port", "0", *options],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "LIT_SFT_ORT": str(runtime), "LIT_SFT_API_KEY": KEY},
        )
        assert self.process.stderr
        said = self.process.stderr.readline()
        assert "; Ctrl-C to stop" in said, said
        self.port = int(said.split("/v1;")[0].rsplit(":", 1)[1])
        url = f"http://127.0.0.1:{self.port}/v1"
        self.client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=PATIENCE)

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        assert self.process.stderr
        self.process.stderr.close()
        self.client.close()
        return code

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, body, {"Authorization": f"Bearer {KEY}", **headers})
        answer = connection.getresponse()
        content = answer.read().decode()
        connection.close()
        return answer.status, json.loads(content) if "json" in (answer.getheader("Content-Type") or "") else content


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    binary()
    with traced_once(has_text=True), pytest.MonkeyPatch.context() as patch:  # the text side has its own tests
        patch.setattr(text_side.write_text_side, "__kwdefaults__", {"num_texts": 1, "num_conversations": 1})
        return Exported(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="module")
def served(exported: Exported) -> Iterator[Served]:
    found = Served(exported.folder, "--parallel", "4", "--max_tokens", "24")
    yield found
    assert found.end() == 0


def asked(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def body(**change: Any) -> bytes:
    return json.dumps({"model": "tiny", "messages": asked("贝币"), "max_tokens": 4, **change}).encode()


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        ({"temperature": 0}, GREEDY),
        ({"temperature": 0.9, "seed": 5}, TopP(max_new_tokens=12, top_p=1.0, temperature=0.9, seed=5)),
        ({"top_p": 0.7, "seed": -3}, TopP(max_new_tokens=12, top_p=0.7, seed=-3)),
        (
            {"extra_body": {"top_k": 20, "repetition_penalty": 1.3}},
            TopK(max_new_tokens=12, top_k=20, repetition_penalty=1.3),
        ),
    ],
    ids=["greedy", "temperature", "top_p", "top_k"],
)
def test_answers_are_those_of_predict(
    served: Served, exported: Exported, options: dict[str, Any], strategy: Strategy
) -> None:
    for question in QUESTIONS[:3]:
        expected = exported.answer(exported.ids(question), strategy)
        answer = served.client.chat.completions.create(model="tiny", messages=asked(question), max_tokens=12, **options)
        assert answer.choices[0].message.content == expected.text
        assert answer.choices[0].finish_reason == expected.finish_reason
        assert answer.usage
        assert answer.usage.prompt_tokens == len(exported.ids(question))
        assert answer.usage.completion_tokens == expected.num_tokens - (expected.finish_reason == "stop")


def test_a_stream_holds_the_same_text_and_ends_with_reason_and_usage(served: Served, exported: Exported) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0.9, "seed": 5}
    chunks = list(served.client.chat.completions.create(model="tiny", messages=asked("贝币"), max_tokens=12, **options))
    expected = exported.answer(exported.ids("贝币"), TopP(max_new_tokens=12, top_p=1.0, temperature=0.9, seed=5))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(chunks) > 4
    assert chunks[-2].choices[0].finish_reason == expected.finish_reason
    assert chunks[-1].usage.completion_tokens == expected.num_tokens - (expected.finish_reason == "stop")


def test_a_stop_string_ends_an_answer_and_is_not_shown(served: Served, exported: Exported) -> None:
    whole = exported.answer(exported.ids("贝币"), GREEDY).text
    stop = whole[3:6]
    for stream in (False, True):
        answer: Any = served.client.chat.completions.create(
            model="tiny", messages=asked("贝币"), stop=[stop, "never said"], stream=stream, max_tokens=12, temperature=0
        )
        choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
        text = "".join((choice.delta if stream else choice.message).content or "" for choice in choices)
        assert text == whole[: whole.index(stop)]
        assert choices[-1].finish_reason == "stop"


def test_plain_text_goes_on(served: Served, exported: Exported) -> None:
    answer = served.client.completions.create(model="tiny", prompt="青榆镇", max_tokens=6, temperature=0)
    ids = [int(index) for index in exported.tokenizer.encode_text("青榆镇")]
    assert answer.choices[0].text == exported.answer(ids, Greedy(max_new_tokens=6)).text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "tiger"}, 'model is "tiger"; expected tiny'),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": 101}, "expected at most 100"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"n": 2}, "n is 2; expected 1"),
        ({"presence_penalty": 0.5}, "presence_penalty is 0.5"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not offered"),
        ({"max_tokens": 0}, "max_new_tokens is 0"),
        ({"stop": 5}, "stop is 5"),
        ({"messages": []}, "messages is []"),
        ({"messages": [{"role": "tool", "content": "a"}]}, 'role is "tool"'),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "expected text"),
        ({"temperature": 0, "top_p": 2}, "top_p is 2"),
        ({"top_k": 5, "top_p": 0.5}, "top_k and top_p are both given"),
    ],
)
def test_what_is_not_offered_is_refused_with_the_reason(served: Served, change: dict[str, Any], said: str) -> None:
    code, content = served.ask("POST", "/v1/chat/completions", body(**change))
    assert code == 400, content
    assert said in content["error"]["message"]
    assert content["error"]["type"] == "invalid_request_error"


def test_a_prompt_that_fills_the_context_is_refused(served: Served, exported: Exported) -> None:
    text = "长" * (exported.checkpoint.context_length + 1)
    code, content = served.ask("POST", "/v1/completions", json.dumps({"model": "tiny", "prompt": text}).encode())
    assert code == 400
    assert "leave no room in a context of" in content["error"]["message"]


def test_strangers_long_bodies_and_broken_json_are_refused(served: Served) -> None:
    path = "/v1/chat/completions"
    for key in ("Bearer other", "Bearer a-ke", "Bearer a-key2", ""):
        assert served.ask("POST", path, body(), Authorization=key)[0] == 401
        assert served.ask("GET", "/metrics", Authorization=key)[0] == 401
    assert served.ask("POST", path, b"{")[0] == 400
    assert served.ask("POST", path, b'{"model": "\xff"}')[0] == 400
    assert served.ask("POST", path, b"[" * 1_000_000)[0] == 400
    assert served.ask("POST", path, b'{"model": ' + b"[" * 400_000 + b"]" * 400_000 + b"}")[0] == 400
    assert served.ask("POST", path, b" " * ((1 << 20) + 1))[0] == 413
    assert served.ask("POST", path, body(), **{"Content-Encoding": "gzip"})[0] == 415
    assert served.ask("GET", "/v2")[0] == 404
    assert served.ask("GET", "/health", Authorization="")[1]["status"] == "ok"  # needs no key
    assert [model.id for model in served.client.models.list()] == ["tiny"]


def test_a_body_of_unknown_length_is_refused(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()


def test_many_clients_some_of_which_go_away_all_get_their_own_answer(served: Served, exported: Exported) -> None:
    strategies: dict[str, tuple[dict[str, Any], Strategy]] = {
        "greedy": ({"temperature": 0}, GREEDY),
        "drawn": ({"temperature": 0.8, "seed": 1}, TopP(max_new_tokens=12, top_p=1.0, temperature=0.8, seed=1)),
    }
    expected = {
        (question, name): exported.answer(exported.ids(question), strategy).text
        for question in QUESTIONS
        for name, (_, strategy) in strategies.items()
    }

    def client(number: int) -> bool:
        drawn = random.Random(number)
        question, name = drawn.choice(QUESTIONS), drawn.choice(list(strategies))
        options: Any = strategies[name][0]
        stream: Any = served.client.chat.completions.create(
            model="tiny", messages=asked(question), stream=True, max_tokens=12, **options
        )
        text = ""
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if number % 3 == 0 and drawn.random() < 0.3:
                stream.close()
                return expected[question, name].startswith(text)
        return text == expected[question, name]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(client, range(48)))
    deadline = time.monotonic() + 60
    while served.ask("GET", "/health")[1]["running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.ask("GET", "/health")[1] == {"status": "ok", "running": 0, "waiting": 0}


def test_those_that_find_no_place_are_told_to_come_again(exported: Exported) -> None:
    served = Served(exported.folder, "--parallel", "1", "--max_waiting", "1")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: served.ask("POST", "/v1/chat/completions", body()), range(24)))
    codes = [code for code, _ in found]
    assert set(codes) <= {200, 429}
    assert 200 in codes
    _, metrics = served.ask("GET", "/metrics")
    assert f"lit_sft_refused_total {codes.count(429)}\n" in metrics
    assert f"lit_sft_requests_total {codes.count(200)}\n" in metrics
    assert served.end() == 0


def test_a_server_that_is_ended_writes_the_answers_under_way(exported: Exported) -> None:
    served = Served(exported.folder)
    stream: Any = served.client.chat.completions.create(
        model="tiny", messages=asked("贝币"), stream=True, max_tokens=12, temperature=0
    )
    first = next(stream)
    served.process.send_signal(signal.SIGINT)
    rest = [chunk.choices[0] for chunk in stream]
    text = (first.choices[0].delta.content or "") + "".join(choice.delta.content or "" for choice in rest)
    assert text == exported.answer(exported.ids("贝币"), GREEDY).text
    assert rest[-1].finish_reason in {"stop", "length"}
    assert served.process.wait(PATIENCE) == 0
    assert served.end() == 0


def test_a_port_that_is_taken_is_one_line(served: Served, exported: Exported) -> None:
    runtime = Path(pytest.importorskip("onnxruntime").__file__).parent
    done = subprocess.run(
        [binary("lit-sft-server"), "--model", exported.folder, "--quiet", "--port", str(served.port)],
        capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "LIT_SFT_ORT": str(runtime)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: --host 127.0.0.1 --port")
    assert done.stderr.count("\n") == 1


def test_a_program_that_embeds_the_library_answers_as_python(exported: Exported) -> None:
    runtime = Path(pytest.importorskip("onnxruntime").__file__).parent
    done = subprocess.run(
        [binary("lit-sft-ask"), exported.folder, "贝币"],
        capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "LIT_SFT_ORT": str(runtime)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == exported.answer(exported.ids("贝币"), Greedy(max_new_tokens=64)).text + "\n"
