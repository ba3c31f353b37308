"""What is counted, as rows of text: the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lit_sft.corpora._base import UNUSED_KEY
from lit_sft.preview.collect import Preview
from lit_sft.preview.statistics import PERCENTILES, SAMPLE, CorpusStatistics


@dataclass(frozen=True)
class Table:
    """Cells under a title; the first column is a name, the others are numbers. `notes` stand below."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def tables(preview: Preview) -> list[Table]:
    """Records, tokens, lengths, and what an epoch makes of them."""
    return [_records(preview), _tokens(preview), _lengths(preview), _epoch(preview)]


def shown_corpora(preview: Preview) -> list[CorpusStatistics]:
    """Each corpus, and all together if there are several."""
    statistics = preview.statistics
    return statistics.corpora if len(statistics.corpora) == 1 else [*statistics.corpora, statistics.total]


def about(value: float, *, is_estimated: bool) -> str:
    """A count; an extrapolated one with three digits and `~`."""
    return f"~{float(f'{value:.3g}'):,.0f}" if is_estimated else f"{value:,.0f}"


def percent(share: float, *, is_estimated: bool) -> str:
    """A share; an extrapolated one with `~`."""
    return f"{'~' * is_estimated}{share:.1%}"


def _records(preview: Preview) -> Table:
    header = ["corpus", "records", "usable", "filtered", "skipped", "repaired", "duplicates", "across corpora"]
    rows = [
        [
            corpus.name,
            *(
                f"{count:,}"
                for count in (
                    corpus.num_records,
                    corpus.num_usable,
                    corpus.num_left_out,
                    corpus.skipped.total(),
                    corpus.repaired.total(),
                    corpus.num_repeats_inside,
                    corpus.num_repeats_across,
                    corpus.num_train,
                    corpus.num_validation,
                )
            ),
        ]
        for corpus in shown_corpora(preview)
    ]
    notes = [
        f"{corpus.name}: {', '.join(parts)}"
        for corpus in preview.statistics.corpora
        if (parts := [*_reasons("skipped", corpus.skipped), *_reasons("repaired", corpus.repaired)])
    ]
    notes += preview.statistics.notes
    split = preview.statistics.split
    notes.append(
        f"{split.num_shared:,} records to train on say what a held-out one says; {split.num_repeats:,} that repeat a "
        f"held-out one {'were dropped' if split.dropped else 'are held out with it'}"
    )
    return Table("Records", [*header, "train", "held out"], rows, notes)


def _tokens(preview: Preview) -> Table:
    header = ["corpus", "examples", "cut", "too long", "tokens", "supervised", "share", "characters/token"]
    rows = []
    notes = []
    for corpus in shown_corpora(preview):
        encoded, rough = corpus.encoded, corpus.is_sampled
        num_unfit = sum(encoded.unfit.values())
        num_examples = corpus.num_train + corpus.num_validation - num_unfit
        counts = (num_examples, sum(encoded.cut.values()), num_unfit, encoded.num_tokens, encoded.num_supervised)
        share = encoded.num_supervised / max(1, encoded.num_tokens)
        rows.append(
            [
                corpus.name,
                *(about(count, is_estimated=rough) for count in counts),
                percent(share, is_estimated=rough),
                f"{'~' * rough}{encoded.characters_per_token:.2f}" if encoded.characters_per_token else "-",
            ]
        )
    for corpus in preview.statistics.corpora:
        parts = [
            f"{about(count, is_estimated=corpus.is_sampled)} {reason}"
            for reason, count in {**corpus.encoded.cut, **corpus.encoded.unfit}.items()
        ]
        if parts:
            notes.append(f"{corpus.name}: {', '.join(parts)}")
    if preview.statistics.total.is_sampled:
        notes.append(f"~ reckoned from {SAMPLE:,} records of each larger corpus, chosen at random")
    title = "; ".join(filter(None, [f"Tokens, of {preview.max_length:,} at most", preview.options]))
    return Table(title, header, rows, notes)


def _lengths(preview: Preview) -> Table:
    header = ["corpus", *(f"p{percentile}" for percentile in PERCENTILES[:-1]), "longest"]
    rows = [
        [
            corpus.name,
            *(f"{'~' * corpus.is_sampled}{length:,}" for length in corpus.encoded.percentiles()),
        ]
        for corpus in shown_corpora(preview)
    ]
    blank = ["-"] * len(PERCENTILES)
    return Table("Tokens of an example", header, [row if len(row) > 1 else [*row, *blank] for row in rows])


def _epoch(preview: Preview) -> Table:
    epoch = preview.statistics.epoch
    rough = epoch.is_sampled
    values = {
        "examples": f"{epoch.num_examples:,}",
        "tokens": about(epoch.num_tokens, is_estimated=rough),
        "micro-batches": about(epoch.num_micro_batches, is_estimated=rough),
        "steps": about(epoch.num_steps, is_estimated=rough),
        "padding": percent(epoch.padding_share, is_estimated=rough),
    }
    if preview.packing:
        values["rows filled"] = percent(epoch.row_fill, is_estimated=rough)
    devices = "1 device" if epoch.num_devices == 1 else f"{epoch.num_devices} devices"
    title = f"An epoch, {devices}, {epoch.accumulation} micro-batch{'es' * (epoch.accumulation > 1)} a step and device"
    return Table(title, ["", *values], [["", *values.values()]])


def _reasons(what: str, counts: Mapping[str, int]) -> Iterable[str]:
    return [
        f"{count:,} {'kept' if reason.startswith(UNUSED_KEY) else what} ({reason})"
        for reason, count in sorted(counts.items())
        if count
    ]
