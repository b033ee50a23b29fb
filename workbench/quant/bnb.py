"""Whether bitsandbytes' CPU kernels give 4-bit weights back right.

Covers ``check_backend`` and its remedy. Imports torch and bitsandbytes only when called.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

from workbench.errors import FormatError
from workbench.given import is_whole, several
from workbench.quant.formats import FORMATS
from workbench.show import Shown, View

_BLOCK_SIZES = FORMATS["nf4"].block_sizes
_VECTOR = 16
"""Float32 values in an AVX-512 register."""
_LEFT_ASIDE = 2048
"""The block size from which on bitsandbytes does not use its AVX-512 kernel."""
_SCALES = 199
"""Scales that differ, each a whole number that bfloat16 holds: a prime, so that no row is a multiple of them."""


@dataclass(frozen=True, repr=False)
class BackendCheck(Shown):
    """Whether bitsandbytes dequantizes weights of one shape and block size right on a CPU."""

    right: bool
    why: str
    """What was found, and how it is known."""
    remedy: str = ""
    """What to do where it is wrong."""

    def _show_(self) -> View:
        return View(f"bitsandbytes on a CPU: {'right' if self.right else 'wrong'}", note=f"{self.why} {self.remedy}".strip())


def check_backend(shape: Sequence[int], block_size: int = 64, capability: str | None = None) -> BackendCheck:
    """Whether a CPU run with 4-bit weights of some shape would compute with the weights that were stored.

    Args:
        shape: The weight's shape.
        block_size: Weights of a block.
        capability: None asks this machine: a weight goes through ``dequantize_4bit`` and is compared. Otherwise the answer
            follows from bitsandbytes' source, for processors of that kind: "AVX512", or any other, whose kernels are right.

    Returns:
        Whether it is right, how that is known, and what to do where it is wrong.

    Raises:
        FormatError: For what is no shape or no block size of bitsandbytes.

    >>> wb.check_backend((64, 96), 64, "AVX512").right, wb.check_backend((64, 96), 32).right
    (False, True)
    """
    sides = several(shape)
    if block_size not in _BLOCK_SIZES or not sides or not all(is_whole(size, 1) for size in sides):
        raise FormatError(f"A shape of {sides} in blocks of {block_size} is not possible.", remedy="Give whole numbers.")
    shape = tuple(map(int, sides))
    asked = capability is None
    how = "found by dequantizing on this machine" if asked else f"by the rule for bitsandbytes' {capability} kernels, not run"
    named = f"weights of shape {shape} in blocks of {block_size}"
    if _is_right(shape, block_size, capability):
        return BackendCheck(True, f"bitsandbytes dequantizes {named} right ({how}).")
    return BackendCheck(
        False,
        f"bitsandbytes dequantizes {named} wrongly ({how}): its AVX-512 kernel takes other blocks' scales "
        f"where {shape[-1]} is no multiple of {block_size}.",
        backend_remedy([shape], capability),
    )


def backend_remedy(shapes: Collection[Sequence[int]], capability: str | None = None) -> str:
    """What to do where weights are dequantized wrongly: the block sizes that are right for all these shapes, if any is."""
    right = [str(size) for size in _BLOCK_SIZES if all(_is_right(shape, size, capability) for shape in shapes)]
    return f"Choose a block size that is right there ({', '.join(right)})." if right else 'No block size is: use method="lora".'


def _is_right(shape: Sequence[int], block_size: int, capability: str | None) -> bool:
    """Whether a kernel gives every weight its own block's scale.

    The rule is the source's, of bitsandbytes 0.49 to 0.50: csrc/cpu_ops.cpp, ``dequantizeBlockwise4bitCpu``. Where the
    processor has AVX-512 (``has_avx512f``, whatever torch uses) and rows are whole vectors (16 weights), the weight in row r
    and column c is given scale r · ⌊columns / block⌋ + ⌊c / block⌋, not that of its place in the whole. Other rows, and other
    processors, take loops that count by blocks (NEON's vectors only where blocks divide rows). ``dequantize_4bit`` in
    bitsandbytes/backends/cpu/ops.py leaves the kernel aside for odd rows, and for blocks of 2048 or more if torch, too, uses
    AVX-512.
    """
    rows, columns = prod(shape[:-1]), shape[-1]
    if rows == 1 or columns % _VECTOR or columns % block_size == 0 or rows * columns <= block_size:
        return True
    if capability is not None:
        return capability != "AVX512" or block_size >= _LEFT_ASIDE
    # The first weight with another block's scale, if there is one, is in the row that follows the first whole block.
    return _gives_back(min(rows, block_size // columns + 2), columns, block_size)


@cache
def _gives_back(rows: int, columns: int, block_size: int) -> bool:
    """Whether bitsandbytes on this machine's CPU gives back a weight of ones times scales that differ."""
    import torch
    from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type

    numel = rows * columns
    scales = (torch.arange(-(-numel // block_size)) % _SCALES + 1).float()
    ones = torch.full((-(-numel // 2), 1), 0xFF, dtype=torch.uint8)  # NF4's code 15 is the level 1
    for dtype in (torch.float32, torch.bfloat16):
        state = QuantState(
            absmax=scales, shape=torch.Size((rows, columns)), code=get_4bit_type("nf4", device="cpu"), blocksize=block_size,
            quant_type="nf4", dtype=dtype,
        )  # fmt: skip
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # a question is not worth seconds of compiling
            found = dequantize_4bit(ones, state).float().reshape(-1)
        if not torch.equal(found, scales.repeat_interleave(block_size)[:numel]):
            return False
    return True
