"""One spelling everywhere: that of the US, which the libraries and papers have."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ELSEWHERE = re.compile(
    r"\b(\w*(behaviour|colour|favour|honour|labour|neighbour)\w*|(cancell|labell|modell|travell)(ed|ing)|centres?|licences?"
    r"|(\w*(normal|recogn|initial|optim|organ|serial|summar|minim|maxim|token|quant|general|real|special)is)(e|ed|es|ing)"
    r"|analys(e|ed|ing)|artefacts?|catalogues?|grey|programmes?)\b",
    re.IGNORECASE,
)


def test_words_are_spelled_as_in_the_us() -> None:
    files = [*(ROOT / "lit_sft").rglob("*.py"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]
    lines = [(file, line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(files) > 300
    assert [f"{file.name}: {found[0]}" for file, line in lines if (found := ELSEWHERE.search(line))] == []
