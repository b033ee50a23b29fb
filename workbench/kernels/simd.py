"""Vectors of eight lanes as values in numba kernels: load, store, compute, compare and look up eight weights at once.

Covers the few operations that the kernels need, in LLVM's portable vector types, so that a kernel reads as arithmetic and stays
in registers. One operation, ``permute``, is a single instruction where numba compiles for AVX2 and a chain of selections
elsewhere. Does not cover any statistic (``kernels/rounding.py``).
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel
from numba.extending import intrinsic, overload, register_model

from workbench.kernels.bits import compiles_for, widen

LANES = 8
_INT, _FLOAT = ir.IntType(32), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_INT, LANES), ir.VectorType(_FLOAT, LANES)
_STORED = {types.uint8: ir.IntType(8), types.uint16: ir.IntType(16), types.int16: ir.IntType(16), types.uint32: _INT,
           types.int32: _INT, types.float32: _FLOAT}  # fmt: skip


class _Vector(types.Type):
    """Eight values of one type."""


floats, ints = _Vector("eight float32"), _Vector("eight int32")


@register_model(_Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS if kind == floats else _INTS)


def _all(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [value] * LANES)


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> tuple[Any, int]:
    """A pointer to eight elements of an array from ``index`` on, and the alignment that is known of it."""
    element = _STORED[kind.dtype]
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(element, LANES).as_pointer()), kind.dtype.bitwidth // 8


@intrinsic
def load(context: Any, array: Any, index: Any) -> Any:
    """Eight floats: of a float32 array, or the values of weights given as bits (``bits.py``)."""

    def build(target: Any, builder: Any, _: Any, args: Any) -> Any:
        place, align = _place(target, builder, array, *args)
        value = builder.load(place, align=align)
        if array.dtype == types.uint16:
            return builder.bitcast(builder.shl(builder.zext(value, _INTS), _all(16)), _FLOATS)
        if array.dtype == types.int16:
            return widen(target, builder, value)
        return builder.bitcast(value, _FLOATS)

    return floats(array, types.intp), build


@intrinsic
def store(context: Any, array: Any, index: Any, values: Any) -> Any:
    """Eight values into an array: floats into float32, ints into uint32, or their low bytes into uint8."""

    def build(context: Any, builder: Any, _: Any, args: Any) -> Any:
        place, align = _place(context, builder, array, *args[:2])
        value = builder.trunc(args[2], place.type.pointee) if array.dtype == types.uint8 else args[2]
        builder.store(value, place, align=align)
        return context.get_dummy_value()

    return types.void(array, types.intp, values), build


@intrinsic
def splat(context: Any, value: Any) -> Any:
    """A float32 in all lanes."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        undefined = ir.Constant(_FLOATS, ir.Undefined)
        return builder.shuffle_vector(builder.insert_element(undefined, args[0], _INT(0)), undefined, _all(0))

    return floats(types.float32), build


@intrinsic
def zeros(context: Any) -> Any:
    """Eight int32 zeros."""
    return ints(), lambda *_: _all(0)


@intrinsic
def above(context: Any, x: Any, edge: Any) -> Any:
    """−1 in the lanes where not (x <= edge), which holds for NaN too; 0 in the others."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.sext(builder.fcmp_unordered(">", *args), _INTS)

    return ints(floats, floats), build


@intrinsic
def choose(context: Any, mask: Any, yes: Any, no: Any) -> Any:
    """``yes`` in the lanes where the mask is −1, ``no`` where it is 0."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed("<", args[0], _all(0)), args[1], args[2])

    return floats(ints, floats, floats), build


@intrinsic
def permute(context: Any, table: Any, index: Any) -> Any:
    """In each lane the element of ``table`` that the lane of ``index`` (0…7) names."""

    def build(target: Any, builder: Any, __: Any, args: Any) -> Any:
        if compiles_for(target, "avx2"):
            signature = ir.FunctionType(_FLOATS, [_FLOATS, _INTS])
            return builder.call(cgutils.get_or_insert_function(builder.module, signature, "llvm.x86.avx2.permps"), args)
        found = builder.shuffle_vector(args[0], args[0], _all(0))
        for i in range(1, LANES):
            element = builder.shuffle_vector(args[0], args[0], _all(i))
            found = builder.select(builder.icmp_signed("==", args[1], _all(i)), element, found)
        return found

    return floats(floats, ints), build


@intrinsic
def add_product(context: Any, a: Any, b: Any, c: Any) -> Any:
    """a · b + c, rounded once where the processor has a fused instruction: for sums, whose last bits may differ."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fmuladd.v{LANES}f32"
        )
        return builder.call(function, args)

    return floats(floats, floats, floats), build


@intrinsic
def nearest_whole(context: Any, x: Any) -> Any:
    """x rounded to a whole number, a tie to the even one."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_FLOATS, [_FLOATS]), f"llvm.rint.v{LANES}f32")
        return builder.call(function, args)

    return floats(floats), build


@intrinsic
def smaller(context: Any, a: Any, b: Any) -> Any:
    """The smaller of two floats in each lane; ``b`` where one is NaN."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return floats(floats, floats), build


@intrinsic
def larger(context: Any, a: Any, b: Any) -> Any:
    """The larger of two values in each lane; of two floats, ``b`` where one is NaN."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        compare = builder.icmp_signed if a == ints else builder.fcmp_ordered
        return builder.select(compare(">", *args), *args)

    return a(a, a), build


@intrinsic
def to_ints(context: Any, x: Any) -> Any:
    """Floats that are whole numbers as int32."""
    return ints(floats), lambda _, builder, __, args: builder.fptosi(args[0], _INTS)


@intrinsic
def magnitudes(context: Any, x: Any) -> Any:
    """The floats' bits without their sign: ordered as |x| is, with NaN above infinity."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        return builder.and_(builder.bitcast(args[0], _INTS), _all(0x7FFFFFFF))

    return ints(floats), build


@intrinsic
def as_floats(context: Any, bits: Any) -> Any:
    """The floats that have these bits."""
    return floats(ints), lambda _, builder, __, args: builder.bitcast(args[0], _FLOATS)


@intrinsic
def shifted(context: Any, x: Any) -> Any:
    """x · 16."""
    return ints(ints), lambda _, builder, __, args: builder.shl(args[0], _all(4))


def _halves(builder: Any, vector: Any) -> tuple[Any, Any]:
    width = vector.type.count // 2
    kept = ir.VectorType(_INT, width)
    low, high = (ir.Constant(kept, list(range(start, start + width))) for start in (0, width))
    undefined = ir.Constant(vector.type, ir.Undefined)
    return builder.shuffle_vector(vector, undefined, low), builder.shuffle_vector(vector, undefined, high)


@intrinsic
def total(context: Any, x: Any) -> Any:
    """The sum of the lanes."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        value = args[0]
        while value.type.count > 1:
            value = builder.fadd(*_halves(builder, value))
        return builder.extract_element(value, _INT(0))

    return types.float32(floats), build


@intrinsic
def largest(context: Any, x: Any) -> Any:
    """The largest of the lanes."""

    def build(_: Any, builder: Any, __: Any, args: Any) -> Any:
        value = args[0]
        compare = builder.icmp_signed if x == ints else builder.fcmp_ordered
        while value.type.count > 1:
            pair = _halves(builder, value)
            value = builder.select(compare(">", *pair), *pair)
        return builder.extract_element(value, _INT(0))

    return (types.int32 if x == ints else types.float32)(x), build


def _arithmetic(on_floats: str, on_ints: str | None) -> Any:
    @intrinsic
    def operation(context: Any, a: Any, b: Any) -> Any:
        name = on_floats if a == floats else on_ints
        return a(a, a), lambda _, builder, __, args: getattr(builder, str(name))(*args)

    def typed(a: Any, b: Any) -> Any:
        if a == b and (a == floats or (a == ints and on_ints)):
            return lambda a, b: operation(a, b)
        return None

    return typed


overload(operator.add, strict=False)(_arithmetic("fadd", "add"))
overload(operator.sub, strict=False)(_arithmetic("fsub", "sub"))
overload(operator.mul, strict=False)(_arithmetic("fmul", None))
overload(operator.truediv, strict=False)(_arithmetic("fdiv", None))
