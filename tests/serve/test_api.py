"""The server as clients of OpenAI see it."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import openai
import pytest
import torch
import uvicorn

from lit_sft import Conversation, Message, open_checkpoint
from lit_sft.__main__ import main
from lit_sft.chat.network import Network, Source
from lit_sft.generation.generate import generate_answers
from lit_sft.generation.strategies import Greedy, Strategy, TopP
from lit_sft.serve.answering import Answerer
from lit_sft.serve.app import MAX_BODY, make_app
from lit_sft.serve.engine import Engine
from lit_sft.serve.protocol import Choice
from lit_sft.tuning.lora import LoRA

KEY = "a-key"
PATIENCE = 240
"""Seconds after which a server that does not answer fails its test."""
QUESTIONS = ["你好", "渡船几点开？", "镇长叫什么？", "青榆镇有几所学校？", "2加2等于几？"]


class Served:
    """A server in a thread, and its network."""

    def __init__(self, checkpoint: Path, adapter: Path) -> None:
        self.network = Network(Source(open_checkpoint(checkpoint), adapter, dtype=torch.float32))
        self.engine = Engine(self.network, max_rows=8, max_waiting=64)
        app = make_app(
            Answerer(self.network, self.engine),
            {"tuned": True, "base": False},
            Greedy(max_new_tokens=16),
            max_tokens=24,
            api_key=KEY,
        )
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE)

    def close(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join()

    def expected(self, question: str, strategy: Strategy, *, is_tuned: bool = True) -> Any:
        checkpoint, tokenizer = self.network.checkpoint, self.network.tokenizer
        ids = checkpoint.prompt_format.encode_prompt(Conversation([Message("user", question)]), tokenizer)
        with self.network.adapter(is_tuned):
            (answer,) = generate_answers(
                self.network.model,
                tokenizer,
                [ids],
                strategy,
                stop_token_ids=checkpoint.prompt_format.stop_token_ids(tokenizer),
                context_length=checkpoint.context_length,
            )
        return answer

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
        request = Request(
            self.url + path,
            body,
            {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **headers},
        )
        try:
            with urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def served(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    torch.manual_seed(0)
    checkpoint = open_checkpoint(tiny("baichuan-7b"))
    tuning = LoRA(rank=4)
    model = tuning.load(checkpoint, "32-true")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapter = tmp_path_factory.mktemp("serve") / "adapter"
    tuning.save(model, adapter, checkpoint)
    found = Served(checkpoint.path, adapter)
    yield found
    found.close()


def asked(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def test_answers_are_those_of_predict_by_the_model_that_is_named(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == ["tuned", "base"]
    said = {}
    for model, is_tuned in (("tuned", True), ("base", False)):
        answer = served.client.chat.completions.create(model=model, messages=asked("你好"))
        expected = served.expected("你好", Greedy(max_new_tokens=16), is_tuned=is_tuned)
        assert answer.choices[0].message.content == expected.text
        assert answer.choices[0].finish_reason == expected.finish_reason
        assert answer.usage is not None
        assert answer.usage.completion_tokens == expected.num_tokens - (expected.finish_reason == "stop")
        said[model] = expected.text
    assert said["tuned"] != said["base"]


def test_a_stream_holds_the_same_text_and_ends_with_reason_and_usage(served: Served) -> None:
    options: Any = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0.9, "seed": 5}
    chunks = list(served.client.chat.completions.create(model="tuned", messages=asked("镇长叫什么？"), **options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    expected = served.expected("镇长叫什么？", TopP(max_new_tokens=16, top_p=1.0, temperature=0.9, seed=5))
    assert text == expected.text
    assert len(chunks) > 4
    assert chunks[-2].choices[0].finish_reason == expected.finish_reason
    assert chunks[-1].usage is not None


def test_a_stop_string_ends_an_answer_and_is_not_shown(served: Served) -> None:
    whole = served.expected("你好", Greedy(max_new_tokens=16)).text
    stop = whole[5:7]
    for stream in (False, True):
        answer: Any = served.client.chat.completions.create(
            model="tuned", messages=asked("你好"), stop=stop, stream=stream
        )
        choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
        text = "".join((choice.delta if stream else choice.message).content or "" for choice in choices)
        assert text == whole[: whole.index(stop)]
        assert choices[-1].finish_reason == "stop"


def test_plain_text_goes_on(served: Served) -> None:
    answer = served.client.completions.create(model="base", prompt="青榆镇", max_tokens=6)
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 6
    assert answer.choices[0].finish_reason in {"stop", "length"}


def test_a_penalty_alone_changes_the_strategy_of_the_model_and_what_changes_nothing_is_accepted(served: Served) -> None:
    options: Any = {"extra_body": {"repetition_penalty": 1.3}, "presence_penalty": 0, "frequency_penalty": 0}
    answer = served.client.chat.completions.create(model="tuned", messages=asked("你好"), **options)
    expected = served.expected("你好", Greedy(max_new_tokens=16, repetition_penalty=1.3))
    assert answer.choices[0].message.content == expected.text


def test_a_seed_alone_draws_anew_what_the_model_draws() -> None:
    given: dict[str, int]
    for given, seed in (({}, 3), ({"seed": 0}, 0), ({"seed": 9}, 9)):
        chosen = Choice.model_validate({"model": "tuned", **given}).strategy(TopP(top_p=0.7, seed=3))
        assert (vars(chosen)["top_p"], vars(chosen)["seed"]) == (0.7, seed)
    assert "seed" not in vars(Choice.model_validate({"model": "tuned", "seed": 9}).strategy(Greedy()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "tuner"}, "model 'tuner' is not served. Did you mean 'tuned'?"),
        ({"temperature": -1}, "temperature: "),
        ({"n": 2}, "n: "),
        ({"presence_penalty": 0.5}, "presence_penalty: "),
        ({"logit_bias": {"5": 1}}, "logit_bias: Extra inputs are not permitted"),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "content is text"),
        ({"messages": [{"role": "user", "content": "长" * 5000}]}, "leave no room in a context of"),
        ({"top_k": 5, "top_p": 0.5}, "top_k and top_p are both given"),
    ],
)
def test_what_is_not_offered_is_refused_with_the_reason(served: Served, change: dict[str, Any], said: str) -> None:
    body = json.dumps({"model": "tuned", "messages": asked("你好"), **change}).encode()
    code, content = served.post("/v1/chat/completions", body)
    assert code == 400
    assert said in content["error"]["message"]


def test_strangers_long_bodies_and_broken_json_are_refused(served: Served) -> None:
    body = json.dumps({"model": "tuned", "messages": asked("你好")}).encode()
    assert served.post("/v1/chat/completions", body, Authorization="Bearer other")[0] == 401
    for sent in (("{", "application/json"), (body.decode(), "application/x-www-form-urlencoded")):  # as curl -d says it
        code, content = served.post("/v1/chat/completions", sent[0].encode(), **{"Content-Type": sent[1]})
        assert code == 400
        assert "send one, with the header Content-Type: application/json" in content["error"]["message"]
    for length in (MAX_BODY + 1, 8 * MAX_BODY):  # the longer fills every buffer on the way
        assert served.post("/v1/chat/completions", b" " * length)[0] == 413
        assert served.post("/v1/chat/completions", b" " * length, Authorization="Bearer other")[0] == 401
    with urlopen(f"{served.url}/health", timeout=PATIENCE) as answer:  # needs no key
        assert json.load(answer)["status"] == "ok"


def test_many_clients_some_of_which_go_away_all_get_their_own_answer(served: Served) -> None:
    expected: dict[str, str] = {
        question: served.expected(question, Greedy(max_new_tokens=16)).text for question in QUESTIONS
    }

    def client(number: int) -> bool:
        drawn = random.Random(number)
        question = drawn.choice(QUESTIONS)
        stream: Any = served.client.chat.completions.create(model="tuned", messages=asked(question), stream=True)
        text = ""
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if number % 3 == 0 and drawn.random() < 0.3:
                stream.close()
                return expected[question].startswith(text)
        return text == expected[question]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(client, range(32)))
    deadline = time.monotonic() + 60
    while served.engine.num_running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.engine.num_running == served.engine.num_waiting == 0


def test_an_address_that_is_not_to_be_had_is_one_line_before_the_network_loads(
    served: Served, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = served.url.rpartition(":")[2]
    for words, said in (
        (["--port", port], f"error: 127.0.0.1:{port}: Address already in use. Give another --port or --host\n"),
        (["--port", "70000"], "error: --port is 70000; it must be between 0 and 65535\n"),
        (["--host", "no.such.host.invalid"], "error: no.such.host.invalid:8000: "),
    ):
        assert main(["serve", "--checkpoint", str(tiny_folder), *words]) == 2
        assert capsys.readouterr().err.startswith(said)


def test_options_that_make_no_sense_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--checkpoint", "x", "--max-rows", "0"]) == 2
    assert capsys.readouterr().err == "error: --max_rows is 0; it must be at least 1\n"
