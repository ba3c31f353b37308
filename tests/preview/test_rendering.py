"""What a preview looks like in the terminal and as a page, whatever stands in the data."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rankings import judged, ranked, written

from lit_sft import open_checkpoint
from lit_sft.corpora.belle import Belle
from lit_sft.corpora.firefly import Firefly
from lit_sft.data.preference import PreferenceData
from lit_sft.data.sft import SFTData
from lit_sft.preview.collect import Preview, collect
from lit_sft.preview.page import page
from lit_sft.preview.pieces import Piece
from lit_sft.preview.terminal import LEVELS, bars, marked, render

HOSTILE = "</style></span><script>alert(1)</script>&amp;{{ 7 * 7 }}\x9b2J\u202eevil\"'"


def preview_of(folder: Path, corpora: list[tuple[str, str]], tmp_path: Path, *, count: int = 3) -> Preview:
    file = tmp_path / "data.jsonl"
    lines = [json.dumps({"instruction": question, "input": "", "output": answer}) for question, answer in corpora]
    file.write_text("".join(line + "\n" for line in lines))
    checkpoint = open_checkpoint(folder)
    data = SFTData(checkpoint, [Belle(str(file))], max_length=256, micro_batch_size=2, validation_fraction=0.0)
    return collect(data, checkpoint.path, count=count, num_devices=1, accumulation=1)


def piece(text: str, *, is_supervised: bool = False, is_control: bool = False) -> Piece:
    return Piece([1], [1 if is_supervised else -100], text, is_control)


PIECES = [
    piece("问", is_supervised=False),
    piece("\n"),
    piece("<s>", is_control=True),
    piece("答", is_supervised=True),
    piece("\n", is_supervised=True),
    piece("案", is_supervised=True),
    piece("</s>", is_supervised=True, is_control=True),
    piece("再"),
]


def test_supervised_tokens_are_marked_from_their_first_to_their_last() -> None:
    assert marked(PIECES, is_colored=False) == "问⏎\n⟨<s>⟩⟦答⏎\n案⟨</s>⟩⟧再"


def test_colours_end_with_every_line_and_begin_anew() -> None:
    colored = marked(PIECES, is_colored=True)
    assert colored == ("问⏎\n\x1b[36m⟨<s>⟩\x1b[0m\x1b[32m答⏎\x1b[0m\n\x1b[32m案\x1b[0m\x1b[1;32m⟨</s>⟩\x1b[0m再")
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == marked(PIECES, is_colored=False).translate(
        dict.fromkeys(map(ord, "⟦⟧"))
    )


def test_a_histogram_shows_every_bin_that_is_not_empty() -> None:
    import numpy as np

    assert bars(np.array([0, 1, 1000, 500])) == " ▁█▄"
    assert bars(np.zeros(3)) == LEVELS[0] * 3


def test_the_text_of_an_example_is_that_of_the_record(tiny_folder: Path, tmp_path: Path) -> None:
    text = render(preview_of(tiny_folder, [("一加一？", "等于二。")], tmp_path), is_colored=False, with_ids=False)
    assert "一加一？" in text
    assert "⟦ 等于二。⟨</s>⟩⟧" in text


def test_ids_and_labels_are_listed_on_request(tiny_folder: Path, tmp_path: Path) -> None:
    preview = preview_of(tiny_folder, [("一加一？", "等于🦙。")], tmp_path)
    lines = render(preview, is_colored=False, with_ids=True).splitlines()
    example = preview.examples[0]
    rows = [line.split() for line in lines[lines.index(f"    {'id':>8}{'label':>8}  piece") + 1 :] if line.strip()]
    assert [int(row[0]) for row in rows] == [token for piece in example.pieces for token in piece.ids]
    assert sum(row[1] != "-" for row in rows) == example.num_supervised
    assert ["🦙", "1/4"] in [row[2:] for row in rows]
    assert rows[-1] == ["2", "2", "⟨</s>⟩"]


def pairs_preview(folder: Path, tmp_path: Path, records: list[dict[str, Any]]) -> Preview:
    checkpoint = open_checkpoint(folder)
    corpus = written(tmp_path / "pairs.jsonl", records)
    data = PreferenceData(checkpoint, [corpus], max_length=128, micro_batch_size=2, validation_fraction=0.0)
    return collect(data, checkpoint.path, count=3, num_devices=1, accumulation=1)


def test_answers_are_shown_behind_one_prompt_each_under_its_rank(tiny_folder: Path, tmp_path: Path) -> None:
    preview = pairs_preview(tiny_folder, tmp_path, [ranked("一加一？", "等于二。", "不知道。", margin=0.5)])
    text = render(preview, is_colored=False, with_ids=False)
    assert text.count("一加一？") == 1
    shown = [line.strip() for line in text[text.index("the prompt") :].splitlines() if line.strip()]
    assert shown[0] == "the prompt, before each answer:"
    assert shown[-4:] == [
        "answer 1 of 2, better than the next by 0.5:",
        "⟦ 等于二。⟨</s>⟩⟧",
        "answer 2 of 2:",
        "⟦ 不知道。⟨</s>⟩⟧",
    ]
    assert "1 pair, the longer answer is the better one in 0%" in text
    (example,) = preview.examples
    assert f"{example.num_tokens} tokens, {example.num_supervised} carry loss" in text
    assert example.num_supervised == sum(len(piece.ids) for part in example.parts[1:] for piece in part.pieces)
    html = page(preview)
    assert html.count('<div class="text"') == 3
    assert "answer 2 of 2" in html


def test_a_judged_answer_is_shown_with_its_verdict(tiny_folder: Path, tmp_path: Path) -> None:
    text = render(
        pairs_preview(tiny_folder, tmp_path, [judged("一加一？", "等于三。", good=False)]),
        is_colored=False,
        with_ids=False,
    )
    assert "an answer that is bad:" in text
    assert "⟦ 等于三。⟨</s>⟩⟧" in text


@pytest.mark.parametrize("is_colored", [False, True])
def test_nothing_in_a_record_reaches_the_terminal_raw(tiny_folder: Path, tmp_path: Path, is_colored: bool) -> None:
    preview = preview_of(tiny_folder, [(HOSTILE, HOSTILE)], tmp_path)
    text = render(preview, is_colored=is_colored, with_ids=True)
    left = re.sub(r"\x1b\[(0|32|36|1;32)m", "", text) if is_colored else text
    assert all(char.isprintable() or char == "\n" for char in left)


class Reader(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


def test_nothing_in_a_record_becomes_part_of_the_page(tiny_folder: Path, tmp_path: Path) -> None:
    html = page(preview_of(tiny_folder, [(HOSTILE, HOSTILE)], tmp_path))
    reader = read(html)
    assert "script" not in reader.tags
    assert reader.tags.count("style") == html.count("</style>") == 1
    assert {"html", "body", "h1", "table", "svg", "article", "details"} <= set(reader.tags)
    shown = HOSTILE.replace("\x9b", "\\u{9b}").replace("\u202e", "\\u{202e}")
    assert reader.text.count(shown) >= 2
    assert all(char.isprintable() or char == "\n" for char in html)


def test_the_page_asks_for_nothing_from_elsewhere(tiny_folder: Path, tmp_path: Path) -> None:
    html = page(preview_of(tiny_folder, [("问", "答")], tmp_path))
    reader = read(html)
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in reader.attributes}
    assert "url(" not in html
    assert "@import" not in html


def test_the_page_says_what_the_terminal_says(tiny_folder: Path, tmp_path: Path) -> None:
    preview = preview_of(tiny_folder, [(f"问题{i}", f"回答{i}") for i in range(12)], tmp_path, count=2)
    reader = read(page(preview))
    assert len(preview.examples) == 2
    for example in preview.examples:
        assert example.source in reader.text
        hints = [value for name, value in reader.attributes if name == "title"]
        assert all(f"id {token}, " in "".join(map(str, hints)) for piece in example.pieces for token in piece.ids)
    supervised = [value for name, value in reader.attributes if name == "class" and value and "loss" in value.split()]
    num_pieces = sum(piece.is_supervised for example in preview.examples for piece in example.pieces)
    assert len(supervised) == 2 * num_pieces + 1  # in the text, in the list of ids, and in the legend


def test_the_same_seed_shows_the_same_examples(tiny_folder: Path, tmp_path: Path) -> None:
    records = [(f"问题{i}", f"回答{i}") for i in range(40)]
    first, again = (preview_of(tiny_folder, records, tmp_path) for _ in range(2))
    assert [example.source for example in first.examples] == [example.source for example in again.examples]
    assert len(first.examples) == 3


def test_data_of_which_nothing_fits_can_be_looked_at(tiny_folder: Path, tmp_path: Path) -> None:
    preview = preview_of(tiny_folder, [("问" * 300, "答")], tmp_path)
    assert "1 prompt-too-long" in render(preview, is_colored=False, with_ids=False)
    assert "prompt-too-long" in page(preview)


def test_reasons_stand_below_the_table_of_their_corpus(tiny_folder: Path, tmp_path: Path) -> None:
    belle, firefly = tmp_path / "belle.json", tmp_path / "firefly.jsonl"
    belle.write_text('{"instruction": "q", "output": "a"}\n{"instruction": "q", "output": ""}\n')
    firefly.write_text('{"kind": "QA", "input": "q", "target": "a"}\r\n')
    data = SFTData(
        open_checkpoint(tiny_folder),
        [Belle(str(belle)), Firefly(str(firefly))],
        max_length=128,
        validation_fraction=0.0,
        max_bad_fraction=0.5,
    )
    lines = render(
        collect(data, tiny_folder, count=0, num_devices=1, accumulation=1), is_colored=False, with_ids=False
    ).splitlines()
    assert "  Belle: 1 skipped (no-answer)" in lines
    assert "  Firefly: 1 repaired (crlf)" in lines
