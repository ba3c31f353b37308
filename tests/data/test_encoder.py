"""Encoding counts records, and in the background it ends with the process, without a word."""

import io
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lit_sft.bars import Lines
from lit_sft.data import encoder as encoding

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


def test_the_bar_counts_records_not_the_room_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(encoding, "bar", lambda **options: Lines(file=shown, **{**options, "delay": 0}))

    class Few(encoding.Encoder):
        def _missing(self, selection: Any) -> list[Any]:
            return [(0, np.arange(256)), (0, np.arange(44))]

        def _encode_chunk(self, chunk: Any) -> Any:
            return chunk

    store: Any = SimpleNamespace(append=lambda encoded: None)
    corpora: Any = [SimpleNamespace(store=store)]
    nothing: Any = None
    Few(corpora, nothing, num_workers=0, is_first=True)._encode_now(nothing, "examples")
    assert "tokenizing examples: 100%" in shown.getvalue()
    assert "300/300" in shown.getvalue()
