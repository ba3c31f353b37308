"""Records become examples in the way of every family, in this process and in others."""

from pathlib import Path

import pytest

from lit_sft import open_checkpoint
from lit_sft.checkpoint.opening import families
from lit_sft.checkpoint.tiny import demo_texts
from lit_sft.corpora.belle import Belle
from lit_sft.data.sft import SFTData
from lit_sft.families._base import TinySize

# A prompt of MOSS begins with some hundred tokens of instructions.
SIZE = TinySize(hidden_size=64, intermediate_size=64, num_layers=1, num_heads=4, vocab_size=1400, context_length=2048)


@pytest.mark.parametrize("family", sorted(families()))
@pytest.mark.parametrize("num_workers", [0, 1])
def test_examples_are_what_the_prompt_format_writes(
    corpus_file: Path, tmp_path: Path, family: str, num_workers: int
) -> None:
    (tmp_path / "model").mkdir()
    families()[family].write_tiny(tmp_path / "model", demo_texts(), SIZE)
    checkpoint = open_checkpoint(tmp_path / "model")
    data = SFTData(
        checkpoint,
        [Belle(str(corpus_file))],
        max_length=checkpoint.context_length,
        micro_batch_size=1,
        packing=False,
        validation_fraction=0.0,
        num_workers=num_workers,
        cache=str(tmp_path / "cache"),
    )
    data.setup("fit")
    (corpus,) = data.prepared.corpora
    for record in range(20):
        written = checkpoint.prompt_format.encode(data.scanned[0].record(record).conversations()[0], data.tokenizer)
        example = corpus.example(record)
        assert list(example.input_ids) == list(written.input_ids)
        assert list(example.labels) == list(written.labels)
    assert sum(len(batch.sources) for batch in data.train_dataloader()) == 20
