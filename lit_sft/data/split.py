"""The validation split: a function of the text and the seed, so that duplicates never stand on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from lit_sft.conversation import Conversation


def fingerprint(conversation: Conversation, seed: int) -> bytes:
    """Eight bytes that depend on what is said and on the seed, not on the place in the file."""
    digest = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "little", signed=True))
    for message in conversation.messages:
        said = (message.role, message.content, *filter(None, (message.thoughts, message.commands)))
        digest.update("".join(f"{text}\0" for text in said).encode("utf-8", "surrogatepass"))
    return digest.digest()


def split_off(fingerprints: Sequence[bytes], fraction: float) -> tuple[list[int], list[int]]:
    """Indices to train on and indices to validate on.

    The distinct conversations with the smallest fingerprints are held out; records that say the same go together.

    Args:
        fingerprints: One for each record.
        fraction: Share of the distinct conversations to hold out; at least one if it is above zero and there are two.
    """
    distinct = sorted(set(fingerprints))
    num_held_out = round(fraction * len(distinct))
    if fraction > 0 and len(distinct) > 1:
        num_held_out = min(max(num_held_out, 1), len(distinct) - 1)
    held_out = set(distinct[:num_held_out])
    train = [index for index, value in enumerate(fingerprints) if value not in held_out]
    validation = [index for index, value in enumerate(fingerprints) if value in held_out]
    return train, validation
