"""Weights as their bits: what the numba kernels read, decode and order them by.

Covers the compiler's settings and three intrinsics. The integer type says how to decode: uint32 float32, uint16 bfloat16, int16
float16. Does not cover any statistic (``kernels/rounding.py``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

_INT32 = ir.IntType(32)


def jit(reassociate: bool = False, contract: bool = False) -> Any:
    """numba's njit with an on-disk cache where one can be written.

    If asked, sums may be reordered (and so vectorised), and a product that is added may go unrounded (fused multiply-add).
    """
    fast = {"reassoc"} if reassociate else set()
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fast | ({"contract"} if contract else set())}

    def decorate(function: Any) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # neither beside the source nor in the user's cache folder can a file be written
            return njit(**options)(function)

    return decorate


@intrinsic  # numba ships no types
def decode(context: Any, bits: Any) -> Any:
    """The float32 value of a weight's bits."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        if bits == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(args[0], _INT32), ir.Constant(_INT32, 16)), ir.FloatType())
        if bits == types.int16:
            return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(bits), build


@intrinsic
def magnitude(context: Any, bits: Any) -> Any:
    """The bits without their sign, as signed integers of their width: ordered as |x| is, with NaN above infinity.

    Their maximum vectorises, sixteen 16-bit weights at a time where a processor has 256 bits.
    """
    width = 16 if bits in (types.uint16, types.int16) else 32

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        value = builder.bitcast(args[0], _INT32) if bits == types.float32 else args[0]
        return builder.and_(value, ir.Constant(ir.IntType(width), (1 << (width - 1)) - 1))

    return (types.int16 if width == 16 else types.int32)(bits), build


@intrinsic
def from_magnitude(context: Any, magnitude: Any, like: Any) -> Any:
    """The float32 value of a magnitude that was taken from bits of ``like``'s kind."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        value = args[0]
        if like == types.uint16:
            value = builder.shl(builder.zext(value, _INT32), ir.Constant(_INT32, 16))
        elif like == types.int16:
            return builder.fpext(builder.bitcast(value, ir.HalfType()), ir.FloatType())
        return builder.bitcast(value, ir.FloatType())

    kind = types.int16 if like in (types.uint16, types.int16) else types.int32
    return types.float32(kind, like), build


def as_bits(array: NDArray[Any]) -> NDArray[Any]:
    """A contiguous float32, float16 or bfloat16 array, flat, viewed as the integers that kernels take; nothing is copied."""
    view = {"float32": np.uint32, "float16": np.int16, "bfloat16": np.uint16}[array.dtype.name]
    return array.reshape(-1).view(view)
