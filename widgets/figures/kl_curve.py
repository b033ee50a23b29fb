"""KL divergence against bits per weight: integers from 2 to 8 bits, NF4 by block size, double quantization, and a mix.

Plain functions from the values of ``workbench.cost`` to a plotly figure, and to the sentence that answers why four bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from widgets.figures.layout import Figure, escaped
from widgets.figures.palette import CHOSEN, SYMBOLS
from workbench.cost.curve import ASYMMETRIC, SYMMETRIC
from workbench.text import nats, percent

if TYPE_CHECKING:
    from workbench.cost.evaluation import Cost
    from workbench.cost.mixing import Mix


def kl_curve_figure(costs: Iterable[Cost], mix: Mix | None = None) -> Figure:
    """KL, on a logarithmic axis, against stored bits per weight; a line a family of formats, 95 % intervals as thin lines.

    Args:
        costs: The rows, as ``kl_curve`` gives them.
        mix: Adds the predicted curve of 4 bits mixed with 16, which is of the rows that the mix reports.

    Returns:
        The Plotly figure, as a dict of ``data`` and ``layout``.
    """
    families: dict[str, list[Cost]] = {}
    for cost in costs:
        if cost.spec is not None and math.isfinite(cost.kl) and cost.kl > 0:
            families.setdefault(_family(cost), []).append(cost)
    data: list[dict[str, Any]] = []
    for i, (name, family) in enumerate(families.items()):
        family.sort(key=lambda cost: cost.bits_per_weight)
        kls = np.array([cost.kl for cost in family])
        low, high = (np.array([cost.kl_interval[end] for cost in family]) for end in (0, 1))
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": escaped(name), "y": kls,
                "x": np.array([cost.bits_per_weight for cost in family]), "hoverinfo": "text",
                "hovertext": [
                    f"{escaped(cost.name)}<br>{cost.bits_per_weight:.4g} bits per weight<br>KL {nats(cost.kl)} "
                    f"({nats(cost.kl_interval[0])} to {nats(cost.kl_interval[1])})<br>flips {percent(cost.flips)}"
                    for cost in family
                ],
                "error_y": {
                    "type": "data", "symmetric": False, "array": high - kls, "arrayminus": kls - low, "thickness": 1,
                    "width": 0,
                },
                "line": {"width": 1.5}, "marker": {"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
            }
        )  # fmt: skip
    if mix is not None:
        title = mix.sensitivity.spec.definition.title
        points = [point for point in mix.curve if point.predicted_kl > 0]
        data.append(
            {
                "type": "scatter", "mode": "lines", "name": f"{escaped(title)} mixed with 16 bits, predicted",
                "x": np.array([mix.bits_per_weight(point) for point in points]),
                "y": np.array([point.predicted_kl for point in points]), "line": {"width": 1.5, "dash": "dot", "color": CHOSEN},
                "hovertemplate": "%{x:.2f} bits per weight<br>KL %{y:.4f}",
            }
        )  # fmt: skip
    layout = {
        "uirevision": "kl curve", "showlegend": True, "hovermode": "closest", "margin": {"l": 60, "r": 12, "t": 8, "b": 36},
        "xaxis": {"title": {"text": "stored bits per weight"}, "range": [1.9, 9], "dtick": 1},
        "yaxis": {"title": {"text": "KL from 16 bits, nats a token"}, "type": "log", "dtick": 1, "tickformat": "~g"},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _family(cost: Cost) -> str:
    """The formats that a line joins."""
    spec = cost.spec
    assert spec is not None  # the model in 16 bits is in no family
    if spec.format in SYMMETRIC:
        return "symmetric integers"
    if spec.format in ASYMMETRIC:
        return "integers with a zero point"
    return f"{spec.definition.title}{', double quantized' if spec.double_quant else ''}, by block size"


def why_four(costs: Iterable[Cost]) -> str:
    """What a bit less costs, step by step, among the symmetric integers: how many times the KL, and the flips.

    Returns:
        Two sentences, in plain text.

    >>> import widgets
    >>> widgets.why_four([])
    'No integers have been measured yet.'
    """
    ladder: dict[int, Cost] = {}
    for cost in costs:
        if cost.spec is not None and cost.spec.format in SYMMETRIC:
            ladder[2 + SYMMETRIC.index(cost.spec.format)] = cost
    steps = [(bits, ladder[bits + 1], ladder[bits]) for bits in sorted(ladder, reverse=True) if bits + 1 in ladder]
    if not steps:
        return "No integers have been measured yet."
    times = [f"from {bits + 1} to {bits} ×{less.kl / more.kl:.2g}" for bits, more, less in steps if more.kl > 0]
    flips = [f"{percent(ladder[bits].flips)} at {bits}" for bits in (8, 4, 3, 2) if bits in ladder]
    return f"A bit less multiplies the KL of symmetric integers: {', '.join(times)}. Tokens flipped: {', '.join(flips)} bits."
