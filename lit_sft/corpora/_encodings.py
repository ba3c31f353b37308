"""What a file is in that is not UTF-8, and the command that makes text of it."""

from __future__ import annotations

import codecs
from pathlib import Path

from lit_sft.corpora._reading import GZIP, ZSTD, head_of

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, with whose mark it begins
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
UNPACKED_BY = {GZIP: "gzip -dc", ZSTD: "zstd -dc", b"BZh": "bzip2 -dc", b"\xfd7zXZ\x00": "xz -dc"}
"""How content begins -> what writes it unpacked to standard output."""
NO_TEXT = {
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\xd0\xcf\x11\xe0": "a document of Word or Excel",
    b"SQLite format 3": "a database",
    b"\x80\x02": "a pickle",
    b"\x80\x04": "a pickle",
}


def encoding_of(head: bytes) -> str:
    """The encoding of the beginning of a text that is not UTF-8; "" if it is none that Chinese texts are in."""
    for mark, name in MARKS.items():
        if head.startswith(mark):
            return name
    even, odd = head[::2].count(0), head[1::2].count(0)
    if even + odd > len(head) // 50:  # in UTF-16 every ASCII character is a byte beside a zero
        return "UTF-16LE" if odd > even else "UTF-16BE"
    try:
        codecs.getincrementaldecoder("gb18030")().decode(head)
    except UnicodeDecodeError:
        return ""
    return "GB18030"


def remedy_for(file: Path) -> str:
    """What to do with a file that is not UTF-8 text: a sentence without its point."""
    head = head_of(file)
    if what := next((what for mark, what in NO_TEXT.items() if head.startswith(mark)), None):
        return f"It is {what}; give a file of text"
    if unpack := next((unpack for mark, unpack in UNPACKED_BY.items() if head.startswith(mark)), None):
        return f"It is compressed in a way that is not read here. Unpack it: {unpack} {file} > {file.stem}"
    encoding = encoding_of(head)
    if not encoding:
        return f"Convert it to UTF-8 with iconv, from the encoding that it is in: {file}"
    with file.open("rb") as stream:
        packed = stream.read(4)
    convert = f"iconv -f {encoding} -t UTF-8"
    if unpack := next((unpack for mark, unpack in UNPACKED_BY.items() if packed.startswith(mark)), None):
        return f"Convert it: {unpack} {file} | {convert} > utf8{Path(file.stem).suffix}"
    return f"Convert it: {convert} {file} > utf8{file.suffix}"
