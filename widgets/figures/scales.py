"""The figures of double quantization: where the scales' bits go, and how they spread.

Plain functions from values to values, no widgets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from widgets.figures.layout import Figure
from widgets.figures.palette import BLUE, GREEN, VERMILION
from workbench.quant.double_quant import NestedScales, dynamic_levels
from workbench.quant.spec import QuantSpec


def scale_overhead(spec: QuantSpec) -> Figure:
    """Bits per weight that scales take without and with double quantization, on top of the four of the codes.

    Each bar says at its end what it is made of.
    """
    block, nested = spec.block_size, spec.nested_block_size
    rows = ["without", "with"]
    parts = [
        ("float32 absmax", [32 / block, 0.0], VERMILION),
        ("8-bit absmax", [0.0, 8 / block], BLUE),
        ("second-level scales", [0.0, 32 / (block * nested)], GREEN),
    ]
    data: list[dict[str, Any]] = [
        {
            "type": "bar", "orientation": "h", "y": rows, "x": np.array(bits), "name": name, "marker": {"color": colour},
            "hovertemplate": f"{name}: %{{x:.4f}} bits per weight<extra></extra>",
        }
        for name, bits, colour in parts
    ]  # fmt: skip
    total = spec.bits_per_weight - spec.definition.bits
    data.append(
        {
            "type": "scatter", "mode": "text", "x": np.array([32 / block, total]), "y": rows, "hoverinfo": "skip",
            "name": "what it is made of", "textposition": "middle right", "cliponaxis": False,
            "text": [
                f" {32 / block:.4g}: float32 absmax",
                f" {total:.4f}: {8 / block:.4g} 8-bit absmax + {32 / (block * nested):.2g} second-level scales",
            ],
        }
    )  # fmt: skip
    layout = {
        "barmode": "stack", "bargap": 0.35, "showlegend": False, "margin": {"l": 52, "r": 8, "t": 2, "b": 34},
        "xaxis": {"title": {"text": "bits per weight for scales"}, "range": [0, 1.4 * 32 / block], "nticks": 6},
        "yaxis": {"autorange": "reversed", "type": "category", "fixedrange": True},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def absmax_spread(absmax: NDArray[np.float32], nested: NestedScales) -> Figure:
    """The scales before, and by how much double quantization moves each, in percent of itself."""
    finite = np.isfinite(absmax) & (absmax > 0)
    before = absmax[finite].astype(np.float64)
    moved = 100 * (nested.dequantize()[finite] / before - 1)
    limit = float(np.percentile(np.abs(moved), 99.5)) if moved.size else 1.0
    limit = limit or 1e-6
    data = []
    for values, borders, axis, name, colour in (
        (before, np.linspace(0, float(before.max(initial=1e-12)), 81), "", "absmax of a block", VERMILION),
        (np.clip(moved, -limit, limit), np.linspace(-limit, limit, 81), "2", "change by double quantization", BLUE),
    ):
        share = 100 * np.histogram(values, borders)[0] / max(1, values.size)
        data.append(
            {
                "type": "bar", "x": (borders[:-1] + borders[1:]) / 2, "y": share, "width": float(borders[1] - borders[0]),
                "xaxis": f"x{axis}", "yaxis": f"y{axis}", "name": name, "marker": {"color": colour, "line": {"width": 0}},
                "hovertemplate": "%{x:.4g}: %{y:.2f} % of blocks<extra></extra>",
            }
        )  # fmt: skip
    percent: Figure = {"ticksuffix": " %", "nticks": 4, "rangemode": "tozero"}
    layout = {
        "bargap": 0, "showlegend": False, "margin": {"l": 44, "r": 8, "t": 4, "b": 34},
        "xaxis": {"title": {"text": "absmax of a block"}, "domain": [0, 0.44], "nticks": 5},
        "xaxis2": {"title": {"text": "its change by 8 bits, %"}, "domain": [0.56, 1], "anchor": "y2", "nticks": 5},
        "yaxis": percent, "yaxis2": {**percent, "anchor": "x2"},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def nested_codes(nested: NestedScales) -> Figure:
    """How often each 8-bit code stands for an absmax, over the levels it stands for."""
    counts = np.bincount(nested.codes, minlength=256)
    share = 100 * counts / max(1, nested.codes.size)
    text = [
        f"code {code}, level {level:+.5f}<br>{n:,} blocks, {s:.2f} %"
        for code, (level, n, s) in enumerate(zip(dynamic_levels(), counts, share, strict=True))
    ]
    data = [
        {
            "type": "bar", "x": np.arange(256), "y": share, "marker": {"color": BLUE, "line": {"width": 0}},
            "hovertext": text, "hoverinfo": "text", "name": "8-bit codes",
        }
    ]  # fmt: skip
    layout = {
        "bargap": 0.1, "showlegend": False, "margin": {"l": 44, "r": 8, "t": 4, "b": 34},
        "xaxis": {"title": {"text": "8-bit code of an absmax (finer towards 0, in the middle)"}},
        "yaxis": {"ticksuffix": " %", "nticks": 4, "rangemode": "tozero"},
    }  # fmt: skip
    return {"data": data, "layout": layout}
