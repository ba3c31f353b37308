"""Model types of transformers train on the loss of their own logits, packed or not, or they are refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lightning import Callback, Trainer
from torch.optim import SGD

from lit_sft.corpora.belle import Belle
from lit_sft.data.sft import SFTData
from lit_sft.errors import CheckpointError, ConfigError
from lit_sft.families.native.probe import OwnHead, behavior_of
from lit_sft.losses.logprobs import token_log_probs
from lit_sft.stages.schedules import Constant
from lit_sft.stages.sft import SFT
from lit_sft.tuning._base import Tuning
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 1400, "max_position_embeddings": 256, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

PLAIN = ["Llama", "Qwen2", "Mistral"]

SCALED: dict[str, dict[str, Any]] = {
    "Granite": {"logits_scaling": 8.0},
    "GraniteMoe": {"logits_scaling": 4.0, "num_local_experts": 2, "num_experts_per_tok": 1},
    "Cohere": {"logit_scale": 0.0625},
    "Cohere2": {"logit_scale": 0.25},
    "Gemma2": {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "HyperCLOVAX": {"logits_scaling": 3.0},
    "NanoChat": {"final_logit_softcapping": 2.0},
}

MIXING: dict[str, dict[str, Any]] = {
    "Bloom": {"n_layer": 2, "n_head": 4},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "Mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
}


def network_of(name: str, **options: Any) -> Any:
    config = getattr(transformers, f"{name}Config")(**SIZES, **options)
    network = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)  # small random weights hide what a model does
    return network


@pytest.fixture
def folder_of(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny checkpoint of a model type, with the tokenizer of the tiny Llama."""

    def write(name: str, **options: Any) -> Path:
        folder = Path(shutil.copytree(tiny("native"), tmp_path / name))
        (folder / "model.safetensors").unlink()
        network_of(name, **options).save_pretrained(folder)
        return folder

    return write


class Watch(Callback):
    """Keeps the first batch, the loss that the network itself has for it, and the gradients that training makes."""

    def __init__(self) -> None:
        self.expected = 0.0
        self.wanted: dict[str, torch.Tensor] = {}
        self.found: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: SFT, batch: Any, *args: Any) -> None:  # type: ignore[override]
        network = pl_module.causal_lm
        losses = []
        for row, ids in enumerate(batch.input_ids):
            starts = [0] if batch.position_ids is None else (batch.position_ids[row] == 0).nonzero()[:, 0].tolist()
            for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
                logits = network(input_ids=ids[None, start:end], use_cache=False).logits[0, :-1]
                labels = batch.labels[row, start + 1 : end]
                losses.append(torch.nn.functional.cross_entropy(logits.float(), labels, reduction="sum"))
        num_supervised = int((batch.labels[:, 1:] != -100).sum())
        loss = torch.stack(losses).sum()
        trained = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(loss, [*trained.values()], allow_unused=True)
        self.wanted = {
            name: gradient / num_supervised
            for name, gradient in zip(trained, gradients, strict=True)
            if gradient is not None
        }
        self.expected = float(loss.detach()) / num_supervised

    def on_train_batch_end(self, trainer: Trainer, pl_module: SFT, *args: Any) -> None:  # type: ignore[override]
        self.found = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.json"
    answers = ["好", "青榆镇在银镜湖的东岸。", "一二三四五", "8"]
    lines = [f'{{"instruction": "问题{i}", "input": "", "output": "{answer}"}}' for i, answer in enumerate(answers)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def fit(folder: Path, corpus: Path, *, packing: bool, tuning: Tuning | None = None) -> tuple[float, Watch]:
    stage = SFT(
        checkpoint=str(folder), tuning=tuning or Full(), schedule=Constant(0.0), optimizer=lambda p: SGD(p, lr=0.0)
    )
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_steps=1,
        enable_model_summary=False, limit_val_batches=0, default_root_dir=folder, callbacks=[watch],
    )  # fmt: skip
    data = SFTData(
        stage.checkpoint, [Belle(str(corpus))], max_length=128, micro_batch_size=2, validation_fraction=0.0,
        packing=packing,
    )  # fmt: skip
    trainer.fit(stage, data)
    return float(trainer.callback_metrics["train/loss"]), watch


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("tuning", [Full(), LoRA(rank=2)], ids=["full", "lora"])
def test_a_model_that_scales_or_caps_its_logits_trains_on_the_loss_of_its_own(
    folder_of: Callable[..., Path], corpus: Path, name: str, tuning: Tuning
) -> None:
    loss, watch = fit(folder_of(name, **SCALED[name]), corpus, packing=False, tuning=tuning)
    assert loss == pytest.approx(watch.expected, rel=1e-4)
    assert watch.found.keys() == watch.wanted.keys()
    for parameter, gradient in watch.found.items():
        torch.testing.assert_close(gradient, watch.wanted[parameter], rtol=1e-3, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", ["Llama", *SCALED])
@pytest.mark.parametrize("is_trained", [True, False])
def test_log_probabilities_and_their_gradients_are_those_of_its_own_logits(name: str, is_trained: bool) -> None:
    network = network_of(name, **SCALED.get(name, {}))
    network.lm_head.requires_grad_(is_trained)  # in some it is the embedding
    head = behavior_of(network).head(network)
    ids, weights = torch.randint(3, 1400, (1, 9)), torch.randn(8)
    hidden = network.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    found = token_log_probs(hidden, ids[0, 1:], head, temperature=0.7, chunk_size=5).logps
    logits = network(input_ids=ids, use_cache=False).logits[0, :-1]
    expected = (logits / 0.7).log_softmax(1).gather(1, ids[0, 1:, None]).squeeze(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    wanted_of = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for one, other in zip(
        torch.autograd.grad((weights * found).sum(), wanted_of, allow_unused=True),
        torch.autograd.grad((weights * expected).sum(), wanted_of, allow_unused=True),
        strict=True,
    ):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*PLAIN, "Gemma2", "Granite"])
def test_packed_rows_have_loss_and_gradients_of_the_examples_alone(
    folder_of: Callable[..., Path], corpus: Path, name: str
) -> None:
    loss, watch = fit(folder_of(name, **SCALED.get(name, {})), corpus, packing=True)
    assert loss == pytest.approx(watch.expected, rel=1e-4)
    for parameter, gradient in watch.wanted.items():
        torch.testing.assert_close(watch.found[parameter], gradient, rtol=1e-3, atol=1e-5, msg=parameter)


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_head_stays_the_linear_layer_that_it_is(name: str) -> None:
    network = network_of(name)
    assert behavior_of(network).head(network) is network.lm_head
    assert not behavior_of(network).mixing


def test_a_cap_is_found_where_small_random_logits_do_not_reach_it() -> None:
    network = network_of("Gemma2", query_pre_attn_scalar=8, final_logit_softcapping=30.0)
    with torch.no_grad():
        network.model.embed_tokens.weight.mul_(1e-3)
    assert behavior_of(network).head is OwnHead


@pytest.mark.parametrize("name", MIXING)
def test_packing_is_refused_where_examples_see_each_other(
    folder_of: Callable[..., Path], corpus: Path, name: str
) -> None:
    folder = folder_of(name, **MIXING[name])
    with pytest.raises(ConfigError, match="packed examples see each other.*packing: false"):
        fit(folder, corpus, packing=True)
    loss, watch = fit(folder, corpus, packing=False)
    assert loss == pytest.approx(watch.expected, rel=1e-4)


def test_logits_that_are_not_a_function_of_the_last_hidden_states_are_refused() -> None:
    network = network_of("Llama")

    def add_ids(module: Any, args: Any, kwargs: dict[str, torch.Tensor], output: Any) -> Any:
        output.logits = output.logits + kwargs["input_ids"][..., None]
        return output

    network.register_forward_hook(add_ids, with_kwargs=True)
    with pytest.raises(CheckpointError, match=r"llama cannot be trained.* differ .*%"):
        behavior_of(network)


def test_training_behind_a_head_of_its_own_leaves_the_decoder_as_it_was() -> None:
    network = network_of("Granite", logits_scaling=8.0)
    hidden = torch.randn(3, 32)
    torch.testing.assert_close(OwnHead(network)(hidden), network.lm_head(hidden) / 8)
    assert "forward" not in vars(network.model)
    assert [*OwnHead(network).parameters()] == [network.lm_head.weight]
