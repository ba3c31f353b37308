"""Encoding in the background ends with the process, without a word."""

import subprocess
import sys

import pytest

SCRIPT = """
import time
from types import SimpleNamespace
from lit_sft.data.encoder import Encoder

class Slow(Encoder):
    def _missing(self, selection):
        return [(0, None)] * 400
    def _encode_chunk(self, chunk):
        time.sleep(0.05)

store = SimpleNamespace(append=lambda encoded: None)
encoder = Slow([SimpleNamespace(store=store)], None, num_workers=8, is_first=True)
encoder.begin(None)
time.sleep(0.2)
"""


@pytest.mark.slow
def test_a_process_that_ends_while_workers_encode_says_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr  # torch may find that there are many workers
