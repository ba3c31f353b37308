"""Fine-tune, compare and ship the Chinese open models of 2023 on today's stack.

The public names load on first use: `import lit_sft` costs nothing.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_sft.checkpoint.opening import open_checkpoint
    from lit_sft.conversation import Conversation, Message

__version__ = "0.1.0"
__all__ = ["Conversation", "Message", "open_checkpoint"]

_HOME = {
    "Conversation": "lit_sft.conversation",
    "Message": "lit_sft.conversation",
    "open_checkpoint": "lit_sft.checkpoint.opening",
}

# It misses a kernel that only makes 4 bits on a CPU faster, and tells everybody who imports it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
