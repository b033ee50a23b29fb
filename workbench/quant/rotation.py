"""A rotation of the input side before quantizing, and its inverse after: QuaRot's randomised Hadamard matrix.

W x = (W Qᵀ)(Q x) for an orthogonal Q: a layer with rotated weights takes rotated inputs. A rotation spreads each weight, and
each outlier with them, over the input side. QuaRot, arXiv 2404.00456, rotates for the sake of the activations. What it does to
the error of the weights themselves is measured here.

Covers Q = H · diag(s) / √p over the largest power of two p that divides the input width, along it block after block. Where the
width is a power of two, Q is one randomised Hadamard matrix, as in QuaRot, which has special matrices for other widths. The
signs s are drawn once, with a fixed seed, so nothing is stored. Does not cover rotating a layer's inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError

HADAMARD = "hadamard"
_SEED = 0
_LARGEST = 1 << 19
"""The largest p: the kernels' span."""

Cancelled = Callable[[], bool]


def stretch_of(shape: tuple[int, ...]) -> int:
    """p: the largest power of two, up to 2¹⁹, that divides the last dimension. FormatError where that is odd."""
    width = shape[-1] if shape else 1
    p = min(width & -width, _LARGEST)
    if p < 2:
        raise FormatError(
            f"Weights with an input width of {width:,} cannot be rotated: no Hadamard matrix of two or more divides it.",
            where="rotate", remedy="Leave this tensor or the rotation out.",
        )  # fmt: skip
    return p


@lru_cache(maxsize=8)
def _signs(p: int) -> NDArray[np.float32]:
    drawn = np.random.RandomState(_SEED).randint(0, 2, p)  # whose stream NumPy never changes
    return (2 * drawn - 1).astype(np.float32)


def rotated(bits: NDArray[Any], p: int, cancelled: Cancelled | None = None) -> NDArray[np.float32]:
    """float32 (n,): each p weights of ``bits`` (n,) rotated. A NaN or an infinity spoils the p weights that it is among."""
    from workbench.kernels import pool, rotation  # numba loads here

    out, signs = np.empty(bits.size, np.float32), _signs(p)
    pool.run(lambda span: rotation.rotate_span(bits[span], signs, out[span]), bits.size, cancelled)
    return out


def restored(values: NDArray[np.float32], p: int) -> NDArray[np.float32]:
    """``values`` (n,), rotated back in place: to float32's rounding what was rotated."""
    from workbench.kernels import pool, rotation

    signs = _signs(p)
    pool.run(lambda span: rotation.restore_span(values[span], signs), values.size)
    return values
