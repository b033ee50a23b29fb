"""The categories of memory, once: what forecasts, receipts, the pager and their figures call them and know of them.

Covers names (the same on disk and in events), titles, groups, where each lies and how it is known. Holds no bytes:
``forecast`` computes them, the worker's ``accounting`` measures them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

COMPUTED, ESTIMATED = "computed", "estimated"
DEVICE, MANAGED, HOST = "device", "managed", "host"
MODEL, TRAINING, PASS = "model", "training", "pass"

FOUR_BIT, ABSMAX, SECOND_LEVEL, CODEBOOKS = "4-bit weights", "absmax scales", "second-level scales", "codebooks"
FULL_WEIGHTS, UPCAST, INTEGERS, BUFFERS = "weights", "weights upcast to fp32", "integer tensors", "buffers"
ADAPTERS, GRADIENTS, BUCKETS = "adapters", "gradients", "gradient buckets"
OPTIMIZER, PAGED = "optimizer state", "optimizer state, paged"
ACTIVATIONS, LOGITS, DEQUANTIZED, CASTS = "activations", "logits and loss", "dequantized weight", "16-bit casts"
WORKSPACE, SPARE, CONTEXT = "cuBLAS workspace", "spare", "CUDA context"
LIBRARIES, UNEXPLAINED = "libraries", "unexplained"
BASE, SCALES, LIVE = "base model", "scales of the 4-bit weights", "activations and logits"
SCRATCH = "scratch and context"


@dataclass(frozen=True)
class Category:
    """One category of memory."""

    name: str
    title: str
    """In a receipt."""
    group: str
    """What it is gathered in where categories are too many to show; "" for what is not forecast."""
    known: str
    """How a forecast knows it: ``computed`` from shapes, or ``estimated``; "" where there is none."""
    measured: str
    """How a receipt does: by walking the ``model``'s tensors or those of ``training``, by watching a forward ``pass``; or "":
    from other figures, or not."""
    note: str = ""
    """What a forecast says of it, where that is always the same."""
    place: str = DEVICE
    """``device``; ``managed``: the driver may move it to the host; or ``host``. On a CPU all are on the host."""


_TABLE = (
    Category(FOUR_BIT, "4-bit weights, packed", BASE, COMPUTED, MODEL, "two weights a byte"),
    Category(ABSMAX, ABSMAX, SCALES, COMPUTED, MODEL, "one a block; with double quantization in 8 bits"),
    Category(
        SECOND_LEVEL, "nested state of the scales", SCALES, COMPUTED, MODEL,
        "double quantization: fp32, one for 256 scales, and the offset",
    ),
    Category(
        CODEBOOKS, CODEBOOKS, SCALES, COMPUTED, MODEL,
        "bitsandbytes keeps its tables of levels once for every 4-bit weight",
    ),
    Category(FULL_WEIGHTS, "weights in the compute dtype", BASE, COMPUTED, MODEL, "all that is not in 4 bits"),
    Category(
        UPCAST, UPCAST, BASE, COMPUTED, MODEL,
        "norms and biases; with upcast_to_fp32 all that stays out of 4 bits",
    ),
    Category(
        INTEGERS, INTEGERS, BASE, COMPUTED, MODEL,
        "counted as they are stored; what transformers makes of them is not known here",
    ),
    Category(BUFFERS, BUFFERS, "", "", MODEL),
    Category(ADAPTERS, ADAPTERS, ADAPTERS, COMPUTED, MODEL),
    Category(GRADIENTS, GRADIENTS, GRADIENTS, COMPUTED, TRAINING),
    Category(
        BUCKETS, BUCKETS, GRADIENTS, COMPUTED, "",
        "DDP's copy of all gradients, in which the processes add them up",
    ),
    Category(OPTIMIZER, OPTIMIZER, OPTIMIZER, COMPUTED, TRAINING, "Adam's two moments, on the device"),
    Category(
        PAGED, PAGED, OPTIMIZER, COMPUTED, TRAINING,
        "in managed memory: the driver may move it to the host under pressure", MANAGED,
    ),
    Category(ACTIVATIONS, ACTIVATIONS, LIVE, ESTIMATED, PASS),
    Category(LOGITS, LOGITS, LIVE, ESTIMATED, PASS),
    Category(DEQUANTIZED, DEQUANTIZED, SCRATCH, ESTIMATED, "", "the largest linear, unpacked while it multiplies"),
    Category(CASTS, CASTS, SCRATCH, ESTIMATED, PASS, "autocast's copies of the fp32 adapters and of the fp32 head"),
    Category(WORKSPACE, WORKSPACE, SCRATCH, ESTIMATED, "", "what cuBLAS keeps for its products"),
    Category(SPARE, "reserved by the allocator, not in use", SPARE, ESTIMATED, ""),
    Category(CONTEXT, CONTEXT, SCRATCH, ESTIMATED, "", "driver and libraries"),
    Category(LIBRARIES, "interpreter and libraries", "", "", "", place=HOST),
    Category(UNEXPLAINED, "not explained", "", "", ""),
)  # fmt: skip

BY_NAME: Mapping[str, Category] = MappingProxyType({category.name: category for category in _TABLE})
"""By name, in the order of a receipt's rows."""


def _measured(how: str) -> tuple[str, ...]:
    return tuple(category.name for category in _TABLE if category.measured == how)


WEIGHTS, OF_TRAINING, SAVED = _measured(MODEL), _measured(TRAINING), _measured(PASS)
"""Those that the worker measures by walking the model's tensors, those of training, and over a forward pass."""
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        group: tuple(category.name for category in _TABLE if category.group == group)
        for group in dict.fromkeys(category.group for category in _TABLE if category.group)
    }
)
"""The forecast's categories gathered for where they are too many to show; each is in one group."""
