"""What quantization does to one tensor: errors as a whole and block by block, and how full each bin is.

Covers ``measure`` for one or several formats in one pass, ``histogram``, and pooling block values to the resolution of a
screen. Does not cover whole models.

Errors are e = x − level · scale with the product in float32, as bitsandbytes' kernels form it before rounding to the compute
dtype. Blocks that hold a NaN or an infinity have no error; they are counted, and left out of every average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from workbench.double_quant import double_quantize
from workbench.errors import FormatError
from workbench.formats import Format
from workbench.quantization import QuantSpec, as_weights

Cancelled = Callable[[], bool]


@dataclass(frozen=True)
class ErrorStats:
    """Error statistics of one tensor under one specification."""

    spec: QuantSpec
    shape: tuple[int, ...]
    numel: int
    occupancy: NDArray[np.int64]
    """int64 (16,): weights in the bin of each of ``spec.definition.levels``; the sum is ``numel``."""
    block_rmse: NDArray[np.float32]
    """float32 (blocks,): root mean square error; NaN where a block is not finite, as in the two below."""
    block_mae: NDArray[np.float32]
    """float32 (blocks,): mean absolute error."""
    block_max: NDArray[np.float32]
    """float32 (blocks,): largest absolute error."""
    block_absmax: NDArray[np.float32]
    """float32 (blocks,): largest magnitude, before double quantization."""
    rmse: float
    """Root mean square error over all weights of finite blocks."""
    mae: float
    """Mean absolute error."""
    max: float
    """Largest absolute error."""
    rms: float
    """Root mean square of the weights themselves."""
    nans: int
    """Weights that are NaN."""
    infinities: int
    """Weights that are infinite."""
    sampled: float | None = None
    """The share of the blocks that was measured; None: the whole tensor."""

    @property
    def relative_rmse(self) -> float:
        """rmse / rms of the weights; 0 for a tensor of zeros."""
        return self.rmse / self.rms if self.rms else 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in decibels: 20 · log10(rms / rmse); infinite without error."""
        return 20 * float(np.log10(self.rms / self.rmse)) if self.rmse else float("inf")

    @property
    def entropy_bits(self) -> float:
        """Shannon entropy of the occupancy in bits per weight; equal levels (the two zeros of FP4) count as one bin."""
        counts = merge_equal_levels(self.spec.definition, self.occupancy)[1]
        share = counts[counts > 0] / self.numel
        return float(-(share * np.log2(share)).sum())

    @property
    def bad_blocks(self) -> int:
        """Blocks left out of the averages because they hold a NaN or an infinity."""
        return int((~np.isfinite(self.block_absmax)).sum())

    @property
    def blocks_per_row(self) -> int | None:
        """Blocks in a row of the last dimension; None when blocks cross rows."""
        last = self.shape[-1] if self.shape else 1
        return last // self.spec.block_size if last % self.spec.block_size == 0 else None


def merge_equal_levels(form: Format, occupancy: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The distinct levels and their counts: FP4 has two zeros, which no reader can tell apart."""
    levels, index = np.unique(form.levels, return_inverse=True)
    return levels, np.bincount(index, weights=occupancy, minlength=levels.size).astype(np.int64)


@overload
def measure(array: Any, spec: QuantSpec, sample: float | None = None, *, cancelled: Cancelled | None = None) -> ErrorStats: ...
@overload
def measure(
    array: Any, spec: Sequence[QuantSpec], sample: float | None = None, *, cancelled: Cancelled | None = None
) -> list[ErrorStats]: ...
def measure(
    array: Any, spec: QuantSpec | Sequence[QuantSpec], sample: float | None = None, *, cancelled: Cancelled | None = None
) -> ErrorStats | list[ErrorStats]:
    """Measures what quantizing ``array`` under ``spec`` costs; several specifications give a list.

    Specifications with the same block size share one pass over the weights. ``sample`` in (0, 1) measures evenly spaced
    stretches of blocks instead of the whole, and says so in ``sampled``; the per-block arrays then hold the sampled blocks
    alone. Takes the arrays that ``quantize`` takes. ``cancelled`` is asked about every half millisecond; once it says yes the
    call raises InterruptedError.
    """
    specs = [spec] if isinstance(spec, QuantSpec) else list(spec)
    weights = as_weights(array)
    shape = weights.shape
    flat = weights.reshape(-1)
    sampled = None
    if sample is not None:
        if not 0 < sample <= 1:
            raise FormatError(f"A sample of {sample!r} is not possible.", remedy="Give a share above 0 and up to 1.")
        flat, sampled = _evenly_spaced(flat, sample)
    results: dict[int, ErrorStats] = {}
    for block_size in dict.fromkeys(s.block_size for s in specs):
        at = [i for i, s in enumerate(specs) if s.block_size == block_size]
        for i, stats in zip(at, _one_pass(flat, [specs[i] for i in at], shape, sampled, cancelled), strict=True):
            results[i] = stats
    ordered = [results[i] for i in range(len(specs))]
    return ordered[0] if isinstance(spec, QuantSpec) else ordered


def histogram(array: Any, block_size: int = 64, bins: int = 256, cancelled: Cancelled | None = None) -> NDArray[np.int64]:
    """Counts of x / absmax of its block in ``bins`` equal parts of [−1, 1]: int64 (bins,). NaNs are in no bin."""
    from workbench import kernels, pool
    from workbench.bits import as_bits

    QuantSpec(block_size=block_size)  # the same check, the same message
    bits = as_bits(as_weights(array))
    absmax = np.empty(-(-bits.size // block_size), np.float32)
    parts: list[NDArray[np.int64]] = []
    nothing = np.empty((0, 0), np.float32)

    def count(span: slice) -> None:
        blocks = slice(span.start // block_size, -(-span.stop // block_size))
        part = np.zeros(bins, np.int64)
        kernels.measure_span(
            bits[span], block_size, bits.size % block_size != 0 and span.stop == bits.size, nothing, _NO_LEVELS, nothing,
            absmax[blocks], np.empty(absmax[blocks].size, np.float32), nothing, nothing, nothing,
            np.empty((0, 16), np.int64), part,
        )  # fmt: skip
        parts.append(part)

    pool.run(count, bits.size, cancelled)
    _raise_if(cancelled)
    return np.asarray(np.sum(parts, axis=0), np.int64)


def pool_blocks(
    values: NDArray[np.float32], per_row: int, height: int, width: int
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Block values (blocks,) as a map of at most ``height`` × ``width`` cells, each the largest of the blocks it covers.

    ``per_row`` blocks make a row. Returns the cells, float32 (rows, columns), NaN where a cell has no finite block, and how
    many (rows, columns) of blocks a cell covers.
    """
    rows = -(-values.size // per_row)
    tall, wide = -(-rows // height), -(-per_row // width)
    out_rows, out_columns = -(-rows // tall), -(-per_row // wide)
    padded = np.full((out_rows * tall, out_columns * wide), -np.inf, np.float32)
    whole = values.size // per_row
    padded[:whole, :per_row] = values[: whole * per_row].reshape(whole, per_row)
    if values.size % per_row:
        padded[whole, : values.size % per_row] = values[whole * per_row :]
    np.nan_to_num(padded, copy=False, nan=-np.inf)
    cells = padded.reshape(out_rows, tall, out_columns, wide).max(axis=(1, 3))
    cells[np.isneginf(cells)] = np.nan
    return cells, (tall, wide)


def _one_pass(
    flat: NDArray[Any], specs: list[QuantSpec], shape: tuple[int, ...], sampled: float | None, cancelled: Cancelled | None
) -> list[ErrorStats]:
    """The statistics of ``specs``, which have one block size, in one pass over the weights (two with double quantization)."""
    from workbench import kernels, pool
    from workbench.bits import as_bits

    block_size, formats = specs[0].block_size, len(specs)
    bits = as_bits(flat)
    blocks = -(-bits.size // block_size)
    tail = bits.size % block_size
    edges = np.stack([s.definition.edges for s in specs])
    levels = np.stack([s.definition.levels.view(np.int32) for s in specs])
    absmax, squares = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    error_squares, error_sums, error_max = (np.empty((formats, blocks), np.float32) for _ in range(3))
    scales = np.empty((formats, 0), np.float32)

    def own(span: slice) -> slice:
        return slice(span.start // block_size, -(-span.stop // block_size))

    if any(s.double_quant for s in specs):
        pool.run(lambda span: kernels.block_absmax(bits[span], block_size, absmax[own(span)]), bits.size, cancelled)
        if tail:
            absmax[-1] = np.maximum(absmax[-1], kernels.TINY)
        plain = absmax.copy()
        sizes2 = {s.nested_block_size for s in specs if s.double_quant}
        nested = {size: double_quantize(plain, size).dequantize() for size in sizes2}
        scales = np.stack([nested[s.nested_block_size] if s.double_quant else plain for s in specs])

    pieces = -(-bits.size // pool.SPAN)
    occupancies = np.zeros((pieces, formats, 16), np.int64)
    totals = np.zeros((pieces, formats, 5))

    def work(span: slice) -> None:
        part, i = own(span), span.start // pool.SPAN
        last = tail if span.stop == bits.size else 0
        kernels.measure_span(
            bits[span], block_size, last > 0, edges, levels, scales[:, part], absmax[part],
            squares[part], error_squares[:, part], error_sums[:, part], error_max[:, part], occupancies[i], _NO_BINS,
        )  # fmt: skip
        kernels.finish_span(
            block_size, last, absmax[part], squares[part],
            error_squares[:, part], error_sums[:, part], error_max[:, part], totals[i],
        )  # fmt: skip

    pool.run(work, bits.size, cancelled)
    _raise_if(cancelled)
    nans, infinities = (0, 0) if np.isfinite(absmax).all() else kernels.nonfinite_span(bits)
    occupancy = occupancies.sum(axis=0)
    weights, power, noise, sums = totals[:, :, :4].sum(axis=0).T  # each (formats,); in the spans' order, whoever ran them
    with np.errstate(invalid="ignore"):  # a tensor without a finite block has no mean: NaN
        rms, rmse, mae = np.sqrt(power / weights), np.sqrt(noise / weights), sums / weights
    return [
        ErrorStats(
            spec=spec,
            shape=shape,
            numel=bits.size,
            occupancy=occupancy[f],
            block_rmse=error_squares[f],
            block_mae=error_sums[f],
            block_max=error_max[f],
            block_absmax=absmax,
            rmse=float(rmse[f]),
            mae=float(mae[f]),
            max=float(totals[:, f, 4].max()),
            rms=float(rms[f]),
            nans=nans,
            infinities=infinities,
            sampled=sampled,
        )
        for f, spec in enumerate(specs)
    ]


def _evenly_spaced(flat: NDArray[Any], share: float) -> tuple[NDArray[Any], float | None]:
    """Evenly spaced stretches of 4,096 weights, about ``share`` of the whole; small arrays are taken whole."""
    stretch = 4096
    count = flat.size // stretch
    step = round(1 / share)
    if step <= 1 or count < 2 * step:
        return flat, None
    kept = np.ascontiguousarray(flat[: count * stretch].reshape(count, stretch)[step // 2 :: step])
    return kept.reshape(-1), kept.size / flat.size


def _raise_if(cancelled: Cancelled | None) -> None:
    if cancelled is not None and cancelled():
        raise InterruptedError("measuring was cancelled")


_NO_BINS: NDArray[np.int64] = np.empty(0, np.int64)
_NO_LEVELS: NDArray[np.int32] = np.empty((0, 16), np.int32)
