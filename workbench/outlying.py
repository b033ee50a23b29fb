"""Outliers of one tensor: how heavy its tails are, which blocks they spoil, and what those blocks would cost without them.

Covers an array in memory under one specification. Does not cover whole models (``surveying.py`` gives every tensor's kurtosis)
nor any training or inference with outliers kept apart.

With the mean μ and the standard deviation σ of the tensor's finite weights, a weight x is an *outlier* beyond k where
|x − μ| > k·σ, and a block is *spoilt* if it holds one: outliers stretch the block's scale, and every weight of the block is
rounded more coarsely. *Without them* means the dense-and-sparse split of SpQR (arXiv 2306.03078) and SqueezeLLM (arXiv
2306.07629): outliers are kept apart as they are (16 bits each in a 16-bit checkpoint, without error), their places in the
dense tensor hold zero, and the dense tensor is quantized anew, all of it, so that what depends on the whole tensor (a tensor
scale, double quantization) follows too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError
from workbench.measurement import ErrorStats, measure
from workbench.quantization import QuantSpec, as_weights

if TYPE_CHECKING:
    import pandas as pd

POSITION_BITS = 16
"""Bits for an outlier's place in its row, as SpQR stores it."""


@dataclass(frozen=True)
class Beyond:
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


@dataclass(frozen=True)
class Outliers:
    """The tails of one tensor and what they cost under one specification."""

    spec: QuantSpec
    shape: tuple[int, ...]
    numel: int
    mean: float
    """μ of the finite weights."""
    std: float
    """σ of the finite weights."""
    kurtosis: float
    """E[(x − μ)⁴] / σ⁴: 3 for a normal distribution, more with heavier tails; NaN where all weights are equal."""
    farthest: float
    """The largest |x − μ| / σ; NaN where all weights are equal."""
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


def outliers(
    array: Any,
    spec: QuantSpec | None = None,
    sigmas: Sequence[float] = (3, 4, 6),
    *,
    cancelled: Callable[[], bool] | None = None,
) -> Outliers:
    """Measures the outliers of ``array`` beyond each of ``sigmas`` standard deviations under ``spec`` (NF4 unless given).

    Takes the arrays that ``quantize`` takes. Beside the array it needs room for one more of its size, and quantizes it once
    for each of ``sigmas`` and once as it is. ``cancelled`` is asked about every half millisecond; once it says yes the call
    raises InterruptedError. FormatError on numbers of standard deviations that are not above 0.

    >>> {t.name: wb.outliers(src.read(t.name)) for t in src.tensors() if t.quantizable}  # doctest: +SKIP
    """
    from workbench.moments import moments  # numba loads here

    spec = QuantSpec() if spec is None else spec
    wanted = sorted({float(k) for k in sigmas})
    if not wanted or not all(0 < k < math.inf for k in wanted):
        raise FormatError(f"Outliers beyond {sigmas!r} standard deviations are not possible.", remedy="Give numbers above 0.")
    weights = as_weights(array)
    found = moments(weights)
    before = measure(weights, spec, cancelled=cancelled)
    split = _Split(weights, spec.block_size, found.mean, cancelled)
    spread = found.std if found.std > 1e-12 * abs(found.mean) else math.nan  # all weights equal, but for the mean's rounding
    noise = _Noise(before)
    lines = [_line(k, split, k * spread, before, noise, cancelled) for k in wanted]
    return Outliers(
        spec, weights.shape, weights.size, found.mean, found.std, found.kurtosis if spread == spread else math.nan,
        split.farthest / spread, before.rmse, before.nans + before.infinities, tuple(lines),
    )  # fmt: skip


class _Split:
    """The dense tensor, whose outliers are zero, and how many there are in each block."""

    def __init__(self, weights: NDArray[Any], block_size: int, mean: float, cancelled: Callable[[], bool] | None) -> None:
        from workbench.bits import as_bits

        self.weights, self.block_size, self.mean, self.cancelled = weights, block_size, mean, cancelled
        self.dense = np.empty_like(weights)
        self.counts = np.zeros(-(-weights.size // block_size), np.int32)
        self._bits, self._dense_bits = as_bits(weights), as_bits(self.dense)
        self.farthest = math.nan

    def at(self, distance: float) -> None:
        """Split anew: weights farther from the mean than ``distance`` go; tells how far the farthest lies."""
        from workbench import pool
        from workbench.outlier_kernels import split_span

        farthest: list[float] = []

        def work(span: slice) -> None:
            blocks = slice(span.start // self.block_size, -(-span.stop // self.block_size))
            farthest.append(
                split_span(self._bits[span], self._dense_bits[span], self.block_size, self.mean, distance, self.counts[blocks])
            )

        pool.run(work, self.weights.size, self.cancelled)
        self.farthest = max(farthest)


class _Noise:
    """Σe² and the number of weights of each block, both 0 where a block is not finite."""

    def __init__(self, stats: ErrorStats) -> None:
        finite = np.isfinite(stats.block_rmse)
        self.weights = np.where(finite, float(stats.spec.block_size), 0.0)
        if finite[-1]:
            self.weights[-1] = stats.numel - stats.spec.block_size * (finite.size - 1)
        self.squares = np.where(finite, stats.block_rmse, np.float32(0)).astype(np.float64) ** 2 * self.weights

    def rmse(self, chosen: NDArray[np.bool_]) -> float:
        """Root mean square error over the weights of the chosen blocks; NaN where there are none."""
        weights = float(chosen @ self.weights)
        return math.sqrt(chosen @ self.squares / weights) if weights else math.nan


def _line(
    sigmas: float, split: _Split, distance: float, before: ErrorStats, noise: _Noise, cancelled: Callable[[], bool] | None
) -> Beyond:
    split.at(distance)
    after = measure(split.dense, before.spec, cancelled=cancelled)
    spoilt = split.counts > 0
    count, blocks = int(split.counts.sum()), int(spoilt.sum())
    finite = before.numel - before.nans - before.infinities
    return Beyond(
        sigmas=sigmas,
        weights=count,
        share=count / finite if finite else math.nan,
        normal_share=math.erfc(sigmas / math.sqrt(2)),
        blocks=blocks,
        block_share=blocks / spoilt.size,
        rmse=noise.rmse(spoilt),
        rmse_apart=_Noise(after).rmse(spoilt),
        rmse_others=noise.rmse(~spoilt),
        tensor_rmse_apart=after.rmse,
        extra_bits=count * (8 * split.weights.itemsize + POSITION_BITS) / before.numel,
    )
