"""Where the processes of a run meet."""

import os
import socket
from pathlib import Path

import pytest

from lit_sft.distributed.processes import free_port, meeting_port


def test_a_port_is_free_and_not_one_that_the_kernel_gives_to_whoever_asks() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    port = free_port()
    assert 1024 <= port < max(first, 2048)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", port))


def test_it_is_chosen_for_the_time_of_a_run_unless_a_launcher_has_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_PORT", "SLURM_JOB_ID", "LSB_JOBID"):
        monkeypatch.delenv(name, raising=False)
    with meeting_port():
        assert int(os.environ["MASTER_PORT"]) > 0
    assert "MASTER_PORT" not in os.environ
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with meeting_port():
        assert "MASTER_PORT" not in os.environ
    monkeypatch.setenv("MASTER_PORT", "29500")
    with meeting_port():
        assert os.environ["MASTER_PORT"] == "29500"
    assert os.environ["MASTER_PORT"] == "29500"
