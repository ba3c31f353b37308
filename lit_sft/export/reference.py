"""The network in torch beside its graph: every weight is read when its layer is called, and forgotten behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def weights_on_call(network: nn.Module, read: Callable[[str], Tensor]) -> Iterator[None]:
    """While it is open each module of the network has its own parameters while it runs, and only then.

    Args:
        network: On "meta", or with fake weights.
        read: Gives a parameter by its name.
    """
    handles: list[Any] = []
    for path, module in network.named_modules():
        names = [name for name, parameter in module._parameters.items() if parameter is not None]
        if not names:
            continue
        before = {name: module._parameters[name] for name in names}

        def put_in(module: nn.Module, *_: Any, path: str = path, names: list[str] = names) -> None:
            for name in names:
                weight = read(f"{path}.{name}" if path else name)
                module._parameters[name] = nn.Parameter(weight, requires_grad=False)

        def take_out(module: nn.Module, *_: Any, before: dict[str, Any] = before) -> None:
            module._parameters.update(before)

        handles += [module.register_forward_pre_hook(put_in), module.register_forward_hook(take_out)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def with_plain_head(network: Any) -> None:
    """A plain linear layer in the place of the head, for weights that are stored as it has them."""
    head = network.get_output_embeddings()
    if type(head) is not nn.Linear or head.weight is network.get_input_embeddings().weight:
        with torch.device("meta"):
            plain = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)
        network.set_output_embeddings(plain)


@torch.no_grad()
def outputs_of(network: Any, rows: Sequence[Sequence[int]], scores: Tensor | None = None) -> list[Tensor]:
    """Logits [T, V] of each row, all rows in one pass; with the weight [1, H] of a head of scores [T]."""
    length = max(map(len, rows))
    ids, mask = (torch.zeros(len(rows), length, dtype=torch.int64) for _ in range(2))
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    if scores is None:
        found: Tensor = network(input_ids=ids, attention_mask=mask, use_cache=False).logits
    else:
        hidden = network.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        found = (hidden.float() @ scores.T)[..., 0]
    return [each[: len(row)].float() for each, row in zip(found, rows, strict=True)]
