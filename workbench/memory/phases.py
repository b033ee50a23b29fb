"""What comes and goes within a training step, and when: estimated, phase by phase.

A step holds most while the loss is computed (``HEAD``: the logits) or while one layer is computed again in the backward pass
(``LAYER``); what belongs to one is gone in the other. Held against steps measured on a T4 in tests/memory/test_on_a_t4.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.memory.footprint import FULL, QLORA, Plan, activations, hidden_size, in_four_bits, loaded
from workbench.memory.gpus import UNKNOWN
from workbench.memory.ledger import (
    ACTIVATIONS,
    BUCKETS,
    BY_NAME,
    CASTS,
    CONTEXT,
    DEQUANTIZED,
    DEVICE,
    LOGITS,
    SPARE,
    WORKSPACE,
)
from workbench.show import Line, Record
from workbench.sources import TensorInfo
from workbench.sources.tensor_info import EMBEDDINGS, HEADS
from workbench.text import memory_size

HEAD, LAYER = PHASES = "head", "layer"

_WORKSPACE = 16 * 2**20
_OF_A_LAYER, _OF_A_CAST = 1.3, 0.6
"""The allocator's slack, in sizes of the largest layer's activations and of the 16-bit weights that were made fp32 while the
model was loaded: least squares over the fifteen steps of tests/memory/test_on_a_t4.py, where it was 4 to 25 % of what was
allocated."""
_SLACK = "what the allocator reserves beyond what is in use: 4 to 25 % of that on a T4; it gives way where memory is short"


@dataclass(frozen=True, repr=False)
class LedgerRow(Record):
    """One category of memory."""

    category: str
    bytes: int
    """At the most."""
    known: str
    """``computed`` from shapes, or ``estimated``."""
    note: str
    place: str = DEVICE
    """``device``, or ``managed``: memory that the driver may move to the host."""
    phases: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Phase → its bytes then, where they are not ``bytes``."""

    def at(self, phase: str) -> int:
        """Its bytes in a phase."""
        return self.phases.get(phase, self.bytes)

    def _line_(self) -> Line:
        return {"category": self.category, "memory": memory_size(self.bytes), "known": self.known, "note": self.note}


def row(name: str, size: int, note: str = "", **phases: int) -> LedgerRow:
    """A category's row, with what the table of categories says of it; ``phases`` are bytes that differ from ``size``."""
    category = BY_NAME[name]
    return LedgerRow(name, size, category.known, note or category.note, category.place, phases)


def transient(
    tensors: list[TensorInfo], config: Mapping[str, Any], plan: Plan, parameters: Mapping[str, int], gradients: LedgerRow
) -> list[LedgerRow]:
    """Gradients and DDP's buckets of them, activations, logits, casts and scratch, the allocator's slack and the context.

    ``parameters`` are those trained. Layer by layer the backward pass lets go of what it was kept for and adds gradients: the
    peak is at one of its ends, and at the last where what it lets go of lies on the host. Where gradients are accumulated, they
    are there from the second batch on.
    """
    c, tokens = plan.compute_bytes, plan.tokens
    kept = activations(tensors, config, plan)
    shape = f"{plan.per_device_train_batch_size} × {plan.max_length:,} tokens"
    embeddings = [t for t in tensors if t.role in EMBEDDINGS and len(t.shape) == 2]
    vocabulary = max((max(t.shape) for t in embeddings), default=0)
    layer = of_a_layer = tokens * kept.largest_layer + kept.weights_of_layer
    moved = 0
    if plan.gradient_checkpointing:
        how, held = "a layer's input each, and one layer computed again", tokens * kept.checkpoints
        if plan.inputs_on_host and plan.device == "cuda":
            moved = tokens * kept.on_host
            how, held = f"{how}, {memory_size(moved)} of inputs in pinned memory on the host", held - moved
    else:
        how, held, layer = "kept by every layer", tokens * kept.all_layers + kept.weights, 0
    first, last = {HEAD: 0, LAYER: gradients.bytes // kept.layers}, {HEAD: 0}
    if plan.gradient_accumulation_steps > 1:
        first = last = {}
    early = not last or (held >= gradients.bytes and not moved)
    late = held if early or moved else held // kept.layers
    rows = [
        dataclasses.replace(gradients, phases=first if early else last),
        row(
            ACTIVATIONS, held + layer, f"{shape}, {how}; {kept.formula}",
            head=held, layer=late + layer,
        ),
    ]  # fmt: skip
    if plan.nproc_per_node > 1:
        rows.append(row(BUCKETS, gradients.bytes))
    rows.append(_logits(tokens, vocabulary, hidden_size(tensors, config), plan, shape))
    if plan.method == QLORA:
        rows.append(row(DEQUANTIZED, c * max((t.numel for t in tensors if in_four_bits(t, plan)), default=0), head=0))
    if plan.method != FULL and plan.autocast and c == 2:
        heads = sum(t.numel for t in loaded(tensors) if t.role in HEADS) or max((t.numel for t in embeddings), default=0)
        of_head, of_adapters = c * heads * (plan.method == QLORA and plan.upcast_to_fp32), c * sum(parameters.values())
        rows.append(row(CASTS, of_head + of_adapters, head=of_head, layer=of_adapters))
    if plan.device == "cuda":
        upcast = 2 * max((t.numel for t in embeddings), default=0) * (plan.method == QLORA and plan.upcast_to_fp32)
        slack = int(_OF_A_LAYER * of_a_layer + _OF_A_CAST * upcast)
        rows += [
            row(WORKSPACE, _WORKSPACE),
            row(SPARE, slack, _SLACK),
            row(CONTEXT, UNKNOWN.context, UNKNOWN.how),
        ]
    return rows


def _logits(tokens: int, vocabulary: int, hidden: int, plan: Plan, shape: str) -> LedgerRow:
    """Those of all tokens at once, or of some at a time beside the hidden states and their gradient."""
    some = plan.logits_at_once
    if not some or plan.method == FULL or some >= tokens:
        note = f"{shape} × vocabulary {vocabulary:,} × {plan.logit_bytes} bytes: log-probabilities, gradients"
        return row(LOGITS, tokens * vocabulary * plan.logit_bytes, note, layer=0)
    size = some * vocabulary * (4 + plan.compute_bytes) + tokens * hidden * 8
    note = f"{some} tokens × vocabulary {vocabulary:,} × {4 + plan.compute_bytes} bytes at a time, and {shape} × {hidden} × 8"
    return row(LOGITS, size, note, layer=0)
