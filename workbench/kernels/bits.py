"""Weights as their bits: what the numba kernels read, decode and order them by.

Covers the compiler's settings, what it compiles for, and three intrinsics. The integer type says how to decode: uint32 float32,
uint16 bfloat16, int16 float16. Does not cover any statistic (``kernels/rounding.py``).
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from workbench import caches

_INT32 = ir.IntType(32)


def jit(reassociate: bool = False, contract: bool = False) -> Any:
    """numba's njit with an on-disk cache where one can be written.

    If asked, sums may be reordered (and so vectorised), and a product that is added may go unrounded (fused multiply-add).
    """
    fast = {"reassoc"} if reassociate else set()
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fast | ({"contract"} if contract else set())}

    def decorate(function: Any) -> Any:
        given = config.CACHE_DIR  # numba asks it for a folder as it decorates, and no later
        config.CACHE_DIR = _compiled()
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # nowhere can a file be written
            return njit(**options)(function)
        finally:
            config.CACHE_DIR = given

    return decorate


@functools.cache
def _compiled() -> str:
    """The folder of compiled kernels: in NUMBA_CACHE_DIR or the user's folder, and not in the package, where they would stay
    when it is uninstalled. Named by the sources that kernels of other files are compiled with, which numba does not look at.
    """
    given = Path(config.CACHE_DIR or "").expanduser().absolute()
    root = given if config.CACHE_DIR and caches.writable(given) else caches.user_folder()
    sources = (Path(__file__).with_name(name).read_bytes() for name in ("bits.py", "simd.py", "rounding.py"))
    return str(root / f"kernels-{hashlib.sha256(b''.join(sources)).hexdigest()[:12]}")


def compiles_for(target: Any, feature: str) -> bool:
    """Whether numba compiles for processors with ``feature``: NUMBA_CPU_NAME may ask for less than this machine has."""
    triple, _, features = target.codegen().magic_tuple()
    return triple.startswith("x86") and f"+{feature}" in features.split(",")


def widen(target: Any, builder: Any, half: Any) -> Any:
    """Float32 values, exactly, of float16 values that are given as int16: of one, or of a vector of them.

    One instruction where there is one. Elsewhere LLVM would call a function that numba does not have: the exponent is then
    moved by a product, which also makes subnormal values normal; infinity and NaN keep their exponent of ones.
    """
    lanes = getattr(half.type, "count", 0)

    def kind(scalar: Any) -> Any:
        return ir.VectorType(scalar, lanes) if lanes else scalar

    def constant(value: int) -> Any:
        return ir.Constant(kind(_INT32), [value] * lanes if lanes else value)

    floats = kind(ir.FloatType())
    if compiles_for(target, "f16c") or not target.codegen().magic_tuple()[0].startswith("x86"):
        return builder.fpext(builder.bitcast(half, kind(ir.HalfType())), floats)
    bits = builder.zext(half, kind(_INT32))
    magnitude = builder.shl(builder.and_(bits, constant(0x7FFF)), constant(13))
    scaled = builder.fmul(builder.bitcast(magnitude, floats), builder.bitcast(constant((127 + 112) << 23), floats))  # · 2¹¹²
    special = builder.icmp_signed(">=", magnitude, constant(0x1F << 23))
    value = builder.select(special, builder.or_(magnitude, constant(0xFF << 23)), builder.bitcast(scaled, kind(_INT32)))
    return builder.bitcast(builder.or_(value, builder.shl(builder.and_(bits, constant(0x8000)), constant(16))), floats)


@intrinsic  # numba ships no types
def decode(context: Any, bits: Any) -> Any:
    """The float32 value of a weight's bits."""

    def build(target: Any, builder: Any, _: Any, args: Any) -> Any:
        if bits == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(args[0], _INT32), ir.Constant(_INT32, 16)), ir.FloatType())
        if bits == types.int16:
            return widen(target, builder, args[0])
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

    def build(target: Any, builder: Any, _: Any, args: Any) -> Any:
        value = args[0]
        if like == types.uint16:
            value = builder.shl(builder.zext(value, _INT32), ir.Constant(_INT32, 16))
        elif like == types.int16:
            return widen(target, builder, value)
        return builder.bitcast(value, ir.FloatType())

    kind = types.int16 if like in (types.uint16, types.int16) else types.int32
    return types.float32(kind, like), build


def as_bits(array: NDArray[Any]) -> NDArray[Any]:
    """A contiguous float32, float16 or bfloat16 array, flat, viewed as the integers that kernels take; nothing is copied."""
    view = {"float32": np.uint32, "float16": np.int16, "bfloat16": np.uint16}[array.dtype.name]
    return array.reshape(-1).view(view)
