"""Memory of one device at the peak of a training step, in bytes, from counts alone.

    peak = weights + optimizer + copies + the larger of
           where the backward pass begins: carried gradients + activations + max(logits, backward of one block)
           where it ends:                  gradients + max(backward of one block, temporaries of the optimizer)
           where answers are drawn:        their cache

The derivation, with what was measured, is in docs/scale.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_sft.losses.head_tiles import CHUNK
from lit_sft.preflight.network import NetworkSize
from lit_sft.tuning._base import Footprint

Sharding = Literal["none", "ddp", "fsdp2"]

HeadUse = Literal["likelihood", "log-probabilities", "score"]
"""What a stage makes of hidden states: a loss at once, log-probabilities of which it makes one later, or a number."""


@dataclass(frozen=True)
class Plan:
    """What of a configuration decides about memory and time.

    Args:
        tuning: Which weights train, and in which form the others are kept.
        precision: Lightning's `trainer.precision`.
        rows: Rows of a micro-batch.
        row_length: Tokens of a row.
        sequences_in_row: Sequences of `max_length` tokens in it: two where answers are compared.
        gradient_checkpointing: Whether only the inputs of the blocks are kept.
        optimizer_bytes: State of the optimizer, bytes a trained parameter; 8 for AdamW in float32.
        sharding: How several devices share the work.
        num_devices: Of all machines.
        head_use: What the stage makes of the hidden states.
        frozen_adapters: Adapters beside the one that trains, such as the reference of DPO after SFT. It is asked before
            the policy keeps anything: its pass adds time and no memory.
        supervised_share: Share of the tokens that carry loss; all is the most there can be.
        accumulates: Whether gradients of earlier micro-batches are there already.
        cache_tokens: Tokens in the cache while answers are drawn to be trained on.
        further_bytes: Weights of other networks and adapters that stand beside: a reference, reward models.
        update_copies: What the optimizer's step holds beside: of all weights (torch's default on a GPU), of one at a
            time (on a CPU), or nothing (`fused`).
    """

    tuning: Footprint
    precision: str = "bf16-mixed"
    rows: int = 4
    row_length: int = 1024
    sequences_in_row: int = 1
    gradient_checkpointing: bool = True
    optimizer_bytes: float = 8.0
    sharding: Sharding = "none"
    num_devices: int = 1
    head_use: HeadUse = "likelihood"
    frozen_adapters: int = 0
    supervised_share: float = 1.0
    accumulates: bool = False
    cache_tokens: int = 0
    further_bytes: float = 0.0
    update_copies: Literal["none", "largest", "all"] = "none"

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on one device."""
        return self.rows * self.row_length

    @property
    def activation_bytes(self) -> int:
        """Bytes of a number that is computed."""
        return 4 if self.precision.startswith("32") else 2

    @property
    def is_mixed(self) -> bool:
        """Whether autocast computes in half precision."""
        return self.precision.endswith("-mixed")

    @property
    def trained_bytes(self) -> int:
        """Bytes of a weight that trains: adapters are float32 always."""
        return 2 if self.tuning.trains_base and self.precision == "bf16-true" else 4

    @property
    def num_shards(self) -> int:
        """Devices that share each weight out."""
        return self.num_devices if self.sharding == "fsdp2" else 1


@dataclass(frozen=True)
class Memory:
    """Bytes on one device."""

    weights: float
    optimizer: float
    copies: float
    gradients: float
    carried_gradients: float
    activations: float
    logits: float
    block: float
    update: float
    further: float = 0.0
    cache: float = 0.0

    @property
    def parts(self) -> dict[str, float]:
        """What lives at the peak."""
        held = {"weights": self.weights, "optimizer": self.optimizer, "copies": self.copies}
        if self.further:
            held["further weights"] = self.further
        working = "logits" if self.logits > self.block else "backward of a block"
        begin = {
            "gradients": self.carried_gradients,
            "activations": self.activations,
            working: max(self.logits, self.block),
        }
        last = "update" if self.update > self.block else "backward of a block"
        end = {"gradients": self.gradients, last: max(self.update, self.block)}
        drawing = {"cache of drawn answers": self.cache}
        return held | max(begin, end, drawing, key=lambda parts: sum(parts.values()))

    @property
    def total(self) -> float:
        """At the peak."""
        return sum(self.parts.values())


def num_trained(size: NetworkSize, plan: Plan) -> int:
    """Parameters that train."""
    tuning = plan.tuning
    if tuning.trained_blocks is not None:
        # Where head and embedding are one matrix, there are fewer of them than were asked for.
        matrices = min(tuning.trains_embeddings + tuning.trains_head, _num_matrices(size))
        return tuning.trained_blocks * size.num_block_parameters + matrices * size.vocabulary * size.hidden_size
    if tuning.trains_base:
        return size.num_parameters
    if tuning.prefix_tokens:
        return _num_in_prefix(size, tuning)
    adapted = size.adapted(tuning.targets)
    return size.num_layers * sum(tuning.rank * (i + o) + tuning.dora * o for i, o in adapted)


def _num_in_prefix(size: NetworkSize, tuning: Footprint) -> int:
    """Parameters of a prefix, with the two layers that project it."""
    states = size.num_layers * size.cache_width
    if not tuning.prefix_projection:
        return tuning.prefix_tokens * states
    inputs, hidden = size.prefix_input_size, size.hidden_size
    return tuning.prefix_tokens * inputs + (inputs + 1) * hidden + (hidden + 1) * states


def _num_matrices(size: NetworkSize) -> int:
    """Matrices of the vocabulary: embedding and head, or one that is both."""
    return size.num_root_parameters // (size.vocabulary * size.hidden_size)


def _trains_embeddings(size: NetworkSize, tuning: Footprint) -> bool:
    """Whether the embedding trains, perhaps as the head."""
    return tuning.trains_embeddings or (tuning.trains_head and _num_matrices(size) == 1)


def base_bytes(size: NetworkSize, plan: Plan) -> float:
    """Bytes of the weights of the checkpoint in memory, undivided."""
    tuning = plan.tuning
    if tuning.packed_bytes is None:
        if tuning.trains_base and (tuning.trained_blocks is None or _trains_embeddings(size, tuning)):
            return size.num_parameters * plan.trained_bytes
        trained = num_trained(size, plan) if tuning.trains_base else 0
        return trained * plan.trained_bytes + (size.num_parameters - trained) * plan.activation_bytes
    packed, rest = size.num_linear_parameters, size.num_parameters - size.num_linear_parameters
    rows = size.num_layers * sum(outputs for _, _, outputs in size.linear_shapes)
    scales = packed * tuning.scale_bytes + rows * tuning.row_scale_bytes
    return packed * tuning.packed_bytes + scales + rest * plan.activation_bytes


def block_activations(size: NetworkSize, plan: Plan) -> float:
    """Bytes that the backward pass of one decoder block needs of its forward pass.

    What every linear layer reads and writes, and the product in a gated feed-forward layer; norms keep float32.
    """
    through = sum(inputs + outputs for _, inputs, outputs in size.linear_shapes) + size.is_gated * size.widest
    saved: float = through * plan.activation_bytes
    if plan.activation_bytes == 2:
        saved += 4 * size.hidden_size * 2  # the input of each of the two norms in float32
    if not plan.tuning.trains_base:
        # Each adapter reads a copy of its own where there is dropout, or a type to convert, and keeps the mask.
        copied = 4 if plan.precision == "bf16-true" else plan.activation_bytes * (plan.tuning.dropout > 0)
        mask = plan.activation_bytes if plan.tuning.dropout else 0
        inputs = sum(i for i, _ in size.adapted(plan.tuning.targets))
        saved += inputs * (copied + mask)
    if plan.tuning.prefix_tokens:
        # Keys and values once more, behind those of the prefix.
        saved += (1 + plan.tuning.prefix_tokens / plan.row_length) * size.cache_width * plan.activation_bytes
    attention = 2 * plan.rows * size.num_heads * plan.row_length**2 * plan.activation_bytes
    return plan.tokens * saved + size.materializes_attention * attention


def _num_passed(size: NetworkSize, tuning: Footprint) -> int:
    """Blocks that the backward pass goes through: all above the lowest weight that trains."""
    if tuning.trained_blocks is None or _trains_embeddings(size, tuning):
        return size.num_layers
    return tuning.trained_blocks


def _kept_activations(size: NetworkSize, plan: Plan, block: float) -> float:
    """Bytes that the forward pass of the network leaves for the backward pass, `block` those of one block."""
    passed = _num_passed(size, plan.tuning)
    if plan.gradient_checkpointing:
        kept: float = passed * plan.tokens * size.hidden_size * plan.activation_bytes
    else:
        kept = passed * block
    if plan.tuning.prefix_tokens:
        # Of each row, with what the dropout keeps.
        states = plan.rows * plan.tuning.prefix_tokens * size.num_layers * size.cache_width
        kept += states * (plan.activation_bytes + (plan.tuning.dropout > 0))
    return kept


def _logits_of_a_chunk(size: NetworkSize, plan: Plan, head: float) -> float:
    """Bytes of the logits that exist at once and of what is computed from them, `head` the gradient of the matrix."""
    is_half = plan.activation_bytes == 2
    if size.has_plain_head:
        # Softmax and gradient take the place of float32 logits; in half precision they exist besides, twice. Where
        # autocast computes, the gradient of the head from a chunk is in half precision first.
        logit_bytes, head_copies = 8 if is_half else 4, plan.is_mixed / 2
    else:
        # Autograd keeps a copy for each step, as of Baichuan 2's normalized head, and makes a whole gradient a chunk.
        logit_bytes, head_copies = 20 if is_half else 16, 3
    supervised = plan.tokens * plan.supervised_share
    return min(supervised, CHUNK) * size.vocabulary * logit_bytes + head * head_copies


def estimate(size: NetworkSize, plan: Plan) -> Memory:
    """The peak of the second step, when the optimizer has its state."""
    trained, shards = num_trained(size, plan), plan.num_shards
    stored = base_bytes(size, plan)
    adapters = 0 if plan.tuning.trains_base else trained * plan.trained_bytes * (1 + plan.frozen_adapters)
    gathered = 0.0
    if shards > 1:
        # Embedding, head and last norm whole, and two blocks: one computes while the next arrives.
        root = size.num_root_parameters * (plan.trained_bytes if plan.tuning.trains_base else plan.activation_bytes)
        gathered = root + 2 * (stored - root) / size.num_layers
    trained_share = trained / size.num_parameters
    half = plan.is_mixed * 2 * (size.num_linear_parameters * trained_share if plan.tuning.trains_base else trained)
    buckets = trained * plan.trained_bytes if plan.sharding == "ddp" and plan.num_devices > 1 else 0
    block = block_activations(size, plan)
    # The widest gradient and the one it is computed from; a packed matrix is unpacked to be used.
    backward = 2.0 * plan.tokens * size.widest * plan.activation_bytes
    if plan.tuning.packed_bytes is not None:
        backward += max(i * o for _, i, o in size.linear_shapes) * plan.activation_bytes
    gradients = trained * plan.trained_bytes / shards
    # Its gradient is made with the loss, before any other. A score has no use for the vocabulary.
    speaks = plan.head_use != "score"
    trains_head = plan.tuning.trains_base if plan.tuning.trained_blocks is None else plan.tuning.trains_head
    head = size.vocabulary * size.hidden_size * plan.trained_bytes if trains_head and speaks else 0
    # A row for each log-probability, kept from the forward to the backward pass: its gradient, or the hidden state.
    rows = plan.tokens * plan.supervised_share * size.hidden_size * plan.activation_bytes
    rows *= plan.head_use == "log-probabilities"
    updates = {"none": 0.0, "largest": 2.0 * head / shards, "all": gradients}
    return Memory(
        update=updates[plan.update_copies],
        weights=(stored + adapters) / shards,
        gradients=gradients,
        carried_gradients=head + (gradients if plan.accumulates else 0.0),
        optimizer=trained * plan.optimizer_bytes / shards,
        copies=half / shards + buckets + gathered,
        activations=_kept_activations(size, plan, block) + rows,
        logits=_logits_of_a_chunk(size, plan, head) if speaks else 0.0,
        block=backward + (block if plan.gradient_checkpointing else 0),
        further=plan.further_bytes,
        cache=plan.cache_tokens * size.num_layers * size.cache_width * plan.activation_bytes,
    )
