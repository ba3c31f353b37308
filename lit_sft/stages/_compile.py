"""torch.compile, one decoder block at a time: all blocks share a compilation, and no weight changes its name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from lit_sft.errors import ConfigError
from lit_sft.tuning._base import Tuning


def check_compilation(tuning: Tuning, device: torch.device) -> None:
    """Find out before anything is loaded whether blocks can be compiled.

    Raises:
        ConfigError: If torch.compile cannot read what the tuning puts into them, or has no compiler for the device.
    """
    if reason := tuning.why_not_compiled():
        raise ConfigError(f"model.init_args.compile does not work here. {reason}")
    # torch._inductor takes a second to import, which runs that compile nothing need not spend.
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise ConfigError(
                f"model.init_args.compile needs a C++ compiler on a CPU: {error}. Install g++, name another in the "
                "environment variable CXX, or set compile: false"
            ) from error
    elif device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise ConfigError(
                "model.init_args.compile needs Triton and a GPU that it supports: pip install triton, or set "
                "compile: false"
            )


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compile each block when it is first called, for rows of any number and length.

    Adapters and gradient checkpointing must be in place: they are compiled with the block.
    """
    for block in blocks:
        block.compile(dynamic=True)


def uncompiled() -> AbstractContextManager[None]:
    """While it is open, blocks run as they are written: answers come token by token, with a cache that grows."""
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
