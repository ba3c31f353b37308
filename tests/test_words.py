"""One spelling everywhere, that of the US, which the libraries and papers have; and plain English."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ELSEWHERE = re.compile(
    r"(?<![a-z])(\w*(behaviour|colour|favour|honour|labour|neighbour)\w*"
    r"|(cancell|labell|modell|travell)(ed|ing)|centres?|licences?"
    r"|(\w*(normal|recogn|initial|optim|organ|serial|summar|minim|maxim|token|quant|general|real|special)is)(e|ed|es|ing)"
    r"|analys(e|ed|ing)|artefacts?|catalogues?|grey|programmes?)\b",
    re.IGNORECASE,
)

IS_NO = re.compile(r"(?<!there )(?<!There )\b(is|are) no (?!longer|more|other|such|one\b)")
"""A thing is not a file, rather than no file; that there is no file is well said."""


def lines() -> list[tuple[Path, str]]:
    files = [*(ROOT / "lit_sft").rglob("*.py"), *(ROOT / "cpp" / "src").glob("*"), *(ROOT / "docs").glob("*.md")]
    files += ROOT.glob("*.md")
    assert len(files) > 300
    return [(file, line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_words_are_spelled_as_in_the_us() -> None:
    assert [f"{file.name}: {found[0]}" for file, line in lines() if (found := ELSEWHERE.search(line))] == []


def test_a_thing_is_not_another_rather_than_no_other() -> None:
    assert [f"{file.name}: {line.strip()}" for file, line in lines() if IS_NO.search(line)] == []
