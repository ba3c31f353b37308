"""Whether model.compile pays: CPU seconds of a step as written and compiled, and of the first compiled step.

Those of this process and of the compilers that it starts, not of a clock: other work on the machine counts less.
"""

import argparse
import os
import statistics
from pathlib import Path

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # in this process
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
}

import torch
from torch.optim import AdamW

from lit_sft.__main__ import main
from lit_sft.conversation import Example
from lit_sft.data.batch import Batch
from lit_sft.data.collate import collate
from lit_sft.stages.sft import SFT
from lit_sft.tuning.full import Full
from lit_sft.tuning.lora import LoRA
from lit_sft.tuning.qlora import QLoRA

SIZES = {
    "0.3 M": {"hidden-size": 64, "intermediate-size": 128, "num-layers": 2, "num-heads": 2},
    "20 M": {"hidden-size": 512, "intermediate-size": 1408, "num-layers": 6, "num-heads": 8},
}
TUNINGS = {"Full": Full, "LoRA": lambda: LoRA(rank=16), "QLoRA": lambda: QLoRA(rank=16)}
NUM_STEPS = {"0.3 M": 40, "20 M": 6}
ROWS, LENGTH, EXAMPLE = 4, 256, 64


def packed_batch(vocabulary: int) -> Batch:
    """Rows of equal examples of random tokens; the second half of each example is supervised."""
    ids = torch.randint(10, vocabulary, (EXAMPLE,)).tolist()
    example = Example(ids, [-100] * (EXAMPLE // 2) + ids[EXAMPLE // 2 :])
    return collate([[example] * (LENGTH // EXAMPLE)] * ROWS, 0)


def measure(model: Path, tuning: str, is_compiled: bool, num_steps: int) -> tuple[float, float]:
    """Seconds of the first step, and the mean of the others: the kernel counts in hundredths."""
    torch._dynamo.reset()
    stage = SFT(checkpoint=str(model), tuning=TUNINGS[tuning](), compile=is_compiled)
    stage.configure_model()
    optimizer = AdamW([p for p in stage.parameters() if p.requires_grad], lr=1e-4)
    torch.manual_seed(0)
    batch = packed_batch(stage.causal_lm.config.vocab_size)
    seconds = []
    for _ in range(num_steps + 1):
        before = sum(os.times()[:4])
        stage(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(sum(os.times()[:4]) - before)
    return seconds[0], statistics.fmean(seconds[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=Path("/tmp/equal_curves"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print("| parameters | tuning | a step | compiled | ratio | the first step, compiled |")
    print("|---|---|---:|---:|---:|---:|")
    for size, counts in SIZES.items():
        model = options.work / f"model-{size.replace(' ', '')}"
        if not model.exists():
            main(["tiny", "--output", str(model), *(word for k, v in counts.items() for word in (f"--{k}", str(v)))])
        for tuning in TUNINGS:
            _, plain = measure(model, tuning, False, NUM_STEPS[size])
            first, compiled = measure(model, tuning, True, NUM_STEPS[size])
            print(
                f"| {size} | {tuning} | {plain:.3f} s | {compiled:.3f} s | {plain / compiled:.2f} | {first:.0f} s |",
                flush=True,
            )
