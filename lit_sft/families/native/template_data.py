"""A chat template as data, found out by rendering conversations whose messages can be told apart.

Only regular templates can be said so: each message has a text before and behind it that depends on its role alone.
Whether one is, is proven at export with conversations of all kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lit_sft.errors import BadRecord, ConfigError
from lit_sft.families.shared.prompt_pieces import Piece, literal, text, token

Render = Callable[..., str]
"""Messages as (role, content) and whether the assistant must speak -> what the template makes of them."""

IRREGULAR = "the chat template is not regular ({}), so an exported model takes ids only"

SYSTEM, ASKED, ANSWER, ASKED_AGAIN, RESULT = "Qsystemq", "Qaskedq", "Qanswerq", "Qagainq", "Qresultq"


def describe_template(render: Render, end_of_turn: str, controls: dict[str, int], most: int) -> dict[str, Any]:
    """The data of a template.

    Args:
        render: The template.
        end_of_turn: What ends an answer, with a control token at its end.
        controls: Ids of control tokens by their texts.
        most: Tokens of a prompt.

    Raises:
        ConfigError: If it is not regular.
    """
    if not end_of_turn:
        raise ConfigError(IRREGULAR.format("no control token stands behind an answer"))
    first, then = ("user", ASKED), ("assistant", ANSWER)
    try:
        asked = render([first])
        answered = render([first, then])
        again = render([first, then, ("user", ASKED_AGAIN)])
        speak = _behind(render([first], is_prompt=True), asked)
        before_answer, after_answer = _around(_behind(answered, asked), ANSWER)
        before, after = _around(_behind(again, answered), ASKED_AGAIN)
        head = _before(asked, before + ASKED + after)
    except BadRecord as bad:
        raise ConfigError(IRREGULAR.format(bad.reason)) from None
    if not (before_answer + ANSWER).startswith(speak) or not after_answer.startswith(end_of_turn):
        raise ConfigError(IRREGULAR.format("what stands before an answer changes when it is given"))
    start, system = _system(render, head, before + ASKED + after)
    around = partial(_message, render, controls)
    spoken = _pieces(literal(speak), controls)
    answer = [*spoken, *_continued(around("assistant", before_answer[len(speak) :], end_of_turn))]
    refuse, tool = _roles(render, first, then, asked)
    if system is None:
        refuse.append("system-message")
    return {
        "unit": "message",
        "whole": True,
        "derived": True,
        "refuse": refuse,
        "start": _pieces(literal(start), controls),
        "user": around("user", before, after),
        "assistant": [*answer, *_pieces(literal(after_answer[len(end_of_turn) :]), controls)],
        "answered": answer,
        "speak": spoken,
        "fit": {"most": most, "drop": "rounds"},
        **({} if system is None else {"system": around("system", *system[:2])}),
        **({} if system is None or system[2] is None else {"default_system": system[2], "default_unless": "first"}),
        **({} if tool is None else {"tool": around("tool", *tool)}),
    }


def _message(render: Render, controls: dict[str, int], role: str, before: str, after: str) -> list[Piece]:
    """Its pieces, with what stands around it."""
    content = "{stripped}" if _strips(render, role) else "{content}"
    return _pieces(literal(before) + content + literal(after), controls)


def _system(render: Render, head: str, asked: str) -> tuple[str, tuple[str, str, str | None] | None]:
    """What stands before everything; what stands around a system message, and the one that is written if none is."""
    try:
        before, after = _around(_before(render([("system", SYSTEM), ("user", ASKED)]), asked), SYSTEM)
    except BadRecord:
        return head, None
    is_default = head and head.startswith(before) and head.endswith(after) and len(head) >= len(before + after)
    if is_default:
        return "", (before, after, head[len(before) : len(head) - len(after)])
    if not before.startswith(head):
        raise ConfigError(IRREGULAR.format("what stands before everything depends on a system message"))
    return head, (before[len(head) :], after, None)


def _roles(
    render: Render, first: tuple[str, str], then: tuple[str, str], asked: str
) -> tuple[list[str], tuple[str, str] | None]:
    """What the template refuses, and what stands around a message of a tool."""
    refuse = ["assistant-speaks-first"]
    try:
        tool = _around(_behind(render([first, ("tool", RESULT)]), asked), RESULT)
    except BadRecord:
        tool, refuse = None, [*refuse, "tool-message"]
    tried = {"system-message-not-first": [first, then, ("system", SYSTEM)], "roles-not-alternating": [first, first]}
    for name, messages in tried.items():
        try:
            render(messages)
        except BadRecord:
            refuse.append(name)
    return refuse, tool


def _strips(render: Render, role: str) -> bool:
    """Whether blanks at the ends of a message are lost."""
    said, asked = (role, f" {ANSWER}\n"), ("user", ASKED)
    messages = {"user": [said], "system": [said, asked]}.get(role, [asked, said])
    try:
        return said[1] not in render(messages)
    except BadRecord:
        return False


def _pieces(template: str, controls: dict[str, int]) -> list[Piece]:
    """Control tokens by their ids, and the texts between them."""
    found = min(
        ((place, -len(name), name) for name in controls if (place := template.find(literal(name))) >= 0), default=None
    )
    if found is None:
        return [text(template)] if template else []
    place, _, name = found
    rest = _pieces(template[place + len(literal(name)) :], controls)
    return [*([text(template[:place])] if place else []), token(controls[name]), *rest]


def _continued(pieces: list[Piece]) -> list[Piece]:
    """A reply: its text is encoded behind that of the prompt, where that keeps its ids."""
    if pieces and "text" in pieces[0]:
        return [{**pieces[0], "continues": True}, *pieces[1:]]
    return pieces


def _around(rendered: str, content: str) -> tuple[str, str]:
    before, found, after = rendered.partition(content)
    if not found:
        raise BadRecord("a message is changed or left out")
    return before, after


def _behind(rendered: str, before: str) -> str:
    if not rendered.startswith(before):
        raise BadRecord("it changes what stands before a message")
    return rendered[len(before) :]


def _before(rendered: str, after: str) -> str:
    if not rendered.endswith(after):
        raise BadRecord("a first message is written otherwise than a later one")
    return rendered[: len(rendered) - len(after)]
