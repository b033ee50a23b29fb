"""What quantization does to one tensor: errors as a whole and block by block, and how full each bin is.

Covers ``measure`` for one or several formats in one pass, ``Tally`` for a tensor that comes in chunks, and pooling block values
to the resolution of a screen. Does not cover the pass itself (``quant/passes.py``), nor whole models (``surveys/survey.py``).

Errors are e = x − level · scale with the product in float32, as bitsandbytes' kernels form it before rounding to the compute
dtype. Blocks that hold a NaN or an infinity have no error; they are counted, and left out of every average. Under a rotation
they are the errors of the rotated weights, whose root mean square is that of the weights rotated back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError
from workbench.given import is_number, is_several
from workbench.kernels.sampling import evenly_spaced
from workbench.progress import Cancelled
from workbench.quant.formats import Format
from workbench.quant.passes import Pass, absmax_of, one_pass
from workbench.quant.quantize import as_weights
from workbench.quant.rotation import stretch_of
from workbench.quant.scales import LOOK, Overview, needs_overview
from workbench.quant.spec import QuantSpec, SpecLike, as_specs
from workbench.show import Line, Shown, ShownList, View, bar
from workbench.text import count, number, percent, whole_or_sampled

_T = TypeVar("_T")


@dataclass(frozen=True, repr=False)
class Totals(Shown):
    """Error statistics of a tensor as a whole under one specification."""

    spec: QuantSpec
    numel: int
    """Weights that were measured."""
    occupancy: NDArray[np.int64]
    """int64 (levels,): weights in the bin of each of ``spec.definition.levels``; the sum is ``numel``."""
    rmse: float
    """Root mean square error over all weights of finite blocks."""
    mae: float
    """Mean absolute error."""
    max: float
    """Largest absolute error."""
    rms: float
    """Root mean square of the weights themselves."""
    nans: int
    """Weights that are NaN."""
    infinities: int
    """Weights that are infinite."""
    bad_blocks: int
    """Blocks left out of the averages because they hold a NaN or an infinity, or a scale that depends on one: double
    quantization's mean makes that every block of the tensor."""
    sampled: float | None = field(default=None, kw_only=True)
    """The share of the blocks that was measured; None: the whole."""

    @property
    def relative_rmse(self) -> float:
        """rmse / rms of the weights; 0 for a tensor of zeros."""
        return self.rmse / self.rms if self.rms else 0.0

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise in decibels: 20 · log10(rms / rmse); infinite without error."""
        return 20 * float(np.log10(self.rms / self.rmse)) if self.rmse else float("inf")

    @property
    def entropy_bits(self) -> float:
        """Shannon entropy of the occupancy in bits per weight; equal levels (the two zeros of FP4) count as one bin."""
        counts = merge_equal_levels(self.spec.definition, self.occupancy)[1]
        share = counts[counts > 0] / self.numel
        return abs(float((share * np.log2(share)).sum()))

    def _line_(self) -> Line:
        return {
            "format": self.spec.title, "bits": f"{self.spec.bits_per_weight:.4f}", "relative RMSE": percent(self.relative_rmse),
            "SQNR, dB": number(self.sqnr_db, ".2f"), "RMSE": number(self.rmse), "largest error": number(self.max),
        }  # fmt: skip

    def _show_(self) -> View:
        facts = {"weights": f"{count(self.numel)}, {whole_or_sampled(self.sampled)}", **self._line_()}
        facts |= {"entropy": f"{self.entropy_bits:.3f} bits"}
        if self.bad_blocks:
            found = f"{self.nans:,} NaN and {self.infinities:,} infinite weights"
            facts["not finite"] = f"{found}; {self.bad_blocks:,} blocks are in no average"
        levels, counts = merge_equal_levels(self.spec.definition, self.occupancy)
        full = max(int(counts.max()), 1)
        lines = [
            {"level": f"{level:.4f}", "weights": percent(int(n) / self.numel), "": bar(int(n) / full)}
            for level, n in zip(levels, counts, strict=True)
        ]
        return View(f"Measured: {facts.pop('format')}", facts, lines)


@dataclass(frozen=True, repr=False)
class ErrorStats(Totals):
    """Error statistics of one tensor under one specification, as a whole and block by block."""

    shape: tuple[int, ...]
    block_rmse: NDArray[np.float32]
    """float32 (blocks,): root mean square error; NaN where a block is not finite, as in the two below."""
    block_mae: NDArray[np.float32]
    """float32 (blocks,): mean absolute error."""
    block_max: NDArray[np.float32]
    """float32 (blocks,): largest absolute error."""
    block_absmax: NDArray[np.float32]
    """float32 (blocks,): largest magnitude; a partial last block's is at least 1e-38, as in bitsandbytes."""
    block_scale: NDArray[np.float32]
    """float32 (blocks,): what the block's levels are multiplied with."""
    block_zero: NDArray[np.float32]
    """float32 (blocks,): the level that stands for 0 and is taken off first; 0 in formats without zero points."""

    @cached_property
    def levels(self) -> NDArray[np.float64]:
        """float64 (levels,): the format's distinct levels in units of absmax, ascending.

        Where a block's scale is not its absmax, or it has a zero point, they lie elsewhere in every block: these are those of
        a block with the median scale / absmax and the median zero point.
        """
        form = self.spec.definition
        levels = np.unique(form.levels).astype(np.float64)
        if form.double_quantizable:
            return levels
        known = np.isfinite(self.block_scale) & (self.block_absmax > 0)
        if not known.any():
            return np.asarray(levels / np.abs(levels).max(), np.float64)
        zero = float(np.median(self.block_zero[known])) if form.zero_point_bits else 0.0
        return np.sort((levels - zero) * float(np.median(self.block_scale[known] / self.block_absmax[known])))

    @property
    def blocks_per_row(self) -> int | None:
        """Blocks in a row of the last dimension; None when blocks cross rows."""
        last = self.shape[-1] if self.shape else 1
        return last // self.spec.block_size if last % self.spec.block_size == 0 else None


def merge_equal_levels(form: Format, occupancy: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The distinct levels and their counts: FP4 has two zeros, which dequantize to the same number."""
    levels, index = np.unique(form.levels, return_inverse=True)
    return levels, np.bincount(index, weights=occupancy, minlength=levels.size).astype(np.int64)


@overload
def measure(array: Any, spec: SpecLike, sample: float | None = None, *, cancelled: Cancelled | None = None) -> ErrorStats: ...
@overload
def measure(
    array: Any, spec: Sequence[SpecLike], sample: float | None = None, *, cancelled: Cancelled | None = None
) -> list[ErrorStats]: ...
def measure(
    array: Any, spec: SpecLike | Sequence[SpecLike], sample: float | None = None, *, cancelled: Cancelled | None = None
) -> ErrorStats | list[ErrorStats]:
    """Measures what quantizing an array costs.

    Specifications with the same block size and rotation share one pass over the weights.

    Args:
        array: What ``quantize`` takes.
        spec: One specification, or several. A format's name stands for the format as it usually is: ``measure(x, "nf4")``,
            ``measure(x, ["nf4", "int4"])``.
        sample: A share in (0, 1): evenly spaced stretches of blocks are measured instead of the whole, and ``sampled`` says so;
            the per-block arrays then hold the sampled blocks alone.
        cancelled: Asked about every half millisecond; a yes ends the call.

    Returns:
        The errors: of the whole array in units of the weights, relative and in dB, and arrays with one value a block. Several
        specifications give a list, in their order.

    Raises:
        FormatError: As ``quantize`` does, and for a share that is none.
        InterruptedError: Once cancelled.

    >>> stats = wb.measure(np.linspace(-1, 1, 64, dtype=np.float32), "nf4")
    >>> round(stats.relative_rmse, 3), stats.block_rmse.shape
    (0.091, (1,))
    """
    specs = list(as_specs(spec, "spec"))
    weights = as_weights(array)
    shape = weights.shape
    flat = weights.reshape(-1)
    p = stretch_of(shape) if any(s.rotate for s in specs) else 0
    sampled = None
    if sample is not None:
        if not is_number(sample) or not 0 < sample <= 1:
            raise FormatError(f"A sample of {sample!r} is not possible.", remedy="Give a share above 0 and up to 1.")
        flat, _, sampled = evenly_spaced(flat, max(4096, p), round(1 / sample))

    def one_size(specs: list[QuantSpec]) -> list[ErrorStats]:
        done = one_pass(flat, specs, p if specs[0].rotate else 0, None, cancelled)
        return [
            ErrorStats(**fields, **done.blocks(f), shape=shape, sampled=sampled)
            for f, fields in enumerate(done.fields(specs, flat.size))
        ]

    results = _in_order(specs, one_size)
    title = f"Measured: {count(flat.size)} weights, {whole_or_sampled(sampled)}"
    return ShownList(results, title) if is_several(spec) else results[0]


_Shared = tuple[int, str | None]


def _shared(spec: QuantSpec) -> _Shared:
    """What specifications must have in common to share a pass over the weights: block size and rotation."""
    return spec.block_size, spec.rotate


def _in_order(specs: list[QuantSpec], together: Callable[[list[QuantSpec]], list[_T]]) -> list[_T]:
    """The results of ``together`` for the specifications that share a pass, in the order of ``specs``."""
    found: dict[int, _T] = {}
    for shared in dict.fromkeys(map(_shared, specs)):
        at = [i for i, s in enumerate(specs) if _shared(s) == shared]
        found |= dict(zip(at, together([specs[i] for i in at]), strict=True))
    return [found[i] for i in range(len(specs))]


class Tally:
    """The totals of one tensor that comes flat, in order, a chunk at a time; no block's values are kept.

    Every chunk but the last has a multiple of ``Tally.STEP`` weights, float32, float16 or bfloat16. Where ``looks_first``,
    every chunk must have been shown to ``look`` before the first is fed. The result equals ``measure``'s for the whole.

    Args:
        specs: What it is measured under.
        shape: The tensor's shape, which a rotation must know.

    Raises:
        FormatError: Where the tensor cannot be rotated.
    """

    STEP = LOOK

    def __init__(self, specs: Sequence[QuantSpec], shape: tuple[int, ...] | None = None) -> None:
        self._specs = list(specs)
        self._passes: dict[_Shared, list[Pass]] = {shared: [] for shared in map(_shared, specs)}
        self._overviews = {_shared(s): Overview() for s in specs if needs_overview(s)}
        self._p = stretch_of(shape) if shape is not None and any(s.rotate for s in specs) else 0
        for s in specs:
            if s.double_quant and (self.STEP // s.block_size) % s.nested_block_size:
                raise FormatError(
                    f"Chunks of {self.STEP:,} weights do not hold whole blocks of {s.nested_block_size} scales.",
                    remedy="Choose a power of two as the nested block size, or measure the tensor whole.",
                )
        self._fed = 0

    @property
    def looks_first(self) -> bool:
        """Whether some scales depend on the whole tensor: double quantization's mean, NVFP4's scale of the tensor."""
        return bool(self._overviews)

    def look(self, chunk: NDArray[Any]) -> None:
        """Takes in a chunk's scales."""
        for (block_size, rotate), overview in self._overviews.items():
            overview.add(absmax_of(chunk, block_size, self._p if rotate else 0, None), block_size)

    def feed(self, chunk: NDArray[Any]) -> None:
        """Measures a chunk."""
        self._fed += chunk.size
        for shared, passes in self._passes.items():
            specs = [s for s in self._specs if _shared(s) == shared]
            found = one_pass(chunk, specs, self._p if shared[1] else 0, self._overviews.get(shared), None)
            passes.append(found.without_blocks())

    def totals(self) -> list[Totals]:
        """The totals of all that was fed, in the order of the specifications."""
        return _in_order(
            self._specs,
            lambda specs: [Totals(**f) for f in Pass.join(self._passes[_shared(specs[0])]).fields(specs, self._fed)],
        )


def pool_blocks(
    values: NDArray[np.float32],
    per_row: int,
    height: int,
    width: int,
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Block values (blocks,) as a map of at most ``height`` × ``width`` cells, each the largest of the blocks it covers.

    ``per_row`` blocks make a row; ``rows`` and ``columns`` are the first and the end of a window, None: all of them. Returns
    the cells, float32 (rows, columns), NaN where a cell has no finite block, and how many (rows, columns) of blocks a cell
    covers.
    """
    first, end = rows or (0, -(-values.size // per_row))
    left, right = columns or (0, per_row)
    tall, wide = -(-(end - first) // height), -(-(right - left) // width)
    out_rows, out_columns = -(-(end - first) // tall), -(-(right - left) // wide)
    padded = np.full((out_rows * tall, out_columns * wide), -np.inf, np.float32)
    part = values[first * per_row : end * per_row]
    whole = part.size // per_row
    padded[:whole, : right - left] = part[: whole * per_row].reshape(whole, per_row)[:, left:right]
    rest = part[whole * per_row :][left:right]
    padded[whole : whole + 1, : rest.size] = rest
    np.nan_to_num(padded, copy=False, nan=-np.inf, posinf=-np.inf, neginf=-np.inf)
    tallest = padded.reshape(out_rows, tall, -1).max(axis=1)  # whole rows first: twenty times as fast as both axes at once
    cells = tallest.reshape(out_rows, out_columns, wide).max(axis=2)
    cells[np.isneginf(cells)] = np.nan
    return cells, (tall, wide)
