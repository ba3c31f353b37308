"""Every family as a graph: what it answers in onnxruntime is what the network answers in torch."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from goldens import GOLDEN_MODELS, golden_checkpoint
from graphs import traced_once

from lit_sft import open_checkpoint
from lit_sft.checkpoint import onnx_session
from lit_sft.checkpoint.onnx_session import GraphSession
from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.export.check import Sample
from lit_sft.export.folder import Form, Source, export_onnx
from lit_sft.generation.generate import generate_ids
from lit_sft.generation.strategies import BeamSearch, Greedy, Strategy, TopK, TopP

pytestmark = pytest.mark.slow

LENGTHS = (7, 19, 12)
NUM_MORE = 4
SUBJECTS = [*GOLDEN_MODELS, "native"]
STOP = (0, 3)
GREEDY = Greedy()


@dataclass(eq=False)
class Subject:
    checkpoint: Checkpoint
    folder: Path

    @cached_property
    def model(self) -> Any:
        return self.checkpoint.load_model(dtype=torch.float32)

    @cached_property
    def rows(self) -> list[list[int]]:
        """Prompts of unequal length, with the marks at which a prefix ends where the family has such."""
        generator = torch.Generator().manual_seed(0)
        config: Any = self.checkpoint.family.network_config
        end = [] if self.checkpoint.family.prefix_end_id is None else [config.gmask_token_id, config.bos_token_id]
        return [[*torch.randint(5, config.vocab_size - 400, (n,), generator=generator).tolist(), *end] for n in LENGTHS]

    @cached_property
    def more(self) -> list[list[int]]:
        """What follows them."""
        return [
            torch.randint(5, 500, (NUM_MORE,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(3)
        ]

    @cached_property
    def expected(self) -> list[torch.Tensor]:
        """Logits [T, V] of rows with what follows, each alone."""
        with torch.no_grad():
            return [
                self.model(input_ids=torch.tensor([row + more]), use_cache=False).logits[0]
                for row, more in zip(self.rows, self.more, strict=True)
            ]

    @cache  # noqa: B019  (ten tiny models may stay)
    def answers(self, strategy: Strategy, stop: tuple[int, ...], room: int) -> list[list[int]]:
        """What the network answers to the rows."""
        return generate_ids(self.model, [*self.rows], strategy, stop=[*stop], room=room)

    @cache  # noqa: B019
    def exported(self, graph: str) -> Any:
        """A graph in float32 that `export` has written, as a model."""
        return open_checkpoint(self.folder / f"float32-{graph == 'portable'}").load_model()

    def export(self, form: Form) -> tuple[GraphSession, dict[str, Any]]:
        samples = [Sample(row + more, [-100] * len(row) + more) for row, more in zip(self.rows, self.more, strict=True)]
        output = self.folder / f"{form.dtype}-{form.is_portable}"
        manifest = export_onnx(Source(self.checkpoint, samples), output, form)
        return GraphSession(output, threads=1), manifest


def checkpoint_of(name: str, tiny: Callable[[str], Path]) -> Checkpoint:
    return open_checkpoint(tiny("native")) if name == "native" else golden_checkpoint(name)


@pytest.fixture(scope="module")
def memory() -> Iterator[None]:
    with traced_once():
        yield


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(
    request: pytest.FixtureRequest,
    tiny: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    memory: None,
) -> Subject:
    return Subject(checkpoint_of(request.param, tiny), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module", params=["fused", "portable"])
def session(request: pytest.FixtureRequest, subject: Subject) -> GraphSession:
    return subject.export(Form(is_portable=request.param == "portable"))[0]


def test_logits_of_all_positions_are_those_of_torch(session: GraphSession, subject: Subject) -> None:
    cache = session.new_cache(3)
    keep = min(map(len, subject.rows))
    found = torch.from_numpy(session.forward(subject.rows, cache, keep=keep))
    for row, logits, expected in zip(subject.rows, found, subject.expected, strict=True):
        torch.testing.assert_close(logits, expected[len(row) - keep : len(row)], atol=1e-4, rtol=0)
    for step in range(NUM_MORE):
        found = torch.from_numpy(session.forward([[more[step]] for more in subject.more], cache))
        for row, logits, expected in zip(subject.rows, found, subject.expected, strict=True):
            torch.testing.assert_close(logits[0], expected[len(row) + step], atol=1e-4, rtol=0)


def test_a_prompt_that_is_read_in_pieces_gives_the_same(
    session: GraphSession, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_session, "CHUNK", 3)
    monkeypatch.setattr(onnx_session, "FIRST_CAPACITY", 4)
    row, more, expected = subject.rows[1], subject.more[1], subject.expected[1]
    found = session.forward([row + more], session.new_cache(1), keep=len(expected))
    torch.testing.assert_close(torch.from_numpy(found[0]), expected, atol=1e-4, rtol=0)


def test_greedy_answers_are_the_same(session: GraphSession, subject: Subject) -> None:
    expected = subject.answers(GREEDY, (0,), 32)
    cache = session.new_cache(3)
    new = subject.rows
    answers: list[list[int]] = [[], [], []]
    for _ in range(32):
        new = [[token] for token in session.forward(new, cache)[:, -1].argmax(-1).tolist()]
        for answer, (token,) in zip(answers, new, strict=True):
            answer.append(token)
    for answer, ids in zip(answers, expected, strict=True):
        end = ids.index(0) if 0 in ids else 32
        assert answer[:end] == ids[:end]


# What layers and heads of a family are shows in one form of integers, and how a form multiplies in three families: with
# a head of its own and rows that no block divides, with a prefix, with fewer heads of keys.
INTEGERS = [
    *((name, Form("int4")) for name in SUBJECTS),
    *((name, Form("int8")) for name in ("baichuan2-13b", "chatglm-6b", "native")),
    *((name, Form("int4", is_portable=True)) for name in ("baichuan2-13b", "chatglm-6b", "native")),
]


@pytest.mark.parametrize(("name", "form"), INTEGERS)
def test_integers_compute_what_torch_computes_with_the_same_integers(
    name: str, form: Form, tiny: Callable[[str], Path], tmp_path: Path, memory: None
) -> None:
    session, manifest = Subject(checkpoint_of(name, tiny), tmp_path).export(form)
    assert manifest["parity"]["max_logit_difference"] <= 1e-4
    assert manifest["parity"]["num_positions"] == sum(LENGTHS) + 3 * NUM_MORE + (
        6 if session.description.prefix_end_id is not None else 0
    )
    assert manifest["quality"]["kl_divergence"] < {"int8": 0.1, "int4": 5.0}[form.dtype]


@pytest.mark.parametrize("is_portable", [False, True])
@pytest.mark.parametrize("name", ["baichuan2-13b", "chatglm-6b"])
def test_half_precision_is_off_by_its_rounding_alone(
    name: str, is_portable: bool, tmp_path: Path, memory: None
) -> None:
    half = Subject(golden_checkpoint(name), tmp_path)
    session, manifest = half.export(Form("float16", is_portable=is_portable))
    assert session.description.dtype == "float16"
    spread = max(1.0, manifest["parity"]["std_of_logits"])
    # Beside torch with the same halves, where only the arithmetic differs, and beside the network in float32.
    assert manifest["parity"]["max_logit_difference"] <= 0.05 * spread
    for row, more, expected in zip(half.rows, half.more, half.expected, strict=True):
        found = session.forward([row + more], session.new_cache(1), keep=len(expected))[0]
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=0.1 * spread, rtol=0)


def test_the_gate_converts_weights_in_half_precision_one_after_the_other(
    tmp_path: Path, memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Subject(golden_checkpoint("baichuan2-13b"), tmp_path)
    half.export(Form("float16"))
    options = onnxruntime.SessionOptions

    def profiled() -> Any:
        made = options()
        made.enable_profiling, made.profile_file_prefix = True, str(tmp_path / "profile")
        return made

    monkeypatch.setattr(onnxruntime, "SessionOptions", profiled)
    session = GraphSession(tmp_path / "float16-False", threads=1, is_packed=False)
    session.forward([half.rows[0]], session.new_cache(1))
    events = json.loads(Path(session.session.end_profiling()).read_text())
    kinds = [event["args"]["op_name"] for event in events if event.get("name", "").endswith("_kernel_time")]
    assert kinds.count("Cast") > 12
    most = max(len(list(group)) for kind, group in groupby(kinds) if kind == "Cast")
    assert most <= 4  # else all of them are in memory at once


STRATEGIES = [
    Greedy(max_new_tokens=8, repetition_penalty=1.2),
    BeamSearch(num_beams=3, max_new_tokens=8, no_repeat_ngram_size=3, length_penalty=0.5),
    TopK(top_k=8, temperature=0.9, seed=5, max_new_tokens=8),
    TopP(top_p=0.8, temperature=1.2, seed=6, max_new_tokens=8, repetition_penalty=1.1),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda strategy: type(strategy).__name__)
def test_every_strategy_answers_as_with_the_network(
    strategy: Strategy, session: GraphSession, subject: Subject
) -> None:
    exported = subject.exported(session.description.graph)
    found = generate_ids(exported, [*subject.rows], strategy, stop=[*STOP], room=8)
    assert found == subject.answers(strategy, STOP, 8)
