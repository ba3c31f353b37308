"""A preview as one page that needs nothing else: no network, no fonts, no scripts."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from lit_sft.conversation import IGNORE_INDEX
from lit_sft.display import visible
from lit_sft.errors import ConfigError
from lit_sft.files import is_regular, write_text
from lit_sft.preview.collect import Preview
from lit_sft.preview.pieces import Piece
from lit_sft.preview.statistics import CorpusStatistics
from lit_sft.preview.tables import about, percent, shown_corpora, tables

MARK = b"<title>What "
"""How a page is told from a file of somebody else, which is never replaced."""

NUM_BINS = 48
WIDTH, HEIGHT = 480, 72
"""Of a histogram, in its own units."""


@dataclass(frozen=True)
class Bar:
    """A bin of a histogram, and what it says when pointed at."""

    x: float
    y: float
    width: float
    height: float
    label: str


def write_page(preview: Preview, file: Path) -> None:
    """Write the page.

    Raises:
        ConfigError: If the file cannot be written.
    """
    if file.is_symlink() or (file.exists() and not is_regular(file)):
        raise ConfigError(f"--html {file} is not a regular file, and is left as it is. Give another")
    if file.exists() and file.stat().st_size and MARK not in file.read_bytes()[:1000]:
        raise ConfigError(f"--html {file} is not a page of preview, and is left as it is. Give another")
    if not file.parent.is_dir():
        raise ConfigError(f"--html {file} cannot be written: No such file or directory")
    try:
        write_text(file, page(preview), errors="replace")
    except OSError as error:
        raise ConfigError(f"--html {file} cannot be written: {error.strerror}") from None


def page(preview: Preview) -> str:
    """The page as HTML; whatever comes from the data is escaped, and shows its control characters as pictures."""
    source = (resources.files("lit_sft.preview") / "page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(visible=visible, lines=_lines, hint=_hint, percent=_percent)
    longest = int(preview.statistics.total.encoded.lengths.max(initial=1))
    return environment.from_string(source).render(
        preview=preview,
        tables=tables(preview),
        histograms=[(corpus.name, _bars(corpus, longest)) for corpus in shown_corpora(preview)],
        longest=longest,
        size=(WIDTH, HEIGHT),
        ignored=IGNORE_INDEX,
    )


def _bars(corpus: CorpusStatistics, longest: int) -> list[Bar]:
    num_bins = min(NUM_BINS, longest)
    counts = corpus.encoded.histogram(num_bins, longest).tolist()
    step, highest = WIDTH / num_bins, max([1e-9, *counts])
    found = []
    for number, count in enumerate(counts):
        if count:
            height = max(1.0, count / highest * HEIGHT)
            first, last = round(number * longest / num_bins) + 1, round((number + 1) * longest / num_bins)
            label = f"{first:,} to {last:,} tokens: {about(count, is_estimated=corpus.is_sampled)}"
            found.append(
                Bar(round(number * step, 2), round(HEIGHT - height, 2), round(step * 0.86, 2), round(height, 2), label)
            )
    return found


def _lines(text: str) -> str:
    """Line ends shown, and followed by one."""
    return visible(text).replace("⏎", "⏎\n")


def _hint(piece: Piece) -> str:
    """What is said of a piece that is pointed at."""
    labels = ["no loss" if label == IGNORE_INDEX else f"label {label}" for label in piece.labels]
    return "; ".join(f"id {token}, {label}" for token, label in zip(piece.ids, labels, strict=True))


def _percent(share: float) -> str:
    return percent(share, is_estimated=False)
