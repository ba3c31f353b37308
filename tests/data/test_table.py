"""What preparation found."""

from pathlib import Path

from lit_sft.corpora.belle import Belle
from lit_sft.corpora.firefly import Firefly
from lit_sft.data.prepared import scan_corpora
from lit_sft.data.split import split_corpora
from lit_sft.data.table import preparation_table


def test_every_record_is_in_the_table(tmp_path: Path) -> None:
    belle, firefly = tmp_path / "belle.json", tmp_path / "firefly.jsonl"
    good = '{"instruction": "q", "output": "a"}\n'
    belle.write_text(good + "{\n" + good.replace("\n", "\r\n") + good.replace("q", "p") + "\n", newline="")
    firefly.write_text('{"kind": "NLI", "input": "q", "target": "a"}\n{"kind": "Cot", "input": "x", "target": "a"}\n')
    scanned = scan_corpora([Belle(str(belle)), Firefly(str(firefly), kinds=["NLI"])], tmp_path / "cache", 0)
    split = split_corpora(scanned, 0.0, seed=1, deduplicate=True)
    assert preparation_table(scanned, split, deduplicate=True).splitlines() == [
        "corpus   records  left out  bad  repaired  duplicates  train  validation",
        "Belle          5         0    1         1           1      2           0",
        "Firefly        2         1    0         0           1      0           0",
        "Belle: 1 broken-json",
        "Belle: 1 crlf",
        "Belle: 1 empty-line",
    ]
    split = split_corpora(scanned, 0.0, seed=1, deduplicate=False)
    assert "data.deduplicate: true" in preparation_table(scanned, split, deduplicate=False)
