"""Compiled decoder blocks compute what they do as they are written, whatever is in them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from tuning.test_tunings import TUNINGS, batch_of, make_stage

from lit_sft.__main__ import main
from lit_sft.stages.sft import SFT
from lit_sft.tuning._base import Tuning
from lit_sft.tuning.p_tuning import PTuning

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),  # of torch._dynamo
]

# The others are networks of transformers, as baichuan-7b.
FAMILIES = ("baichuan-7b", "baichuan-13b", "moss", "chatglm-6b")


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def step_of(stage: SFT) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of a packed batch."""
    stage.configure_model()
    loss = stage(batch_of(stage.checkpoint)).loss
    loss.backward()
    return loss, {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("family", "tuning", "backend"),
    [
        *((family, "lora", "eager") for family in FAMILIES),
        *((family, "p-tuning", "eager") for family in ("chatglm-6b", "chatglm2-6b")),
        ("baichuan-7b", "qlora-nf4", "eager"),
        ("baichuan-7b", "full", "inductor"),
    ],
)
def test_a_block_is_captured_whole_and_gives_the_same_gradients(
    tiny: Callable[[str], Path], family: str, tuning: str, backend: str
) -> None:
    """With gradient checkpointing. What was captured runs as it is, but once: a real compiler takes its time."""
    tunings: dict[str, Callable[[], Tuning]] = {**TUNINGS, "p-tuning": lambda: PTuning(4, dropout=0.0)}
    losses, gradients = [], []
    with torch.compiler.set_stance(force_backend=backend):
        for is_compiled in (False, True):
            stage = make_stage(
                tiny(family), family, tunings[tuning](), gradient_checkpointing=True, compile=is_compiled
            )
            torch.manual_seed(0)
            loss, found = step_of(stage)
            losses.append(loss)
            gradients.append(found)
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["graph_break"]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_a_compiled_fit_validates_answers_and_saves_as_one_that_is_not(
    write_config: Callable[..., str], tmp_path: Path
) -> None:
    found = []
    for is_compiled in (False, True):
        tuning = {"class_path": "LoRA", "init_args": {"rank": 4}}
        config = write_config(
            model={"compile": is_compiled, "tuning": tuning}, trainer={"max_epochs": 2, "val_check_interval": 1.0}
        )
        name = f"compiled-{is_compiled}"
        with torch.compiler.set_stance(force_backend="eager"):
            assert main(["fit", "--config", config, "--name", name]) == 0
        (run,) = (tmp_path / "runs").glob(f"{name}-2*")
        summary = json.loads((run / "summary.json").read_text())
        found.append((summary, torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]))
    (plain, weights), (compiled, compiled_weights) = found
    for when in ("before", "after"):
        assert compiled[when] == pytest.approx(plain[when], rel=1e-4)
    assert compiled["samples"] == plain["samples"]
    torch.testing.assert_close(compiled_weights, weights, rtol=0, atol=1e-4)
    assert counters["stats"]["unique_graphs"] > 0


def test_int8_is_refused(write_config: Callable[..., str], capsys: pytest.CaptureFixture[Any]) -> None:
    tuning = {"class_path": "QLoRA", "init_args": {"quant_type": "int8"}}
    assert main(["fit", "--config", write_config(model={"compile": True, "tuning": tuning})]) == 2
    assert "use quant_type nf4, or compile: false" in capsys.readouterr().err


def test_a_missing_compiler_is_an_error_before_anything_is_loaded(
    write_config: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[Any]
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    assert main(["fit", "--config", write_config(model={"compile": True})]) == 2
    error = capsys.readouterr().err
    assert "model.init_args.compile needs a C++ compiler on a CPU" in error
    assert "Install g++" in error
