"""What is measured: real samples expanded to any number of records, and folders that hold the released tokenizers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_sft.corpora._base import Corpus
    from lit_sft.data.sft import SFTData

REPOSITORY = Path(__file__).parents[2]

SHARED = Path(os.environ.get("LIT_SFT_SHARED", REPOSITORY.parent / "shared"))
"""Released sentencepiece models, samples of the corpora and the script that expands them; not ours to ship."""

FORMATS = ("belle", "firefly", "moss", "moss_fnlp", "safety_typical")

CHECKPOINTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chatglm2-6b": (
        "chatglm2.tokenizer.model",
        "tokenizer.model",
        {
            "model_type": "chatglm",
            "_name_or_path": "THUDM/chatglm2-6b",
            "padded_vocab_size": 65024,
            "seq_length": 32768,
        },
    ),
    "chatglm-6b": (
        "ice_text.v11.model",
        "ice_text.model",
        {
            "model_type": "chatglm",
            "position_encoding_2d": True,
            "vocab_size": 130528,
            "max_sequence_length": 2048,
            "bos_token_id": 130004,
            "eos_token_id": 130005,
            "mask_token_id": 130000,
            "gmask_token_id": 130001,
            "pad_token_id": 3,
        },
    ),
}
"""For each family the released tokenizer, its name in a checkpoint folder, and what of config.json is read."""


def expand(shared: Path, layout: str, num_records: int, folder: Path) -> Path:
    """A file of so many different records, made once."""
    file = folder / f"{layout}-{num_records}.json"
    if not file.exists():
        script = [sys.executable, str(shared / "tools" / "expand_samples.py")]
        options = ["--format", layout, "--n", str(num_records), "--out", str(file)]
        subprocess.run([*script, *options], check=True, stderr=subprocess.DEVNULL)
    return file


def write_checkpoint(shared: Path, family: str, folder: Path) -> Path:
    """A folder with the released tokenizer and no weights."""
    source, name, config = CHECKPOINTS[family]
    path = folder / family
    path.mkdir(exist_ok=True)
    shutil.copyfile(shared / "reference" / "tokenizers" / source, path / name)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer_config.json").write_text(json.dumps({"num_image_tokens": 0}))
    return path


def corpus_of(layout: str, file: str) -> Corpus:
    """The corpus class for a file of `expand`."""
    from lit_sft.corpora.belle import Belle
    from lit_sft.corpora.firefly import Firefly
    from lit_sft.corpora.moss_sft import MossSft
    from lit_sft.corpora.safety_prompts import SafetyPrompts

    if layout == "moss_fnlp":
        return MossSft(file, tools="drop")
    classes = {"belle": Belle, "firefly": Firefly, "moss": MossSft, "safety_typical": SafetyPrompts}
    return classes[layout](file)


def open_data(layout: str, file: str, checkpoint: str, cache: str, **options: Any) -> SFTData:
    """The data module as a configuration would make it, with everything to train on."""
    from lit_sft import open_checkpoint
    from lit_sft.data.sft import SFTData

    settings = {"max_length": 2048, "micro_batch_size": 4, "packing": True, "validation_fraction": 0.0, **options}
    return SFTData(open_checkpoint(checkpoint), [corpus_of(layout, file)], cache=cache, **settings)
