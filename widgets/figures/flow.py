"""A model under training as a data-flow diagram: what each part is stored in, computes in and takes, and how data flows.

Covers full fine-tuning, LoRA and QLoRA of one model, from its forecast (``workbench.memory.forecast``): bytes are those of the
whole model, and one linear layer stands for all of them. Plain functions, no widgets; draws no timeline
(``figures/pager.py`` does).
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from widgets.figures.layout import Described, Figure
from widgets.figures.palette import FORMAT_COLOURS, VERMILION
from workbench.memory.footprint import FULL, LORA, QLORA
from workbench.memory.forecast import MemoryLedger
from workbench.memory.ledger import (
    ACTIVATIONS,
    ADAPTERS,
    DEQUANTIZED,
    FOUR_BIT,
    FULL_WEIGHTS,
    GRADIENTS,
    GROUPS,
    INTEGERS,
    LOGITS,
    OPTIMIZER,
    PAGED,
    SCALES,
    UPCAST,
)
from workbench.sources.base import Source
from workbench.sources.packed import as_loaded
from workbench.sources.tensor_info import EMBEDDINGS
from workbench.text import memory_size

FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
_COLOURS = {FORWARD: FORMAT_COLOURS[0], BACKWARD: VERMILION, UPDATE: FORMAT_COLOURS[2]}
_WIDTH, _HEIGHT = 16.5, 24.0
_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Box:
    """A box of the diagram."""

    name: str
    at: tuple[float, float]
    """Its centre, in a field of 100 × 100."""
    stored: str
    """The dtype it lies in memory in."""
    computes: str
    """The dtype it is computed with."""
    bytes: int
    """Of the whole model, forecast."""
    role: str
    """``frozen``, ``trained``, or how long it lives."""
    key: str = ""
    """What the arrows know it by, where its name depends on the method."""


def boxes_of(src: Source, ledger: MemoryLedger) -> list[Box]:
    """The boxes for ``ledger``, a forecast for ``src``; their bytes are its total without the casts and the CUDA context."""
    plan = ledger.plan
    auto = "float32" if plan.device == "cpu" else "bfloat16"
    c = _SHORT[auto if plan.compute_dtype == "auto" else plan.compute_dtype]
    four_bit, full = plan.method == QLORA, plan.method == FULL
    kept = "fp32" if four_bit and plan.upcast_to_fp32 else c
    norms = kept if kept == "fp32" or not four_bit else f"{c}, norms fp32"
    mixed = c if c == "fp32" else f"{c}, fp32"  # norms and the loss compute in fp32
    frozen = "trained" if full else "frozen"
    sums = dict.fromkeys(("embedding", "linear", "rest"), 0)
    place = {t.name: "linear" if t.quantizable else "embedding" if t.role in EMBEDDINGS else "rest"
             for t in as_loaded(src)[0]}  # fmt: skip
    for piece in ledger.pieces:
        if piece.category in (FULL_WEIGHTS, UPCAST, INTEGERS):
            sums[place[piece.tensor]] += piece.bytes
    weights = sums["linear"] + ledger[FOUR_BIT]
    quantized = f"{plan.quant_type.upper()}, two a byte"
    state = "8 bits" if "8bit" in plan.optim else c if full and "torch" in plan.optim else "fp32"
    row, learnt = (84, c) if full else (16, "fp32")
    adam = ledger[OPTIMIZER] + ledger[PAGED]
    found = [
        Box("embedding", (9, 50), kept, kept, sums["embedding"], frozen),
        Box("linear weights W", (29.5, 84), quantized if four_bit else c, f"{c}, as Ŵ" if four_bit else c, weights, frozen),
        Box("x, kept for backward", (29.5, 50), mixed, c, ledger[ACTIVATIONS], "one step"),
        Box("norms and head", (70.5, 50), norms, mixed, sums["rest"], frozen),
        Box("logits and loss", (91, 50), mixed, "fp32", ledger[LOGITS], "one step"),
        Box(
            "gradients of W" if full else "gradients of A, B", (70.5, row), learnt, learnt, ledger[GRADIENTS], "one step",
            "gradients",
        ),
        Box("Adam's two moments", (50, row), state, "fp32", adam, "paged in part" if ledger.managed else "kept"),
    ]  # fmt: skip
    if four_bit:
        scales = sum(ledger[name] for name in GROUPS[SCALES])
        how = "8 bits and fp32" if plan.double_quant else "fp32"
        found.append(Box("scales, levels", (9, 84), how, "fp32", scales, "frozen"))
        found.append(Box("Ŵ, one at a time", (50, 84), c, c, ledger[DEQUANTIZED], "one product"))
    if not full:
        found.append(Box(f"A and B, rank {plan.lora_r}", (29.5, 16), "fp32", c, ledger[ADAPTERS], "trained", "adapters"))
    return found


def flow_figure(src: Source, ledger: MemoryLedger) -> Described:
    """The diagram of a forecast, as a flow of data.

    Args:
        src: The model.
        ledger: A forecast for it.

    Returns:
        The figure, and a sentence that lists its boxes.

    >>> import widgets
    >>> src = wb.open_model("builtin")
    >>> figure, summary = widgets.flow_figure(src, wb.forecast(src, wb.TrainConfig(method="lora")))
    >>> summary[:28]
    'Data flow of lora, forecast.'
    """
    boxes = boxes_of(src, ledger)
    method = ledger.plan.method
    where = {box.key or box.name: box.at for box in boxes}
    where["y"] = (50, 50)
    shapes = [_box(box.at, box.role == "trained") for box in boxes] + [_box(where["y"], False, dashed=True)]
    notes = [_text(box.at, box.name, _lines(box)) for box in boxes]
    notes.append(_text(where["y"], "every linear layer", [*_sum(method), "backward: dL/dx =", f"dL/dy · {_UNDONE[method]}"]))
    notes += [_arrow(where[a], where[b], kind, shift) for a, b, kind, shift in _edges(boxes)]
    marks = {"size": 42, "opacity": 0}
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "markers", "x": [p.at[0] for p in boxes], "y": [p.at[1] for p in boxes],
            "marker": marks, "showlegend": False, "text": [f"<b>{p.name}</b><br>{'<br>'.join(_lines(p))}" for p in boxes],
            "hovertemplate": "%{text}<extra></extra>",
        }
    ]  # fmt: skip
    for kind, colour in _COLOURS.items():
        data.append({"type": "scatter", "mode": "lines", "x": [None], "y": [None], "name": kind, "line": {"color": colour}})
    hidden = {"visible": False, "fixedrange": True}
    layout = {
        "xaxis": hidden | {"range": [0, 100]}, "yaxis": hidden | {"range": [2, 98]}, "shapes": shapes, "annotations": notes,
        "margin": {"l": 4, "r": 4, "t": 40, "b": 4}, "showlegend": True, "hovermode": "closest",
    }  # fmt: skip
    listing = "; ".join(
        f"{p.name}: stored in {p.stored}, computed in {p.computes}, {memory_size(p.bytes)}, {p.role}" for p in boxes
    )
    return {"data": data, "layout": layout}, f"Data flow of {method}, forecast. {listing}."


_UNDONE = {FULL: "W", LORA: "(W + α/r · B A)", QLORA: "(Ŵ + α/r · B A)"}
"""What the gradient of a layer's output is multiplied with on its way back."""


def _sum(method: str) -> list[str]:
    """What a linear layer computes, in lines."""
    return ["y = x Wᵀ"] if method == FULL else [f"y = x {'Ŵ' if method == QLORA else 'W'}ᵀ", "+ α/r · x Aᵀ Bᵀ"]


def _lines(box: Box) -> list[str]:
    return [f"in {box.stored}", f"computes in {box.computes}", memory_size(box.bytes), box.role]


def _box(at: tuple[float, float], trained: bool, dashed: bool = False) -> Figure:
    line = {
        "color": _COLOURS[UPDATE] if trained else "#888888",
        "width": 2 if trained else 1,
        "dash": "dot" if dashed else "solid",
    }
    fill = "rgba(26,159,120,0.12)" if trained else "rgba(128,128,128,0.08)"
    (x, y), w, h = at, _WIDTH / 2, _HEIGHT / 2
    return {"type": "rect", "x0": x - w, "x1": x + w, "y0": y - h, "y1": y + h, "line": line, "fillcolor": fill}


def _text(at: tuple[float, float], title: str, lines: list[str]) -> Figure:
    text = "<br>".join([f"<b>{html.escape(title)}</b>", *(html.escape(line) for line in lines)])
    return {"x": at[0], "y": at[1], "text": text, "showarrow": False, "font": {"size": 11}}


def _arrow(a: tuple[float, float], b: tuple[float, float], kind: str, shift: float) -> Figure:
    """From the border of the box at ``a`` to that of the box at ``b``, ``shift`` to the left of its direction."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    border = min(_WIDTH / 2 / abs(dx) if dx else 1.0, _HEIGHT / 2 / abs(dy) if dy else 1.0)
    length = float(np.hypot(dx, dy))
    aside = (-dy / length * shift, dx / length * shift)
    (x0, y0), (x1, y1) = ((a[0] + t * dx + aside[0], a[1] + t * dy + aside[1]) for t in (border, 1 - border))
    ends = {"x": x1, "y": y1, "ax": x0, "ay": y0, "xref": "x", "yref": "y", "axref": "x", "ayref": "y"}
    return ends | {
        "text": "",
        "showarrow": True,
        "arrowcolor": _COLOURS[kind],
        "arrowwidth": 2,
        "arrowhead": 2,
        "arrowsize": 0.9,
    }


def _edges(boxes: list[Box]) -> Iterator[tuple[str, str, str, float]]:
    """From, to, kind, and how far an arrow is shifted aside."""
    names = {box.key or box.name for box in boxes}
    w, x, head, loss, adam = (
        "linear weights W",
        "x, kept for backward",
        "norms and head",
        "logits and loss",
        "Adam's two moments",
    )
    chain = ("embedding", x, "y", head, loss)
    for a, b in itertools.pairwise(chain):
        yield a, b, FORWARD, 4
    for a, b in itertools.pairwise(chain[:0:-1]):
        yield a, b, BACKWARD, 4
    if "Ŵ, one at a time" in names:
        yield "scales, levels", w, FORWARD, 0
        yield w, "Ŵ, one at a time", FORWARD, 0
        yield "Ŵ, one at a time", "y", FORWARD, 2
        yield "Ŵ, one at a time", "y", BACKWARD, -2
    else:
        yield w, "y", FORWARD, 2
        yield w, "y", BACKWARD, -2
    if "adapters" in names:
        yield "adapters", "y", FORWARD, 2
        yield "adapters", "y", BACKWARD, -2
        yield adam, "adapters", UPDATE, 0
    else:
        yield adam, w, UPDATE, 0
    yield "y", "gradients", BACKWARD, 0
    yield "gradients", adam, UPDATE, 0
