"""The folder of an exported model: what `export --format onnx` writes, whole or not at all.

    model.onnx          the graph
    model.onnx.data     its weights, each at a multiple of 4096 bytes
    generation.json     sizes, where answers end, how tokens are chosen: below
    prompt.json         the prompt format as data, see prompt_data.py
    tokenizer/          the tokenizer as data, see families/shared/tokenizer_data.py
    manifest.json       where it came from, versions, hashes, and how it was checked
    config.json ...     of the checkpoint, with its tokenizer: so the folder opens like any other

Inputs of the graph: B rows, S new tokens, L positions of them whose logits are wanted; all int64 unless said.

    input_ids        [B, S]  what stands behind the end of a shorter row is of no account (fused), or before its
                             beginning (portable)
    position_ids     [B, S]  index of each token in its row, 0 the first
    logit_positions  [B, L]  which of the S
    prefix_length    [B]     only where generation.json has a `prefix_end_id`: index in the row of the first such token,
                             -1 if there is none. What stands before sees itself both ways, so it is read in one run

    fused:     seqlens_k [B] int32 (tokens of each row after this run, less 1), total_length [1] int32 (of the longest)
               past.N.key [B, K, C, D], past.N.value [B, K, C, E] of layer N -> present.N.key, present.N.value, the same
               buffers: bind both to one. Rows have their own lengths. With more than one row and a cache that is not
               empty S must be 1: read prompts row by row, or all of them at first.
    portable:  padding [B] (tokens at the left of each row that are none)
               past.N.key [B, K, P, D] ... -> present.N.key [B, K, P + S, D] ...

Outputs: logits [B, L, V] float32, or of a reward model scores [B, L] float32; then the cache.

generation.json:

    version          1
    family           of lit_sft
    prompt_format    of that family
    graph            "fused" or "portable"
    output           "logits" or "scores"
    cache_dtype      "float32" or "float16"
    layers           of each layer {"num_heads": K, "key_dim": D, "value_dim": E}
    context_length   tokens of prompt and answer together at most
    vocab_size       V
    prefix_end_id    a token, or null
    stop_token_ids   tokens that end an answer
    strategy         {"class_path": "Greedy", "init_args": {...}}: a class of lit_sft.generation.strategies
    scores           only of a reward model: {"mean": ..., "std": ...} of the answers that it was validated on
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lit_sft
from lit_sft.checkpoint.exported import DATA, MANIFEST, VERSION
from lit_sft.checkpoint.files import GENERATION, GRAPH
from lit_sft.checkpoint.onnx_session import GraphSession
from lit_sft.errors import ConfigError
from lit_sft.export.merge import refuse_existing
from lit_sft.files import whole_folder, write_json
from lit_sft.generation.strategies import Greedy, Strategy

if TYPE_CHECKING:
    import torch

    from lit_sft.checkpoint.opening import Checkpoint
    from lit_sft.export.check import Sample
    from lit_sft.export.weights import Precision, WeightStore

ORIGINAL = "original.weights"
"""Weights as they were, to compare with; gone when the folder is whole."""

COPIED = ("config.json", "generation_config.json")
PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
BLOCKS = (16, 32, 64, 128, 256)

MISSING = "export --format onnx needs more packages: pip install 'lit_sft[export]' (missing: {})"


@dataclass(frozen=True)
class Source:
    """What is exported.

    Args:
        checkpoint: The model, or the base of the adapter.
        samples: Conversations on which the graph is checked and measured; at least one.
        adapter: PEFT folder.
        reward: Folder with the head of a reward model.
        strategy: How tokens are chosen unless one says otherwise.
    """

    checkpoint: Checkpoint
    samples: Sequence[Sample]
    adapter: Path | None = None
    reward: Path | None = None
    strategy: Strategy | None = None


class Form(NamedTuple):
    """How it is exported.

    Args:
        dtype: One of `weights.PRECISIONS`.
        block: Weights of a row that share a scale, where they are integers.
        is_exact: Multiply integers with activations in float32, and not in 8 bits.
        is_portable: Operators of the standard only.
    """

    dtype: str = "float32"
    block: int = 128
    is_exact: bool = False
    is_portable: bool = False

    def precision(self) -> Precision:
        """What its weights are.

        Raises:
            ConfigError: If options contradict each other.
        """
        from lit_sft.export.weights import PRECISIONS

        precision = PRECISIONS[self.dtype]
        if precision.bits and self.is_exact and self.is_portable:
            raise ConfigError(
                "--exact says how integers are multiplied, which a runtime of a --portable graph decides by itself: "
                "leave one of the two out"
            )
        if self.block not in BLOCKS:
            raise ConfigError(f"--block is {self.block}; it must be one of {', '.join(map(str, BLOCKS))}")
        return precision._replace(block=self.block, is_standard=self.is_portable)


def export_onnx(source: Source, output: Path, form: Form | None = None) -> dict[str, Any]:
    """Write a model as a graph that was compared with it.

    Args:
        source: The model.
        output: Folder to make; must not exist, and does not until it is complete.
        form: How.

    Returns:
        What manifest.json holds.

    Raises:
        ConfigError: If `output` exists or cannot be written, packages are missing, the network cannot be exported, or
            the graph does not compute what it does.
        CheckpointError: If the checkpoint is damaged.
    """
    form = form or Form()
    precision = check_request(output, form)
    try:
        with whole_folder(output) as partial:
            manifest = _write(source, partial, form, precision)
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror or error}") from None
    return manifest


def check_request(output: Path, form: Form) -> Precision:
    """What can be refused before anything is read; the precision of the form.

    Raises:
        ConfigError: If `output` exists, options contradict each other, or packages of the extra are missing.
    """
    from importlib.util import find_spec

    refuse_existing(output)
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ConfigError(MISSING.format(", ".join(missing)))
    return form.precision()


def _write(source: Source, folder: Path, form: Form, precision: Precision) -> dict[str, Any]:
    import onnx_ir as ir

    from lit_sft.export.assembly import FORMS, set_accuracy
    from lit_sft.export.check import Gate
    from lit_sft.export.graph import trace
    from lit_sft.export.text_side import write_text_side
    from lit_sft.export.weights import DataFile, stream_weights

    checkpoint = source.checkpoint
    scores = _scores(source)
    with ExitStack() as files:
        data, original = (files.enter_context(DataFile(folder / name)) for name in (DATA, ORIGINAL))
        store = weight_store(source, data, original, precision, has_head=scores is None)
        network = stream_weights(checkpoint, store.take).eval()
        assembly = FORMS["portable" if form.is_portable else "fused"](
            trace(checkpoint.family, network, precision.compute), store
        )
        model = assembly.assemble(scores)
        set_accuracy(model, 0)
        ir.save(model, folder / GRAPH)
        _copy(checkpoint, folder)
        write_json(folder / GENERATION, _generation(source, assembly.name, assembly.layers, store))
        gate = Gate(network, store, source.samples, scores)
        figures: dict[str, Any] = {"parity": gate.check(GraphSession(folder, is_packed=False))}
        if precision.bits:
            set_accuracy(model, 0 if form.is_exact else 4)
            ir.save(model, folder / GRAPH)
        if scores is None:
            # Products of integers at the accuracy of a fused graph need their weights packed.
            is_packed = bool(precision.bits) and not form.is_portable
            figures["quality"] = gate.quality(GraphSession(folder, is_packed=is_packed))
    (folder / ORIGINAL).unlink()
    if scores is None:
        figures["text"] = write_text_side(checkpoint.family, checkpoint.load_tokenizer(), folder)
    manifest = _manifest(source, folder, form, figures)
    write_json(folder / MANIFEST, manifest)
    return manifest


def weight_store(source: Source, data: Any, original: Any, precision: Precision, *, has_head: bool) -> WeightStore:
    """Where the weights of the checkpoint will stand: those of a graph in `data`, as they were in `original`."""
    from torch import nn

    from lit_sft.export.weights import WeightStore, merging
    from lit_sft.tuning._adapter_loading import place_adapter

    family = source.checkpoint.family
    skeleton = family.skeleton()
    names = {id(module): f"{name}.weight" for name, module in skeleton.named_modules()}
    head, embedding = skeleton.get_output_embeddings(), skeleton.get_input_embeddings()
    if not isinstance(head, nn.Linear):
        raise ConfigError(f"{source.checkpoint.path}: a head of {type(head).__name__} cannot be exported")
    linear = frozenset(names[id(module)] for module in skeleton.modules() if isinstance(module, nn.Linear))
    store = WeightStore(
        data,
        original,
        precision,
        linear,
        names[id(head)],
        names[id(embedding)],
        is_tied=head.weight is embedding.weight,
        plain_head=family.plain_head,
        has_head=has_head,
    )
    if source.adapter is not None:
        store.merge = merging(place_adapter(source.adapter, source.checkpoint), skeleton)
    return store


def _scores(source: Source) -> torch.Tensor | None:
    """Weight [1, H] of the head of a reward model."""
    if source.reward is None:
        return None
    from lit_sft.rewards.trained import HEAD_FILE
    from lit_sft.tuning._heads import ScalarHead

    width = source.checkpoint.family.network_config.get_text_config().hidden_size
    return ScalarHead.load(source.reward / HEAD_FILE, width).weight.detach()


def _generation(source: Source, graph: str, layers: Sequence[Any], store: WeightStore) -> dict[str, Any]:
    from lit_sft.rewards.trained import read_about

    checkpoint = source.checkpoint
    strategy = source.strategy or Greedy()
    content = {
        "version": VERSION,
        "family": checkpoint.family.name,
        "prompt_format": checkpoint.family.prompt_format_name,
        "graph": graph,
        "output": "logits" if store.has_head else "scores",
        "cache_dtype": str(store.precision.compute).removeprefix("torch."),
        "layers": [layer._asdict() for layer in layers],
        "context_length": checkpoint.context_length,
        "vocab_size": store.originals[store.embedding].shape[0],
        "prefix_end_id": checkpoint.family.prefix_end_id,
        "stop_token_ids": checkpoint.prompt_format.stop_token_ids(checkpoint.load_tokenizer()),
        "strategy": {"class_path": type(strategy).__name__, "init_args": strategy.parameters()},
    }
    if source.reward is not None:
        about = read_about(source.reward)
        content["scores"] = {"mean": about.get("mean", 0.0), "std": about.get("std")}
    return content


def _copy(checkpoint: Checkpoint, folder: Path) -> None:
    """What opens the folder like a checkpoint."""
    for file in [*(checkpoint.path / name for name in COPIED), *checkpoint.tokenizer_files]:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _manifest(source: Source, folder: Path, form: Form, figures: dict[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {
        "source": {
            "checkpoint": str(source.checkpoint.path.resolve()),
            "fingerprint": source.checkpoint.fingerprint(),
            "adapter": None if source.adapter is None else str(source.adapter.resolve()),
            "reward": None if source.reward is None else str(source.reward.resolve()),
        },
        "form": form._asdict(),
        **figures,
        "versions": {"lit_sft": lit_sft.__version__, **{name: version(name) for name in PACKAGES}},
    }
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {**about, "files": {str(path.relative_to(folder)): _hashed(path) for path in files}}


def _hashed(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
