"""Run several verbs in one process, as one of a group whose others do the same: starting a process takes longest."""

import json
import sys
import warnings
from pathlib import Path

from lit_sft.__main__ import main

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    sys.exit(max(main(words) for words in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
