"""Quantizing an array: from a ``QuantSpec`` to codes, scales and packed bytes, bit for bit as bitsandbytes does on a CPU.

Covers the specification, its storage arithmetic, ``quantize`` and ``Quantized``. Does not cover error statistics
(``quant/measure.py``), which never materialise codes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from os import PathLike
from typing import Any, Self

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError
from workbench.given import described, is_a, is_whole, several, unknown_fields
from workbench.quant.double_quant import NestedScales
from workbench.quant.formats import ABSMAX, SCALE_BITS, TWO_LEVEL, Format, find_format
from workbench.quant.scales import Overview, find_scales, last_rank, multiplies, with_tail_floored, zero_ranks

_DIRECT = ("float32", "float16", "bfloat16")
_WIDENED = ("float64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


@dataclass(frozen=True)
class QuantSpec:
    """How an array is quantized. Raises FormatError on a format or block size that there is not."""

    format: str = "nf4"
    """A key of ``FORMATS``; other spellings and titles (``"NF4"``, ``"INT4 symmetric"``) become it."""
    block_size: int = 0
    """Consecutive weights that share a scale; 0 becomes the format's own: 64, or what its definition says."""
    scale_dtype: str | None = None
    """What a scale is stored in; None becomes the format's own."""
    double_quant: bool = False
    """Whether the scales are quantized again, to 8 bits (bitsandbytes' ``compress_statistics``)."""
    nested_block_size: int = 256
    """Consecutive scales that share a second-level scale; bitsandbytes has 256."""

    def __new__(cls, /, *_: Any, **given: Any) -> Self:
        """Refuses names that are no fields, with the nearest that are."""
        names = [field.name for field in fields(cls)]
        if faults := unknown_fields(given, names):
            raise FormatError(" ".join(faults), where="QuantSpec", remedy=f"The fields: {', '.join(names)}.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        form = find_format(self.format)
        object.__setattr__(self, "format", form.name)
        if not is_whole(self.block_size, 0) or self.block_size not in (0, *form.block_sizes):
            sizes = ", ".join(map(str, form.block_sizes))
            raise FormatError(f"{form.title} has no blocks of {self.block_size!r} weights.", remedy=f"Choose one of: {sizes}.")
        object.__setattr__(self, "block_size", int(self.block_size) or form.default_block_size)
        scale_dtype = form.scale_dtype if self.scale_dtype is None else self.scale_dtype
        if not is_a(scale_dtype, str, np.dtype) or scale_dtype not in form.scale_dtypes:
            raise FormatError(
                f"{form.title} does not store its scales as {self.scale_dtype!r}.",
                remedy=f"Choose one of: {', '.join(form.scale_dtypes)}.",
            )
        object.__setattr__(self, "scale_dtype", str(scale_dtype))  # a NumPy dtype equals its name
        if not isinstance(self.double_quant, bool | np.bool_):
            raise FormatError(f"double_quant is {described(self.double_quant)}.", remedy="Give True or False.")
        object.__setattr__(self, "double_quant", bool(self.double_quant))
        if self.double_quant and (not form.double_quantizable or self.scale_dtype != "float32"):
            raise FormatError(
                f"{form.title} with {self.scale_dtype} scales cannot be double quantized: that takes absmax scales in float32.",
                remedy="Leave double_quant out, or choose nf4 or another format with such scales.",
            )
        if not is_whole(size := self.nested_block_size, 1):
            raise FormatError(f"A nested block size of {size!r} is not possible.", remedy="Give a whole number from 1 on.")
        object.__setattr__(self, "nested_block_size", int(size))

    @property
    def definition(self) -> Format:
        """The format's levels and rules."""
        return find_format(self.format)

    @property
    def title(self) -> str:
        """The specification in words: ``NF4, blocks of 64, double quantized``."""
        form = self.definition
        own = self.scale_dtype == form.scale_dtype
        nested = "" if self.nested_block_size == 256 else f" in blocks of {self.nested_block_size}"
        return (
            f"{form.title}, blocks of {self.block_size}"
            + ("" if own else f", {self.scale_dtype} scales")
            + (f", double quantized{nested}" if self.double_quant else "")
        )

    def as_code(self) -> str:
        """The specification as Python: what differs from the defaults."""
        told = [repr(self.format), str(self.block_size)]
        if self.scale_dtype != self.definition.scale_dtype:
            told.append(f"scale_dtype={self.scale_dtype!r}")
        if self.double_quant:
            told.append("double_quant=True")
            if self.nested_block_size != 256:
                told.append(f"nested_block_size={self.nested_block_size}")
        return f"wb.QuantSpec({', '.join(told)})"

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of a large tensor, scales and zero points counted: for NF4 4 + 32/B, or 4 + 8/B + 32/(B·N)."""
        form, block = self.definition, self.block_size
        if self.double_quant:
            return form.bits + 8 / block + 32 / (block * self.nested_block_size)
        return form.bits + (SCALE_BITS[self.scale_dtype] + form.zero_point_bits) / block

    def storage(self, numel: int) -> dict[str, int]:
        """Bytes that a tensor of ``numel`` weights takes, by part; partial blocks count as whole ones.

        Parts: "codes" (two a byte, or one), then what the format has of "absmax" (a scale a block), "absmax codes" (a byte a
        block), "nested absmax" (float32 a block of blocks), "offset" (one float32), "scales" (a scale a block that is not its
        absmax), "zero points" (two a byte) and "tensor scale" (one float32).
        """
        form = self.definition
        blocks = -(-numel // self.block_size)
        parts = {"codes": -(-numel * form.bits // 8)}
        if self.double_quant:
            return parts | {"absmax codes": blocks, "nested absmax": 4 * -(-blocks // self.nested_block_size), "offset": 4}
        parts["absmax" if form.rule == ABSMAX else "scales"] = blocks * SCALE_BITS[self.scale_dtype] // 8
        if form.zero_point_bits:
            parts["zero points"] = -(-blocks * form.zero_point_bits // 8)
        if form.rule == TWO_LEVEL:
            parts["tensor scale"] = 4
        return parts

    def nbytes(self, numel: int) -> int:
        """The sum of ``storage(numel)``."""
        return sum(self.storage(numel).values())

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; ``QuantSpec(**d)`` reads them back."""
        return asdict(self)


SpecLike = QuantSpec | Format | str
"""What stands for a specification, as ``as_spec`` takes it."""
_TITLE = re.compile(
    r"(?P<format>.+?),? \(?blocks of (?P<size>\d+)(, (?P<dtype>\w+) scales)?"
    r"(?P<double>, double quantized( in blocks of (?P<nested>\d+))?)?\)?",
    re.IGNORECASE,
)
"""A specification's title, also with all but the format in brackets, as it stands in the middle of a sentence."""


def as_spec(given: SpecLike, where: str = "spec") -> QuantSpec:
    """The specification that is meant: itself, a format or its name as it usually is, or the title of a specification.

    >>> as_spec("NF4") == as_spec("nf4, blocks of 64") == QuantSpec("nf4", 64)
    True
    """
    if isinstance(given, QuantSpec):
        return given
    if isinstance(given, str) and (title := _TITLE.fullmatch(given.strip())):
        dtype, nested = title["dtype"], int(title["nested"] or 256)
        return QuantSpec(title["format"], int(title["size"]), dtype and dtype.lower(), bool(title["double"]), nested)
    if is_a(given, str, Format):
        return QuantSpec(find_format(given).name)
    remedy = "Give a QuantSpec, or the name of a format such as 'nf4'."
    raise FormatError(f"{described(given)} is no specification of how to quantize.", where=where, remedy=remedy)


def as_specs(given: SpecLike | Iterable[SpecLike], where: str = "specs") -> tuple[QuantSpec, ...]:
    """``as_spec`` of one or of several; FormatError where there is none."""
    found = tuple(as_spec(one, where) for one in several(given))
    if not found:
        raise FormatError("There is no format to measure.", where=where, remedy="Give a QuantSpec, or a name such as 'nf4'.")
    return found


@dataclass(frozen=True)
class Quantized:
    """A quantized array."""

    spec: QuantSpec
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """The dtype of the array that was quantized."""
    codes: NDArray[np.uint8]
    """uint8 (numel,): the stored code of each weight, as the format numbers them."""
    absmax: NDArray[np.float32]
    """float32 (blocks,): the largest magnitude of each block; a partial last block's is at least 1e-38, as in bitsandbytes."""
    scales: NDArray[np.float32]
    """float32 (blocks,): what levels are multiplied with; after rounding to the stored dtype or double quantization."""
    stored_scales: NDArray[Any]
    """(blocks,) in ``spec.scale_dtype``: the scales as a checkpoint would hold them, before double quantization."""
    zero_points: NDArray[np.uint8] | None = None
    """uint8 (blocks,): the code that stands for 0; None in formats without."""
    tensor_scale: np.float32 | None = None
    """The tensor's one float32, which ``stored_scales`` are in units of; None in formats without."""
    nested: NestedScales | None = None
    """The double-quantized absmax values, None without double quantization."""

    @property
    def packed(self) -> NDArray[np.uint8]:
        """uint8 (⌈numel/2⌉, 1): two codes a byte, the first in the high half, as bitsandbytes stores them.

        The half byte after an odd number of weights holds the code that zero rounds to. Codes of 8 bits stay as they are.
        """
        codes, form = self.codes, self.spec.definition
        if form.bits == 8:
            return codes[:, None]
        if codes.size % 2:
            codes = np.append(codes, form.code_of_rank[int((form.edges < 0).sum())])
        return np.asarray((codes[0::2] << 4) | codes[1::2], np.uint8)[:, None]

    @property
    def nbytes(self) -> int:
        """Bytes that codes and scales take when stored."""
        return self.spec.nbytes(self.codes.size)

    def dequantize(self, dtype: Any = np.float32) -> NDArray[Any]:
        """The weights that a matrix product sees: level · scale in float32, then rounded to ``dtype``, in the array's shape.

        With zero points, (level − zero point) · scale.
        """
        values = self.spec.definition.level_of_code[self.codes]
        with np.errstate(over="ignore", invalid="ignore"):
            if self.zero_points is not None:
                values -= np.repeat(self.zero_points.astype(np.float32), self.spec.block_size)[: values.size]
            values *= np.repeat(self.scales, self.spec.block_size)[: values.size]
        return values.astype(dtype, copy=False).reshape(self.shape)

    def to_bnb(self, device: str = "cpu") -> tuple[Any, Any]:
        """(packed tensor, ``QuantState``) for ``bitsandbytes.functional.dequantize_4bit`` and ``Params4bit``.

        FormatError for formats that bitsandbytes does not hold.
        """
        from workbench.quant.bnb import to_bnb

        return to_bnb(self, device)

    @staticmethod
    def from_bnb(packed: Any, state: Any) -> Quantized:
        """Reads a packed weight and its ``QuantState``, or a ``Params4bit`` and its ``quant_state``."""
        from workbench.quant.bnb import from_bnb

        return from_bnb(packed, state)


def quantize(
    array: Any, spec: SpecLike, cancelled: Callable[[], bool] | None = None, *, overview: Overview | None = None
) -> Quantized:
    """Quantizes an array of any shape, read in C order as one row of weights cut into blocks.

    ``spec``: a specification, or a format's name, which stands for the format as it usually is. ``overview`` tells of the
    tensor that the array is a piece of, for formats whose scales depend on all of it.

    Takes float32, float16 and bfloat16 (ml_dtypes) as they are, float64 and 8-bit floats rounded to float32: NumPy arrays,
    torch tensors, and lists of numbers. Raises FormatError on other dtypes and on empty arrays.
    """
    from workbench.kernels import blocks as block_kernels  # numba loads here
    from workbench.kernels import pool, rounding
    from workbench.kernels.bits import as_bits

    spec, weights = as_spec(spec), as_weights(array)
    form, block_size = spec.definition, spec.block_size
    bits = as_bits(weights)
    blocks = -(-bits.size // block_size)
    ranks, absmax = np.empty(bits.size, np.uint8), np.empty(blocks, np.float32)

    def own(span: slice) -> slice:
        return slice(span.start // block_size, -(-span.stop // block_size))

    pool.run(lambda span: block_kernels.block_absmax(bits[span], block_size, absmax[own(span)]), bits.size, cancelled)
    tail = bits.size % block_size
    if overview is None:
        overview = Overview.of(absmax, block_size)
    scales = find_scales(spec, bits, absmax, overview, cancelled)
    zeros = zero_ranks(spec, scales, blocks)

    def rank(span: slice) -> None:
        whole = slice(span.start, span.stop - (tail if span.stop == bits.size else 0))
        for part, divide in ((whole, not multiplies(spec)), (slice(whole.stop, span.stop), True)):
            rounding.rank_span(
                bits[part], block_size, divide, form.grid, np.float32(form.even_steps), zeros[own(part)],
                last_rank(form), scales.divisors[own(part)], ranks[part],
            )  # fmt: skip

    pool.run(rank, bits.size, cancelled)
    codes = ranks if form.codes == tuple(range(form.levels.size)) else form.code_of_rank[ranks]
    return Quantized(
        spec, weights.shape, weights.dtype, codes, with_tail_floored(absmax, bits.size, block_size),
        scales.values, scales.stored, scales.zero_points, scales.tensor_scale, scales.nested,
    )  # fmt: skip


def as_weights(array: Any) -> NDArray[Any]:
    """A C-contiguous float32, float16 or bfloat16 array of the same values; a torch tensor is read through its bits."""
    if isinstance(array, str | PathLike) or hasattr(array, "tensors"):
        remedy = "Read one of its tensors: wb.open_model(…).read(name)."
        raise FormatError(f"{described(array)} is no array of weights.", where="array", remedy=remedy)
    try:
        array = np.asarray(_from_torch(array) if hasattr(array, "detach") else array)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        what = f"{described(array)} cannot be read as an array ({error})."
        raise FormatError(what, where="array", remedy="Give a NumPy array, or a torch tensor with data.") from error
    if array.dtype.name in _WIDENED:
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if array.dtype.name not in _DIRECT:
        raise FormatError(
            f"An array of {array.dtype.name} is not a tensor of weights.", remedy="Give floats of 8, 16, 32 or 64 bits."
        )
    if array.size == 0:
        raise FormatError(f"An array of shape {array.shape} has no weights.", remedy="Give at least one weight.")
    return np.ascontiguousarray(array)


def _from_torch(tensor: Any) -> NDArray[Any]:
    """A torch tensor's values, wherever it lies; NumPy has no bfloat16 and no 8-bit floats of its own."""
    import torch  # loaded already: it made the tensor

    tensor = tensor.detach().cpu().contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "bfloat16" or name in _WIDENED[1:]:
        bits = tensor.view(torch.int16 if name == "bfloat16" else torch.uint8)
        return np.asarray(bits.numpy().view(getattr(ml_dtypes, name)))
    return np.asarray(tensor.numpy())
