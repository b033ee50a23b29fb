"""One pass over a stretch of weights for the specifications of one block size: the sums that ``measure`` makes statistics of.

Covers the kernels' calls for formats that they find the scales of, and for those whose scales are found first; rotated weights
are rotated before. Does not cover the statistics (``quant/measure.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.quant.rotation import rotated
from workbench.quant.scales import Overview, find_scales, is_plain, last_rank, multiplies, zero_ranks
from workbench.quant.spec import QuantSpec

Cancelled = Callable[[], bool]


@dataclass(frozen=True)
class Pass:
    """The sums of F formats of one block size over a stretch of weights; the arrays of its blocks are empty where not kept."""

    absmax: NDArray[np.float32]
    scales: NDArray[np.float32]
    zeros: NDArray[np.float32]
    rmse: NDArray[np.float32]
    mae: NDArray[np.float32]
    largest: NDArray[np.float32]
    totals: NDArray[np.float64]
    """float64 (spans, F, 5): weights, Σx², Σe², Σ|e|, max|e|."""
    occupancy: NDArray[np.int64]
    """int64 (F, 256), by rank."""
    nans: int
    infinities: int
    bad_blocks: NDArray[np.int64]
    """int64 (F,)."""

    def without_blocks(self) -> Pass:
        """The same, its sums alone."""
        nothing = np.empty((0, 0), np.float32)
        return replace(self, absmax=nothing, scales=nothing, zeros=nothing, rmse=nothing, mae=nothing, largest=nothing)

    @staticmethod
    def join(passes: list[Pass]) -> Pass:
        """The sums of stretches that follow one another."""
        return replace(
            passes[0],
            totals=np.concatenate([p.totals for p in passes]),
            occupancy=np.sum([p.occupancy for p in passes], axis=0),
            nans=sum(p.nans for p in passes),
            infinities=sum(p.infinities for p in passes),
            bad_blocks=np.sum([p.bad_blocks for p in passes], axis=0),
        )

    def fields(self, specs: list[QuantSpec], numel: int) -> list[dict[str, Any]]:
        """The fields of ``Totals``, a specification at a time."""
        weights, power, noise, sums = self.totals[:, :, :4].sum(axis=0).T  # each (F,), in the spans' order
        with np.errstate(invalid="ignore"):  # a tensor without a finite block has no mean: NaN
            rms, rmse, mae = np.sqrt(power / weights), np.sqrt(noise / weights), sums / weights
        return [
            {
                "spec": spec, "numel": numel, "occupancy": self.occupancy[f, : spec.definition.levels.size],
                "rmse": float(rmse[f]), "mae": float(mae[f]), "rms": float(rms[f]),
                "max": float(self.totals[:, f, 4].max()) if weights[f] else math.nan,
                "nans": self.nans, "infinities": self.infinities, "bad_blocks": int(self.bad_blocks[f]),
            }
            for f, spec in enumerate(specs)
        ]  # fmt: skip

    def blocks(self, f: int) -> dict[str, Any]:
        """The block arrays of the f-th specification, as ``ErrorStats`` calls them."""
        return {
            "block_absmax": self.absmax, "block_rmse": self.rmse[f], "block_mae": self.mae[f], "block_max": self.largest[f],
            "block_scale": self.scales[f] if self.scales.size else self.absmax,
            "block_zero": self.zeros[f] if self.zeros.size else np.broadcast_to(np.float32(0), self.absmax.shape),
        }  # fmt: skip


def one_pass(
    flat: NDArray[Any], specs: list[QuantSpec], p: int, overview: Overview | None, cancelled: Cancelled | None
) -> Pass:
    """The statistics of ``specs``, which have one block size; 0, or how many weights are rotated together: ``p``.

    One pass over the weights for formats with float32 absmax scales; others need one or two more, which find their scales.
    ``overview`` is that of the whole tensor where ``flat`` is a chunk of it.
    """
    from workbench.kernels import blocks as block_kernels
    from workbench.kernels import pool, rounding
    from workbench.kernels.bits import as_bits

    block_size, formats = specs[0].block_size, len(specs)
    forms = [s.definition for s in specs]
    given = as_bits(flat)
    bits = as_bits(rotated(given, p, cancelled)) if p else given
    blocks, tail = -(-bits.size // block_size), bits.size % block_size
    absmax, squares = np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    divisors = scales = zeros = np.empty((formats, 0), np.float32)
    if not all(map(is_plain, specs)):
        known = block_absmax(bits, block_size, cancelled)
        if overview is None:
            overview = Overview.of(known, block_size)
        found = [find_scales(s, bits, known, overview, cancelled) for s in specs]
        divisors, scales = np.stack([f.divisors for f in found]), np.stack([f.values for f in found])
        zeros = np.stack([zero_ranks(s, f, blocks) for s, f in zip(specs, found, strict=True)])
    grids = np.stack([form.grid for form in forms])
    steps, lasts = np.array([form.even_steps for form in forms], np.float32), np.array([last_rank(form) for form in forms])
    divides = np.array([not multiplies(s) for s in specs])
    rmse, mae, largest = (np.empty((formats, blocks), np.float32) for _ in range(3))
    spans = -(-bits.size // pool.SPAN)
    occupancy, totals = np.zeros((spans, formats, 256), np.int64), np.zeros((spans, formats, 5))

    def work(span: slice) -> None:
        part, i = slice(span.start // block_size, -(-span.stop // block_size)), span.start // pool.SPAN
        last = tail if span.stop == bits.size else 0
        rounding.measure_span(
            bits[span], block_size, last, grids, steps, lasts, divides, divisors[:, part], scales[:, part], zeros[:, part],
            absmax[part], squares[part], rmse[:, part], mae[:, part], largest[:, part], occupancy[i],
        )  # fmt: skip
        block_kernels.finish_span(
            block_size, last, absmax[part], squares[part], rmse[:, part], mae[:, part], largest[:, part], totals[i]
        )

    pool.run(work, bits.size, cancelled)
    nans, infinities = (0, 0) if np.isfinite(absmax).all() else block_kernels.nonfinite_span(given)
    bad = np.isnan(rmse).sum(axis=1)
    affine = any(form.zero_point_bits for form in forms)
    return Pass(
        absmax, scales, zeros if affine else zeros[:, :0], rmse, mae, largest, totals, occupancy.sum(axis=0),
        nans, infinities, bad,
    )  # fmt: skip


def absmax_of(flat: NDArray[Any], block_size: int, p: int, cancelled: Cancelled | None) -> NDArray[np.float32]:
    """float32 (blocks,): the absmax of each block, of the rotated weights where ``p`` is not 0."""
    from workbench.kernels.bits import as_bits

    bits = as_bits(flat)
    return block_absmax(as_bits(rotated(bits, p, cancelled)) if p else bits, block_size, cancelled)


def block_absmax(bits: NDArray[Any], block_size: int, cancelled: Cancelled | None) -> NDArray[np.float32]:
    """float32 (blocks,): the absmax of each block of ``bits`` (n,)."""
    from workbench.kernels import blocks as block_kernels
    from workbench.kernels import pool

    absmax = np.empty(-(-bits.size // block_size), np.float32)

    def look(span: slice) -> None:
        own = slice(span.start // block_size, -(-span.stop // block_size))
        block_kernels.block_absmax(bits[span], block_size, absmax[own])

    pool.run(look, bits.size, cancelled)
    return absmax
