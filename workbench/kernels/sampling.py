"""An evenly spaced sample of a tensor: whole stretches of its weights, copied on the kernels' threads.

Covers which stretches are taken. What is computed from them, and that it says it comes from a sample, is the caller's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.kernels import pool


def evenly_spaced(flat: NDArray[Any], stretch: int, step: int) -> tuple[NDArray[Any], slice, float | None]:
    """Every ``step``-th stretch of ``stretch`` weights (a power of two, up to 4,096), the first from the middle of a step.

    Gives the weights (n,), which stretches they are, and their share of the whole. An array that holds less than two steps is
    taken whole, its tail included, and the share is None.
    """
    count = flat.size // stretch
    if step <= 1 or count < 2 * step:
        return flat, slice(None), None
    which = slice(step // 2, count, step)
    chosen = flat[: count * stretch].reshape(count, stretch)[which]
    kept = np.empty(chosen.shape, flat.dtype)

    def copy(span: slice) -> None:
        rows = slice(span.start // stretch, span.stop // stretch)
        kept[rows] = chosen[rows]

    pool.run(copy, kept.size)
    return kept.reshape(-1), which, kept.size / flat.size
