"""What preparation found."""

from pathlib import Path

from fakes import LetterText

from lit_sft.corpora.belle import Belle
from lit_sft.corpora.firefly import Firefly
from lit_sft.corpora.jsonl_chat import JsonlChat
from lit_sft.data.prepared import scan_corpora
from lit_sft.data.sft import SFTData
from lit_sft.data.table import preparation_table, unused_keys


def test_every_record_is_in_the_table(tmp_path: Path) -> None:
    belle, firefly = tmp_path / "belle.json", tmp_path / "firefly.jsonl"
    good = '{"instruction": "q", "output": "a"}\n'
    lines = [good, "{\n", good.replace("\n", "\r\n"), good.replace("q", "p"), "\n"]
    lines += [good.replace("q", "q" * 40), good.replace('"a"', '"' + "a" * 40 + '"'), good.replace("}", ', "x": 1}')]
    belle.write_text("".join(lines), newline="")
    firefly.write_text('{"kind": "NLI", "input": "q", "target": "a"}\n{"kind": "Cot", "input": "x", "target": "a"}\n')
    corpora = [Belle(str(belle)), Firefly(str(firefly), kinds=["NLI"])]
    options = {"validation_fraction": 0.0, "max_bad_fraction": 0.5, "deduplicate": True}
    data = SFTData(LetterText(), corpora, max_length=16, **options)  # type: ignore[arg-type]
    data.setup("fit")
    assert preparation_table(data.prepared.corpora, data.split, deduplicate=True).splitlines() == [
        "corpus   records  left out  bad  repaired  duplicates  cut  too long  train  validation",
        "Belle          8         0    1         1           2    1         1      4           0",
        "Firefly        2         1    0         0           1    0         0      0           0",
        "Belle: 1 broken-json",
        "Belle: 1 crlf",
        "Belle: 1 empty-line",
        "Belle: 1 of 4 records reply-cut",
        "Belle: 1 of 4 records do not fit (prompt-too-long)",
    ]
    assert "data.deduplicate: true" in preparation_table(data.prepared.corpora, data.split, deduplicate=False)


def test_a_count_of_what_is_not_all_tokenized_yet_is_marked(tmp_path: Path) -> None:
    (tmp_path / "belle.json").write_text('{"instruction": "q", "output": "a"}\n{"instruction": "p", "output": "a"}\n')
    data = SFTData(LetterText(), [Belle(str(tmp_path / "belle.json"))], max_length=16, validation_fraction=0.0)
    table = preparation_table(data.prepared.corpora, data.split, deduplicate=False).splitlines()
    assert table[1].split() == ["Belle", "2", "0", "0", "0", "0", "0+", "0+", "2", "0"]


def test_a_key_that_nothing_reads_is_shown_once_with_its_first_record(tmp_path: Path) -> None:
    talk = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"%s}]'
    lines = [f'{{"messages": {talk % more}{beside}}}\n' for more, beside in (
        ("", ""), ("", ', "tools": ["t"]'), (', "tool_calls": [1]', ""), ("", ', "tools": ["u"]'),
    )]  # fmt: skip
    (tmp_path / "chat.jsonl").write_text("".join(lines))
    (scanned,) = scan_corpora([JsonlChat(str(tmp_path / "chat.jsonl"))], tmp_path / "cache", 0)
    tools, calls = sorted(unused_keys(scanned), key=lambda line: "tool_calls" in line)
    assert tools.startswith("JsonlChat: 2 records have the key tools, which is not read, the first at ")
    assert 'chat.jsonl:2: "tools": ["t"]} ...' in tools
    assert 'chat.jsonl:3: "tool_calls": [1]}]} ...' in calls
