"""Our own messages, and none of the libraries' chatter about things that are as they should be."""

from __future__ import annotations

import logging
import warnings

from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from lit_sft.display import HarmlessFormatter
from lit_sft.distributed.processes import process_rank

CHECKPOINTING = "`is_gradient_checkpointing` is deprecated"  # peft 0.21 on transformers 5.23
HARMLESS_WARNINGS = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",  # lightning 2.6 on torch 2.13
    "LightningCLI's args parameter",
    CHECKPOINTING,
    "Total length of `list` across ranks is zero",  # nothing is held out
    "Be aware that when using `ckpt_path`",  # measuring a run needs no ModelCheckpoint
    "You're resuming from a checkpoint that ended before the epoch ended",  # the data module keeps the position
    "The .grad attribute of a Tensor that is not a leaf",  # torch.compile looks at what a block is given
)


def quieten() -> None:
    """Let the first process speak, and only of what matters."""
    logging.basicConfig(level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(HarmlessFormatter("%(message)s"))
    logging.getLogger("lit_sft").setLevel(logging.ERROR if process_rank() else logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bar()
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def quieten_loading() -> None:
    """No bar and no notice of transformers while a model is loaded."""
    disable_progress_bar()
    set_verbosity_error()
    warnings.filterwarnings("ignore", CHECKPOINTING)
