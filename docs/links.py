"""A hook of MkDocs: the pages link to each other as files of a repository do; on the site a page is in one language.

A browser shows the end of a line as a space, which Chinese does not have between its words.
"""

import re
from typing import Any

CHINESE = ".zh-CN.md"
OTHER_LANGUAGE = re.compile(r"\A(# .+\n\n)\[(?:中文|English)\]\([\w.-]+\)\n\n")
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")
CODE = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
HAN = "[\u3000-\u9fff\uff00-\uffef]"
LINE_END = re.compile(rf"(?<={HAN})\n *(?={HAN})|(?<=[、，。：；）])\n *(?=[\w`(\[])(?!\d+\. )")
TWIN = re.compile(r"(\]\([\w./-]+)\.zh-CN\.md")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Languages are chosen at the top of the site, and what lies outside of docs/ is named and not linked."""
    markdown = OTHER_LANGUAGE.sub(r"\1", markdown)
    prose_and_code = CODE.split(TWIN.sub(r"\1.md", OUTSIDE.sub(r"`\1`", markdown)))
    return "".join(LINE_END.sub("", text) if place % 2 == 0 else text for place, text in enumerate(prose_and_code))
