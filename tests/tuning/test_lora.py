"""What the options of LoRA and QLoRA do, and what of them is refused."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch.optim import AdamW

from lit_sft import open_checkpoint
from lit_sft.errors import ConfigError
from lit_sft.stages._base import Stage
from lit_sft.stages.schedules import Constant
from lit_sft.stages.sft import SFT
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

Tiny = Callable[[str], Path]
LAYER = "base_model.model.model.layers.0.self_attn.o_proj"


def load(folder: Path, tuning: LoRA, precision: str = "32-true") -> Any:
    torch.manual_seed(0)
    return tuning.load(open_checkpoint(folder), precision)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=torch.arange(30, 50)[None]).logits
    return logits


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 2)])
def test_rslora_divides_alpha_by_the_root_of_the_rank(tiny: Tiny, rslora: bool, scale: float) -> None:
    model = load(tiny("baichuan-7b"), LoRA(rank=4, alpha=8, rslora=rslora, targets=["o_proj"]))
    layer = model.get_submodule(LAYER)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(2, 64)
    added = layer(x) - layer.base_layer(x)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(added, scale * x @ a.T @ b.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("cls", [LoRA, QLoRA])
def test_a_fresh_adapter_changes_nothing(tiny: Tiny, cls: type[LoRA], dora: bool, precision: str) -> None:
    tuning = cls(rank=4, dora=dora)
    base = tuning.load_base(open_checkpoint(tiny("baichuan-7b")), precision)
    tuned = load(tiny("baichuan-7b"), tuning, precision)
    assert torch.equal(logits_of(tuned), logits_of(base))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        assert torch.equal(logits_of(tuned), logits_of(base))


@pytest.mark.parametrize(
    "make", [lambda: LoRA(rank=4, dora=True), lambda: QLoRA(rank=4, dora=True)], ids=["lora", "nf4"]
)
def test_dora_trains_the_lengths_of_rows_apart_from_their_directions(tiny: Tiny, make: Callable[[], LoRA]) -> None:
    model = load(tiny("baichuan-7b"), make())
    layer = model.get_submodule(LAYER)
    x = torch.randn(2, 64)
    plain = layer(x)
    layer.lora_magnitude_vector["default"].weight.data *= 2
    torch.testing.assert_close(layer(x), 2 * plain, atol=1e-5, rtol=1e-5)


def test_lora_plus_is_a_higher_rate_of_b_that_follows_the_schedule(tiny: Tiny, tmp_path: Path) -> None:
    tuning = LoRA(rank=4, dora=True, lora_plus_ratio=16)
    stage = SFT(checkpoint=str(tiny("baichuan-7b")), tuning=tuning, optimizer=lambda groups: AdamW(groups, lr=0.01))
    stage.trainer = Trainer(accelerator="cpu", max_steps=10, max_epochs=-1, logger=False, default_root_dir=tmp_path)
    stage.configure_model()
    optimizer = stage.configure_optimizers()
    stage.schedule = Constant(warmup_fraction=0.5)
    Stage.on_before_optimizer_step(stage, optimizer)
    factor = optimizer.param_groups[0]["lr"] / 0.01
    assert 0 < factor < 1
    names = {id(parameter): name for name, parameter in stage.named_parameters()}
    rates = {names[id(p)]: group["lr"] / factor for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == {name for name, p in stage.named_parameters() if p.requires_grad}
    for name, rate in rates.items():
        assert rate == pytest.approx(0.16 if "lora_B" in name else 0.01), name
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {name for name in rates if "magnitude" not in name}


@pytest.mark.parametrize("is_mixed", [False, True])
def test_inputs_of_an_adapter_are_converted_only_where_autocast_is_not(tiny: Tiny, is_mixed: bool) -> None:
    model = load(tiny("baichuan-7b"), LoRA(rank=4), "bf16-mixed")
    layer = model.get_submodule(LAYER)
    seen: list[torch.dtype] = []
    layer.lora_A["default"].register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        assert layer(torch.randn(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert seen == [torch.bfloat16 if is_mixed else torch.float32]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_validation_changes_no_gradient_of_qlora(tiny: Tiny, precision: str) -> None:
    """bitsandbytes would rearrange 4-bit weights in evaluation on some CPUs, and back-propagate nothing afterwards."""
    model = load(tiny("chatglm2-6b"), QLoRA(rank=4), precision)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(30, 50)[None]

    def gradients() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = model.train()(input_ids=ids, labels=ids).loss
        return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))

    before = gradients()
    logits_of(model)
    for gradient, wanted in zip(gradients(), before, strict=True):
        assert torch.equal(gradient, wanted)


def test_a_run_may_start_from_an_adapter_of_any_kind(tiny: Tiny, tmp_path: Path) -> None:
    tuning = LoRA(rank=2, dora=True, rslora=True)
    model = load(tiny("baichuan-7b"), tuning)
    folder = tuning.export(model, tmp_path, open_checkpoint(tiny("baichuan-7b")))
    again = load(tiny("baichuan-7b"), LoRA(adapter=str(folder), lora_plus_ratio=4))
    config = again.peft_config["default"]
    assert (config.r, config.use_dora, config.use_rslora) == (2, True, True)
    trained = [{name for name, p in m.named_parameters() if p.requires_grad} for m in (model, again)]
    assert trained[0] == trained[1]
    with pytest.raises(ConfigError, match="dora does not work on int8"):
        QLoRA("int8", adapter=str(folder))


def test_only_rank_and_alpha_may_be_given_by_position() -> None:
    kinds = [parameter.kind.name for parameter in inspect.signature(LoRA).parameters.values()]
    assert kinds == ["POSITIONAL_OR_KEYWORD"] * 2 + ["KEYWORD_ONLY"] * 6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 4}, "rank is 4, but the adapter .* has 2. Leave rank out, or give what the adapter has"),
        ({"alpha": 1.0}, "alpha is 1.0, but the adapter .* has 8.0"),
        ({"targets": ["q_proj"]}, "targets is .*q_proj.*, but the adapter .* has .*k_proj"),
        ({"rslora": True}, "rslora is True, but the adapter .* has False"),
        ({"dora": True}, "dora is True, but the adapter .* has False"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_contradicts_the_adapter_to_start_from_is_refused(
    options: dict[str, Any], said: str, tiny: Tiny, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(tiny("baichuan-7b"))
    first = LoRA(2, 8.0, targets=["q_proj", "k_proj"], dropout=0.25)
    folder = str(first.export(first.load(checkpoint, "32-true"), tmp_path, checkpoint))
    with pytest.raises(ConfigError, match=said):
        LoRA(adapter=folder, **options)
    taken = LoRA(adapter=folder, rank=2, targets=["k_proj", "q_proj"], dropout=0.5)
    assert (taken.rank, taken.alpha, set(taken.targets or [])) == (2, 8.0, {"q_proj", "k_proj"})
    config: Any = taken.load(checkpoint, "32-true").peft_config["default"]
    assert config.lora_dropout == 0.5
    assert LoRA(adapter=folder).dropout == 0.25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QLoRA("int8", dora=True), "dora does not work on int8: peft loses the scales .* Use quant_type nf4"),
        (lambda: LoRA(lora_plus_ratio=0), "lora_plus_ratio is 0; it must be above 0"),
    ],
    ids=["dora-int8", "ratio"],
)
def test_options_that_cannot_work_are_refused(make: Callable[[], LoRA], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.slow
def test_qlora_takes_the_options_of_lora_in_a_configuration(
    write_config: Callable[..., str], tiny: Tiny, tmp_path: Path
) -> None:
    from lit_sft.__main__ import main

    options = {"rank": 4, "rslora": True, "dora": True, "lora_plus_ratio": 8}
    tuning = {"class_path": "QLoRA", "init_args": options}
    model = {"checkpoint": str(tiny("chatglm2-6b")), "tuning": tuning, "neftune_alpha": 5}
    config = write_config(model=model, data={"max_length": 64}, trainer={"max_steps": 2, "precision": "bf16-mixed"})
    assert main(["fit", "--config", config]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert (adapter["use_dora"], adapter["use_rslora"]) == (True, True)
