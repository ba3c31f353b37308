"""A merged checkpoint computes what the adapter on its base does, and says how nearly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lit_sft import open_checkpoint
from lit_sft.__main__ import main
from lit_sft.checkpoint.opening import Checkpoint, families
from lit_sft.errors import ConfigError
from lit_sft.export.merge import merge_adapter
from lit_sft.tuning.qlora import QLoRA

Tiny = Callable[[str], Path]
WriteConfig = Callable[..., str]
PROMPTS = [list(range(20, 60)), list(range(200, 210))]


def write_adapter(checkpoint: Checkpoint, folder: Path, **options: Any) -> Path:
    """A PEFT folder with weights as if it had trained."""
    torch.manual_seed(1)
    targets = list(checkpoint.family.lora_targets)
    model = get_peft_model(checkpoint.load_model(), LoraConfig(r=4, lora_alpha=8, target_modules=targets, **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif "magnitude" in name:
            parameter.data *= 1.1
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=torch.tensor(PROMPTS[:1])).logits
    return logits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((name, {}) for name in sorted(families())),
        ("baichuan-7b", {"use_dora": True}),
        ("baichuan-7b", {"use_rslora": True}),
    ],
    ids=str,
)
def test_merged_checkpoint_of_every_family_computes_what_the_adapter_does(
    tiny: Tiny, tmp_path: Path, family: str, options: dict[str, bool]
) -> None:
    checkpoint = open_checkpoint(tiny(family), family)
    adapter = write_adapter(checkpoint, tmp_path / "adapter", **options)
    figures = merge_adapter(checkpoint, adapter, tmp_path / "merged", dtype=torch.float32, prompts=PROMPTS)

    merged = open_checkpoint(tmp_path / "merged", family)
    merged.load_tokenizer()
    base = logits_of(checkpoint.load_model())
    adapted = logits_of(PeftModel.from_pretrained(checkpoint.load_model(), adapter))
    given = logits_of(merged.load_model())
    torch.testing.assert_close(given, adapted, atol=1e-5, rtol=0)
    assert (given - base).abs().max() > 0.01

    assert json.loads((tmp_path / "merged" / "merge.json").read_text()) == figures
    assert figures["from_adapter_on_base"]["max_logit_difference"] < 1e-5
    assert abs(figures["from_adapter_on_base"]["kl_divergence"]) < 1e-8
    assert figures["num_positions"] == sum(map(len, PROMPTS))
    assert "from_adapter_on_quantized_base" not in figures
    assert not (tmp_path / "merged.partial").exists()


def test_the_figures_are_those_of_their_definition(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("moss"), "moss")
    adapter = write_adapter(checkpoint, tmp_path / "adapter")
    figures = merge_adapter(checkpoint, adapter, tmp_path / "merged", dtype=torch.bfloat16, prompts=PROMPTS[:1])
    adapted = logits_of(PeftModel.from_pretrained(checkpoint.load_model(dtype=torch.bfloat16), adapter)).double()
    merged = logits_of(open_checkpoint(tmp_path / "merged", "moss").load_model(dtype=torch.bfloat16)).double()
    kl = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (adapted, merged)))
    assert figures["from_adapter_on_base"] == {
        "kl_divergence": pytest.approx(float(kl.mean())),
        "max_logit_difference": pytest.approx(float((adapted - merged).abs().max())),
    }
    assert float(kl.mean()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("quant_type", ["nf4", "int8"])
def test_a_quantized_base_is_compared_too_and_is_another_model(tiny: Tiny, tmp_path: Path, quant_type: Any) -> None:
    checkpoint = open_checkpoint(tiny("chatglm2-6b"), "chatglm2-6b")
    adapter = write_adapter(checkpoint, tmp_path / "adapter")
    figures = merge_adapter(
        checkpoint,
        adapter,
        tmp_path / "merged",
        dtype=torch.bfloat16,
        prompts=PROMPTS,
        load_quantized=lambda: QLoRA(quant_type=quant_type).load_base(checkpoint, "bf16-mixed"),
    )
    on_base, on_quantized = (figures[f"from_adapter_on_{which}"] for which in ("base", "quantized_base"))
    assert 0 < on_base["kl_divergence"] < on_quantized["kl_divergence"] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("tuning", ["LoRA", "QLoRA"])
def test_a_run_is_merged_and_measured_on_its_held_out_prompts(
    write_config: WriteConfig, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], tuning: str
) -> None:
    model = {
        "checkpoint": str(tiny("baichuan-7b")),
        "tuning": {"class_path": tuning, "init_args": {"rank": 4}},
        "optimizer": {"class_path": "bitsandbytes.optim.AdamW8bit", "init_args": {"lr": 0.01}},
    }
    config = write_config(model=model, data={"max_length": 64}, trainer={"precision": "bf16-mixed"})
    assert main(["fit", "--config", config]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    output = tmp_path / "models" / "merged"
    assert main(["merge", "--run", str(run), "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "against the adapter on the base: KL divergence" in said
    assert ("against the adapter on the quantized base" in said) == (tuning == "QLoRA")
    figures = json.loads((output / "merge.json").read_text())
    assert figures["dtype"] == "bfloat16"
    assert figures["num_prompts"] == 4
    merged = open_checkpoint(output).load_model(dtype=torch.float32)
    base = open_checkpoint(tiny("baichuan-7b")).load_model(dtype=torch.float32)
    assert torch.equal(merged.lm_head.weight, base.lm_head.weight.bfloat16().float())
    assert (logits_of(merged) - logits_of(base)).abs().max() > 0.1

    if tuning == "QLoRA":  # what follows is that of the base
        return
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("1加1等于几？\n", encoding="utf-8")
    (tmp_path / "belle.json").unlink()
    options = ["--prompts", str(prompts), "--dtype", "float32"]
    assert main(["merge", "--run", str(run), "--output", str(tmp_path / "again"), *options]) == 0
    figures = json.loads((tmp_path / "again" / "merge.json").read_text())
    assert (figures["dtype"], figures["num_prompts"]) == ("float32", 1)
    assert figures["from_adapter_on_base"]["max_logit_difference"] < 1e-5

    original = ["--original_names", "true", "--output", str(tmp_path / "original")]
    assert main(["merge", "--run", str(run), *original]) == 0
    assert "W_pack" in json.loads((tmp_path / "original" / "adapter_config.json").read_text())["target_modules"]
    capsys.readouterr()

    assert main(["merge", "--run", str(run), "--output", str(output)]) == 2
    assert capsys.readouterr().err == f"error: {output} exists; give a folder that does not\n"


@pytest.mark.slow
def test_what_has_no_adapter_is_refused(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(model={"tuning": {"class_path": "Full"}}, trainer={"max_steps": 1})
    assert main(["fit", "--config", config]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    capsys.readouterr()
    for folder, message in (
        (run, f"tuned by Full, not by an adapter, so there is nothing to merge: {run}/model is a checkpoint as it is"),
        (tmp_path / "runs", "is not a run folder: it holds no config.yaml"),
    ):
        assert main(["merge", "--run", str(folder), "--output", str(tmp_path / "merged")]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_a_run_that_held_nothing_out_asks_for_prompts(
    write_config: WriteConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", write_config(data={"validation_fraction": 0.0}, trainer={"max_steps": 1})]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    capsys.readouterr()
    assert main(["merge", "--run", str(run), "--output", str(tmp_path / "merged")]) == 2
    assert capsys.readouterr().err == f"error: {run} held nothing out to measure on: give --prompts FILE\n"


def test_weights_that_do_not_fit_the_type_are_refused_and_nothing_is_left(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("baichuan-7b"))
    adapter = write_adapter(checkpoint, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1e7}))
    with pytest.raises(ConfigError, match="no finite logits in float16"):
        merge_adapter(checkpoint, adapter, tmp_path / "merged", dtype=torch.float16, prompts=PROMPTS)
    assert list(tmp_path.iterdir()) == [adapter]
