"""The file of an interrupted `predict`, which goes on from it: a header, then a line for each prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_sft.errors import ConfigError
from lit_sft.files import is_regular, whole_file
from lit_sft.runs.lock import lock

HEADER = "answers_depend_on"
ELSEWHERE = "Write elsewhere with --predictions.path"
REMEDY = "Delete it to begin anew, or write elsewhere with --predictions.path"
ROW = {"source", "prompt", "answer"}
"""Keys of every row that `predict` writes."""


class AnsweredPrompts:
    """The rows of the prompts that are answered, in the order in which they were; one process at a time has the file.

    A line that was torn when its process was killed is cut off, so that its prompt is answered again.

    Args:
        path: The file; it need not exist.
        settings: All that the answers depend on.

    Raises:
        ConfigError: If the file holds answers under other settings, or none of ours, or another process is at work.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.numbers: set[int] = set()
        """Of the prompts that are answered."""
        if (path.exists() and not is_regular(path)) or path.is_symlink():
            raise ConfigError(f"{path} is not a regular file, and is left as it is. {ELSEWHERE}")
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise ConfigError(f"predictions.path: {path} cannot be written: {error.strerror}") from None
        try:
            lock(self._file, f"{path}. Wait until it has ended, or write elsewhere with --predictions.path")
            self._take_up(json.loads(json.dumps(settings, default=str)))
        except BaseException:
            self._file.close()
            raise

    def add(self, rows_of: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
        """Append the rows of each prompt, by its number; what is written survives the process."""
        lines = (_line({"number": number, "rows": rows}) for number, rows in rows_of.items())
        self._file.write(b"".join(lines))
        self._file.flush()
        self.numbers |= rows_of.keys()

    def finish(self, path: Path) -> list[dict[str, Any]]:
        """Write all rows in the order of the prompts under their final name; these rows."""
        rows_of = {line["number"]: line["rows"] for _, line in self._whole_lines() if "rows" in line}
        rows = [row for number in sorted(rows_of) for row in rows_of[number]]
        refuse_foreign(path)
        with whole_file(path) as partial:
            partial.write_bytes(b"".join(map(_line, rows)))
        self.path.unlink()
        self._file.close()
        return rows

    def close(self) -> None:
        """Leave the file to another process; without an answer there is none to leave."""
        if not self._file.closed and not self.numbers:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _take_up(self, settings: dict[str, Any]) -> None:
        lines = list(self._whole_lines())
        stored = lines[0][1].get(HEADER) if lines else None
        is_empty = not self.path.stat().st_size
        if not (is_empty or (isinstance(stored, dict) and all(_is_answer(line) for _, line in lines[1:]))):
            raise ConfigError(f"{self.path} is not a file of an interrupted predict, and is left as it is. {REMEDY}")
        stored = stored or {}
        self.numbers = {line["number"] for _, line in lines[1:]}
        if stored != settings and self.numbers:
            differing = ", ".join(sorted(key for key in {*stored, *settings} if stored.get(key) != settings.get(key)))
            raise ConfigError(
                f"{self.path} holds {len(self.numbers)} prompts that an interrupted predict answered with other "
                f"{differing}. To go on give it what it was begun with. {REMEDY}"
            )
        end = lines[-1][0] if lines else 0
        self._file.truncate(end if self.numbers else 0)
        if not self.numbers:
            self._file.write(_line({HEADER: settings}))
            self._file.flush()

    def _whole_lines(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each line up to the first that is torn, and where it ends."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            try:
                content = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(content, dict):
                return
            end += len(line)
            yield end, content


def refuse_foreign(path: Path) -> None:
    """Refuse to replace what `predict` did not write.

    Raises:
        ConfigError: If there is something else under this name.
    """
    if path.is_symlink() or (path.exists() and not is_regular(path)):
        raise ConfigError(f"predictions.path {path} is not a regular file, and is left as it is. {ELSEWHERE}")
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        try:
            row = json.loads(file.readline())
        except ValueError:
            row = None
    if not isinstance(row, dict) or not row.keys() >= ROW:
        raise ConfigError(
            f"predictions.path {path} holds something else than predictions, and is left as it is. {ELSEWHERE}"
        )


def _is_answer(line: dict[str, Any]) -> bool:
    rows = line.get("rows")
    return isinstance(line.get("number"), int) and isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _line(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"
