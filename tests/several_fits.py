"""Run several verbs in one process of a group, all of which do the same: starting a process takes longest.

Takes a JSON file: a list of [words of the command, exit code that it must have].
"""

import json
import sys
import warnings
from pathlib import Path

from lit_sft.__main__ import leave, main

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for words, code in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if main(words) != code:
            sys.exit(f"{' '.join(words)}: the exit code is not {code}")
    leave(0)
