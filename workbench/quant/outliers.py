"""Outliers of one tensor: how heavy its tails are, which blocks they spoil, and what those blocks would cost without them.

Covers an array in memory under one specification. Does not cover whole models (``surveys/survey.py`` gives every tensor's
kurtosis) nor any training or inference with outliers kept apart.

With the mean μ and the standard deviation σ of the tensor's finite weights, a weight x is an *outlier* beyond k where
|x − μ| > k·σ, and a block is *spoilt* if it holds one: outliers stretch the block's scale, and every weight of the block is
rounded more coarsely. *Without them* means the dense-and-sparse split of SpQR (arXiv 2306.03078) and SqueezeLLM (arXiv
2306.07629): outliers are kept apart as they are (16 bits each in a 16-bit checkpoint, without error), their places in the
dense tensor hold zero, and the dense tensor is quantized anew: the spoilt blocks, or all of it where scales depend on the
whole tensor (a tensor scale, double quantization).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError
from workbench.given import several
from workbench.progress import Cancelled
from workbench.quant.measure import ErrorStats, measure
from workbench.quant.quantize import as_weights
from workbench.quant.scales import needs_overview
from workbench.quant.spec import QuantSpec, SpecLike, as_spec
from workbench.show import Line, Record, Shown, View
from workbench.text import count, number, percent

if TYPE_CHECKING:
    import pandas as pd

    from workbench.kernels.moments import Moments

POSITION_BITS = 16
"""Bits for an outlier's place in its row, as SpQR stores it."""


@dataclass(frozen=True, repr=False)
class Beyond(Record):
    """The weights beyond one number of standard deviations, and the blocks that hold them."""

    sigmas: float
    """k."""
    weights: int
    """How many weights are beyond."""
    share: float
    """Their share of the finite weights."""
    normal_share: float
    """The share in a normal distribution, erfc(k / √2)."""
    blocks: int
    """Blocks that hold at least one."""
    block_share: float
    """Their share of all blocks."""
    rmse: float
    """Root mean square error of those blocks' weights as they are; NaN where there are none, as in the next."""
    rmse_apart: float
    """The same of the same weights with the outliers kept apart."""
    rmse_others: float
    """Root mean square error of the other blocks' weights as they are; NaN where there are none."""
    tensor_rmse_apart: float
    """Root mean square error of the whole tensor with the outliers kept apart."""
    extra_bits: float
    """What keeping them apart adds, bits per weight of the tensor: each outlier's own bits and 16 for its place in its row."""

    def _line_(self) -> Line:
        return {
            "beyond": f"{self.sigmas:g} σ", "weights": f"{self.weights:,}", "of all": percent(self.share, 4),
            "if normal": f"{100 * self.normal_share:.2g} %", "blocks": percent(self.block_share),
            "their RMSE": number(self.rmse), "kept apart": number(self.rmse_apart), "bits more": f"{self.extra_bits:.4f}",
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Outliers(Shown):
    """The tails of one tensor and what they cost under one specification."""

    spec: QuantSpec
    shape: tuple[int, ...]
    numel: int
    mean: float
    """μ of the finite weights."""
    std: float
    """σ of the finite weights."""
    kurtosis: float
    """``E[(x − μ)⁴] / σ⁴``: 3 for a normal distribution, more with heavier tails; NaN where all weights are equal."""
    farthest: float
    """The largest ``|x − μ| / σ``; NaN where all weights are equal."""
    rmse: float
    """Root mean square error of the tensor as it is."""
    nonfinite: int
    """Weights that are NaN or infinite; they are no outliers, and their blocks are in no error."""
    beyond: tuple[Beyond, ...]
    """One for each number of standard deviations, ascending."""

    def to_frame(self) -> pd.DataFrame:
        """A line for each number of standard deviations: the fields of ``Beyond``."""
        import pandas as pd

        return pd.DataFrame([vars(line) for line in self.beyond], columns=list(Beyond.__dataclass_fields__))

    def _show_(self) -> View:
        facts = {
            "weights": f"{count(self.numel)}, shape {self.shape}, whole", "σ": number(self.std),
            "kurtosis": number(self.kurtosis, ".2f"), "farthest": f"{number(self.farthest, '.1f')} σ",
            "RMSE": number(self.rmse),
        }  # fmt: skip
        if self.nonfinite:
            facts["not finite"] = f"{self.nonfinite:,}"
        return View(f"Outliers, measured: {self.spec.title}", facts, self.beyond)


DISTANCES = (3.0, 4.0, 6.0)
"""The numbers of standard deviations that outliers are counted beyond unless others are asked for."""


def outliers(
    array: Any,
    spec: SpecLike | None = None,
    sigmas: float | Sequence[float] = DISTANCES,
    *,
    cancelled: Cancelled | None = None,
) -> Outliers:
    """Measures the outliers of an array beyond some numbers of standard deviations.

    Beside the array it needs room for the blocks that hold outliers, and for one more array of its size where scales depend on
    the whole tensor.

    Args:
        array: What ``quantize`` takes.
        spec: What it is quantized to; NF4 unless given.
        sigmas: Numbers of standard deviations.
        cancelled: Asked about every half millisecond; a yes ends the call.

    Returns:
        The tail beyond each distance: its weights, the blocks with one of them, and the error that they bring.

    Raises:
        FormatError: As ``quantize`` does, for numbers of standard deviations that are not above 0, and for a rotation.
        InterruptedError: Once cancelled.

    >>> found = wb.outliers(np.append(np.linspace(-1, 1, 63, dtype=np.float32), np.float32(9)))
    >>> [line.weights for line in found.beyond], round(found.farthest, 1)
    ([1, 1, 1], 7.0)
    """
    from workbench.kernels.moments import moments  # numba loads here

    try:
        wanted = sorted({float(k) for k in several(sigmas)})
    except (TypeError, ValueError):
        wanted = []
    if not wanted or not all(0 < k < math.inf for k in wanted):
        raise FormatError(f"Outliers beyond {sigmas!r} standard deviations are not possible.", remedy="Give numbers above 0.")
    weights = as_weights(array)
    under = QuantSpec() if spec is None else as_spec(spec)
    if under.rotate:
        what = f"Under {under.title} an outlier has no block of its own: the rotation spreads it over many."
        raise FormatError(what, where="spec", remedy="Give a specification without rotate.")
    stats = measure(weights, under, cancelled=cancelled)
    return outliers_of(weights, stats, moments(weights), wanted, cancelled)


def outliers_of(
    weights: NDArray[Any],
    stats: ErrorStats,
    found: Moments,
    sigmas: Sequence[float] = DISTANCES,
    cancelled: Cancelled | None = None,
) -> Outliers:
    """``outliers`` of weights whose ``measure`` and ``moments`` are known, beyond ascending distances."""
    spread = found.std if found.std > 1e-12 * abs(found.mean) else math.nan  # all weights equal, but for the mean's rounding
    split = _Split(weights.reshape(-1), stats, found.mean, cancelled)
    counts, farthest = split.count([k * spread for k in sigmas])
    return Outliers(
        stats.spec, stats.shape, stats.numel, found.mean, found.std, found.kurtosis if spread == spread else math.nan,
        farthest / spread, stats.rmse, stats.nans + stats.infinities,
        tuple(_line(k, split, k * spread, of_k) for k, of_k in zip(sigmas, counts, strict=True)),
    )  # fmt: skip


class _Split:
    """A tensor's weights within and beyond a distance of its mean, and the error by block as it is and without the latter."""

    def __init__(self, flat: NDArray[Any], stats: ErrorStats, mean: float, cancelled: Cancelled | None) -> None:
        from workbench.kernels.bits import as_bits

        self.flat, self.stats, self.mean, self.cancelled = flat, stats, mean, cancelled
        self._bits, self._size = as_bits(flat), stats.spec.block_size
        finite = np.isfinite(stats.block_rmse)
        self.weights = np.where(finite, float(self._size), 0.0)
        """float64 (blocks,): weights of each block, 0 where it is not finite: it counts in no error."""
        if finite[-1]:
            self.weights[-1] = stats.numel - self._size * (finite.size - 1)
        self.noise = _squares(stats.block_rmse) * self.weights
        """float64 (blocks,): Σe² of each block."""

    def count(self, distances: Sequence[float]) -> tuple[NDArray[np.int32], float]:
        """int32 (distances, blocks), how many lie beyond each of some ascending distances; and how far the farthest lies."""
        from workbench.kernels import pool
        from workbench.kernels.outliers import count_span

        counts = np.zeros((len(distances), self.noise.size), np.int32)
        beyond, farthest = np.array(distances), list[float]()

        def work(span: slice) -> None:
            own = slice(span.start // self._size, -(-span.stop // self._size))
            found = count_span(self._bits[span], self._size, self.stats.block_absmax[own], self.mean, beyond, counts[:, own])
            farthest.append(found)

        pool.run(work, self._bits.size, self.cancelled)
        return counts, max(farthest)

    def noise_apart(self, distance: float, spoilt: NDArray[np.bool_]) -> NDArray[np.float64]:
        """float64 (blocks,): Σe² of each block without the weights beyond ``distance`` that the ``spoilt`` hold."""
        from workbench.kernels import pool
        from workbench.kernels.bits import as_bits
        from workbench.kernels.outliers import keep_within

        if not spoilt.any():
            return self.noise
        anew = np.flatnonzero(np.ones_like(spoilt) if needs_overview(self.stats.spec) else spoilt)
        missing = self._size * self.noise.size - self.flat.size if anew[-1] == self.noise.size - 1 else 0
        dense = np.empty(anew.size * self._size - missing, self.flat.dtype)
        kept = as_bits(dense)

        def work(span: slice) -> None:
            own = slice(span.start // self._size, -(-span.stop // self._size))
            keep_within(self._bits, self._size, anew[own], self.mean, distance, kept[span])

        pool.run(work, kept.size, self.cancelled)
        noise = self.noise.copy()
        noise[anew] = _squares(measure(dense, self.stats.spec, cancelled=self.cancelled).block_rmse) * self.weights[anew]
        return noise


def _squares(block_rmse: NDArray[np.float32]) -> NDArray[np.float64]:
    """float64 (blocks,): the mean square error of each block, 0 where it is not finite."""
    return np.where(np.isfinite(block_rmse), block_rmse, np.float32(0)).astype(np.float64) ** 2


def _line(sigmas: float, split: _Split, distance: float, counts: NDArray[np.int32]) -> Beyond:
    spoilt, stats = counts > 0, split.stats
    apart = split.noise_apart(distance, spoilt)

    def rmse(noise: NDArray[np.float64], chosen: NDArray[np.bool_]) -> float:
        """Over the weights of the chosen blocks; NaN where there are none."""
        weights = float(chosen @ split.weights)
        return math.sqrt(chosen @ noise / weights) if weights else math.nan

    count, blocks = int(counts.sum()), int(spoilt.sum())
    finite = stats.numel - stats.nans - stats.infinities
    return Beyond(
        sigmas=sigmas,
        weights=count,
        share=count / finite if finite else math.nan,
        normal_share=math.erfc(sigmas / math.sqrt(2)),
        blocks=blocks,
        block_share=blocks / spoilt.size,
        rmse=rmse(split.noise, spoilt),
        rmse_apart=rmse(apart, spoilt),
        rmse_others=rmse(split.noise, ~spoilt),
        tensor_rmse_apart=rmse(apart, np.ones_like(spoilt)),
        extra_bits=count * (8 * split.flat.itemsize + POSITION_BITS) / stats.numel,
    )
