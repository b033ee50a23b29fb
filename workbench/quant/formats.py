"""The formats as data: levels, the order of their codes, how a block's scale is found and stored, where the numbers come from.

Covers every format the workbench knows and ``register_format`` for one's own. Does not cover finding scales
(``quant/scales.py``), quantizing (``quant/quantize.py``) nor the arithmetic of storage (``QuantSpec``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError
from workbench.given import described, is_a, nearest, spelling
from workbench.show import Line, Shown, ShownMapping, View

_T = TypeVar("_T", bound=np.generic)

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""The block sizes that bitsandbytes' 4-bit kernels take."""

SCALE_BITS: Mapping[str | None, int] = MappingProxyType(
    {"float32": 32, "float16": 16, "bfloat16": 16, "float8_e4m3fn": 8, "float8_e8m0fnu": 8}
)
"""Bits of each dtype that a scale may be stored in."""

ABSMAX, RANGE, POWER_OF_TWO, TWO_LEVEL, FITTED = "absmax", "range", "power of two", "two-level", "fitted"
"""The ways to find a block's scale: ``quant/scales.py`` has the formulas, ``Format.scale_rule`` says each in a sentence."""


@dataclass(frozen=True, repr=False)
class Format(Shown):
    """A format: a weight x of a block becomes the code of the level nearest to x / scale."""

    name: str
    """The key in ``FORMATS``."""
    title: str
    """The name to show."""
    steps: tuple[float, ...]
    """2^bits levels in ascending order, in units of the block's scale. A level may occur twice (±0, a spare code)."""
    codes: tuple[int, ...]
    """The stored code of each level, in the order of ``steps``."""
    scale_rule: str
    """How a block's scale follows from its weights, in one sentence."""
    source: str
    """Where levels and rule are defined."""
    trainable: bool = False
    """Whether bitsandbytes can hold a base model in this format (its ``bnb_4bit_quant_type``)."""
    rule: str = ABSMAX
    """Which of the rules finds the scales."""
    scale_dtype: str = "float32"
    """What a scale is stored in, unless a ``QuantSpec`` says otherwise."""
    block_sizes: tuple[int, ...] = BLOCK_SIZES
    """The block sizes that there are."""
    ties_up: tuple[int, ...] = ()
    """Between which levels, counted from 0, a value exactly in the middle goes to the upper one; elsewhere to the lower."""
    usual: bool = True
    """Whether a comparison that names no format takes it in, and menus show it at once; others are asked for by name."""

    def __post_init__(self) -> None:
        size = len(self.steps)
        if size not in (4, 8, 16, 32, 64, 128, 256) or not all(a <= b for a, b in pairwise(self.steps)):
            raise FormatError("A format needs 2^bits levels in ascending order, for 2 to 8 bits.", where=self.name)
        if sorted(self.codes) != list(range(size)):
            raise FormatError(f"The codes must be the numbers 0 to {size - 1}, each once.", where=self.name)

    @property
    def bits(self) -> int:
        """Bits of a code: 2 to 8."""
        return len(self.steps).bit_length() - 1

    @property
    def default_block_size(self) -> int:
        """64, or what the format's definition says."""
        return 64 if 64 in self.block_sizes else self.block_sizes[0]

    @property
    def scale_dtypes(self) -> tuple[str, ...]:
        """What a scale may be stored in: the dtype belongs to the definition of some formats and is free in others."""
        return ("float32", "float16", "bfloat16") if self.rule in (ABSMAX, RANGE) else (self.scale_dtype,)

    @property
    def double_quantizable(self) -> bool:
        """Whether double quantization applies: the scales are absmax values, which are kept in float32 without it."""
        return self.rule == ABSMAX

    @property
    def zero_point_bits(self) -> int:
        """Bits of a block's zero point, 0 where there is none."""
        return self.bits if self.rule == RANGE else 0

    @cached_property
    def levels(self) -> NDArray[np.float32]:
        """float32 (2^bits,), ascending, read-only."""
        return _frozen(np.array(self.steps, np.float32))

    @cached_property
    def edges(self) -> NDArray[np.float32]:
        """float32 (levels − 1,): a value above edge k goes to level k + 1 or higher.

        Midpoints of neighbouring levels, in float32 as bitsandbytes computes them; one float32 lower where ties go up. No
        value is above the last edge of a format whose last code is spare.
        """
        edges = (self.levels[:-1] + self.levels[1:]) / np.float32(2)
        if self.levels[-1] == self.levels[-2]:
            edges[-1] = np.inf
        up = list(self.ties_up)
        edges[up] = np.nextafter(edges[up], np.float32(-np.inf))
        return _frozen(edges)

    @cached_property
    def grid(self) -> NDArray[np.float32]:
        """float32 (48,): edges and levels in the order in which the kernels search sixteen levels by bisection."""
        grid = np.zeros((6, 8), np.float32)
        if self.bits == 4:
            for depth in range(4):  # edge 7; 3 and 11; 1 5 9 13; 0 2 … 14
                row = self.edges[(8 >> depth) - 1 :: 16 >> depth]
                grid[depth, : row.size] = row
            grid[0] = self.edges[7]
            grid[4], grid[5] = self.levels[0::2], self.levels[1::2]
        return _frozen(grid.reshape(-1))

    @property
    def even_steps(self) -> float:
        """Levels in a unit of the scale, for formats whose levels are rounded to by arithmetic; 0 where they are searched.

        Sixteen levels are searched. Formats of another width are integers: with a zero point, or from −1 to 1 in even steps.
        """
        return 1.0 if self.rule == RANGE else 0.0 if self.bits == 4 else len(self.steps) / 2 - 1

    @cached_property
    def code_of_rank(self) -> NDArray[np.uint8]:
        """uint8 (levels,): the stored code of the i-th level in ascending order."""
        return _frozen(np.array(self.codes, np.uint8))

    @cached_property
    def level_of_code(self) -> NDArray[np.float32]:
        """float32 (levels,): the level that a stored code stands for; the table a kernel dequantizes with."""
        table = np.empty(self.levels.size, np.float32)
        table[self.code_of_rank] = self.levels
        return _frozen(table)

    @property
    def widest_error(self) -> float:
        """The largest rounding error of a weight within its block's levels, in units of the scale.

        Where the scale is the absmax that is every weight, those beyond the outermost level included.
        """
        beyond = (self.levels[0] + 1, 1 - self.levels[-1]) if self.rule == ABSMAX else ()
        return float(max(*np.diff(self.levels) / 2, *beyond))

    def _line_(self) -> Line:
        sizes = f"{self.default_block_size}" + (" and others" if len(self.block_sizes) > 1 else "")
        return {"title": self.title, "bits": f"{self.bits}", "blocks of": sizes, "scales": f"{self.scale_dtype}, {self.rule}"}

    def _show_(self) -> View:
        levels = "  ".join(f"{step:.4g}" for step in self.steps[:16]) + (" …" if len(self.steps) > 16 else "")
        facts = {
            "name": self.name, "levels": levels, "scale": self.scale_rule, "stored as": self.scale_dtype,
            "blocks of": ", ".join(map(str, self.block_sizes)),
            "trained upon": "yes: bitsandbytes holds it" if self.trainable else "no: bitsandbytes does not hold it",
            "source": self.source,
        }  # fmt: skip
        return View(f"{self.title}: {len(self.steps)} levels in {self.bits} bits", facts)


def _frozen(array: NDArray[_T]) -> NDArray[_T]:
    array.setflags(write=False)
    return array


_RANKS = tuple(range(16))
_ABSMAX = "absmax: the largest magnitude of the block; the level ±1 is that magnitude."

# Four-bit quantiles of a normal distribution, rescaled to [−1, 1]: QLoRA, arXiv 2305.14314, appendix E; the float32 numbers
# are those of bitsandbytes' create_normal_map(0.9677083).
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# ±{0, 0.0625, 2, 3, 4, 6, 8, 12} / 12, which is not OCP's E2M1. Raw codes 0 and 8 are both zero.
_FP4 = (
    -1.0, -0.6666666865348816, -0.5, -0.3333333432674408, -0.25, -0.1666666716337204, -0.0052083334885537624, 0.0, 0.0,
    0.0052083334885537624, 0.1666666716337204, 0.25, 0.3333333432674408, 0.5, 0.6666666865348816, 1.0,
)  # fmt: skip
_FP4_CODES = (11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3)
# Yoshida, NF4 Isn't Information Theoretically Optimal, arXiv 2306.06965: levels made for the mean absolute error of
# normal weights in blocks of 64; the float32 numbers and their falling codes are bitsandbytes' get_4bit_type('af4').
_AF4 = (
    -1.0, -0.6944100856781006, -0.5124374032020569, -0.37369510531425476, -0.25607553124427795, -0.14982478320598602,
    -0.049348119646310806, 0.0, 0.0427316389977932, 0.12934483587741852, 0.2196127474308014, 0.3167566657066345,
    0.4256388247013092, 0.5549623370170593, 0.7242486476898193, 1.0,
)  # fmt: skip

# OCP Microscaling Formats (MX) 1.0, E2M1: sign, two bits of exponent, one of mantissa; a tie goes to the even mantissa.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_E2M1_STEPS = (*(-x for x in reversed(_E2M1)), *_E2M1)
_E2M1_CODES = (*range(15, 7, -1), *range(8))
_E2M1_TIES_UP = (0, 2, 4, 6, 7, 9, 11, 13)
_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _symmetric(bits: int, name: str, title: str, source: str, usual: bool = False) -> Format:
    """Integers from −(2^(bits − 1) − 1) to that, stored in two's complement; rounded by arithmetic, a tie to the even one."""
    top = 2 ** (bits - 1) - 1
    return Format(
        name, title, (*(k / top for k in range(-top, top + 1)), 1.0), tuple((k - top) % 2**bits for k in range(2**bits)),
        f"absmax / {top}: codes −{top}…{top} times that step; the code −{top + 1} is never needed.", source, usual=usual,
    )  # fmt: skip


def _asymmetric(bits: int, usual: bool = False) -> Format:
    """Integers from 0 to 2^bits − 1 with a zero point of as many bits; rounded by arithmetic, a tie to the even one."""
    codes, last = tuple(range(2**bits)), 2**bits - 1
    return Format(
        f"int{bits}-asym", f"INT{bits} asymmetric", tuple(map(float, codes)), codes,
        f"(max − min) / {last} of the block and 0, and a {bits}-bit zero point that puts 0 on a level: "
        "(code − zero point) times that.",
        f"the affine {bits}-bit integers of GPTQ, AWQ and torchao", rule=RANGE, scale_dtype="float16", usual=usual,
    )  # fmt: skip


_BUILT_IN = (
    Format("nf4", "NF4", _NF4, _RANKS, _ABSMAX, "QLoRA, arXiv 2305.14314; bitsandbytes get_4bit_type('nf4')", True),
    Format("fp4", "FP4", _FP4, _FP4_CODES, _ABSMAX, "bitsandbytes get_4bit_type('fp4')", True),
    Format(
        "af4", "AF4", _AF4, _RANKS[::-1], _ABSMAX,
        "arXiv 2306.06965, for blocks of 64; bitsandbytes names its levels and cannot quantize to them",
    ),
    Format(
        "int4", "INT4", tuple(k / 8 for k in range(-8, 8)), _RANKS,
        "absmax / 8: codes −8…7 times that step; a weight at +absmax, which would need +8, is clipped to 7.",
        "two's-complement 4-bit integers; all 16 levels in use",
    ),
    Format(
        "int4-sym", "INT4 symmetric", (*(k / 7 for k in range(-7, 8)), 1.0), _RANKS,
        "absmax / 7: codes −7…7 times that step; the sixteenth code is never needed.",
        "the symmetric 4-bit integers of most weight-only quantizers",
    ),
    _asymmetric(4, usual=True),
    _symmetric(8, "int8", "INT8", "the textbook's absmax quantization; LLM.int8, arXiv 2208.07339", usual=True),
    Format(
        "e2m1", "E2M1", tuple(x / 6 for x in _E2M1_STEPS), _E2M1_CODES,
        "absmax / 6 in float32: the largest level, 6, is the absmax.",
        "the element of OCP MX 1.0 under a plain absmax", ties_up=_E2M1_TIES_UP,
    ),
    Format(
        "mxfp4", "MXFP4", _E2M1_STEPS, _E2M1_CODES,
        "a power of two: 2^(⌊log₂ absmax⌋ − 2); weights beyond 6 times that are clipped to 6.",
        "OCP MX 1.0: E2M1 elements in blocks of 32 with an E8M0 scale", rule=POWER_OF_TWO, scale_dtype="float8_e8m0fnu",
        block_sizes=(32,), ties_up=_E2M1_TIES_UP,
    ),
    Format(
        "nvfp4", "NVFP4", _E2M1_STEPS, _E2M1_CODES,
        "absmax / 6 rounded to E4M3 in units of one float32 for the tensor, its absmax / (6 · 448).",
        "NVIDIA Blackwell: E2M1 elements in blocks of 16 with an E4M3 scale", rule=TWO_LEVEL, scale_dtype="float8_e4m3fn",
        block_sizes=(16,), ties_up=_E2M1_TIES_UP,
    ),
    Format(
        "iq4_nl", "IQ4_NL", tuple(map(float, _IQ4_NL)), _RANKS,
        "codes with the weight of largest magnitude at −127, then the scale that fits them best, least squares weighted by x².",
        "llama.cpp: block_iq4_nl, as its reference quantizer rounds", rule=FITTED, scale_dtype="float16", block_sizes=(32,),
        ties_up=tuple(range(15)),
    ),
    *(_symmetric(n, f"int{n}-sym", f"INT{n} symmetric", f"INT8's absmax rule in {n} bits") for n in (2, 3, 5, 6, 7)),
    *(_asymmetric(n) for n in (2, 3, 5, 6, 7, 8)),
)  # fmt: skip

_formats: dict[str, Format] = {form.name: form for form in _BUILT_IN}
FORMATS: Mapping[str, Format] = ShownMapping(_formats, "Formats", "name")
"""Every known format by name, those of ``register_format`` included."""


def register_format(
    name: str, levels: Sequence[float], title: str | None = None, source: str = "registered by the user"
) -> Format:
    """Makes a format of 16 levels, known under a name.

    From then on it works wherever a format's name does, in an app opened later too. The stored codes are the levels' positions.

    Args:
        name: The name. Registering a name again replaces it; the names that the workbench brings cannot be taken.
        levels: 16 ascending levels between −1 and 1, in units of the block's absmax.
        title: What it is called; the name unless given.
        source: Where the levels are from.

    Returns:
        The format, which ``FORMATS`` now has under its name.

    Raises:
        FormatError: For other levels, and for a name that cannot be taken.

    >>> wb.register_format("even", np.linspace(-1, 1, 16)).title, wb.QuantSpec("even").title
    ('even', 'even, blocks of 64')
    """
    if not isinstance(name, str) or not name or not name.isprintable() or name != name.strip():
        raise FormatError(f"{name!r} is not a name for a format.", remedy="Give a short printable text.")
    if any(form.name == name for form in _BUILT_IN):
        raise FormatError(f"The format {name!r} is the workbench's own.", remedy="Choose another name.")
    if title is not None and not isinstance(title, str):
        raise FormatError(f"{described(title)} is no title.", where=name, remedy="Give a text, or leave title out.")
    try:
        steps = tuple(float(level) for level in levels)
    except (TypeError, ValueError) as error:
        raise FormatError("The levels are not numbers.", where=name, remedy="Give 16 numbers.") from error
    if len(steps) != 16 or any(not -1 <= step <= 1 for step in steps):
        raise FormatError("A format needs 16 levels between −1 and 1.", where=name, remedy="Divide them by their largest.")
    _formats[name] = Format(name, title or name, steps, _RANKS, _ABSMAX, source)
    return _formats[name]


def usual_formats() -> list[str]:
    """The names of the formats that are compared where none is named; registered ones are among them."""
    return [name for name, form in FORMATS.items() if form.usual]


def find_format(name: str | Format) -> Format:
    """The format with this name or title, whatever its case, spaces and hyphens; a ``Format`` is known by its name.

    Raises FormatError with the names there are.
    """
    wanted = name.name if isinstance(name, Format) else name
    if not is_a(wanted, str):
        raise FormatError(f"{described(wanted)} is no format.", remedy=f"Choose one of: {', '.join(FORMATS)}.")
    if wanted in FORMATS:
        return FORMATS[wanted]
    if spelling(wanted) in (spelling("int8-sym"), spelling("INT8 symmetric")):  # as its narrower kin are called
        return FORMATS["int8"]
    if alike := [form for form in FORMATS.values() if spelling(wanted) in (spelling(form.name), spelling(form.title))]:
        return alike[0]
    near = nearest(wanted, [*(form.title for form in FORMATS.values()), *FORMATS])
    raise FormatError(f"There is no format {wanted!r}.", remedy=f"Choose one of: {', '.join(FORMATS)}. {near}".strip())
