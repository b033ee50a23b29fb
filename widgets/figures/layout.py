"""What figures have in common: what a figure is, the units and axes of a run's figures, text that plotly does not read as tags.

A figure is a mapping with ``data`` and ``layout`` (``plotly.graph_objects.Figure(figure)`` makes an object of it), its arrays
are NumPy arrays, and its colours are left to the page's theme except where a colour means something.
"""

from __future__ import annotations

import functools
import html
from typing import Any

Figure = dict[str, Any]
Described = tuple[Figure, str]
"""A figure, and the sentence that says the same to a screen reader."""

escaped = functools.partial(html.escape, quote=False)
"""Text for a label: plotly reads some tags in every label."""


def axes(title: str, x: str, y: str, key: str, **more: Any) -> Figure:
    """The layout that the figures of a run share."""
    return {
        "title": {"text": title},
        "xaxis": {"title": {"text": x}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": y}},
        "legend": {"x": 0, "xanchor": "left", "y": 0, "yref": "container", "yanchor": "bottom"},  # below: it may take two rows
        "uirevision": key,
        "hovermode": "x unified",
        **more,
    }


def level(at: float, text: str, colour: str) -> Figure:
    """A labelled line across a picture, at a value of its vertical axis."""
    return {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": at, "y1": at,
        "line": {"color": colour, "width": 1.5, "dash": "dash"},
        "label": {"text": text, "textposition": "end", "yanchor": "bottom", "font": {"size": 11}},
    }  # fmt: skip
