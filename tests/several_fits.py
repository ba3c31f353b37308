"""Run several verbs in one process of a group, all of which do the same: starting a process takes longest.

A job has the words of a command and the exit code of each rank. A job with a port is one that not all survive: each
process runs it in a fork, and the forks meet there.
"""

import os
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lit_sft.__main__ import main, run_and_leave

MAX_SECONDS = 60
"""In which a fork must end, by itself or because another did not survive."""


@dataclass
class Job:
    """Words of a command, the exit code of each rank, and a port if not all ranks survive it."""

    words: list[str]
    codes: Sequence[int]
    port: int | None = None


def run(words: list[str], port: int | None) -> int:
    """The exit code of a verb."""
    if port is None:
        return main(words)
    process = os.fork()
    if process == 0:
        # The group of the parents stays as it is, also that of their launcher.
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
        os.environ["MASTER_PORT"] = str(port)
        use_one_thread()
        run_and_leave(words)
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"{' '.join(words)} did not end in {MAX_SECONDS} s"))
    signal.alarm(MAX_SECONDS)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    signal.alarm(0)
    return code


def use_one_thread() -> None:
    """Also what makes a fork safe: torch replaces its pool of threads at the first call, and two first calls at once of
    threads of its own (ATen's set_num_threads in the backward pass) fail with "Invalid thread pool!".
    """
    torch.set_num_threads(1)


def run_all(jobs: list[Job]) -> None:
    """One after the other, up to the first that does not end as it should."""
    warnings.filterwarnings("ignore")
    use_one_thread()
    for job in jobs:
        code, expected = run(job.words, job.port), job.codes[int(os.environ["RANK"])]
        if code != expected:
            sys.exit(f"{' '.join(job.words)}: the exit code is {code}, not {expected}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def launch(jobs: list[Job], devices: int, nodes: int, host: int, port: int) -> None:
    """What torchrun does on one of the hosts, except that the processes of the group are forks of this one."""
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=devices,
        local_addr=f"127.0.0.{host + 1}",
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{port}",
        run_id="test",
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, run_all)(jobs)
