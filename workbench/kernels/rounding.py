"""One pass over a span of weights: block absmax, codes, error sums and bin occupancy, for any number of formats at once.

Covers the numba kernels that quantize and measure: serial, nogil, on raw bits, eight weights at a time, everything between the
read and the sums in registers. Does not cover what looks at blocks without quantizing (``kernels/blocks.py``), threads
(``pool.py``), nor the numbers' meaning (``quant/measure.py``).

Weights come as their bits (``bits.py``), blocks in the order of the span; the span's last block has ``tail`` weights unless
that is 0. A *rank* is the number of a level in ascending order. A format's sixteen levels are searched by bisection in a
``grid``, float32 (48,): rows of eight with the edge 7, the edges 3 and 11, then 1 5 9 13, then 0 2 … 14, the even levels, the
odd levels. Comparisons are written so that a NaN passes every edge and gets the last rank, as in bitsandbytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.kernels.bits import decode, from_magnitude, jit, magnitude
from workbench.kernels.simd import (
    above,
    add_product,
    as_floats,
    choose,
    larger,
    largest,
    load,
    magnitudes,
    nearest_whole,
    permute,
    shifted,
    smaller,
    splat,
    store,
    to_ints,
    total,
    zeros,
)  # fmt: skip

CHUNK = 4096
"""Weights whose ranks are kept and then counted together; every block size divides it."""
TINY = np.float32(1e-38)
"""bitsandbytes' floor for an absmax that is divided by."""

_F32, _U32 = np.float32, np.uint32


@jit()
def absmax_of(block: Any) -> Any:
    """The largest magnitude of a block; NaN if it holds one."""
    found = magnitude(block[0])
    for j in range(block.size):
        found = max(found, magnitude(block[j]))
    return from_magnitude(found, block[0])


@jit()
def _in_grid(x: Any, grid: Any) -> Any:
    """(rank, level) of x among sixteen levels: four comparisons, each with the edge that the ones before it point to."""
    passed = above(x, grid[0])
    rank = zeros() - passed
    passed = above(x, permute(grid[1], rank))
    rank = rank + rank - passed
    passed = above(x, permute(grid[2], rank))
    rank = rank + rank - passed
    passed = above(x, permute(grid[3], rank))
    level = choose(passed, permute(grid[5], rank), permute(grid[4], rank))
    return rank + rank - passed, level


@jit()
def _evenly(x: Any, steps: Any, zero: Any, last: Any) -> Any:
    """(rank, level) of x among evenly spaced levels (rank − zero) / steps with ranks 0…last; a tie goes to the even number."""
    rank = larger(smaller(nearest_whole(x * splat(steps)) + splat(zero), splat(last)), splat(_F32(0)))
    return to_ints(rank), (rank - splat(zero)) / splat(steps)


@jit()
def _rows(grid: Any) -> Any:
    return load(grid, 0), load(grid, 8), load(grid, 16), load(grid, 24), load(grid, 32), load(grid, 40)


@jit()
def _round(x: Any, divisor: Any, divide: Any, rows: Any, steps: Any, zero: Any, last: Any) -> Any:
    """(rank, level) of eight weights, divided by ``divisor`` or multiplied by its reciprocal."""
    normalised = x / splat(divisor) if divide else x * splat(_F32(1) / divisor)
    if steps > _F32(0):
        return _evenly(normalised, steps, zero, last)
    return _in_grid(normalised, rows)


@jit()
def _add(x: Any, level: Any, scale: Any, per_absmax: Any, squares: Any, sums: Any, most: Any) -> Any:
    """Σ(e/absmax)², Σ|e|/absmax and max|e| with eight more errors e = x − level · scale."""
    error = magnitudes(x - level * scale)
    relative = as_floats(error) * per_absmax
    return add_product(relative, relative, squares), sums + relative, larger(most, error)


@jit()
def _whole_blocks(
    bits: Any, block_size: Any, grid: Any, divisors: Any, scales: Any, per_absmax: Any,
    error_squares: Any, error_sums: Any, error_max: Any, pairs: Any,
) -> None:  # fmt: skip
    """Error sums of whole blocks whose weights are multiplied by 1 / divisor; ``pairs`` of ranks are counted later."""
    rows = _rows(grid)
    at = 0
    for b in range(divisors.size):
        factor, scale, per = splat(_F32(1) / divisors[b]), splat(scales[b]), splat(per_absmax[b])
        squares, sums, most = splat(_F32(0)), splat(_F32(0)), zeros()
        for j in range(b * block_size, (b + 1) * block_size, 16):
            x = load(bits, j)
            rank, level = _in_grid(x * factor, rows)
            squares, sums, most = _add(x, level, scale, per, squares, sums, most)
            x = load(bits, j + 8)
            second, level = _in_grid(x * factor, rows)
            squares, sums, most = _add(x, level, scale, per, squares, sums, most)
            store(pairs, at, shifted(second) + rank)
            at += 8
        error_squares[b], error_sums[b], error_max[b] = total(squares), total(sums), from_magnitude(largest(most), _U32(0))


@jit()
def _any_blocks(
    bits: Any, block_size: Any, divide: Any, grid: Any, steps: Any, zero_points: Any, last: Any, divisors: Any, scales: Any,
    per_absmax: Any, error_squares: Any, error_sums: Any, error_max: Any, ranks: Any,
) -> None:  # fmt: skip
    """Error sums and ranks of blocks of any format, whole or not."""
    rows = _rows(grid)
    for b in range(divisors.size):
        scale, per, zero = splat(scales[b]), splat(per_absmax[b]), zero_points[b]
        squares, sums, most = splat(_F32(0)), splat(_F32(0)), zeros()
        start, stop = b * block_size, min(bits.size, (b + 1) * block_size)
        whole = start + (stop - start) // 8 * 8
        for j in range(start, whole, 8):
            x = load(bits, j)
            rank, level = _round(x, divisors[b], divide, rows, steps, zero, last)
            squares, sums, most = _add(x, level, scale, per, squares, sums, most)
            store(ranks, j, rank)
        square, summed, top = total(squares), total(sums), largest(most)
        if whole < stop:
            some, restored = _eight(bits, whole, stop), np.empty(8, _F32)
            rank, level = _round(load(some, 0), divisors[b], divide, rows, steps, zero, last)
            store(ranks, whole, rank)
            store(restored, 0, level * scale)
            for j in range(stop - whole):
                error = abs(decode(some[j]) - restored[j])
                top = max(top, magnitude(error))
                square += (error * per_absmax[b]) * (error * per_absmax[b])
                summed += error * per_absmax[b]
        error_squares[b], error_sums[b], error_max[b] = square, summed, from_magnitude(top, _U32(0))


@jit()
def _eight(bits: Any, start: Any, stop: Any) -> Any:
    """The weights from ``start`` to ``stop``, fewer than eight, with zeros after them."""
    some = np.zeros(8, bits.dtype)
    for j in range(start, stop):
        some[j - start] = bits[j]
    return some


@jit()
def _look(bits: Any, block_size: Any, tail: Any, absmax: Any, floored: Any, per_absmax: Any) -> None:
    """absmax of each block, at least ``TINY`` for a tail block; the same at least ``TINY`` for all; the reciprocal of that."""
    for b in range(absmax.size):
        found = absmax_of(bits[b * block_size : min(bits.size, (b + 1) * block_size)])
        floored[b] = TINY if found < TINY else found
        absmax[b] = floored[b] if tail > 0 and b == absmax.size - 1 else found
        per_absmax[b] = _F32(1) / floored[b]


@jit()
def _power(bits: Any, block_size: Any, per_absmax: Any, squares: Any) -> None:
    """Σ(x/absmax)² of each block."""
    for b in range(squares.size):
        start, stop = b * block_size, min(bits.size, (b + 1) * block_size)
        sums, per = splat(_F32(0)), splat(per_absmax[b])
        whole = start + (stop - start) // 8 * 8
        for j in range(start, whole, 8):
            x = load(bits, j) * per
            sums = add_product(x, x, sums)
        squares[b] = total(sums)
        for j in range(whole, stop):
            squares[b] += (decode(bits[j]) * per_absmax[b]) * (decode(bits[j]) * per_absmax[b])


@jit()
def count_places(places: Any, counts: Any) -> None:
    """Counts places into four tables in turn: a run of equal places then stalls on the same counter a quarter as often."""
    whole = places.size // 4 * 4
    for j in range(0, whole, 4):
        counts[0, places[j]] += 1
        counts[1, places[j + 1]] += 1
        counts[2, places[j + 2]] += 1
        counts[3, places[j + 3]] += 1
    for j in range(whole, places.size):
        counts[0, places[j]] += 1


@jit()
def measure_span(
    bits: Any, block_size: Any, tail: Any, grids: Any, steps: Any, lasts: Any, divides: Any,
    divisors: Any, scales: Any, zero_points: Any,
    absmax: Any, squares: Any, error_squares: Any, error_sums: Any, error_max: Any, occupancy: Any,
) -> None:  # fmt: skip
    """Every statistic of a span of weights in F formats, one pass.

    Reads, for each format, its ``grids`` (F, 48), or ``steps`` (F,) above 0 and the ``lasts`` (F,) rank of evenly spaced
    levels; and for each block, what its weights are divided by, what its levels are multiplied with and its zero point:
    ``divisors``, ``scales``, ``zero_points`` (F, blocks), or (F, 0) for the block's own absmax and none. ``divides`` (F,) says
    which formats divide where the others multiply by the reciprocal; the tail block is always divided.

    Writes ``absmax`` and ``squares`` = Σ(x/absmax)² (blocks,), ``error_squares``, ``error_sums`` (units of absmax) and
    ``error_max`` (F, blocks); adds to ``occupancy`` (F, 256), by rank.
    """
    formats = grids.shape[0]
    given = divisors.shape[1] > 0
    at_once = CHUNK // block_size
    floored, per_absmax, no_zeros = np.empty(at_once, _F32), np.empty(at_once, _F32), np.zeros(at_once, _F32)
    ranks, pairs = np.empty(CHUNK + 8, _U32), np.empty(CHUNK // 2, _U32)
    single_counts, pair_counts = np.zeros((formats, 4, 256), np.int32), np.zeros((formats, 4, 256), np.int32)
    for first in range(0, absmax.size, at_once):
        stop = min(absmax.size, first + at_once)
        n = stop - first
        chunk = bits[first * block_size : min(bits.size, stop * block_size)]
        has_tail = tail > 0 and stop == absmax.size
        own, divided_by, per = absmax[first:stop], floored[:n], per_absmax[:n]
        _look(chunk, block_size, tail if has_tail else 0, own, divided_by, per)
        _power(chunk, block_size, per, squares[first:stop])
        for f in range(formats):
            d = divisors[f, first:stop] if given else divided_by
            s = scales[f, first:stop] if given else own
            z = zero_points[f, first:stop] if given else no_zeros[:n]
            e2, e1, em = error_squares[f, first:stop], error_sums[f, first:stop], error_max[f, first:stop]
            fast = 0 if divides[f] or steps[f] > _F32(0) else n - has_tail
            _whole_blocks(chunk, block_size, grids[f], d[:fast], s, per, e2, e1, em, pairs)
            count_places(pairs[: fast * block_size // 2], pair_counts[f])
            if fast < n:
                rest = chunk[fast * block_size :]
                divide = divides[f] or has_tail
                _any_blocks(
                    rest, block_size, divide, grids[f], steps[f], z[fast:], lasts[f], d[fast:], s[fast:], per[fast:],
                    e2[fast:], e1[fast:], em[fast:], ranks,
                )  # fmt: skip
                count_places(ranks[: rest.size], single_counts[f])
    for f in range(formats):
        for k in range(256):
            number = pair_counts[f, 0, k] + pair_counts[f, 1, k] + pair_counts[f, 2, k] + pair_counts[f, 3, k]
            occupancy[f, k & 15] += number
            occupancy[f, k >> 4] += number
            for table in range(4):
                occupancy[f, k] += single_counts[f, table, k]


@jit()
def rank_span(
    bits: Any, block_size: Any, divide: Any, grid: Any, steps: Any, zero_points: Any, last: Any, divisors: Any, ranks: Any
) -> None:
    """Ranks (n,) of a span of n weights in one format, with the arguments of ``measure_span`` for its blocks."""
    rows = _rows(grid)
    few = np.empty(8, np.uint8)
    for b in range(divisors.size):
        start, stop = b * block_size, min(bits.size, (b + 1) * block_size)
        whole = start + (stop - start) // 8 * 8
        for j in range(start, whole, 8):
            rank, _ = _round(load(bits, j), divisors[b], divide, rows, steps, zero_points[b], last)
            store(ranks, j, rank)
        if whole < stop:
            rank, _ = _round(load(_eight(bits, whole, stop), 0), divisors[b], divide, rows, steps, zero_points[b], last)
            store(few, 0, rank)
            for j in range(whole, stop):
                ranks[j] = few[j - whole]


@jit()
def fit_span(bits: Any, block_size: Any, grid: Any, divisors: Any, ratios: Any) -> None:
    """The scale that fits each block best, by least squares weighted with x², over its divisor: ``ratios`` (blocks,).

    Σ s²·level·s / Σ s²·level² with s = x · (1/divisor) and the levels that s rounds to; 0 for a block of zeros.
    """
    rows = _rows(grid)
    for b in range(divisors.size):
        start, stop = b * block_size, min(bits.size, (b + 1) * block_size)
        factor = splat(_F32(1) / divisors[b])
        products, squares = splat(_F32(0)), splat(_F32(0))
        for j in range(start, stop, 8):
            x = load(bits, j) if j + 8 <= stop else load(_eight(bits, j, stop), 0)
            x = x * factor
            _, level = _in_grid(x, rows)
            weighted = x * x * level
            products, squares = add_product(weighted, x, products), add_product(weighted, level, squares)
        square = total(squares)
        ratios[b] = total(products) / square if square > _F32(0) else _F32(0)
