"""LoRA between the modules of the original code, with `W_pack` and the like, and the separate ones of our networks.

Nothing here knows a family: what becomes of a name, and of the rows of a matrix, is read off the table by which its
weights are converted while they load. A layer that is cut along its rows, y = [W1; W2] x, has an update that is cut
alike, B A = [B1; B2] A. So the parts share A, and B, the lengths of rows (DoRA) and biases are cut as the weight is:
exact, for LoRA, rsLoRA (the rank stays) and DoRA (each row has a length of its own). The way back puts the rows
together again; parts whose A differ become blocks, A = [A1; A2] and B block-diagonal.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

from lit_sft.errors import ConfigError
from lit_sft.tuning._adapter_file import ALL_LINEAR

TENSOR = re.compile(
    r"(?P<module>.+?)\."
    r"(?P<kind>lora_(?:A|B)\.weight|lora_B\.bias|lora_embedding_(?:A|B)|lora_magnitude_vector|token_adapter\..+|weight|bias)"
)
SHARED = "lora_A.weight"
"""The one tensor of an adapted layer that has no row for each of its outputs."""


@dataclass(frozen=True)
class Part:
    """A module of the network, and which rows of the original module it holds; all if None."""

    module: str
    rows: torch.Tensor | None


@dataclass(frozen=True)
class Piece:
    """Where a tensor of the network's adapter stands: a tensor of the file, and its rows; all if None."""

    source: str
    rows: torch.Tensor | None

    def shape(self, source: Iterable[int]) -> tuple[int, ...]:
        """Its sizes, given those of the file's tensor."""
        first, *rest = source
        return (first if self.rows is None else len(self.rows), *rest)


def original_modules(network: PreTrainedModel, *, of_forerunner: bool = False) -> dict[str, list[Part]]:
    """The modules of the original code that have weights, and the parts of the network that each became, in order.

    Modules whose weights are converted otherwise than by a cut along the rows are left out.

    Args:
        network: Of the family; may be on "meta".
        of_forerunner: Whether, where a script made the checkpoint of another model, that model's code is meant.
    """
    forerunner = getattr(network, "forerunner_conversions", ()) if of_forerunner else ()
    conversions = [*get_model_conversion_mapping(network, add_legacy=False), *forerunner]
    renamings = [c.reverse_transform() for c in reversed(conversions) if isinstance(c, WeightRenaming)]
    converters = [c for c in reversed(conversions) if isinstance(c, WeightConverter) and len(c.source_patterns) == 1]
    found: dict[str, list[Part]] = {}
    for module, layer in network.named_modules():
        if not isinstance(getattr(layer, "weight", None), torch.Tensor):
            continue
        name, converter = _reversed(f"{module}.weight", converters)
        for renaming in renamings:
            name, _ = renaming.rename_source_key(name)
        original = name.removesuffix(".weight")
        if original not in found:
            found[original] = _parts(network, module, converter) if converter else [Part(module, None)]
    return {original: parts for original, parts in found.items() if parts}


def _reversed(name: str, converters: list[WeightConverter]) -> tuple[str, WeightConverter | None]:
    for converter in converters:
        renamed, matched = converter.reverse_transform().rename_source_key(name)
        if matched:
            return renamed, converter
    return name, None


def _parts(network: PreTrainedModel, module: str, converter: WeightConverter) -> list[Part]:
    """Convert a matrix of numbered entries, and see where its rows go; no parts if they do not stay rows."""
    targets = converter.target_patterns
    weight = f"{module}.weight"
    matched = next((target for target in targets if target in weight), None)
    if matched is None or len(targets) == 1:
        return []
    names = [weight.replace(matched, target) for target in targets]
    num_rows = sum(network.get_parameter(name).shape[0] for name in names)
    found: dict[str, Any] = {converter.source_patterns[0]: torch.arange(2 * num_rows).view(num_rows, 2)}
    for operation in converter.operations:
        found = operation.convert(
            found,
            source_patterns=converter.source_patterns,
            target_patterns=targets,
            full_layer_name=names[0],
            model=network,
            config=network.config,
        )
    entries = torch.cat([found[target] for target in targets])
    if not torch.equal(entries.flatten().sort().values, torch.arange(2 * num_rows)) or not torch.equal(
        entries[:, 0] + 1, entries[:, 1]
    ):
        return []
    return [
        Part(name.removesuffix(".weight"), found[target][:, 0] // 2)
        for name, target in zip(names, targets, strict=True)
    ]


def to_network(
    config: LoraConfig, shapes: dict[str, torch.Size], network: PreTrainedModel
) -> tuple[LoraConfig, dict[str, Piece]]:
    """Where the tensors of an adapter stand in the network, under whichever of both sets of names it was trained.

    Args:
        config: Of the adapter.
        shapes: Of its tensors, by name.
        network: What it shall be put on; may be on "meta".

    Raises:
        ConfigError: If a tensor belongs to no module, one is missing, or a fused one has another number of rows.
    """
    own = {name for name, _ in network.named_modules()}
    strangers = _strangers(shapes, own)
    originals = original_modules(network, of_forerunner=True)
    if not strangers:
        _compare_fused(config, shapes, {name: parts for name, parts in originals.items() if name not in own})
        return config, {name: Piece(name, None) for name in shapes}
    if unplaced := _strangers(shapes, originals):
        without = min(strangers, unplaced, key=len)
        raise ConfigError(
            f"{len(without)} of {len(shapes)} tensors belong to no module of this model, the first {without[0]}: it is "
            "of another model, or its names are of another program"
        )
    modules = {_split(name)[0] for name in shapes if ".lora_" in name}
    config = _spelled_out(config, originals, network)
    _compare_targets(config, modules, originals)
    pieces: dict[str, Piece] = {}
    for name, shape in shapes.items():
        module, kind = _split(name)
        parts = originals[module]
        num_rows = sum(len(part.rows) for part in parts if part.rows is not None)
        if num_rows and kind != SHARED and shape[0] != num_rows:
            raise ConfigError(f"the tensor {name} is {list(shape)}, but that layer of the model has {num_rows} rows")
        for part in parts:
            pieces[f"{part.module}.{kind}"] = Piece(name, None if kind == SHARED else part.rows)
    renamed = {name: [part.module for part in originals[name]] for name in originals}
    return _renamed_config(config, modules, renamed, own), pieces


def _split(name: str) -> tuple[str, str]:
    matched = TENSOR.fullmatch(name)
    return (matched["module"], matched["kind"]) if matched else (name, "")


def _strangers(names: Iterable[str], modules: Iterable[str]) -> list[str]:
    known = set(modules)
    return [name for name in names if not _split(name)[1] or _split(name)[0] not in known]


def _spelled_out(config: LoraConfig, originals: dict[str, list[Part]], network: PreTrainedModel) -> LoraConfig:
    """Under which names peft would find all linear layers, were the network that of the original code."""
    if str(config.target_modules).lower() != ALL_LINEAR:
        return config
    linear = {
        name
        for name, layer in network.named_modules()
        if isinstance(layer, torch.nn.Linear) and layer is not network.get_output_embeddings()
    }
    spelled_out = copy.deepcopy(config)
    spelled_out.target_modules = [name for name, parts in originals.items() if all(p.module in linear for p in parts)]
    return spelled_out


def _compare_targets(config: LoraConfig, modules: set[str], all_modules: Iterable[str]) -> None:
    expected = {name for name in all_modules if check_target_module_exists(config, name)}
    if missing := sorted(expected - modules):
        raise ConfigError(f"it holds no tensor for {missing[0]} (and {len(missing) - 1} more), which it says it adapts")
    if surplus := sorted(modules - expected):
        raise ConfigError(f"it holds tensors for {surplus[0]}, which its target_modules do not name")


def _compare_fused(config: LoraConfig, names: Iterable[str], fused: dict[str, list[Part]]) -> None:
    """A fused module that the configuration names was left out of the file, unless its parts are there."""
    modules = {_split(name)[0] for name in names}
    for original, parts in fused.items():
        if check_target_module_exists(config, original) and not any(part.module in modules for part in parts):
            raise ConfigError(f"it holds no tensor for {original}, which its target_modules name")


def _renamed_config(
    config: LoraConfig, modules: set[str], renamed: dict[str, list[str]], own: Iterable[str]
) -> LoraConfig:
    """The configuration with ranks, scales and targets under other names."""
    rank = {new: _rank(config, old) for old in modules for new in renamed[old]}
    alpha = {new: _alpha(config, old) for old in modules for new in renamed[old]}
    changed: LoraConfig = _config_for(config, rank, alpha, own)
    if config.modules_to_save:
        saved = [new for old in renamed if _is_saved(config, old) for new in renamed[old]]
        changed.modules_to_save = saved
    return changed


def _config_for(config: LoraConfig, rank: dict[str, int], alpha: dict[str, float], all_modules: Iterable[str]) -> Any:
    """`config` for modules of these ranks and scales; those that most have are the rule, the others exceptions."""
    changed: Any = copy.deepcopy(config)
    changed.r = _most_common(rank.values(), config.r)
    changed.lora_alpha = _most_common(alpha.values(), config.lora_alpha)
    changed.rank_pattern = {name: r for name, r in sorted(rank.items()) if r != changed.r}
    changed.alpha_pattern = {name: a for name, a in sorted(alpha.items()) if a != changed.lora_alpha}
    changed.target_modules = _short(set(rank), all_modules)
    changed.exclude_modules = changed.layers_to_transform = changed.layers_pattern = None
    return changed


def _most_common(values: Iterable[float], before: float) -> float:
    """The value `before` if none is more common."""
    given = list(values)
    return max({*given, before}, key=lambda value: (given.count(value), value == before))


def _short(names: set[str], all_modules: Iterable[str]) -> set[str]:
    """The last part of a name alone where every module with it is meant."""
    partial = {name.rpartition(".")[2] for name in set(all_modules) - names}
    return {name if (last := name.rpartition(".")[2]) in partial else last for name in names}


def _rank(config: LoraConfig, module: str) -> int:
    pattern = config.rank_pattern or {}
    return int(pattern.get(get_pattern_key(list(pattern), module), config.r))


def _alpha(config: LoraConfig, module: str) -> float:
    pattern = config.alpha_pattern or {}
    value: float = pattern.get(get_pattern_key(list(pattern), module), config.lora_alpha)
    return value


def _is_saved(config: LoraConfig, module: str) -> bool:
    return any(module.endswith(name) for name in config.modules_to_save or ())


def to_original(
    config: LoraConfig, tensors: dict[str, torch.Tensor], network: PreTrainedModel
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """An adapter of the network as one of the original code, with the same effect; `to_network` undoes it.

    Args:
        config: Of the adapter.
        tensors: Its tensors by name.
        network: What it is for; may be on "meta".

    Returns:
        The rank of a fused module is that of its parts if they share A, else the sum of theirs.

    Raises:
        ConfigError: If no adapter of the original modules has this effect, naming the module and the reason.
    """
    originals = original_modules(network)
    by_module: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module, kind = _split(name)
        by_module.setdefault(module, {})[kind] = tensor
    rank: dict[str, int] = {}
    alpha: dict[str, float] = {}
    result: dict[str, torch.Tensor] = {}
    for original, parts in originals.items():
        found = [by_module.pop(part.module, {}) for part in parts]
        result |= {f"{original}.{kind}": tensor for kind, tensor in _joined(original, parts, found).items()}
        adapted = {p.module for p, kinds in zip(parts, found, strict=True) if any("lora_" in kind for kind in kinds)}
        if adapted:
            old, scale = _common_scale(config, original, adapted)
            fused = result.get(f"{original}.{SHARED}")
            rank[original] = old if fused is None else len(fused)
            alpha[original] = _plain(scale * (math.sqrt if config.use_rslora else int)(rank[original]))
    if by_module:
        raise ConfigError(f"{next(iter(by_module))} has no counterpart among the original modules")
    changed = _config_for(config, rank, alpha, originals)
    if config.modules_to_save:
        changed.modules_to_save = [
            o for o, parts in originals.items() if any(_is_saved(config, p.module) for p in parts)
        ]
    return changed, result


def _common_scale(config: LoraConfig, original: str, adapted: set[str]) -> tuple[int, float]:
    """Rank of one of the parts, and the factor of B A, which is one number for a fused module."""
    ranks = {module: _rank(config, module) for module in sorted(adapted)}
    root = math.sqrt if config.use_rslora else int
    scales = {_alpha(config, module) / root(rank) for module, rank in ranks.items()}
    if len(scales) > 1:
        raise ConfigError(f"{original} has one scale, but its parts have several ({sorted(scales)}): not exact")
    return min(ranks.values()), scales.pop()


def _plain(number: float) -> float:
    """A whole number as one, as configurations write it; the rounding of a root is taken back."""
    nearest = round(number)
    return nearest if math.isclose(number, nearest, rel_tol=1e-12) else number


def _joined(original: str, parts: list[Part], found: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of one original module out of those of its parts, which may have none."""
    if len(parts) == 1:
        return found[0]
    joined: dict[str, torch.Tensor] = {}
    shared = [kinds[SHARED] for kinds in found if SHARED in kinds]
    is_one = all(torch.equal(a, shared[0]) for a in shared)
    if shared:
        joined[SHARED] = shared[0] if is_one else torch.cat(shared)
    for kind in dict.fromkeys(kind for kinds in found for kind in kinds if kind != SHARED):
        tensors = [kinds.get(kind) for kinds in found]
        if kind == "lora_B.weight" and not is_one:
            tensors = _beside_each_other(tensors)
        elif not kind.startswith("lora_B") and any(tensor is None for tensor in tensors):
            raise ConfigError(
                f"{original} would need {kind} of all its parts, but {_absent(parts, tensors)} is not adapted: not "
                "exact without the weights of the base"
            )
        joined[kind] = _placed(parts, tensors)
    return joined


def _absent(parts: list[Part], tensors: list[torch.Tensor | None]) -> str:
    return next(part.module for part, tensor in zip(parts, tensors, strict=True) if tensor is None)


def _beside_each_other(tensors: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Columns of their own for each B, zero elsewhere: the blocks of a block-diagonal matrix."""
    widths = [0 if tensor is None else tensor.shape[1] for tensor in tensors]
    return [
        None
        if tensor is None
        else torch.nn.functional.pad(tensor, (sum(widths[:position]), sum(widths[position + 1 :])))
        for position, tensor in enumerate(tensors)
    ]


def _placed(parts: list[Part], tensors: list[torch.Tensor | None]) -> torch.Tensor:
    """One tensor, the rows of each part where the original has them; zero where a part has none."""
    some = next(tensor for tensor in tensors if tensor is not None)
    rows = [part.rows for part in parts if part.rows is not None]
    placed = some.new_zeros(sum(map(len, rows)), *some.shape[1:])
    for where, tensor in zip(rows, tensors, strict=True):
        if tensor is not None:
            placed[where] = tensor
    return placed
