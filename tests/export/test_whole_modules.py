"""An adapter with whole modules of its own: they take the place of the base's in what is exported."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from goldens import golden_checkpoint
from peft import LoraConfig, get_peft_model

from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import Checkpoint
from lit_sft.errors import ConfigError
from lit_sft.export.folder import Form, Source, weight_store
from lit_sft.export.reference import outputs_of, weights_on_call, with_plain_head
from lit_sft.export.weights import DataFile, stream_weights
from lit_sft.tuning._adapter_loading import place_adapter

ROW = list(range(20, 44))


def adapter_of(checkpoint: Checkpoint, folder: Path, **options: object) -> Path:
    """An adapter on a checkpoint, each of its weights changed."""
    config = LoraConfig(r=4, target_modules=[*checkpoint.family.lora_targets], **options)  # type: ignore[arg-type]
    model = get_peft_model(checkpoint.load_model(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        elif parameter.requires_grad and "lora_" not in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft, while it trains such a one
@pytest.mark.parametrize(
    ("golden", "modules"),
    [
        ("baichuan2-7b", ["embed_tokens", "lm_head"]),  # a head that looks at directions only
        ("chatglm-6b", ["word_embeddings"]),  # tied: the head stays what it was
        ("chatglm-6b", ["lm_head"]),
    ],
)
def test_embedding_and_head_are_those_of_the_adapter(golden: str, modules: list[str], tmp_path: Path) -> None:
    checkpoint = golden_checkpoint(golden)
    adapter = adapter_of(checkpoint, tmp_path / "adapter", modules_to_save=modules)
    adapted = place_adapter(adapter, checkpoint).attach(checkpoint.load_model(), is_trainable=False).eval()
    with torch.no_grad():
        expected = adapted(input_ids=torch.tensor([ROW]), use_cache=False).logits[0]
    with DataFile(tmp_path / "data") as data, DataFile(tmp_path / "original") as original:
        source = Source(checkpoint, [], adapter=adapter)
        store = weight_store(source, data, original, Form().precision(), has_head=True)
        network = stream_weights(checkpoint, store.take).eval()
        with weights_on_call(network, store.as_it_was):
            (merged,) = outputs_of(network, [ROW])
        with_plain_head(network)
        with weights_on_call(network, store.as_exported):
            (exported,) = outputs_of(network, [ROW])
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(exported, expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed", "ignore:Adapter .default.")
def test_biases_of_an_adapter_are_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny("baichuan-7b"))
    adapter = adapter_of(checkpoint, tmp_path / "adapter", lora_bias=True)
    with (
        DataFile(tmp_path / "data") as data,
        DataFile(tmp_path / "original") as original,
        pytest.raises(ConfigError, match="holds biases"),
    ):
        weight_store(Source(checkpoint, [], adapter=adapter), data, original, Form().precision(), has_head=True)
