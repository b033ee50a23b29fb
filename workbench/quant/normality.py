"""How near a tensor's weights are to a normal distribution: quantile against quantile.

NF4's levels are quantiles of a normal distribution: they fit as well as the weights do. Covers the weights as they are, and
divided by the absmax of their block; of large tensors an evenly spaced sample of blocks, and says so. Outliers are
``quant/outliers.py``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError
from workbench.given import described, is_whole
from workbench.kernels.sampling import evenly_spaced
from workbench.quant.quantize import as_weights
from workbench.show import Shown, View
from workbench.text import count, number, whole_or_sampled


@dataclass(frozen=True, repr=False)
class Quantiles(Shown):
    """Quantiles of the standardised weights beside those of N(0, 1); on the diagonal where the weights are normal."""

    normal: NDArray[np.float64]
    """float64 (points,): z, ascending and evenly spaced."""
    observed: NDArray[np.float64]
    """float64 (points,): (quantile of the weights − mean) / σ; NaN where all weights are equal."""
    mean: float
    std: float
    correlation: float
    """Pearson's, of the two: 1 on a straight line."""
    weights: int
    """Finite weights that were looked at."""
    sampled: float | None
    """Their share of the tensor, None: all of it."""

    def _show_(self) -> View:
        facts = {
            "weights": f"{count(self.weights)}, {whole_or_sampled(self.sampled)}", "mean": number(self.mean),
            "σ": number(self.std), "correlation": number(self.correlation, ".4f"),
        }  # fmt: skip
        marks = [z for z in (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0) if self.normal[0] <= z <= self.normal[-1]]
        lines = [{"normal, σ": f"{z:g}", "weights, σ": number(np.interp(z, self.normal, self.observed), ".3f")} for z in marks]
        return View("Quantiles of the weights beside a normal distribution's", facts, lines)


def quantiles(array: Any, block_size: int | None = None, *, points: int = 201, most: int = 1 << 18) -> Quantiles:
    """Quantiles of an array against the normal.

    Of more than ``most`` weights an evenly spaced sample of blocks (of 64 unless given) is taken. The i-th smallest of n stands
    at the probability (i − ½) / n, and the outermost points are the smallest and the largest weight.

    Args:
        array: What ``quantize`` takes.
        block_size: Weights of a block, by whose absmax each weight is divided first; None: as they are.
        points: Quantiles that are given.
        most: Weights that are looked at.

    Returns:
        The z of the normal and the standardised quantiles of the weights, float64 (points,) each; mean, σ, and how straight a
        line they make.

    Raises:
        FormatError: As ``quantize`` does, where no weight is finite, and for a number below 1.

    >>> found = wb.quantiles(np.linspace(-1, 1, 64, dtype=np.float32))
    >>> found.normal.shape, round(found.correlation, 2)
    ((201,), 0.98)
    """
    for name, value in (("block_size", block_size or 1), ("points", points), ("most", most)):
        if not is_whole(value, 1):
            raise FormatError(f"{described(value)} is not possible.", where=name, remedy="Give a whole number from 1 on.")
    flat = as_weights(array).reshape(-1)
    size = block_size or 64
    flat, _, sampled = evenly_spaced(flat, size, -(-flat.size // most))
    x = flat.astype(np.float32)
    if block_size:
        padded = np.zeros(-(-x.size // size) * size, np.float32)
        padded[: x.size] = x
        grid = padded.reshape(-1, size)
        with np.errstate(divide="ignore", invalid="ignore"):
            x = (grid / np.abs(grid).max(axis=1, keepdims=True)).reshape(-1)[: x.size]
    x = np.sort(x[np.isfinite(x)].astype(np.float64))
    if not x.size:
        raise FormatError("No weight of this tensor is finite.", remedy="Choose another tensor.")
    mean, std = float(x.mean()), float(x.std())
    normal = NormalDist()
    reach = normal.inv_cdf(1 - 0.5 / x.size) if x.size > 1 else 0.0
    z = np.linspace(-reach, reach, points)
    place = np.array([normal.cdf(value) for value in z]) * x.size - 0.5
    at = np.interp(place, np.arange(x.size), x)
    observed = (at - mean) / std if std > 0 else np.full(points, np.nan)
    correlation = float(np.corrcoef(z, observed)[0, 1]) if std > 0 and x.size > 2 else float("nan")
    return Quantiles(z, observed, mean, std, correlation, x.size, sampled)
