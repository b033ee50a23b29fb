"""How sure a held-out loss is: intervals by bootstrap over its batches.

Covers the loss of one model, and the difference between two on the same batches, which is far surer than either: what makes a
batch hard is in both (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13). The interval tells what
other rows of the same kind would have given, and nothing of other data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""The share of intervals that hold the true value."""
_DRAWS = 2_000
Interval = tuple[float, float]


def loss_interval(sums: Sequence[float], tokens: Sequence[int]) -> Interval:
    """The interval of Σ sums / Σ tokens, with batches drawn again with replacement; NaN where there is only one.

    ``sums``: each batch's loss summed over its tokens, in nats; ``tokens``: how many bear a loss.
    """
    if len(sums) < 2:
        return math.nan, math.nan
    drawn = _drawn(len(sums))
    with np.errstate(invalid="ignore", over="ignore"):
        means = (drawn @ np.asarray(sums, np.float64)) / (drawn @ np.asarray(tokens, np.float64))  # (draws,)
    if not np.isfinite(means).all():
        return math.nan, math.nan
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def difference_interval(sums: Sequence[float], base: Sequence[float], tokens: Sequence[int]) -> Interval:
    """The interval of the difference between two losses on the same batches, drawn together."""
    return loss_interval([a - b for a, b in zip(sums, base, strict=True)], tokens)


def _drawn(batches: int) -> NDArray[np.int64]:
    """(draws, batches): how often each batch is in each draw; the same for every model, so that differences stay paired."""
    return np.random.default_rng(0).multinomial(batches, np.full(batches, 1 / batches), size=_DRAWS)
