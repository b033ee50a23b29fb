"""What a model comes to on held-out rows, row by row, and the intervals of that. Measures nothing.

Covers the means a token, their 95 % intervals by bootstrap over the rows, paired intervals of differences, and ranks by
what these distinguish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
"""The share of intervals that hold the true value."""
_DRAWS = 2_000
_AT_ONCE = 1 << 22
_KEPT = 1 << 9
Interval = tuple[float, float]


@dataclass(frozen=True)
class RowCosts:
    """A model on held-out rows, each row summed over its tokens that bear a loss; the same rows for every model."""

    tokens: tuple[int, ...]
    """How many tokens bear a loss."""
    losses: tuple[float, ...]
    """Cross-entropy in nats."""
    kls: tuple[float, ...]
    """KL divergence from the model in 16 bits, in nats."""
    flipped: tuple[int, ...]
    """Tokens before which another token is the most likely than to the model in 16 bits."""

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> RowCosts:
        """The sums as a measuring process reports them, by their names here; null is no number."""
        losses, kls = (tuple(math.nan if sum_ is None else float(sum_) for sum_ in event[name]) for name in ("losses", "kls"))
        return cls(tuple(map(int, event["tokens"])), losses, kls, tuple(map(int, event["flipped"])))

    @property
    def loss(self) -> float:
        """Nats a token, over all rows."""
        return self._mean(self.losses)

    @property
    def kl(self) -> float:
        """KL divergence from the model in 16 bits, in nats a token."""
        return self._mean(self.kls)

    @property
    def flips(self) -> float:
        """The share of tokens before which the most likely token is another one than in 16 bits."""
        return self._mean(self.flipped)

    @property
    def loss_interval(self) -> Interval:
        """The 95 % interval of ``loss``, by bootstrap over the rows."""
        return interval(self.losses, self.tokens)

    @property
    def kl_interval(self) -> Interval:
        """That of ``kl``, which is a difference on the same rows itself."""
        return interval(self.kls, self.tokens)

    @property
    def flips_interval(self) -> Interval:
        """That of ``flips``."""
        return interval(self.flipped, self.tokens)

    def above(self, base: RowCosts) -> tuple[float, Interval]:
        """How much higher the loss is than another model's on the same rows, and the paired interval of that."""
        return self.loss - base.loss, difference_interval(self.losses, base.losses, self.tokens)

    def further(self, other: RowCosts) -> Interval:
        """The paired interval of how much larger the KL divergence is than another model's on the same rows."""
        return difference_interval(self.kls, other.kls, self.tokens)

    def of(self, rows: slice) -> RowCosts:
        """The same of some of the rows."""
        return RowCosts(self.tokens[rows], self.losses[rows], self.kls[rows], self.flipped[rows])

    def _mean(self, sums: Sequence[float]) -> float:
        tokens = sum(self.tokens)
        return sum(sums) / tokens if tokens else math.nan


def interval(sums: Sequence[float], tokens: Sequence[int]) -> Interval:
    """The interval of Σ sums / Σ tokens, with rows drawn again with replacement; NaN where there is only one.

    A bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 8 and 13): it says what other rows of
    the same kind would have given, and nothing of other data.

    ``sums``: of each row, over its tokens that bear a loss; ``tokens``: how many these are.
    """
    if len(sums) < 2 or not np.isfinite(sums).all():
        return math.nan, math.nan
    of = np.array([sums, tokens], np.float64)
    totals = np.concatenate([drawn @ of.T for drawn in _drawn(len(sums))])  # (draws, 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = totals[:, 0] / totals[:, 1]
    if not np.isfinite(means).all():
        return math.nan, math.nan
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@lru_cache(maxsize=1 << 10)  # ranks are taken anew with every row that comes
def difference_interval(sums: tuple[float, ...], base: tuple[float, ...], tokens: tuple[int, ...]) -> Interval:
    """The interval of the difference between two means on the same rows, drawn together.

    It is far narrower than either's own: what makes a row hard is in both.
    """
    return interval([a - b for a, b in zip(sums, base, strict=True)], tokens)


def _drawn(rows: int) -> Iterator[NDArray[np.float64]]:
    """(draws, rows), some draws at a time: how often each row is in each; the same for every model, so that they are paired."""
    if rows <= _KEPT:
        yield _drawn_once(rows)
        return
    draws, step = np.random.default_rng(0), max(1, _AT_ONCE // rows)
    for at in range(0, _DRAWS, step):
        yield _draw(draws, rows, min(step, _DRAWS - at))


@lru_cache(maxsize=4)
def _drawn_once(rows: int) -> NDArray[np.float64]:
    return _draw(np.random.default_rng(0), rows, _DRAWS)


def _draw(draws: np.random.Generator, rows: int, size: int) -> NDArray[np.float64]:
    return draws.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)


def distinguishable(better: Interval) -> bool:
    """Whether the interval of a difference lies wholly above zero."""
    return better[0] > 0


def ranks(values: Sequence[float], further: Callable[[int, int], Interval]) -> tuple[int, ...]:
    """Each value's rank: one more than how many of the others are smaller, beyond the interval of the difference.

    ``further(i, j)`` is the interval of value i − value j. Rank 1 have all than which none is distinguishably smaller. Two
    values of different ranks are not always distinguishable from each other. Every number is smaller than what is none.
    """

    def smaller(one: int, other: int) -> bool:
        if not math.isfinite(values[other]):
            return math.isfinite(values[one])
        return values[one] < values[other] and distinguishable(further(other, one))

    every = range(len(values))
    return tuple(1 + sum(smaller(one, other) for one in every) for other in every)
