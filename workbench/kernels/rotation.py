"""The Hadamard rotation of stretches of weights and its inverse, by the fast Walsh–Hadamard transform.

Covers numba kernels on spans of whole stretches. A stretch x of p weights becomes H (s ⊙ x) / √p, with H the Hadamard matrix in
Sylvester's order and s signs ±1: p · log₂ p additions in place of p² products. H is symmetric and H · H = p · I, so the same
transform undoes it. Does not cover which weights make a stretch (``quant/rotation.py``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.kernels.bits import decode, jit

_F32 = np.float32


@jit()
def _transform(x: Any) -> None:
    """H · x / √p in place, for a power of two p = x.size."""
    p = x.size
    first = 1
    if p >= 8:  # three steps at once in registers
        for i in range(0, p, 8):
            v = x[i : i + 8]
            a0, a1, a2, a3 = v[0] + v[1], v[0] - v[1], v[2] + v[3], v[2] - v[3]
            a4, a5, a6, a7 = v[4] + v[5], v[4] - v[5], v[6] + v[7], v[6] - v[7]
            b0, b1, b2, b3 = a0 + a2, a1 + a3, a0 - a2, a1 - a3
            b4, b5, b6, b7 = a4 + a6, a5 + a7, a4 - a6, a5 - a7
            v[0], v[1], v[2], v[3] = b0 + b4, b1 + b5, b2 + b6, b3 + b7
            v[4], v[5], v[6], v[7] = b0 - b4, b1 - b5, b2 - b6, b3 - b7
        first = 8
    half = first
    while half < p:
        for i in range(0, p, 2 * half):
            low, high = x[i : i + half], x[i + half : i + 2 * half]
            for j in range(low.size):
                a, b = low[j], high[j]
                low[j], high[j] = a + b, a - b
        half *= 2
    factor = _F32(1 / np.sqrt(p))
    for j in range(p):
        x[j] *= factor


@jit()
def rotate_span(bits: Any, signs: Any, out: Any) -> None:
    """The rotated weights of ``bits`` (n,) into ``out``, float32 (n,); ``signs`` is float32 (p,), and p divides n."""
    p = signs.size
    for start in range(0, bits.size, p):
        given, part = bits[start : start + p], out[start : start + p]
        for j in range(p):
            part[j] = decode(given[j]) * signs[j]
        _transform(part)


@jit()
def restore_span(values: Any, signs: Any) -> None:
    """Undoes ``rotate_span`` on ``values``, float32 (n,), in place."""
    p = signs.size
    for start in range(0, values.size, p):
        part = values[start : start + p]
        _transform(part)
        for j in range(p):
            part[j] *= signs[j]
