"""What is printed reaches any terminal, and nothing ends because nobody reads."""

import os
import subprocess
import sys

import pytest

PRINT = "from lit_sft.streams import steady_streams; steady_streams(); print('你好 ▁ 😀')"
GO_ON = """
import os, sys
from lit_sft.streams import steady_streams
steady_streams()
os.close(int(sys.argv[1]))
for number in range(3):
    print(number, flush=True)
    print(number, file=sys.stderr)
sys.exit(7)
"""


@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", "你好 ▁ 😀"), ("gbk", "你好 ▁ ?"), ("latin-1", "?? ? ?"), ("ascii", "?? ? ?")]
)
def test_characters_that_a_terminal_lacks_are_question_marks(encoding: str, shown: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PRINT], capture_output=True, env=environment, check=True)
    assert done.stdout.decode(encoding).strip() == shown


def test_a_verb_goes_on_when_nobody_reads_what_it_says() -> None:
    reading, writing = os.pipe()
    command = [sys.executable, "-c", GO_ON, str(reading)]
    process = subprocess.Popen(command, stdout=writing, stderr=writing, pass_fds=[reading])
    os.close(reading)
    os.close(writing)
    assert process.wait(timeout=60) == 7


@pytest.mark.parametrize("verb", ["--help", "summary"])
def test_streams_that_the_caller_closed_are_not_a_mistake(verb: str) -> None:
    done = subprocess.run(["/bin/sh", "-c", f'"{sys.executable}" -m lit_sft {verb} --help >&- 2>&-'], check=False)
    assert done.returncode == 0
