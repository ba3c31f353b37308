"""Where the processes of a run meet."""

import os
import socket
from pathlib import Path

import pytest

from lit_sft.distributed.processes import LAUNCHED, free_port, launch_environment


def test_a_port_is_free_and_not_one_that_the_kernel_gives_to_whoever_asks() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    port = free_port()
    assert 1024 <= port < max(first, 2048)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", port))


def test_it_is_chosen_for_the_time_of_a_run_unless_a_launcher_has_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*LAUNCHED, "SLURM_JOB_ID", "LSB_JOBID"):
        monkeypatch.delenv(name, raising=False)
    with launch_environment():
        assert int(os.environ["MASTER_PORT"]) > 0
        os.environ |= {"LOCAL_RANK": "0", "NODE_RANK": "0"}  # as Lightning does where it launches others
    assert not {"MASTER_PORT", "LOCAL_RANK", "NODE_RANK"} & os.environ.keys()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with launch_environment():
        assert "MASTER_PORT" not in os.environ
    monkeypatch.setenv("MASTER_PORT", "29500")
    with launch_environment():
        assert os.environ["MASTER_PORT"] == "29500"
    assert os.environ["MASTER_PORT"] == "29500"
