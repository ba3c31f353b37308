"""The network of any family as an ONNX graph, traced from its class as it is with fake weights.

Traced are the hidden states alone. Where a layer attends, the graph has a node of our own: an attention function that
is registered with transformers while the network is traced writes it. `assembly.py` puts in its place what knows of
cache and mask, and behind the last norm the head.

Shapes: B rows, S tokens, N heads, K heads of keys, D and E dimensions of a key and a value, H width.
"""

from __future__ import annotations

import logging
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_sft.errors import ConfigError, UserError

if TYPE_CHECKING:
    from lit_sft.families._base import Family

OPSET = 23
"""The first with RMSNormalization and RotaryEmbedding."""

ATTENTION = "lit_sft::Attention"
"""Query [B, N, S, D], key [B, K, S, D], value [B, K, S, E] to [B, S, N, E]."""

IMPLEMENTATION = "lit_sft_graph"
"""Name of the attention function while a network is traced."""

SPECIAL = ("sliding_window", "softcap", "s_aux")
"""What layers of some transformers models ask of their attention, and no exported graph computes."""


class Traced(nn.Module):
    """What is traced: ids and positions [B, S], and where a family asks for it a length [B], to states [B, S, H]."""

    def __init__(self, family: Family, network: Any) -> None:
        super().__init__()
        self.family = family
        self.network = network

    def forward(self, input_ids: Tensor, position_ids: Tensor, prefix_length: Tensor | None = None) -> Tensor:
        """As `Family.traced_hidden_states` has it."""
        return self.family.traced_hidden_states(self.network, input_ids, position_ids, prefix_length)


def trace(family: Family, network: Any, dtype: torch.dtype) -> Any:
    """The graph (onnx_ir.Model), not optimized; its initializers are named `network.` and as the parameters.

    Args:
        family: Of the network.
        network: Its parameters on "meta", its buffers in place. They are fake afterwards.
        dtype: Of weights and arithmetic.

    Raises:
        ConfigError: If a step depends on values of tensors, or a layer asks for what no exported graph computes.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # Dimensions of 0 and 1 would be taken for constants, and equal ones for the same.
    batch, length = 2, 5
    with mode:
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                fake = nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=False)
                setattr(module, name, fake)
        examples = [torch.ones(batch, length, dtype=torch.int64) for _ in range(2)]
        if family.prefix_end_id is not None:
            examples.append(torch.ones(batch, dtype=torch.int64))
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    shapes = tuple(dims if each.ndim == 2 else {0: dims[0]} for each in examples)
    traced = Traced(family, network).eval()
    try:
        with torch.no_grad(), attached(network, _attention), _quiet():
            exported = torch.export.export(traced, tuple(examples), dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(exported, dynamo=True, opset_version=OPSET, optimize=False, verbose=False)
    except UserError:
        raise
    except Exception as error:  # torch has a class of its own for each step that cannot be traced
        raise ConfigError(f"this network cannot be exported: {_place(error)}") from error
    assert program is not None
    attending = sum(f"{node.domain}::{node.op_type}" == ATTENTION for node in program.model.graph)
    num_layers = family.network_config.get_text_config().num_hidden_layers
    if attending != num_layers:
        raise ConfigError(
            f"this network cannot be exported: {attending} of its {num_layers} layers attend through transformers' "
            "attention functions, which is where a graph has its cache"
        )
    return program.model


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer."""
    for name in SPECIAL:
        if kwargs.get(name) is not None:
            raise ConfigError(f"layers of this network ask for {name}, which no exported graph computes")
    batch, heads, length, width = query.shape
    mixed: Tensor = torch.onnx.ops.symbolic(
        ATTENTION,
        (query, key, value),
        {"scale": float(width**-0.5 if scaling is None else scaling)},
        dtype=query.dtype,
        shape=(batch, length, heads, value.shape[-1]),
        version=1,
    )
    return mixed, None


@contextmanager
def attached(network: Any, attention: Any) -> Iterator[None]:
    """While it is open the layers of a network call `attention`."""
    configs = {id(part.config): part.config for part in network.modules() if hasattr(part, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    # The hook of packed rows looks at the values of positions; a graph never sees such rows.
    decoder = network.get_decoder()
    hooks, decoder._forward_pre_hooks = decoder._forward_pre_hooks, OrderedDict()
    ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION] = attention
    try:
        for config in configs.values():
            config._attn_implementation = IMPLEMENTATION
        yield
    finally:
        decoder._forward_pre_hooks = hooks
        for key, config in configs.items():
            config._attn_implementation = before[key]
        del ALL_ATTENTION_FUNCTIONS[IMPLEMENTATION]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of torch about itself, and about packages that nothing here needs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _place(error: BaseException) -> str:
    """The first line of an error, for torch prints whole graphs, and where in the network it was."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = f"{type(error).__name__}: {error}".partition("\n")[0]
    inside = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "families" in frame.filename or "models" in frame.filename
    ]
    return f"{said} ({Path(inside[-1].filename).name}:{inside[-1].lineno})" if inside else said
