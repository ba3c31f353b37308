"""A preview as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from lit_sft.conversation import IGNORE_INDEX
from lit_sft.display import in_columns, visible
from lit_sft.preview.collect import Preview, ShownExample, ShownMicroBatch
from lit_sft.preview.pieces import Piece
from lit_sft.preview.tables import Table, percent, shown_corpora, tables

NUM_BINS = 32
LEVELS = " ▁▂▃▄▅▆▇█"

STRIP = 64
"""Characters that a row of a micro-batch is drawn with."""

MAX_ROWS = 8
MAX_NAMED = 8

SUPERVISED, CONTROL, SUPERVISED_CONTROL, RESET = "\x1b[32m", "\x1b[36m", "\x1b[1;32m", "\x1b[0m"


def render(preview: Preview, *, is_colored: bool, with_ids: bool) -> str:
    """Tables, the first micro-batch, and examples.

    Args:
        preview: What to show.
        is_colored: Mark supervised tokens by color, not by ⟦ ⟧.
        with_ids: List id, label and piece of every token below an example.
    """
    lines = ["", f"What {visible(str(preview.checkpoint))} will see of the data", ""]
    for table in tables(preview):
        lines += [*_table(_with_bars(table, preview)), ""]
    if preview.micro_batch:
        lines += [*_strip(preview.micro_batch), ""]
    legend = "green: carries loss" if is_colored else "⟦carries loss⟧"
    if preview.examples:
        lines += [f"Examples ({legend}, ⟨control token⟩)", ""]
    for example in preview.examples:
        lines += [*_example(example, is_colored=is_colored), *(_ids(example) if with_ids else []), ""]
    return "\n".join(lines)


def marked(pieces: Sequence[Piece], *, is_colored: bool) -> str:
    """The text of an example; line ends are shown, and followed by one."""
    text = ""
    style = ""
    for piece in pieces:
        wanted = _style(piece) if is_colored else SUPERVISED * piece.is_supervised
        if wanted != style:
            text += (RESET * bool(style) + wanted) if is_colored else ("⟦" if wanted else "⟧")
            style = wanted
        said = visible(piece.text)
        # A terminal may show a color to the end of the line; it begins anew on the next.
        line_end = f"⏎{RESET}\n{style}" if is_colored and style else "⏎\n"
        text += f"⟨{said}⟩" if piece.is_control else said.replace("⏎", line_end)
    return text + ((RESET if is_colored else "⟧") if style else "")


def bars(counts: NDArray[Any]) -> str:
    """A histogram in one line; a bin that is not empty is seen, however small."""
    highest = max(1e-9, float(counts.max()))
    return "".join(LEVELS[-(-int(count * 8e6 / highest) // 10**6)] for count in counts.tolist())


def _style(piece: Piece) -> str:
    if piece.is_control:
        return SUPERVISED_CONTROL if piece.is_supervised else CONTROL
    return SUPERVISED * piece.is_supervised


def _with_bars(table: Table, preview: Preview) -> Table:
    if table.header[-1] != "longest":
        return table
    longest = int(preview.statistics.total.encoded.lengths.max(initial=1))
    drawn = [bars(corpus.encoded.histogram(NUM_BINS, longest)) for corpus in shown_corpora(preview)]
    rows = [[*row, bar] for row, bar in zip(table.rows, drawn, strict=True)]
    return replace(table, header=[*table.header, f"1 to {longest:,}".ljust(NUM_BINS)], rows=rows)


def _table(table: Table) -> list[str]:
    rows = [[visible(cell) for cell in row] for row in (table.header, *table.rows)]
    return [table.title, *(f"  {line}" for line in in_columns(rows)), *(f"  {visible(note)}" for note in table.notes)]


def _strip(batch: ShownMicroBatch) -> list[str]:
    columns = batch.num_columns
    title = (
        f"The first micro-batch: {len(batch.rows)} rows of {columns:,} tokens, "
        f"{percent(batch.padding_share, is_estimated=False)} padding (·)"
    )
    lines = [title]
    for row in batch.rows[:MAX_ROWS]:
        edges = [*(round(stretch.start * STRIP / columns) for stretch in row)]
        edges.append(round((row[-1].start + row[-1].num_tokens) * STRIP / columns))
        drawn = "".join("█▒"[n % 2] * (edges[n + 1] - edges[n]) for n in range(len(row)))
        lines.append(f"  {drawn.ljust(STRIP, '·')}  {len(row)} example{'s' * (len(row) > 1)}")
    if len(batch.rows) > MAX_ROWS:
        lines.append(f"  and {len(batch.rows) - MAX_ROWS} more rows")
    lines.append("  in the first row:")
    first = batch.rows[0]
    lines += [f"    {stretch.num_tokens:>6,} tokens  {visible(stretch.source)}" for stretch in first[:MAX_NAMED]]
    if len(first) > MAX_NAMED:
        lines.append(f"    and {len(first) - MAX_NAMED} more")
    return lines


def _example(example: ShownExample, *, is_colored: bool) -> list[str]:
    remark = f", {visible(example.remark)}" if example.remark else ""
    heading = (
        f"  {visible(example.corpus)}  {visible(example.source)}  "
        f"{example.num_tokens:,} tokens, {example.num_supervised:,} carry loss{remark}"
    )
    lines = [heading]
    for part in example.parts:
        lines += [f"    {part.heading}:"] * bool(part.heading)
        indent = " " * (6 if part.heading else 4)
        lines += [indent + line for line in marked(part.pieces, is_colored=is_colored).split("\n")]
    return lines


def _ids(example: ShownExample) -> list[str]:
    lines = [f"    {'id':>8}{'label':>8}  piece"]
    for piece in example.pieces:
        for number, (token, label) in enumerate(zip(piece.ids, piece.labels, strict=True), start=1):
            part = f" {number}/{len(piece.ids)}" if len(piece.ids) > 1 else ""
            shown = f"⟨{visible(piece.text)}⟩" if piece.is_control else visible(piece.text).replace(" ", "␣")
            lines.append(f"    {token:>8}{'-' if label == IGNORE_INDEX else label:>8}  {shown}{part}")
    return lines
