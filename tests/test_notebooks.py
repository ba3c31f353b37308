"""The notebooks run from a clean start, and are stored with what they print and draw (notebooks/store.py)."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nbformat
import pytest
import torch

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_EPOCHS = 2
"""Fits need not learn here what they teach there."""

MAX_BYTES = 400_000


def cells_of(file: Path) -> list[Any]:
    return [cell for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_is_stored_with_what_its_cells_print_and_draw(file: Path) -> None:
    cells = cells_of(file)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]  # from a clean start
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert not re.search(r"/tmp/|/home/|/root/|site-packages|Warning", "".join(o.get("text", "") for o in outputs))
    assert file.stat().st_size < MAX_BYTES


@pytest.fixture
def default_dtype() -> Iterator[None]:
    """A notebook may choose another type for all tensors; the tests behind it must not see that."""
    default = torch.get_default_dtype()
    yield
    torch.set_default_dtype(default)


@pytest.mark.slow
@pytest.mark.usefixtures("default_dtype")
@pytest.mark.filterwarnings("default")  # as in a notebook
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: a kernel of its own would import everything again."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    with mpl.rc_context({"backend": "module://matplotlib_inline.backend_inline"}):
        for number, cell in enumerate(cells_of(file)):
            text = re.sub(r"\bepochs=(\d+)", lambda found: f"epochs={min(int(found[1]), MAX_EPOCHS)}", cell.source)
            exec(compile(text, f"{file.name}[{number}]", "exec"), names)
