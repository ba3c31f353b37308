"""Damages corpus files in all the ways that files are damaged, and looks whether every record is read or counted.

Each file holds records with marks of their own, so that a record that is neither in a conversation nor in a record
that was counted as bad is known: a silent loss.
"""

import argparse
import gzip
import json
import random
import resource
import signal
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import zstandard
from layouts import LAYOUTS, Record

from lit_sft.conversation import Conversation, Judged, Preference
from lit_sft.corpora._base import Corpus
from lit_sft.corpora._splitting import MAX_RECORD_BYTES
from lit_sft.data.prompts import read_prompts
from lit_sft.data.scan import scan_corpus
from lit_sft.errors import UserError

MAX_SECONDS = 30
"""Of computing time; more is a hang: the largest file has some MB."""


def in_lines(records: list[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def over_lines(records: list[Record]) -> str:
    return "\n".join(json.dumps(record, ensure_ascii=False, indent=2) for record in records)


def in_arrays(records: list[Record]) -> str:
    half = len(records) // 2
    return json.dumps({"Insult": records[:half], "Privacy": records[half:]}, ensure_ascii=False)


CONTAINERS: dict[str, Callable[[list[Record]], str]] = {
    "lines": in_lines,
    "array": lambda records: json.dumps(records, ensure_ascii=False),
    "array over lines": lambda records: json.dumps(records, ensure_ascii=False, indent=1),
    "objects over lines": over_lines,
    "object of arrays": in_arrays,
}
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data, 1),
    "zstd": lambda data: zstandard.ZstdCompressor(1, write_checksum=True).compress(data),
}

Mutation = Callable[[bytes, random.Random], bytes]


def flipped(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 8, 64])):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def cut_off(data: bytes, chance: random.Random) -> bytes:
    return data[: chance.randrange(1, len(data))]


def stray(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        data = inserted(data, chance.choice([*b'"[]{},:\\\n']).to_bytes(), chance)
    return data


def span_lost(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] + data[start + chance.choice([1, 3, 30, 300, 3000]) :] or b"\n"


def span_twice(data: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    return inserted(data, data[start : start + chance.choice([1, 30, 300, 3000])], chance)


def nested(data: bytes, chance: random.Random) -> bytes:
    opening = chance.choice([b"[", b'{"a":', b'[{"instruction":', b'{"messages":['])
    return inserted(data, opening * chance.choice([10, 900, 1100, 100_000]), chance)


def blown_up(data: bytes, chance: random.Random) -> bytes:
    filling = chance.choice([b" ", b"\n", b"\0", b"9", b'"a",', b"\\", b"\xef\xbb\xbf"])
    # Every empty line and every text in an array is a record that is counted: a million take their time, but they end.
    size = chance.choice([1 << 16, 1 << 17 if filling in (b"\n", b'"a",') else 1 << 21])
    return inserted(data, filling * (size // len(filling)), chance)


def encoded_otherwise(data: bytes, chance: random.Random) -> bytes:
    encoding = chance.choice(["gb18030", "big5", "utf-16", "utf-16-be", "latin-1", "utf-8-sig"])
    start, end = (0, len(data)) if chance.random() < 0.3 else sorted(chance.choices(range(len(data)), k=2))
    other = data[start:end].decode(errors="ignore").encode(encoding, errors="ignore")
    return data[:start] + other + data[end:] or b"\n"


def controlled(data: bytes, chance: random.Random) -> bytes:
    odd = [
        b"\0",
        b"\r\n",
        b"\r",
        b"\x1b[2J",
        "\u2028".encode(),
        b"\xef\xbb\xbf",
        b"\\ud800",
        b"\xc3\x28",
        b"NaN",
        b"\x1a",
    ]
    for _ in range(chance.choice([1, 4])):
        data = inserted(data, chance.choice(odd), chance)
    return data.replace(b"\n", b"\r\n") if chance.random() < 0.2 else data


def inserted(data: bytes, what: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data) + 1)
    return data[:place] + what + data[place:]


MUTATIONS: dict[str, Mutation] = {
    "bytes flipped": flipped,
    "cut off": cut_off,
    "stray characters": stray,
    "a span lost": span_lost,
    "a span twice": span_twice,
    "deep nesting": nested,
    "blown up": blown_up,
    "other encodings": encoded_otherwise,
    "control characters": controlled,
}
PACKED = "compressed bytes"  # damaged, or a bomb


@cache
def bomb(packing: str) -> bytes:
    return PACKINGS[packing](bytes(300 << 20))


class HangError(BaseException):
    """A file takes too long."""


@contextmanager
def limited() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise HangError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@dataclass
class Case:
    """A damaged file: where it stands, how it was made, and its text before it was compressed."""

    file: Path
    name: str
    corpus: type[Corpus]
    text: bytes
    records: list[Record]
    kind: str


def make(number: int, seed: int, folder: Path) -> Case:
    chance = random.Random(f"{seed} {number}")
    layout, container, packing = (chance.choice(list(table)) for table in (LAYOUTS, CONTAINERS, PACKINGS))
    kind = chance.choice([*MUTATIONS, *([PACKED] if packing != "plain" else [])])
    corpus, write = LAYOUTS[layout]
    long = "渡船八点开，末班六点。" * chance.choice([1, 1, 30])
    records = [write(f"q{n:04d}q {{几点?}} {long}", f'a{n:04d}a "八点" {long}') for n in range(chance.choice([3, 30]))]
    text = CONTAINERS[container](records).encode()
    if kind == PACKED:
        data = PACKINGS[packing](text)
        data = (
            data + bomb(packing)
            if chance.random() < 0.1
            else chance.choice([flipped, cut_off, span_lost])(data, chance)
        )
    else:
        text = MUTATIONS[kind](text, chance)
        data = PACKINGS[packing](text)
    file = folder / f"{number}.json"
    file.write_bytes(data)
    return Case(file, f"{number}: {layout}, {container}, {packing}, {kind}", corpus, text, records, kind)


def marks(number: int) -> tuple[str, str]:
    return f"q{number:04d}q", f"a{number:04d}a"


def said(record: Conversation | Preference | Judged) -> str:
    return "\n".join(message.content for talk in record.conversations() for message in talk.messages)


def examine(case: Case, cache_folder: Path) -> list[str]:
    """What is wrong with the reading of a file; raises what the reading raises."""
    found = scan_corpus("fuzz", case.corpus(str(case.file)), cache_folder, num_workers=0)
    scan = found.scan
    talks = [said(found.record(n)) for n in scan.good.tolist()]
    names = [name for name in scan.bad if scan.bad[name]]
    numbers = [n for name in names for n in scan.records_with(name).tolist()]
    bad, sizes = [found.records.read(n) for n in numbers], found.records.sizes()
    # Of a long one only the beginning is kept; the size of a line is that of what is kept.
    has_long = any(max(int(sizes[n]), len(data)) > MAX_RECORD_BYTES for n, data in zip(numbers, bad, strict=True))
    everything_read, everything_bad = "".join(talks), b"\n".join(bad)
    lost = []
    for number in range(len(case.records)):
        left = [mark for mark in marks(number) if mark.encode() in case.text]
        if left and not any(mark in everything_read for mark in left):
            lost.append((number, any(mark.encode() in everything_bad for mark in left)))
    faults = []
    if silent := [number for number, is_counted in lost if not is_counted and not has_long]:
        faults.append(f"silent loss of records {silent}")
    counted = scan.bad.total() + found._num_hidden(names)
    if len(lost) > 2 * counted + 1:
        faults.append(f"understated: {len(lost)} are lost, {counted} counted")
    for talk in talks:
        inside = [n for n in range(len(case.records)) if all(mark in talk for mark in marks(n))]
        if len(inside) > 1:
            faults.append(f"records {inside} are read as one")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="Make and read this file alone, and keep it in the working directory.")
    parser.add_argument(
        "--results", type=Path, default=Path("fuzz_records.jsonl"), help="Outcomes; files that stand here are done."
    )
    options = parser.parse_args()
    if options.only is not None:
        print(attempt(make(options.only, options.seed, Path.cwd())))
        return
    before = options.results.read_text().splitlines() if options.results.exists() else []
    results = [result for line in before if (result := json.loads(line))["seed"] == options.seed]
    done = {result["number"] for result in results}
    with (
        TemporaryDirectory() as name,
        options.results.open("a") as written,
        suppress(KeyboardInterrupt),  # then what was found so far is shown
    ):
        for number in sorted(set(range(options.count)) - done):
            case = make(number, options.seed, Path(name))
            results.append({"seed": options.seed, "number": number, **attempt(case)})
            written.write(json.dumps(results[-1], ensure_ascii=False) + "\n")
            written.flush()
            case.file.unlink()
    show(results)


def attempt(case: Case) -> dict[str, Any]:
    """The outcome of a file, in a cache of its own, and the computing time that it took."""
    since = time.process_time()
    with TemporaryDirectory() as cache_folder:
        outcome = outcome_of(case, Path(cache_folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    seconds = round(time.process_time() - since, 2)
    return {"name": case.name, "kind": case.kind, "outcome": outcome, "seconds": seconds, "peak MiB": peak}


def show(results: list[dict[str, Any]]) -> None:
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        outcomes[result["kind"]][result["outcome"]] += 1
    columns = ["read", "refused", "traceback", "silent loss", "hang"]
    print("|".join(["", "damage", "files", *columns, ""]))
    for kind, counts in [*sorted(outcomes.items()), ("all", sum(outcomes.values(), Counter[str]()))]:
        print("|".join(["", kind, str(counts.total()), *(str(counts[column]) for column in columns), ""]))
    slowest = max(results, key=lambda result: result["seconds"])
    total, peak = sum(result["seconds"] for result in results), max(result["peak MiB"] for result in results)
    print(
        f"{total:.0f} s of computing time, the slowest {slowest['seconds']} s ({slowest['name']}), {peak} MiB at most"
    )


def outcome_of(case: Case, cache_folder: Path) -> str:
    outcome = "read"
    try:
        with limited():
            faults = examine(case, cache_folder)
        if faults:
            print(f"{case.name}: {'; '.join(faults)}")
            outcome = "silent loss"
    except UserError:
        outcome = "refused"
    except HangError:
        print(f"{case.name}: no end after {MAX_SECONDS} s")
        return "hang"
    except Exception:
        print(f"{case.name}:\n{traceback.format_exc()}")
        return "traceback"
    try:
        with limited():
            read_prompts(case.file)
    except UserError:
        pass
    except HangError:
        print(f"{case.name}: as prompts, no end after {MAX_SECONDS} s")
        return "hang"
    except Exception:
        print(f"{case.name}, as prompts:\n{traceback.format_exc()}")
        return "traceback"
    return outcome


if __name__ == "__main__":
    main()
