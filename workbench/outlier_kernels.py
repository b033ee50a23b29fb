"""The numba kernel that keeps outliers apart: one pass over a span of weights, of the same kind as ``kernels.py``."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.bits import decode, jit

_F64 = np.float64


@jit()
def split_span(bits: Any, dense: Any, block_size: Any, mean: Any, distance: Any, counts: Any) -> Any:
    """Copies ``bits`` to ``dense`` with 0 in place of every finite weight farther than ``distance`` from ``mean``.

    ``counts`` (blocks,) gets how many each block had. Returns the largest distance of a finite weight, 0 where there is none.
    A distance that is NaN keeps every weight.
    """
    farthest = _F64(0)
    for b in range(counts.size):
        block = bits[b * block_size : (b + 1) * block_size]
        out = dense[b * block_size : (b + 1) * block_size]
        count = 0
        for j in range(block.size):
            away = abs(_F64(decode(block[j])) - mean)
            beyond = (away > distance) & (away < np.inf)
            out[j] = 0 if beyond else block[j]
            count += beyond
            farthest = max(farthest, away if away < np.inf else _F64(0))
        counts[b] = count
    return farthest
