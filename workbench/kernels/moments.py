"""The first four central moments of a tensor's weights, exact over a stream of chunks.

Covers the kernel and ``Moments``, from which mean, standard deviation and kurtosis follow. Weights that are NaN or infinite
are left out. Does not cover anything that depends on blocks or formats (``quant/measure.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.kernels import pool
from workbench.kernels.bits import as_bits, decode, jit

_CHUNK = 4096
_F64 = np.float64


@dataclass(frozen=True)
class Moments:
    """How many weights there are, their mean, and the sums of the second to fourth power of their distance to it."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    """Σ(x − mean)²."""
    m3: float = 0.0
    m4: float = 0.0

    @property
    def std(self) -> float:
        """Standard deviation σ, √(m2 / count); NaN without weights."""
        return math.sqrt(self.m2 / self.count) if self.count else math.nan

    @property
    def kurtosis(self) -> float:
        """E[(x − mean)⁴] / σ⁴: 3 for a normal distribution, more with heavier tails; NaN where all weights are equal."""
        return self.count * self.m4 / self.m2**2 if self.m2 else math.nan

    def __add__(self, other: Moments) -> Moments:
        """The moments of both sets of weights together (Pébay, SAND2008-6212, equations 2.1, 3.1 and 4.1)."""
        if not self.count or not other.count:
            return self if self.count else other
        a, b = float(self.count), float(other.count)
        n, delta = a + b, other.mean - self.mean
        d = delta / n
        m2 = self.m2 + other.m2 + delta * d * a * b
        m3 = self.m3 + other.m3 + delta * d * d * a * b * (a - b) + 3 * d * (a * other.m2 - b * self.m2)
        m4 = (
            self.m4 + other.m4 + delta * d * d * d * a * b * (a * a - a * b + b * b)
            + 6 * d * d * (a * a * other.m2 + b * b * self.m2) + 4 * d * (a * other.m3 - b * self.m3)
        )  # fmt: skip
        return Moments(self.count + other.count, self.mean + d * b, m2, m3, m4)


def moments(array: NDArray[Any], before: Moments = Moments()) -> Moments:
    """The moments of a contiguous float32, float16 or bfloat16 array, added to those of what came ``before`` it.

    Does not depend on the number of threads; nor on how a tensor is cut into chunks, where every chunk but the last has a
    multiple of ``pool.SPAN`` weights.
    """
    bits = as_bits(array)
    sums = np.empty((-(-bits.size // pool.SPAN), 6))

    def work(span: slice) -> None:
        power_sums(bits[span], sums[span.start // pool.SPAN])

    pool.run(work, bits.size)
    for count, pivot, s1, s2, s3, s4 in sums.tolist():
        before = before + _central(int(count), pivot, s1, s2, s3, s4)
    return before


def _central(n: int, pivot: float, s1: float, s2: float, s3: float, s4: float) -> Moments:
    """From the sums of the powers of x − pivot; all zero for n = 0."""
    d = s1 / max(n, 1)
    m3 = s3 - 3 * d * s2 + 2 * n * d**3
    return Moments(n, pivot + d, max(s2 - n * d * d, 0.0), m3, max(s4 - 4 * d * s3 + 6 * d * d * s2 - 3 * n * d**4, 0.0))


@jit(reassociate=True, contract=True)
def _powers(chunk: Any, pivot: Any) -> Any:
    s1, s2, s3, s4 = _F64(0), _F64(0), _F64(0), _F64(0)
    for j in range(chunk.size):
        d = _F64(decode(chunk[j])) - pivot
        square = d * d
        s1 += d
        s2 += square
        s3 += square * d
        s4 += square * square
    return s1, s2, s3, s4


@jit()
def _finite_powers(chunk: Any, pivot: Any) -> Any:
    n, s1, s2, s3, s4 = 0, _F64(0), _F64(0), _F64(0), _F64(0)
    for j in range(chunk.size):
        d = _F64(decode(chunk[j])) - pivot
        if d - d == _F64(0):
            square = d * d
            n += 1
            s1 += d
            s2 += square
            s3 += square * d
            s4 += square * square
    return n, s1, s2, s3, s4


@jit()
def power_sums(bits: Any, out: Any) -> None:
    """Writes (6,) float64: the finite weights' count, a pivot, and Σ(x − pivot)ᵏ for k = 1…4.

    The pivot is the mean of the span's first chunk. At least 1 in SPAN / _CHUNK = 128 weights then has the pivot for its
    mean, so that it lies at most √127 of the span's σ from the span's mean, and taking the sums to the central moments
    cancels at most five of float64's sixteen digits.
    """
    first = bits[:_CHUNK]
    n, total, _, _, _ = _finite_powers(first, _F64(0))
    pivot = total / max(n, 1)
    count, t1, t2, t3, t4 = 0, _F64(0), _F64(0), _F64(0), _F64(0)
    for start in range(0, bits.size, _CHUNK):
        chunk = bits[start : start + _CHUNK]
        n = chunk.size
        s1, s2, s3, s4 = _powers(chunk, pivot)
        if s4 - s4 != _F64(0):  # a NaN or an infinity: no power of a float32 overflows a float64
            n, s1, s2, s3, s4 = _finite_powers(chunk, pivot)
        count += n
        t1 += s1
        t2 += s2
        t3 += s3
        t4 += s4
    out[0], out[1], out[2], out[3], out[4], out[5] = count, pivot, t1, t2, t3, t4
