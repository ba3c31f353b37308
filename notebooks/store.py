"""Run the notebooks and store what they print and draw: python notebooks/store.py [NAME ...]

Progress and notices of libraries on standard error are left out: they tell of a machine, not of the lesson.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def store(file: Path) -> None:
    """Run a notebook from a clean start and write it back with its outputs."""
    notebook = nbformat.read(file, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
        if cell.cell_type == "code":
            cell.outputs = [_without_places(output) for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, file)


def _without_places(output: Any) -> Any:
    """Where programs and temporary folders are is a matter of the machine, too."""
    if "text" in output:
        text = output.text.replace(f"{sys.prefix}/bin/", "")
        output.text = re.sub(rf"{tempfile.gettempdir()}/tmp\w+", "work", text)
    return output


def main() -> None:
    """All, or those named."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for file in [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        print(file.name, flush=True)
        store(file)


if __name__ == "__main__":
    main()
