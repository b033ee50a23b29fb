"""``QuantSpec``: how an array is quantized, what that takes in memory, and what a caller may write in its place.

Covers the specification and the arithmetic of its storage. Does not quantize (``quantize.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np

from workbench.errors import FormatError
from workbench.given import described, is_a, is_whole, several, unknown_fields
from workbench.quant.formats import ABSMAX, SCALE_BITS, TWO_LEVEL, Format, find_format
from workbench.quant.rotation import HADAMARD
from workbench.show import Line, Record, in_words

_ALSO: dict[str, tuple[str, ...]] = {
    "format": ("quant_type", "bnb_4bit_quant_type"), "block_size": ("blocksize", "group_size"),
    "double_quant": ("bnb_4bit_use_double_quant", "compress_statistics"),
}  # fmt: skip
"""What bitsandbytes and others call the fields."""


@dataclass(frozen=True, repr=False)
class QuantSpec(Record):
    """How an array is quantized. Raises FormatError on an unknown format or block size.

    >>> spec = wb.QuantSpec("nf4", block_size=64, double_quant=True)
    >>> spec.title, round(spec.bits_per_weight, 3)
    ('NF4, blocks of 64, double quantized', 4.127)
    """

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
    rotate: str | None = None
    """``"hadamard"``: the input side is rotated by a randomised Hadamard matrix before, and back after. None: it is not."""

    def __new__(cls, /, *_: Any, **given: Any) -> Self:
        """Refuses names that are no fields, with the nearest that are."""
        names = dict.fromkeys((field.name for field in fields(cls)), ()) | _ALSO
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
        if self.rotate is not None and not (is_a(self.rotate, str) and self.rotate == HADAMARD):
            raise FormatError(f"There is no rotation {self.rotate!r}.", where="rotate", remedy=f"Give {HADAMARD!r} or None.")

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
            + (", Hadamard rotated" if self.rotate else "")
        )

    @property
    def trainable(self) -> bool:
        """Whether bitsandbytes can hold a base model so."""
        return self.definition.trainable and self.scale_dtype == "float32" and self.rotate is None

    def as_code(self) -> str:
        """The specification as Python: what differs from the defaults."""
        arguments = [repr(self.format), str(self.block_size)]
        if self.scale_dtype != self.definition.scale_dtype:
            arguments.append(f"scale_dtype={self.scale_dtype!r}")
        if self.double_quant:
            arguments.append("double_quant=True")
            if self.nested_block_size != 256:
                arguments.append(f"nested_block_size={self.nested_block_size}")
        if self.rotate:
            arguments.append(f"rotate={self.rotate!r}")
        return f"wb.QuantSpec({', '.join(arguments)})"

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of a large tensor, scales and zero points counted: for NF4 4 + 32/B, or 4 + 8/B + 32/(B·N).

        Codes are counted as if they lay without a gap. Of 3, 5, 6 and 7 bits that is the ideal: many kernels keep such codes
        in 4 or 8 bits.
        """
        form, block = self.definition, self.block_size
        if self.double_quant:
            return form.bits + 8 / block + 32 / (block * self.nested_block_size)
        return form.bits + (SCALE_BITS[self.scale_dtype] + form.zero_point_bits) / block

    def storage(self, numel: int) -> dict[str, int]:
        """Bytes that a tensor of ``numel`` weights takes, by part; partial blocks count as whole ones.

        Parts: "codes" (without a gap), then what the format has of "absmax" (a scale a block), "absmax codes" (a byte a
        block), "nested absmax" (float32 a block of blocks), "offset" (one float32), "scales" (a scale a block that is not its
        absmax), "zero points" (without a gap) and "tensor scale" (one float32).
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
        """The fields as JSON values; ``QuantSpec(**d)`` reads them back. A rotation stands there only where there is one, so
        that measurements kept under the fields of before are found again.
        """
        fields = asdict(self)
        return fields if self.rotate else {name: value for name, value in fields.items() if name != "rotate"}

    def _line_(self) -> Line:
        return {
            "format": self.definition.title, "blocks of": in_words(self.block_size), "scales": in_words(self.scale_dtype),
            "double quantized": in_words(self.double_quant), "rotated": self.rotate or "no",
            "bits per weight": f"{self.bits_per_weight:.4f}",
        }  # fmt: skip


SpecLike = QuantSpec | Format | str
"""What stands for a specification, as ``as_spec`` takes it."""
_TITLE = re.compile(
    r"(?P<format>.+?),? \(?blocks of (?P<size>\d+)(, (?P<dtype>\w+) scales)?"
    r"(?P<double>, double quantized( in blocks of (?P<nested>\d+))?)?(?P<rotated>, Hadamard rotated)?\)?",
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
        double, rotate = bool(title["double"]), HADAMARD if title["rotated"] else None
        return QuantSpec(title["format"], int(title["size"]), dtype and dtype.lower(), double, nested, rotate)
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
