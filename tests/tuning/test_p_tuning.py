"""P-tuning v2: the prefix of ChatGLM's original code, and its files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache
from tuning.test_tunings import batch_of, make_stage

from lit_sft.__main__ import main
from lit_sft.checkpoint.opening import Checkpoint, open_checkpoint
from lit_sft.errors import ConfigError
from lit_sft.families.chatglm.network import ChatGLM6BModel
from lit_sft.preflight.memory import Plan, num_trained
from lit_sft.preflight.network import measure_network
from lit_sft.tuning._base import Tuning
from lit_sft.tuning._prefix import encoder_of
from lit_sft.tuning._prefix_file import read_prefix
from lit_sft.tuning.p_tuning import PTuning

FAMILIES = ["chatglm-6b", "chatglm2-6b"]
LENGTH = 5
PROMPTS = ["你好", "青榆镇在哪里？请介绍一下。"]


def held_out_loss(summary: Path, when: str) -> float:
    loss: float = json.loads(summary.read_text(encoding="utf-8"))[when]["val/loss"]
    return loss


def measured_loss(file: Path) -> float:
    loss: float = json.loads(file.read_text(encoding="utf-8"))["metrics"]["val/loss"]
    return loss


def trained_prefix(checkpoint: Checkpoint, tuning: PTuning) -> Any:
    return tuning.load(checkpoint, "32-true").eval()


def keys_and_values(network: Any, weights: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """As the original's `get_prompt` says it: [P, 2 * layers, heads, width], keys and values of a layer in turn."""
    rows = weights["embedding.weight"]
    if "trans.0.weight" in weights:
        inner = torch.tanh(rows @ weights["trans.0.weight"].T + weights["trans.0.bias"])
        rows = inner @ weights["trans.2.weight"].T + weights["trans.2.bias"]
    config = network.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    states = rows.detach().view(len(rows), 2 * config.num_hidden_layers, heads, -1).permute(1, 2, 0, 3)
    return [(states[2 * layer][None], states[2 * layer + 1][None]) for layer in range(config.num_hidden_layers)]


def cached(network: Any, weights: dict[str, torch.Tensor]) -> DynamicCache:
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(keys_and_values(network, weights)):
        cache.update(keys, values, layer)
    return cache


def with_past(network: Any, weights: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """Logits [1, T, V] where the prefix is what a cache holds: places from 0, all of it seen by every token."""
    decoder, cache = network.get_decoder(), cached(network, weights)
    if not isinstance(decoder, ChatGLM6BModel):
        places = torch.arange(ids.shape[1])[None]
        found: torch.Tensor = network(input_ids=ids, position_ids=places, past_key_values=cache).logits
        return found
    layout = decoder.layout(ids)
    seen = torch.cat([torch.ones(1, 1, ids.shape[1], LENGTH, dtype=torch.bool), layout.allowed()], dim=-1)
    hidden = decoder.word_embeddings(ids)
    angles = decoder.rotary(layout.positions, hidden.dtype)
    for layer in decoder.layers:
        hidden = layer(hidden, attention_mask=seen, angles=angles, past_key_values=cache)
    logits: torch.Tensor = network.lm_head(decoder.final_layernorm(hidden))
    return logits


@pytest.fixture(params=FAMILIES)
def chatglm(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Checkpoint:
    return open_checkpoint(tiny(request.param))


@pytest.mark.parametrize("projection", [False, True])
def test_logits_are_those_of_past_keys_and_values_before_the_first_token(chatglm: Checkpoint, projection: bool) -> None:
    network = trained_prefix(chatglm, PTuning(LENGTH, projection))
    with torch.no_grad():
        for parameter in encoder_of(network).parameters():
            parameter.mul_(30)  # a tiny network hardly listens
    weights = encoder_of(network).state_dict()
    plain = chatglm.load_model()
    tokenizer = chatglm.load_tokenizer()
    with torch.no_grad():
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer(prompt)["input_ids"]])
            found = network(input_ids=ids).logits
            torch.testing.assert_close(found, with_past(plain, weights, ids), atol=1e-4, rtol=1e-4)
            assert (found - plain(input_ids=ids).logits).abs().max() > 0.01


def test_cached_decoding_and_left_padding_change_no_answer(chatglm: Checkpoint) -> None:
    network = trained_prefix(chatglm, PTuning(LENGTH))
    weights = encoder_of(network).state_dict()
    plain = chatglm.load_model()
    tokenizer = chatglm.load_tokenizer()
    batch = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": -1, "pad_token_id": 0}
    answers = network.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **options)
    for prompt, answer in zip(PROMPTS, answers[:, -6:].tolist(), strict=True):
        ids = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            logits = with_past(plain, weights, torch.tensor([[*ids, *answer]]))[0]
        assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == answer


def test_examples_of_a_packed_row_are_as_those_alone(chatglm: Checkpoint) -> None:
    stage = make_stage(chatglm.path, "auto", PTuning(LENGTH, dropout=0.0))
    stage.configure_model()
    batch = batch_of(chatglm)
    packed = stage(batch).by_group.sum(0)[0]
    assert batch.position_ids is not None
    total = 0.0
    for row in range(len(batch.input_ids)):
        places = batch.position_ids[row].tolist()
        starts = [place for place, number in enumerate(places) if number == 0 or place == 0]
        for start, end in zip(starts, [*starts[1:], len(places)], strict=True):
            ids, labels = batch.input_ids[row, start:end], batch.labels[row, start:end]
            if (labels != -100).any():
                logits = stage.causal_lm(input_ids=ids[None]).logits[0, :-1]
                total += torch.nn.functional.cross_entropy(
                    logits, labels[1:], reduction="sum", ignore_index=-100
                ).item()
    assert packed.item() == pytest.approx(total, rel=1e-4)


def test_gradients_are_the_same_under_checkpointing_and_reach_the_prefix_alone(chatglm: Checkpoint) -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        stage = make_stage(chatglm.path, "auto", PTuning(LENGTH), gradient_checkpointing=checkpointing)
        stage.configure_model()
        torch.manual_seed(1)
        stage(batch_of(chatglm)).loss.backward()
        trained = {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}
        assert [*trained] == [name for name, p in stage.named_parameters() if p.requires_grad]
        assert all("prefix_encoder.embedding" in name for name in trained)
        found.append(trained)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_a_number_is_dropped_with_the_probability_of_the_original_in_training_only(chatglm: Checkpoint) -> None:
    encoder = encoder_of(PTuning(50).load(chatglm, "32-true"))
    states = encoder.train()(2, torch.float32)
    assert (states == 0).float().mean() == pytest.approx(0.1, abs=0.02)
    assert not torch.equal(states[:, :, 0], states[:, :, 1])
    assert (encoder.eval()(2, torch.float32) == 0).float().mean() == 0


@pytest.mark.parametrize("projection", [False, True])
def test_a_checkpoint_of_the_original_script_loads(chatglm: Checkpoint, projection: bool, tmp_path: Path) -> None:
    """Names and shapes written out, in half precision, beside a tensor that the script's own loader leaves out."""
    config = chatglm.family.network_config
    is_first = chatglm.family.name == "chatglm-6b"
    hidden, layers = config.hidden_size, config.num_hidden_layers
    states = 2 * layers * (hidden if is_first else config.multi_query_group_num * config.kv_channels)
    inputs = hidden if is_first else states
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (LENGTH, inputs if projection else states)}
    if projection:
        shapes |= {"trans.0.weight": (hidden, inputs), "trans.0.bias": (hidden,)}
        shapes |= {"trans.2.weight": (states, hidden), "trans.2.bias": (states,)}
    tensors = {f"transformer.prefix_encoder.{name}": torch.randn(shape).half() for name, shape in shapes.items()}
    torch.save({**tensors, "lm_head.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    tuning = PTuning(adapter=str(tmp_path))
    tuning.check(chatglm)
    assert (tuning.pre_seq_len, tuning.prefix_projection) == (LENGTH, projection)
    loaded = encoder_of(tuning.load(chatglm, "32-true")).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == shapes
    for name, tensor in loaded.items():
        assert torch.equal(tensor, tensors[f"transformer.prefix_encoder.{name}"].float())
    written = tuning.export(tuning.load(chatglm, "32-true"), tmp_path, chatglm)
    again = torch.load(written / "pytorch_model.bin", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in again.items()} == {
        f"transformer.prefix_encoder.{name}": shape for name, shape in shapes.items()
    }
    said = json.loads((written / "config.json").read_text())
    assert (said["pre_seq_len"], said["prefix_projection"]) == (LENGTH, projection)
    with pytest.raises(ConfigError, match="pre_seq_len is 7, but the prefix"):
        PTuning(7, adapter=str(tmp_path)).check(chatglm)


def test_what_is_not_a_prefix_of_the_model_is_refused(
    chatglm: Checkpoint, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    name = "transformer.prefix_encoder.embedding.weight"
    for tensors, said in (
        ({name: torch.zeros(4, 7)}, r"embedding.weight is \[4, 7\], the model needs"),
        ({"x": torch.zeros(1)}, "is not a prefix"),
        ({name: torch.full((4, PrefixSizeOf(chatglm)), torch.nan)}, "NaN"),
    ):
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        with pytest.raises(ConfigError, match=said):
            read_prefix(tmp_path, chatglm)
    with pytest.raises(ConfigError, match="moss has none"):
        PTuning().check(open_checkpoint(tiny("moss")))


def PrefixSizeOf(checkpoint: Checkpoint) -> int:  # noqa: N802
    from lit_sft.tuning._prefix import PrefixSize

    return PrefixSize.of(checkpoint.family, 1).states_size


@pytest.mark.parametrize("projection", [False, True])
def test_memory_counts_the_weights_that_train(chatglm: Checkpoint, projection: bool) -> None:
    tuning: Tuning = PTuning(LENGTH, projection)
    network = tuning.load(chatglm, "32-true")
    plan = Plan(tuning.footprint(chatglm.family.lora_targets))
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert num_trained(measure_network(chatglm.family), plan) == trained


@pytest.mark.slow
def test_a_prefix_trains_resumes_and_answers_in_every_verb(
    tiny: Callable[[str], Path],
    write_config: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options: dict[str, Any] = {
        "checkpoint": str(tiny("chatglm-6b")),
        "tuning": {"class_path": "PTuning", "init_args": {}},
    }
    options["tuning"]["init_args"] = {"pre_seq_len": 4}
    options["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 5.0}}
    config = write_config(model=options)
    assert main(["fit", "--config", config, "--name", "whole"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    losses = {key: held_out_loss(run / "summary.json", key) for key in ("before", "after")}
    assert losses["after"] < losses["before"]

    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert len(stored) == 1
    assert main(["validate", "--run", str(run)]) == 0
    assert measured_loss(run / "validate.json") == pytest.approx(losses["after"], rel=1e-5)
    assert main(["validate", "--run", str(run), "--base", "true"]) == 0
    assert measured_loss(run / "validate-base.json") == pytest.approx(losses["before"], rel=1e-5)

    for base in ("true", "false"):
        assert main(["predict", "--run", str(run), "--base", base]) == 0
    answers = [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 4
    assert main(["compare", "--run", str(run), "--count", "2"]) == 0
    for verb in (["merge"], ["export"]):
        assert main([*verb, "--run", str(run), "--output", str(tmp_path / "merged")]) == 2
        assert "is a prefix" in capsys.readouterr().err

    again = ["--model.init_args.tuning.init_args.adapter", str(run / "prefix"), "--trainer.max_steps", "1"]
    assert main(["fit", "--config", config, "--name", "again", *again]) == 0
    further = held_out_loss(next((tmp_path / "runs").glob("again-*")) / "summary.json", "before")
    assert further == pytest.approx(losses["after"], rel=1e-5)
