"""A file that is not what a corpus expects is refused with what to do, and what is sound JSON is read."""

import bz2
import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest
from reading import read, said

from lit_sft.corpora._base import Corpus
from lit_sft.corpora.belle import Belle
from lit_sft.corpora.firefly import Firefly
from lit_sft.corpora.jsonl_chat import JsonlChat
from lit_sft.corpora.moss_sft import MossSft
from lit_sft.corpora.safety_prompts import SafetyPrompts
from lit_sft.data.prompts import read_prompts
from lit_sft.data.scan import scan_corpus
from lit_sft.errors import DataError

CHINESE = '{"instruction": "几点？", "output": "八点。"}\n' * 9
TALK = [{"role": "user", "content": "几点？"}, {"role": "assistant", "content": "八点。"}]
RECORDS: list[tuple[type[Corpus], dict[str, Any]]] = [
    (Belle, {"instruction": "几点？", "output": "八点。"}),
    (Firefly, {"kind": "NLI", "input": "几点？", "target": "八点。"}),
    (JsonlChat, {"messages": TALK}),
    (MossSft, {"conversation": [{"human": "几点？", "assistant": "八点。"}]}),
    (SafetyPrompts, {"prompt": "几点？", "response": "八点。", "type": "x"}),
]
every_corpus = pytest.mark.parametrize(("kind", "record"), RECORDS, ids=lambda value: getattr(value, "__name__", ""))


def refused(kind: type[Corpus], file: Path) -> str:
    with pytest.raises(DataError) as error:
        read(kind(str(file)))
    return str(error.value)


@every_corpus
@pytest.mark.parametrize(("encoding", "name"), [("gb18030", "GB18030"), ("utf-16", "UTF-16")])
def test_another_encoding_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, kind: type[Corpus], record: dict[str, Any], encoding: str, name: str
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding=encoding)
    assert f"Convert it: iconv -f {name} -t UTF-8 {file} > utf8.jsonl" in refused(kind, file)


def test_a_file_of_which_some_records_are_ascii_is_refused_with_the_same_command(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = ['{"instruction": "q", "output": "a"}', '{"instruction": "几点？", "output": "八点。"}']
    file.write_text("".join(line + "\n" for line in lines), encoding="gb18030")
    scanned = scan_corpus("Belle", Belle(str(file)), tmp_path / "cache", num_workers=0)
    with pytest.raises(DataError, match=r"1 of 2 records .* Convert it: iconv -f GB18030 -t UTF-8 .*a.jsonl"):
        scanned.check(0.05)


@every_corpus
@pytest.mark.parametrize("content", ['[["q", "a"],\n ["q", "a"]]', '["q", "a"]', '[[{"x": 1}]]', '["q"]\n["a"]\n'])
def test_records_that_are_not_objects_are_called_what_they_are(
    tmp_path: Path, kind: type[Corpus], record: dict[str, Any], content: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    assert "are lists or texts, not objects. Expected" in refused(kind, tmp_path / "a.json")


@every_corpus
@pytest.mark.parametrize("indent", [None, 2])
def test_every_corpus_reads_an_object_of_arrays(
    tmp_path: Path, kind: type[Corpus], record: dict[str, Any], indent: int | None
) -> None:
    wrapped = {"train": [record, record], "more": [record]}
    (tmp_path / "a.json").write_text(json.dumps(wrapped, ensure_ascii=False, indent=indent), encoding="utf-8")
    conversations, findings = read(kind(str(tmp_path / "a.json")))
    assert [conversation.said() for conversation in conversations] == [conversations[0].said()] * 3
    assert findings == []


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("a.jsonl.gz", gzip.compress(CHINESE.encode("gbk")), "gzip -dc {} | iconv -f GB18030 -t UTF-8 > utf8.jsonl"),
        ("a.jsonl", CHINESE.encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8 {} > utf8.jsonl"),
        ("a.jsonl", CHINESE.encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8 {} > utf8.jsonl"),
        ("a.jsonl", '{"prompt": "q"}'.encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8 {} > utf8.jsonl"),
        ("a.jsonl", CHINESE.encode("utf-32"), "iconv -f UTF-32 -t UTF-8 {} > utf8.jsonl"),
        ("a.bz2", bz2.compress(CHINESE.encode()), "Unpack it: bzip2 -dc {} > a"),
        ("a.xz", lzma.compress(CHINESE.encode()), "Unpack it: xz -dc {} > a"),
        ("a.gz", gzip.compress(gzip.compress(CHINESE.encode())), "Unpack it: gzip -dc {} > a"),
        ("a.pdf", b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", "It is a PDF; give a file of text"),
        ("a.txt", "été à la plage\n".encode("latin-1"), "to UTF-8 with iconv, from the encoding that it is in"),
    ],
)  # fmt: skip
def test_what_is_not_utf_8_is_called_what_it_is(tmp_path: Path, name: str, content: bytes, remedy: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert remedy.format(file) in refused(Belle, file)
    with pytest.raises(DataError, match=re.escape(remedy.format(file))):
        read_prompts(file)


def test_a_key_that_stands_twice_in_a_record_is_refused_unless_both_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"instruction": "q", "output": "a", "output": "b"}\n'
        '{"instruction": "q", "output": "a", "output": "a"}\n'
        '{"instruction": "{\\"q\\": 1, \\"q\\": 2}", "output": "a"}\n'
        '{"instruction": "q", "output": "tab\there", "output": "b"}\n'
        '{"conversations": [{"from": "human", "value": "q", "value": "r"}, {"from": "gpt", "value": "a"}]}\n'
    )
    talks, findings = read(Belle(str(file)))
    assert [said(talk)[0] for talk in talks] == [("user", "q"), ("user", '{"q": 1, "q": 2}')]
    assert findings == [("1", "key-twice"), ("4", "key-twice"), ("5", "key-twice")]
