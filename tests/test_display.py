"""Text of people and models is shown, and steers nothing."""

import html
import logging
import re
from collections.abc import Callable
from unicodedata import category

import markdown  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_sft import __main__ as entry
from lit_sft.display import HarmlessFormatter, as_markdown, harmless, in_columns, num_columns, shortened, visible
from lit_sft.errors import ConfigError

ATTACKS = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\u202egpj.exe", "a\rb", "\x08\x08", "\u2066x"]


@pytest.mark.parametrize("text", ATTACKS)
def test_no_escape_reaches_the_terminal_in_an_error(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: list[str]) -> int:
        raise ConfigError(f"data.path: {text} is not a file")

    monkeypatch.setattr(entry, "_run", fail)
    assert entry.main(["fit"]) == 2
    said = capsys.readouterr().err
    assert said.removesuffix("\n").isprintable()
    assert said.count("\n") == 1


def test_no_escape_reaches_the_terminal_in_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(words: list[str]) -> int:
        raise ValueError("".join(ATTACKS))

    monkeypatch.setattr(entry, "_run", fail)
    monkeypatch.setattr(entry, "leave", lambda code: code)
    run: Callable[[list[str]], None] = entry.run_and_leave
    run(["fit"])
    said = capsys.readouterr().err
    assert "ValueError" in said
    assert said == harmless(said)


@pytest.mark.parametrize("text", ATTACKS)
def test_no_escape_reaches_the_terminal_in_the_log(text: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "reading %s", (text,), None)
    assert HarmlessFormatter("%(message)s").format(record).isprintable()


@given(st.text())
def test_visible_text_is_one_line_of_characters(text: str) -> None:
    for shown in (visible(text), shortened(text, 5)):
        assert not [char for char in shown if category(char)[0] == "C" or category(char) in {"Zl", "Zp"}]


@given(st.text())
def test_harmless_text_keeps_lines_and_loses_what_steers(text: str) -> None:
    shown = harmless(text)
    assert shown.count("\n") == text.count("\n")
    assert not any(ord(char) < 32 and char not in "\n\t" for char in shown)
    assert "\x1b" not in shown


MARKED = "# <b>[x](y) `z` | *w* _v_ __u__ ~~t~~ ![i](j) &amp; http://a.b www.a.b a@b.c \\* $x$ {#id}\n---"


@given(st.one_of(st.text(st.sampled_from("#<b>[x](y)`|*_~!&;:/.@\\${}-+=1 \n甲")), st.just(MARKED)))
def test_markdown_is_text(text: str) -> None:
    for before in ("", "| | |\n|---|---|\n| ", "x "):
        page = markdown.markdown(before + as_markdown(text), extensions=["tables", "fenced_code"])
        shown = html.unescape(re.sub(r"</?(p|table|thead|tbody|tr|th|td)( [^>]*)?>", "", page))
        assert "".join(shown.split()).removeprefix(before.strip("| \n-")) == "".join(visible(text).split())


def test_what_is_not_syntax_stays_readable() -> None:
    assert as_markdown("greedy(max_new_tokens=64): 12.5% of e-mails, done!") == (
        "greedy(max_new_tokens=64): 12.5% of e-mails, done!"
    )


def test_columns_stand_beside_chinese_and_accents() -> None:
    rows = [("corpus", "records", ""), ("川菜", "12", "好"), ("cafe\u0301", "1,234", "")]
    assert in_columns(rows, texts=(0, 2)) == ["corpus  records", "川菜         12  好", "cafe\u0301      1,234"]
    assert num_columns("渡船 boat、") == 11
