"""The figure of weights against the normal distribution, quantile by quantile. No widgets."""

from __future__ import annotations

from typing import Any

import numpy as np

from widgets.figures.layout import Figure
from widgets.figures.palette import FORMAT_COLOURS, QUIET
from workbench.quant.normality import Quantiles


def quantile_plot(found: Quantiles, what: str) -> Figure:
    """Observed quantiles against those of N(0, 1), both in standard deviations; the line is where normal weights would lie."""
    reach = float(np.abs(found.normal).max(initial=1.0))
    data: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "x": np.array([-reach, reach]), "y": np.array([-reach, reach]),
            "name": "a normal distribution", "hoverinfo": "skip", "line": {"color": QUIET, "dash": "dash", "width": 1.5},
        },
        {
            "type": "scatter", "mode": "lines+markers", "x": found.normal, "y": found.observed, "name": what,
            "line": {"color": FORMAT_COLOURS[0], "width": 1.5}, "marker": {"size": 4},
            "customdata": found.observed * found.std + found.mean,
            "hovertemplate": "normal %{x:.2f} σ<br>here %{y:.2f} σ, value %{customdata:.4g}<extra></extra>",
        },
    ]  # fmt: skip
    layout = {
        "uirevision": what, "showlegend": False, "margin": {"l": 36, "r": 8, "t": 4, "b": 32},
        "xaxis": {"title": {"text": "quantile of a normal distribution, σ"}, "zeroline": False},
        "yaxis": {"title": {"text": "of the weights, σ"}, "zeroline": False},
    }  # fmt: skip
    return {"data": data, "layout": layout}
