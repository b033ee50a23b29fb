"""The figures of double quantization and of memory: where the scales' bits go, how they spread, forecasts as stacked bars.

Plain functions from values to values, no widgets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from widgets.figures.layout import Figure
from widgets.figures.palette import BLUE, CRIMSON, GREEN, GREY, OCHRE, PURPLE, VERMILION
from workbench.memory.forecast import MemoryLedger
from workbench.memory.gpus import Gpu
from workbench.quant.double_quant import NestedScales, dynamic_levels
from workbench.quant.spec import QuantSpec
from workbench.report.figures import stacked_memory


def scale_overhead(spec: QuantSpec) -> Figure:
    """Bits per weight that scales take without and with double quantization, on top of the four of the codes."""
    block, nested = spec.block_size, spec.nested_block_size
    rows = ["without", "with"]
    parts = [
        ("float32 absmax", [32 / block, 0.0], VERMILION),
        ("8-bit absmax", [0.0, 8 / block], BLUE),
        ("second-level scales", [0.0, 32 / (block * nested)], GREEN),
    ]
    data = [
        {
            "type": "bar", "orientation": "h", "y": rows, "x": np.array(bits), "name": name, "marker": {"color": colour},
            "hovertemplate": f"{name}: %{{x:.4f}} bits per weight<extra></extra>",
        }
        for name, bits, colour in parts
    ]  # fmt: skip
    layout = {
        "barmode": "stack", "bargap": 0.45,
        "xaxis": {"title": {"text": "bits per weight for scales"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": ""}, "autorange": "reversed", "type": "category"},
        "legend": {"traceorder": "normal"}, "margin": {"l": 84, "r": 20, "t": 56, "b": 48},
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
    layout = {
        "bargap": 0, "showlegend": False,
        "xaxis": {"title": {"text": "absmax"}, "domain": [0, 0.44], "exponentformat": "e", "nticks": 5},
        "xaxis2": {"title": {"text": "its change, %"}, "domain": [0.58, 1], "anchor": "y2", "nticks": 5},
        "yaxis": {"title": {"text": "% of blocks"}},
        "yaxis2": {"title": {"text": "% of blocks"}, "anchor": "x2"},
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
        "bargap": 0.1, "showlegend": False, "margin": {"l": 60, "r": 20, "t": 28, "b": 40},
        "xaxis": {"title": {"text": "8-bit code of an absmax, from level −0.99 to 1 (finer towards 0, in the middle)"}},
        "yaxis": {"title": {"text": "% of blocks"}},
    }  # fmt: skip
    return {"data": data, "layout": layout}


MEMORY_COLOURS = (BLUE, "#56b4e9", GREEN, OCHRE, VERMILION, PURPLE, GREY, "#c4c4c4")
"""Of the groups in ``workbench.memory.forecast.GROUPS``, in their order."""


def memory_methods_figure(ledgers: Sequence[MemoryLedger], gpu: Gpu) -> Figure:
    """Stacked bars of forecast gigabytes, one a ledger (the last is the chosen configuration), and the GPU's memory as a line.

    A GPU with more than four times the largest ledger is named at the axis instead, so that the bars stay readable.

    >>> import widgets
    >>> src, config = wb.open_model("builtin"), wb.TrainConfig()
    >>> ledgers = [*wb.forecast_methods(src, config), wb.forecast(src, config)]
    >>> widgets.memory_methods_figure(ledgers, wb.GPUS["T4 16 GB"])["layout"]["xaxis"]["title"]["text"]
    'GB, forecast; T4 16 GB has 15.6'
    """
    names = [ledger.title for ledger in ledgers[:-1]] + ["as set above"]
    data = stacked_memory(names, ledgers, MEMORY_COLOURS)
    usable = gpu.usable / 1e9
    largest = max(ledger.total for ledger in ledgers) / 1e9
    inside = usable <= 4 * largest
    if inside:
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": np.array([usable, usable]), "y": [names[0], names[-1]],
                "line": {"color": CRIMSON, "width": 2, "dash": "dash"}, "name": gpu.name,
                "hovertemplate": f"{gpu.name}: {usable:.2f} GB usable<extra></extra>",
            }
        )  # fmt: skip
    layout = {
        "barmode": "stack", "bargap": 0.35, "uirevision": "memory",
        "xaxis": {
            "title": {"text": "GB, forecast" + ("" if inside else f"; {gpu.name} has {usable:.1f}")}, "rangemode": "tozero",
        },
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True},
        "legend": {"traceorder": "normal"}, "margin": {"l": 180, "r": 20, "t": 76, "b": 48},
    }  # fmt: skip
    return {"data": data, "layout": layout}
