"""The folder of an evaluation: what was answered so far, so that one that was interrupted goes on.

settings.json    all that decides about the answers
answers.jsonl    a line for each question
results.json     scores, once all are answered; table.txt the same to read
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_sft.errors import ConfigError
from lit_sft.files import read_object, write_json, write_text

SETTINGS = "settings.json"
ANSWERS = "answers.jsonl"


class Store:
    """Answers by key, on disk as soon as they are given.

    Args:
        folder: Where; made if it is not there.
        settings: All that decides about the answers.

    Raises:
        ConfigError: If the folder holds something else, or what it holds is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        file = folder / SETTINGS
        if file.is_file():
            found = read_object(file)
            if other := [key for key in {*found, *settings} if found.get(key) != settings.get(key)]:
                raise ConfigError(
                    f"{folder} holds an evaluation with {other[0]} {found.get(other[0])!r}, not "
                    f"{settings.get(other[0])!r}. Give another --output, or remove it"
                )
            self._take_up()
        elif folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds something else than an evaluation. Give another --output")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(file, settings)

    def _take_up(self) -> None:
        """What was answered before; a line that was torn when the process died is answered again."""
        file = self.folder / ANSWERS
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):
            file.write_bytes(b"".join(whole))
        try:
            self._keep(map(json.loads, whole))
        except (ValueError, LookupError, TypeError):
            raise ConfigError(f"{file} is damaged: a line is not an answer. Remove it to begin anew") from None

    def _keep(self, rows: Iterable[dict[str, Any]]) -> None:
        self.rows |= {(row["subject"], row["id"]): row for row in rows}

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Write what was answered; each row has a `subject` and an `id`."""
        with (self.folder / ANSWERS).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self._keep(rows)

    def finish(self, results: dict[str, Any], table: str) -> None:
        """Write the scores."""
        write_json(self.folder / "results.json", results)
        write_text(self.folder / "table.txt", table)
