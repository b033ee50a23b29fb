"""What merging an adapter into its base would change, weight by weight, as a plotly figure and a table. Draws no widgets."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np

from widgets.figures.layout import Described, Figure, axes
from widgets.figures.tables import table
from workbench.text import NONE, percent
from workbench.training.results.merging import MergeError, MergeErrors
from workbench.training.results.on_bases import OnBase

WAYS = {
    "adapter": "what the adapter changed, to compare with",
    "dequantized": "merged into the dequantized 4-bit base",
    "original": "merged into the original 16-bit base",
    "requantized": "merged, and quantized to 4 bits again",
}
"""Fields of ``MergeError`` and their titles."""
_SYMBOLS = ("circle-open", "square", "diamond", "triangle-up")


def ways_of(errors: MergeErrors) -> dict[str, str]:
    """The ways of merging that this run has."""
    return {way: title for way, title in WAYS.items() if any(getattr(row, way) is not None for row in errors.rows)}


def merge_figure(errors: MergeErrors) -> Described:
    """Each adapted weight's relative errors in the order of the checkpoint, on a logarithmic scale."""
    names = [html.escape(row.tensor) for row in errors.rows]
    traces: list[Figure] = []
    for (way, title), symbol in zip(ways_of(errors).items(), _SYMBOLS, strict=False):
        y = np.array([_value(row, way) for row in errors.rows], np.float32)
        traces.append(
            {"type": "scatter", "mode": "markers", "name": title, "x": np.arange(len(y), dtype=np.float32), "y": y,
             "text": names, "marker": {"symbol": symbol, "size": 8}, "hovertemplate": "%{text}<br>%{y:.3%}"}
        )  # fmt: skip
    layout = axes("What merging changes", "adapted weight, in the checkpoint's order", "relative error", "", showlegend=True)
    layout["yaxis"] |= {"type": "log", "tickformat": ".2~%"}
    layout["xaxis"] |= {"range": [-0.7, len(names) - 0.3]}
    layout["hovermode"] = "closest"
    return {"data": traces, "layout": layout}, summary(errors)


def summary(errors: MergeErrors) -> str:
    """The most that each way changes in any weight."""
    most = []
    for way, title in ways_of(errors).items():
        largest = np.nanmax([_value(row, way) for row in errors.rows])
        most.append(f"{title} {percent(float(largest))}")
    return f"‖merged − trained‖ / ‖trained‖ in {errors.dtype}, at most: {'; '.join(most)}."


def merge_table(errors: MergeErrors) -> str:
    """A line an adapted weight, a column a way."""
    ways = ways_of(errors)
    rows = [(row.tensor, *(_percent(row, way) for way in ways)) for row in errors.rows]
    return table(["weight", *ways.values()], rows, "What merging changes, weight by weight")


def bases_table(rows: Sequence[OnBase]) -> str:
    """A line for each base that an adapter was measured on."""
    lines = [row._line_() for row in rows]
    return table(list(lines[0]), [tuple(line.values()) for line in lines], "The adapter on other bases")


def _value(row: MergeError, way: str) -> float:
    value = getattr(row, way)
    return float("nan") if value is None else float(value)


def _percent(row: MergeError, way: str) -> str:
    value = getattr(row, way)
    return NONE if value is None else percent(value, 3)
