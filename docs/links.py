"""A hook of MkDocs: the pages link to each other as files of a repository do; on the site a page is in one language."""

import re
from typing import Any

OTHER_LANGUAGE = re.compile(r"\A(# .+\n\n)\[(?:中文|English)\]\([\w.-]+\)\n\n")
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")
TWIN = re.compile(r"(\]\([\w./-]+)\.zh-CN\.md")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Languages are chosen at the top of the site, and what lies outside of docs/ is named and not linked."""
    markdown = OTHER_LANGUAGE.sub(r"\1", markdown)
    return TWIN.sub(r"\1.md", OUTSIDE.sub(r"`\1`", markdown))
