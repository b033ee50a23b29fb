"""The numba kernels that find outliers in a span of weights and keep them apart, like those of ``kernels/rounding.py``."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.kernels.bits import decode, jit

_F64 = np.float64


@jit()
def count_span(bits: Any, block_size: Any, absmax: Any, mean: Any, distances: Any, counts: Any) -> Any:
    """How many finite weights of each block lie farther from ``mean`` than each of some ascending ``distances``.

    ``counts`` (distances, blocks) starts at 0. Returns the largest distance of a finite weight, 0 where there is none.
    Nothing lies beyond a distance that is NaN. A block is looked into only where its ``absmax`` says that it may hold one, or
    the farthest: |x − mean| ≤ absmax + |mean|.
    """
    farthest = _F64(0)
    for b in range(absmax.size):
        reach = _F64(absmax[b]) + abs(mean)
        if reach <= distances[0] and reach <= farthest:
            continue
        block = bits[b * block_size : (b + 1) * block_size]
        for j in range(block.size):
            away = abs(_F64(decode(block[j])) - mean)
            if not away < np.inf:
                continue
            farthest = max(farthest, away)
            for k in range(distances.size):
                if not away > distances[k]:
                    break
                counts[k, b] += 1
    return farthest


@jit()
def keep_within(bits: Any, block_size: Any, chosen: Any, mean: Any, distance: Any, dense: Any) -> None:
    """Copies the ``chosen`` blocks to ``dense``, one after the other, with 0 for each finite weight beyond ``distance``."""
    for i in range(chosen.size):
        block = bits[chosen[i] * block_size : (chosen[i] + 1) * block_size]
        out = dense[i * block_size : (i + 1) * block_size]
        for j in range(block.size):
            away = abs(_F64(decode(block[j])) - mean)
            out[j] = 0 if (away > distance) & (away < np.inf) else block[j]
