"""Run several verbs in one process of a group, all of which do the same: starting a process takes longest.

Takes a JSON file: a list of jobs, each with the words of a command and the exit code of each rank. A job with a port
is one that not all survive: each process runs it in a fork, and the forks meet there.
"""

import json
import os
import signal
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from lit_sft.__main__ import leave, main, run_and_leave

MAX_SECONDS = 60
"""In which a fork must end, by itself or because another did not survive."""


def run(words: list[str], port: int | None) -> int:
    """The exit code of a verb."""
    if port is None:
        return main(words)
    process = os.fork()
    if process == 0:
        # The group of the parents stays as it is, also that of their launcher.
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        os.environ["MASTER_PORT"] = str(port)
        run_and_leave(words)
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"{' '.join(words)} did not end in {MAX_SECONDS} s"))
    signal.alarm(MAX_SECONDS)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    signal.alarm(0)
    return code


def run_all(jobs: list[dict[str, Any]], rank: int) -> None:
    """One after the other, up to the first that does not end as it should."""
    for job in jobs:
        code, expected = run(job["words"], job["port"]), job["codes"][rank]
        if code != expected:
            sys.exit(f"{' '.join(job['words'])}: the exit code is {code}, not {expected}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for module in ("lit_sft.cli.fit", "peft", "bitsandbytes", "torch.utils.tensorboard"):
        import_module(module)  # what forks share
    run_all(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), int(os.environ["RANK"]))
    leave(0)
