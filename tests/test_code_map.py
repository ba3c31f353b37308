"""The maps in the documents show the house as it stands."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    f"{path.name}/" if path.is_dir() else path.name
    for path in (ROOT / "lit_sft").iterdir()
    if (path.is_dir() and any(path.glob("*.py"))) or (path.suffix == ".py" and path.name != "__init__.py")
}


def layers() -> list[str]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    found: list[str] = contracts[0]["layers"]
    return found


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
def test_the_map_of_the_readme_names_every_room_from_the_top_down(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    (drawn,) = re.findall(r"^lit_sft/\n((?:  .+\n)+)", text, re.MULTILINE)
    names = [line.split()[0] for line in drawn.splitlines()]
    assert sorted(names) == sorted(ROOMS)
    rank = {room: place for place, layer in enumerate(layers()) for room in layer.split(" | ")}
    places = [rank[name.rstrip("/").removesuffix(".py")] for name in names]
    assert places == sorted(places), "rooms stand in the order of the import contract"


def test_the_chain_in_contributing_is_the_import_contract() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert "```\n" + "\n".join(layers()) + "\n```" in text


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"])
def test_files_that_the_documents_name_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:lit_sft|configs|experiments|docs|tests)/[\w./-]+)`", text))
    missing = {name for name in named if not (ROOT / name).exists()}
    assert not {name for name in missing if not re.search(r"[A-Z]{3,}|\*", name)}


def test_families_know_nothing_of_each_other() -> None:
    families = ROOT / "lit_sft" / "families"
    rooms = {path.name for path in families.iterdir() if path.is_dir() and not path.name.startswith("_")} - {"shared"}
    assert len(rooms) > 4
    known = {
        f"{file.relative_to(families)} -> {other}"
        for room in rooms | {"shared"}
        for file in (families / room).rglob("*.py")
        for other in re.findall(r"lit_sft\.families\.(\w+)", file.read_text(encoding="utf-8"))
        if other in rooms - {room}
    }
    assert not known
