"""The READMEs and the pages of docs/ as tests read them: headings, links, blocks of code, commands."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CHINESE = ".zh-CN.md"

ENGLISH_ONLY = {"private_names.md"}
"""Pages for those who change the code, as CONTRIBUTING.md is."""

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
OWN = re.compile(r"(?:echo (?P<said>\S+) \| )?(?P<launcher>(?:srun|torchrun) .*?)?(?:python )?-m lit_sft (?P<words>.*)")
"""A command line of ours: `echo 你好 | python -m lit_sft chat`, `torchrun ... -m lit_sft fit ...`."""


@dataclass(frozen=True)
class Page:
    """One file in one language."""

    file: Path

    @cached_property
    def text(self) -> str:
        return self.file.read_text(encoding="utf-8")

    @property
    def name(self) -> str:
        return str(self.file.relative_to(ROOT))

    @property
    def twin(self) -> Path:
        """The same page in the other language."""
        name = self.file.name
        other = name.replace(CHINESE, ".md") if name.endswith(CHINESE) else name.replace(".md", CHINESE)
        return self.file.with_name(other)

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """Language and text of each block of code."""
        return BLOCK.findall(self.text)

    @property
    def prose(self) -> str:
        """The text without blocks of code."""
        return BLOCK.sub("", self.text)

    @property
    def spans(self) -> list[str]:
        """What stands in backquotes within lines."""
        return [span.replace("\n", " ") for span in INLINE.findall(self.prose)]

    @property
    def links(self) -> list[str]:
        return LINK.findall(INLINE.sub("", self.prose))

    @property
    def headings(self) -> list[tuple[int, str]]:
        """Level and text."""
        return [(len(marks), text) for marks, text in HEADING.findall(self.prose)]

    @property
    def anchors(self) -> set[str]:
        """As GitHub and the site make them."""
        texts = [INLINE.sub(r"\1", text).lower() for _, text in self.headings]
        return {re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-") for text in texts}

    @property
    def shell(self) -> list[str]:
        """Lines of the blocks of commands, without comments, each one whole."""
        text = "".join(block for language, block in self.blocks if language == "bash").replace("\\\n", " ")
        lines = [re.split(r"\s#", line)[0].strip() for line in text.splitlines() if not line.startswith("#")]
        return [re.sub(r"\s+", " ", line) for line in lines if line]

    @property
    def commands(self) -> list[str]:
        """Command lines of ours, in blocks and in lines."""
        spans = [re.sub(r"\s+", " ", span) for span in self.spans]
        return [match[0] for line in [*self.shell, *spans] if (match := OWN.fullmatch(line))]


PAGES = [Page(file) for file in [*ROOT.glob("README*.md"), *sorted(DOCS.rglob("*.md"))]]
TWINS = [page for page in PAGES if page.file.name not in ENGLISH_ONLY and not page.name.startswith("docs/reference/")]
