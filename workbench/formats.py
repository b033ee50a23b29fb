"""The 4-bit formats as data: levels, the order of their codes, the scale rule, and where the numbers come from.

Covers every format whose scale is one number per block derived from the block's absmax. Does not cover quantizing
(``quantization.py``) nor the arithmetic of storage (``QuantSpec``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError

_T = TypeVar("_T", bound=np.generic)

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""The block sizes that bitsandbytes' 4-bit kernels take."""


@dataclass(frozen=True)
class Format:
    """A 4-bit format: a weight x of a block becomes the code of the level nearest to x / absmax.

    A value exactly between two levels goes to the lower one, as in bitsandbytes' CPU kernels.
    """

    name: str
    """The key in ``FORMATS``."""
    title: str
    """The name to show."""
    steps: tuple[float, ...]
    """16 levels in ascending order, in units of the block's absmax. A level may occur twice (±0, a spare code)."""
    codes: tuple[int, ...]
    """The stored 4-bit code of each level, in the order of ``steps``."""
    scale_rule: str
    """How a block's scale follows from its weights, in one sentence."""
    source: str
    """Where levels and rule are defined."""
    trainable: bool = False
    """Whether bitsandbytes can hold a base model in this format (its ``bnb_4bit_quant_type``)."""

    def __post_init__(self) -> None:
        if len(self.steps) != 16 or sorted(self.steps) != list(self.steps):
            raise FormatError("A format needs 16 levels in ascending order.", where=self.name)
        if sorted(self.codes) != list(range(16)):
            raise FormatError("The codes must be the numbers 0 to 15, each once.", where=self.name)

    @cached_property
    def levels(self) -> NDArray[np.float32]:
        """float32 (16,), ascending, read-only."""
        return _frozen(np.array(self.steps, np.float32))

    @cached_property
    def edges(self) -> NDArray[np.float32]:
        """float32 (15,): the decision thresholds, midpoints of neighbouring levels in float32 as bitsandbytes computes them."""
        return _frozen((self.levels[:-1] + self.levels[1:]) / np.float32(2))

    @cached_property
    def code_of_rank(self) -> NDArray[np.uint8]:
        """uint8 (16,): the stored code of the i-th level in ascending order."""
        return _frozen(np.array(self.codes, np.uint8))

    @cached_property
    def level_of_code(self) -> NDArray[np.float32]:
        """float32 (16,): the level that a stored code stands for; the table a kernel dequantizes with."""
        table = np.empty(16, np.float32)
        table[self.code_of_rank] = self.levels
        return _frozen(table)

    @property
    def widest_error(self) -> float:
        """The largest possible rounding error in units of absmax: the farthest that a point of [−1, 1] lies from its level."""
        inner = np.diff(self.levels) / 2
        return float(max(*inner, self.levels[0] + 1, 1 - self.levels[-1]))


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
# Yoshida, NF4 Isn't Information Theoretically Optimal, arXiv 2306.06965: the levels of least mean absolute error for
# normal weights in blocks of 64; the float32 numbers and their falling codes are bitsandbytes' get_4bit_type('af4').
_AF4 = (
    -1.0, -0.6944100856781006, -0.5124374032020569, -0.37369510531425476, -0.25607553124427795, -0.14982478320598602,
    -0.049348119646310806, 0.0, 0.0427316389977932, 0.12934483587741852, 0.2196127474308014, 0.3167566657066345,
    0.4256388247013092, 0.5549623370170593, 0.7242486476898193, 1.0,
)  # fmt: skip

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        f.name: f
        for f in (
            Format("nf4", "NF4", _NF4, _RANKS, _ABSMAX, "QLoRA, arXiv 2305.14314; bitsandbytes get_4bit_type('nf4')", True),
            Format("fp4", "FP4", _FP4, _FP4_CODES, _ABSMAX, "bitsandbytes get_4bit_type('fp4')", True),
            Format(
                "af4",
                "AF4",
                _AF4,
                _RANKS[::-1],
                _ABSMAX,
                "arXiv 2306.06965, for blocks of 64; bitsandbytes names its levels and cannot quantize to them",
            ),
            Format(
                "int4",
                "INT4",
                tuple(k / 8 for k in range(-8, 8)),
                _RANKS,
                "absmax / 8: codes −8…7 times that step; a weight at +absmax, which would need +8, is clipped to 7.",
                "two's-complement 4-bit integers; all 16 levels in use",
            ),
            Format(
                "int4-sym",
                "INT4 symmetric",
                (*(k / 7 for k in range(-7, 8)), 1.0),
                _RANKS,
                "absmax / 7: codes −7…7 times that step; the sixteenth code is never needed.",
                "the symmetric 4-bit integers of most weight-only quantizers",
            ),
        )
    }
)
"""Every known format by name."""


def find_format(name: str) -> Format:
    """The format called ``name``; raises FormatError with the names there are."""
    try:
        return FORMATS[name]
    except (KeyError, TypeError):
        raise FormatError(f"There is no format {name!r}.", remedy=f"Choose one of: {', '.join(FORMATS)}.") from None
