"""Changes of shape that undo each other leave a graph; what it computes stays the same to the bit.

Shapes: B rows, S tokens, N heads, D dimensions of a head.
"""

from __future__ import annotations

from typing import Any

from lit_sft.export.editing import Editor

SWAP = (0, 2, 1, 3)
"""[B, S, N, D] to [B, N, S, D], and back."""


def simplify(editor: Editor) -> None:
    """Rotate heads where a product leaves them, and drop a shape that is given and taken again."""
    for node in [*editor.graph]:
        if node.op_type == "RotaryEmbedding":
            _rotate_flat(editor, node)
    for node in [*editor.graph]:
        result = node.outputs[0]
        before = _source(result, "Reshape", "Reshape")
        if before is not None and before.shape is not None and before.shape == result.shape:
            editor.replace(node, before)


def _rotate_flat(editor: Editor, node: Any) -> None:
    """A rotation takes [B, N, S, D] or [B, S, N * D]: the first, made of the second and turned back, is replaced."""
    given = node.inputs[0]
    flat = _source(given, "Transpose", "Reshape")
    turned = [user for user, _ in node.outputs[0].uses()]
    if flat is None or flat.shape is None or not all(map(_is_swap, [given.producer(), *turned])):
        return
    batch, num_heads, length, _ = given.shape
    if [*flat.shape[:-1]] != [batch, length]:
        return
    editor.anchor = node
    attributes = {**node.attributes, "num_heads": num_heads}
    rotated = editor.node("RotaryEmbedding", flat, *node.inputs[1:], **attributes)
    rotated.dtype, rotated.shape = flat.dtype, flat.shape
    heads = editor.node("Reshape", rotated, editor.ints([0, 0, num_heads, -1]))
    for each in turned:
        editor.replace(each, heads)


def _is_swap(node: Any) -> bool:
    return node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == SWAP


def _source(value: Any, *operators: str) -> Any:
    """What a value was before these operators, the last first; None if it comes from others."""
    for operator in operators:
        node = value.producer()
        if node is None or node.op_type != operator:
            return None
        value = node.inputs[0]
    return value
