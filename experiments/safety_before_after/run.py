"""Makes a tiny model, tunes it on the demo safety prompts, and compares it before and after."""

import os
import shutil
from pathlib import Path

os.chdir(Path(__file__).parents[2])  # the paths of the configuration are those of the repository

from lit_sft.__main__ import main  # noqa: E402

HERE = Path("experiments/safety_before_after")
MODEL = "models/tiny-baichuan-7b"
RUNS = "runs/safety_before_after"

if __name__ == "__main__":
    if not Path(MODEL).exists():
        assert main(["tiny", "--family", "baichuan-7b", "--output", MODEL]) == 0
    shutil.rmtree(RUNS, ignore_errors=True)
    assert main(["fit", "--config", str(HERE / "config.yaml"), "--runs", RUNS]) == 0
    assert main(["compare", "--runs", RUNS, "--output", str(HERE / "report")]) == 0
