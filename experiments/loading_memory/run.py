"""Peak memory of loading a checkpoint, as a multiple of the weights' bytes in the type they are loaded in.

    python experiments/loading_memory/run.py              # writes three 1.3 GB checkpoints into a temporary folder
    python experiments/loading_memory/run.py --layers 8   # smaller

Each number comes from a process of its own: (peak resident memory - peak before loading) / bytes of the loaded weights.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CASES = ("float16", "bfloat16", "float32", "nf4", "int8")
READERS = ("lit_sft", "transformers")


def write_checkpoints(root: Path, num_layers: int) -> list[Path]:
    """The Baichuan-7B layout three times: one .bin as released, the same in shards, and as safetensors."""
    import torch
    from safetensors.torch import save_file

    from lit_sft.checkpoint.opening import find_family
    from lit_sft.checkpoint.tiny import demo_texts
    from lit_sft.families._base import TinySize

    size = TinySize(
        # Baichuan-7B at 1/3.2 of its width: with all its layers, one matrix has its real share of the whole.
        hidden_size=1280,
        intermediate_size=3456,
        num_layers=num_layers,
        num_heads=10,
        vocab_size=20000,
        context_length=2048,
    )
    (root / "tiny").mkdir()
    find_family("baichuan-7b").write_tiny(root / "tiny", demo_texts(), TinySize())
    single, sharded, safe = folders = [root / name for name in ("bin", "bin-sharded", "safetensors")]
    for folder in folders:
        folder.mkdir()
    find_family("baichuan-7b").write_tiny(single, demo_texts(), size)
    for folder in (sharded, safe):
        for name in ("config.json", "generation_config.json"):
            (folder / name).write_bytes((single / name).read_bytes())
    state = torch.load(single / "pytorch_model.bin", mmap=True, weights_only=True)
    save_file(state, safe / "model.safetensors", metadata={"format": "pt"})
    names = list(state)
    weight_map = {}
    for number in range(3):
        shard = f"pytorch_model-{number + 1:05}-of-00003.bin"
        part = {name: state[name] for name in names[number::3]}
        # Without clones every shard would hold the whole mapped file.
        torch.save({name: tensor.clone() for name, tensor in part.items()}, sharded / shard)
        weight_map |= dict.fromkeys(part, shard)
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folders


def peak_bytes() -> int:
    # Not getrusage: a child process inherits the maximum of its parent there.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def measure(folder: Path, case: str, reader: str) -> dict[str, float]:
    """Load once in this process; `transformers` loads as the family does, without our reader and checks."""
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

    from lit_sft import open_checkpoint

    quantization = {
        "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
    }.get(case)
    dtype = torch.bfloat16 if quantization else getattr(torch, case)

    def load(path: Path) -> PreTrainedModel:
        checkpoint = open_checkpoint(path)
        loader = checkpoint.load_model if reader == "lit_sft" else checkpoint.family.load_model
        model = loader(dtype=dtype, quantization=quantization)
        for tensor in model.state_dict().values():
            tensor.reshape(-1)[::1024].sum()  # touches every page: what is mapped is not yet read
        return model

    load(folder.parent / "tiny")  # imports and pools are the fixed cost of the process
    before = peak_bytes()
    model = load(folder)
    peak = peak_bytes() - before
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    return {"weights": weights, "peak": peak, "before": before}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "CASE", "READER"))
    arguments = parser.parse_args()
    if arguments.measure:
        folder, case, reader = arguments.measure
        print(json.dumps(measure(Path(folder), case, reader)))
        return
    with tempfile.TemporaryDirectory() as root:
        folders = write_checkpoints(Path(root), arguments.layers)
        print("| layout | loaded as | weights GB | peak GB | peak / weights | transformers alone |")
        print("|---|---|---|---|---|---|")
        for folder in folders:
            for case in CASES:
                found = {}
                for reader in READERS:
                    command = [sys.executable, __file__, "--measure", str(folder), case, reader]
                    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    found[reader] = json.loads(output.splitlines()[-1])
                ours, plain = found["lit_sft"], found["transformers"]
                print(
                    f"| {folder.name} | {case} | {ours['weights'] / 1e9:.2f} | {ours['peak'] / 1e9:.2f} "
                    f"| {ours['peak'] / ours['weights']:.2f} | {plain['peak'] / plain['weights']:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
