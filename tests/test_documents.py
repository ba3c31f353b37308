"""README and docs: English and Chinese say the same, and what they point to is there. Nothing is built or run."""

import ast
import re
import shlex
import tomllib
from importlib import import_module
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import CHINESE, DOCS, INLINE, OWN, PAGES, ROOT, TWINS, Page

from lit_sft.configuration import BASE_CLASSES
from lit_sft.display import num_columns
from lit_sft.plugins import discover

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
every_twin = pytest.mark.parametrize("page", TWINS, ids=lambda page: page.name)
ENGLISH = [page for page in TWINS if not page.name.endswith(CHINESE)]
CHINESE_PAGES = [page for page in TWINS if page.name.endswith(CHINESE)]
every_chinese = pytest.mark.parametrize("page", CHINESE_PAGES, ids=lambda page: page.name)
every_english = pytest.mark.parametrize("page", ENGLISH, ids=lambda page: page.name)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WIDTH_ON_GITHUB = 104
"""Columns of a block of code that are seen without scrolling."""
LANGUAGES = {"bash", "cpp", "json", "python", "text", "toml", "yaml"}


@every_english
def test_a_page_has_a_chinese_twin_of_the_same_build(page: Page) -> None:
    twin = Page(page.twin)
    assert twin.file.is_file()
    assert [level for level, _ in twin.headings] == [level for level, _ in page.headings]
    assert [language for language, _ in twin.blocks] == [language for language, _ in page.blocks]
    assert twin.text.count("\n|---") == page.text.count("\n|---")


@every_english
def test_both_languages_have_the_same_commands(page: Page) -> None:
    twin = Page(page.twin)
    assert twin.shell == page.shell
    assert sorted(twin.commands) == sorted(page.commands)
    for language in ("json", "python", "toml", "yaml"):
        here, there = (
            [re.sub(r"\s*#.*", "", text) for found, text in side.blocks if found == language] for side in (page, twin)
        )
        assert here == there


@every_twin
def test_a_page_opens_with_the_way_to_the_other_language(page: Page) -> None:
    name = "English" if page.name.endswith(CHINESE) else "中文"
    opening = "\n".join(page.text.splitlines()[:6])
    assert f"]({page.twin.name})" in opening
    assert name in opening


@every_page
def test_every_link_leads_to_a_file_and_to_a_heading_that_is_there(page: Page) -> None:
    for link in page.links:
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.file.parent / path).resolve() if path else page.file
        assert target.exists(), link
        assert not anchor or anchor in Page(target).anchors, link


@every_twin
def test_a_page_links_to_pages_of_its_own_language(page: Page) -> None:
    pages = [link.partition("#")[0] for link in page.links if link.partition("#")[0].endswith(".md")]
    for link in pages:
        target = (page.file.parent / link).resolve()
        has_twin = any(target in {known.file, known.twin} for known in ENGLISH)
        if has_twin and target != page.twin:
            assert link.endswith(CHINESE) == page.name.endswith(CHINESE), link


@every_page
def test_files_that_a_page_names_exist(page: Page) -> None:
    inside = re.compile(r"(?:lit_sft|configs|experiments|tests|notebooks)/[\w./-]+")
    named = {span for span in page.spans if inside.fullmatch(span)}
    made = {name for name in named if re.search(r"[A-Z]{3,}", name) or name.endswith("results.json")}
    assert [name for name in sorted(named - made) if not any(ROOT.glob(f"{name.rstrip('/')}*"))] == []


@every_page
def test_a_block_of_code_says_its_language(page: Page) -> None:
    assert {language for language, _ in page.blocks} <= LANGUAGES


@every_page
def test_code_in_python_imports_what_there_is(page: Page) -> None:
    for language, text in page.blocks:
        if language != "python":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lit_sft"):
                module = import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def test_a_readme_has_at_most_two_hundred_lines() -> None:
    for readme in ROOT.glob("README*.md"):
        assert len(readme.read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("readme", sorted(ROOT.glob("README*.md")), ids=lambda file: file.name)
def test_no_line_of_code_in_a_readme_is_cut_on_github(readme: Path) -> None:
    lines = [line for _, block in Page(readme).blocks for line in block.splitlines()]
    assert [line for line in lines if num_columns(line) > WIDTH_ON_GITHUB] == []


@pytest.mark.parametrize("readme", sorted(ROOT.glob("README*.md")), ids=lambda file: file.name)
def test_a_readme_leads_to_every_page(readme: Path) -> None:
    language = ".zh-CN" if readme.name.endswith(CHINESE) else ""
    pages = {f"docs/{page.file.stem}{language}.md" for page in ENGLISH if page.file.parent == DOCS}
    assert pages - set(Page(readme).links) == {f"docs/index{language}.md"}


def site() -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """mkdocs.yml names functions of Python."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    settings: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    return settings


def test_every_page_is_in_the_index_and_in_the_navigation_of_the_site() -> None:
    def files(nav: Any) -> list[str]:
        if isinstance(nav, str):
            return [nav]
        return [file for item in (nav.values() if isinstance(nav, dict) else nav) for file in files(item)]

    navigated = files(site()["nav"])
    here = {page.file.name for page in ENGLISH if page.file.parent == DOCS}
    assert {name for name in navigated if "/" not in name} == here
    assert [name for name in navigated if not (DOCS / name).is_file()] == []
    assert here - set(Page(DOCS / "index.md").links) == {"index.md"}


@every_chinese
def test_a_paragraph_of_a_chinese_page_is_one_line(page: Page) -> None:
    """GitHub and browsers show the end of a line as a space, which Chinese does not have between its words."""
    opens_a_block = re.compile(r"$|#|\||>|<|```|\s*(?:[-*+]|\d+\.) ")
    cut = [
        line
        for line, following in pairwise(page.prose.splitlines())
        if line and not line.startswith(("#", "|", "<")) and not opens_a_block.match(following)
    ]
    assert cut == []


@every_chinese
def test_a_chinese_page_has_no_space_between_characters(page: Page) -> None:
    assert re.findall(r"[\u3001-\u9fff\uff00-\uffef] +[\u3001-\u9fff\uff00-\uffef]", INLINE.sub("`", page.prose)) == []


def test_the_site_says_of_code_the_language_that_its_style_asks_for() -> None:
    highlight = next(entry for entry in site()["markdown_extensions"] if "pymdownx.highlight" in entry)
    assert highlight["pymdownx.highlight"] == {"pygments_lang_class": True}
    asked = set(re.findall(r"\.language-(\w+)", (DOCS / "style.css").read_text(encoding="utf-8")))
    assert asked
    assert asked <= LANGUAGES


def test_the_reference_shows_every_class_that_a_configuration_may_name() -> None:
    (options,) = [plugin["mkdocstrings"] for plugin in site()["plugins"] if "mkdocstrings" in plugin]
    filters = options["handlers"]["python"]["options"]["filters"]
    pages = "\n".join(file.read_text(encoding="utf-8") for file in (DOCS / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: ([\w.]+)", pages, re.MULTILINE))
    for member in set(chain(*(discover(*bases).values() for bases in BASE_CLASSES.values()))):
        name = f"{member.__module__}.{member.__name__}"
        assert member.__module__ in shown or name in shown, name
        assert not any(re.search(hidden.removeprefix("!"), member.__name__) for hidden in filters), name


def source() -> str:
    """All texts in the code, with … for what they fill in."""
    texts = []
    for file in (ROOT / "lit_sft").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_every_message_of_the_faq_is_one_of_the_program() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (DOCS / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 20
    said = re.sub(r"…+", "…", source())
    assert [row for row in rows if row.strip(". …") not in said] == []


def test_every_class_of_a_configuration_that_a_page_names_by_a_table_is_there() -> None:
    page = Page(DOCS / "own-data.md")
    from lit_sft.configuration import BASE_CLASSES
    from lit_sft.plugins import discover

    known = discover(*BASE_CLASSES["corpora"])
    table = re.findall(r"^\| `.*\| `(\w+)` \|$", page.text, re.MULTILINE)
    assert len(table) > 5
    assert set(table) <= set(known)


OTHERS = {
    "source .venv/bin/activate",
    "lit_sft --help",
    ".venv/bin/tensorboard --logdir runs",
    ".venv/bin/jupyter lab notebooks",
    "export LIT_SFT_ORT=.venv/lib/python3.11/site-packages/onnxruntime/capi",
    "case $? in 130|137|138|143) scontrol requeue $SLURM_JOB_ID ;; esac",
}
"""Commands of other programs, in which nothing of ours can be wrong."""


def fault_of(line: str) -> str:
    """What is wrong with a command that is not one of the verbs; "" if nothing is."""
    words = shlex.split(line)
    if line in OTHERS or OWN.fullmatch(line):
        return ""
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        return "" if re.search(rf"^{words[1]}:", makefile, re.MULTILINE) else f"no target {words[1]}"
    if words[0] == "python" and words[1].startswith("experiments/"):
        return _unknown_options(words[2:], (ROOT / words[1]).read_text(encoding="utf-8"))
    if words[0].startswith("build/cpp/lit-sft"):
        sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "cpp" / "src").glob("*.cpp"))
        if words[0].endswith("-server"):
            return _unknown_options(words[1:], sources)
        return _unknown_options(words[2:], sources) or ("" if f'"{words[1]}"' in sources else f"no verb {words[1]}")
    if words[0].endswith("pip"):
        asked = {extra for word in words for extra in re.findall(r"^\.\[([\w,]+)\]$", word)}
        unknown = {extra for names in asked for extra in names.split(",")} - set(PROJECT["optional-dependencies"])
        return f"no extra {unknown}" if unknown else ""
    if words[0] == "docker":
        given = re.findall(r"--build-arg (\w+)=", line)
        known = re.findall(r"^ARG (\w+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
        return "" if set(given) <= set(known) else f"no argument {given}"
    if words[0] == "apt-get":
        brought = (ROOT / "cpp" / "packages.sh").read_text(encoding="utf-8")
        return "" if " ".join(words[3:]) in brought else "other packages than cpp/packages.sh brings"
    return "nobody checks it"


def _unknown_options(words: list[str], text: str) -> str:
    options = [word for word in words if word.startswith("--")]
    unknown = [option for option in options if not re.search(f'"(?:--)?{option[2:]}"', text)]
    return f"no option {unknown}" if unknown else ""


def test_commands_of_other_programs_name_what_there_is() -> None:
    lines = {part.strip(): page.name for page in PAGES for line in page.shell for part in line.split("&&")}
    assert len(lines) > 50
    assert {line: fault for line in lines if (fault := fault_of(line))} == {}
    assert fault_of("make nothing")
    assert fault_of("pip install '.[nothing]'")
    assert fault_of("build/cpp/lit-sft chat --nothing")
    assert fault_of("rm -rf /")
