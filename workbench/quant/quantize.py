"""Quantizing an array: from a ``QuantSpec`` to codes, scales and packed bytes, bit for bit as bitsandbytes does on a CPU.

Covers ``quantize`` and ``Quantized``, to bitsandbytes' tensors and back too. Does not cover error statistics
(``quant/measure.py``), which never materialise codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from os import PathLike
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from workbench.errors import FormatError
from workbench.given import described
from workbench.quant.double_quant import NestedScales, dynamic_levels
from workbench.quant.formats import FORMATS
from workbench.quant.rotation import restored, rotated, stretch_of
from workbench.quant.scales import Overview, find_scales, last_rank, multiplies, with_tail_floored, zero_ranks
from workbench.quant.spec import QuantSpec, SpecLike, as_spec
from workbench.show import Shown, View
from workbench.text import amount, count

_DIRECT = ("float32", "float16", "bfloat16")
_WIDENED = ("float64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


@dataclass(frozen=True, repr=False)
class Quantized(Shown):
    """A quantized array."""

    spec: QuantSpec
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """The dtype of the array that was quantized."""
    codes: NDArray[np.uint8]
    """uint8 (numel,): the stored code of each weight, as the format numbers them; under a rotation of each rotated weight."""
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
        """uint8 (⌈numel · bits / 8⌉, 1): the codes one after another without a gap, the first in the highest bits.

        Of 4 bits that is two a byte, as bitsandbytes stores them, and of 8 one a byte. Bits that are left over at the end are
        those of codes that zero rounds to. Kernels for other widths order the codes their own way, or leave gaps.
        """
        codes, form = self.codes, self.spec.definition
        if spare := codes.size * form.bits % 8:
            codes = np.append(codes, np.full(-(-(8 - spare) // form.bits), form.code_of_rank[int((form.edges < 0).sum())]))
        if form.bits == 8:
            return codes[:, None]
        if form.bits == 4:
            return np.asarray((codes[0::2] << 4) | codes[1::2], np.uint8)[:, None]
        stream = np.packbits(np.unpackbits(codes[:, None], axis=1)[:, 8 - form.bits :])
        return stream[: -(-self.codes.size * form.bits // 8), None]

    @property
    def nbytes(self) -> int:
        """Bytes that codes and scales take when stored."""
        return self.spec.nbytes(self.codes.size)

    def dequantize(self, dtype: Any = np.float32) -> NDArray[Any]:
        """The weights that a matrix product sees: level · scale in float32, then rounded to ``dtype``, in the array's shape.

        With zero points, (level − zero point) · scale. What was rotated is rotated back before it is rounded.
        """
        values = self.spec.definition.level_of_code[self.codes]
        with np.errstate(over="ignore", invalid="ignore"):
            if self.zero_points is not None:
                values -= np.repeat(self.zero_points.astype(np.float32), self.spec.block_size)[: values.size]
            values *= np.repeat(self.scales, self.spec.block_size)[: values.size]
        if self.spec.rotate:
            values = restored(values, stretch_of(self.shape))
        return values.astype(dtype, copy=False).reshape(self.shape)

    def _show_(self) -> View:
        low, high = (f"{float(edge):.4g}" for edge in (self.scales.min(), self.scales.max()))
        facts = {
            "shape": f"{self.shape}, {self.dtype.name}",
            "codes": f"{count(self.codes.size)}, of {self.spec.definition.bits} bits",
            "scales": f"{count(self.scales.size)}, from {low} to {high}",
            "stored in": f"{amount(self.nbytes)}, {8 * self.nbytes / self.codes.size:.4f} bits per weight",
        }
        if self.nested is not None:
            facts["second level"] = f"{count(self.nested.absmax.size)} scales, offset {float(self.nested.offset):.4g}"
        if self.tensor_scale is not None:
            facts["scale of the tensor"] = f"{float(self.tensor_scale):.4g}"
        return View(f"Quantized: {self.spec.title}", facts)

    def to_bnb(self, device: str = "cpu") -> tuple[Any, Any]:
        """(packed uint8 tensor (⌈numel/2⌉, 1), ``QuantState``), as ``bitsandbytes.functional.quantize_4bit`` returns them.

        Raises:
            FormatError: For formats that bitsandbytes does not hold.
        """
        import torch
        from bitsandbytes.functional import QuantState, get_4bit_type

        if not self.spec.trainable:
            held = " and ".join(name for name, form in FORMATS.items() if form.trainable)
            remedy = f"Quantize to one of {held} with float32 scales, not rotated."
            raise FormatError(f"bitsandbytes does not hold weights in {self.spec.title}.", remedy=remedy)
        state2 = offset = None
        absmax = torch.from_numpy(self.absmax.copy())
        if self.nested is not None:
            absmax, offset = torch.from_numpy(self.nested.codes.copy()), torch.tensor(float(self.nested.offset), device=device)
            state2 = QuantState(
                absmax=torch.from_numpy(self.nested.absmax.copy()).to(device), blocksize=self.nested.block_size,
                code=torch.tensor(dynamic_levels(), device=device), dtype=torch.float32,
            )  # fmt: skip
        spec = self.spec
        state = QuantState(
            absmax=absmax.to(device), shape=torch.Size(self.shape), code=get_4bit_type(spec.format, device=device),
            blocksize=spec.block_size, quant_type=spec.format, dtype=getattr(torch, self.dtype.name), offset=offset,
            state2=state2,
        )  # fmt: skip
        return torch.from_numpy(self.packed).to(device), state

    @staticmethod
    def from_bnb(packed: Any, state: Any) -> Quantized:
        """Reads a packed weight and its ``QuantState``: ``quantize_4bit``'s, or a ``Params4bit`` and its ``quant_state``.

        The absmax values of a double-quantized weight are those it is dequantized with: the true ones are not in it.

        Args:
            packed: The packed weight.
            state: Its ``QuantState``.

        Returns:
            The weight, with its codes and scales in numpy arrays.

        Raises:
            FormatError: For a state of another kind, and for one that does not fit the packed bytes.
        """
        if getattr(state, "quant_type", None) not in FORMATS or state.shape is None:
            raise FormatError("This is not the state of a 4-bit weight.", remedy="Give a Params4bit and its quant_state.")
        shape = tuple(state.shape)
        raw = packed.detach().cpu().contiguous().view(-1).numpy().view(np.uint8)
        codes = np.stack([raw >> 4, raw & 15], axis=1).reshape(-1)[: prod(shape)]
        blocks = -(-prod(shape) // state.blocksize)
        if codes.size != prod(shape) or state.absmax.numel() != blocks:
            raise FormatError(
                f"{raw.size:,} bytes and {state.absmax.numel():,} scales do not make a weight of shape {shape}.",
                remedy="Give a weight and a state that belong together.",
            )
        stored = state.absmax.detach().cpu().numpy()
        nested = None
        if state.state2 is not None:
            nested = NestedScales(
                stored.astype(np.uint8), state.state2.absmax.detach().cpu().float().numpy(),
                np.float32(float(state.offset)), state.state2.blocksize,
            )  # fmt: skip
        scales = stored.astype(np.float32) if nested is None else nested.dequantize()
        spec = QuantSpec(
            state.quant_type,
            state.blocksize,
            double_quant=nested is not None,
            nested_block_size=nested.block_size if nested else 256,
        )
        name = str(state.dtype).removeprefix("torch.")
        dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        return Quantized(spec, shape, dtype, codes, scales, scales, scales, nested=nested)


def quantize(
    array: Any, spec: SpecLike, cancelled: Callable[[], bool] | None = None, *, overview: Overview | None = None
) -> Quantized:
    """Quantizes an array of any shape, read in C order as one row of weights cut into blocks.

    Args:
        array: float32, float16 and bfloat16 (ml_dtypes) as they are, float64 and 8-bit floats rounded to float32: NumPy arrays,
            torch tensors, and lists of numbers.
        spec: A specification, or a format's name, which stands for the format as it usually is.
        cancelled: Asked meanwhile; a yes ends the call.
        overview: Sums up the tensor that the array is a piece of, for formats whose scales depend on all of it.

    Returns:
        Codes, uint8 (numel,), and scales, float32 (blocks,), as bitsandbytes would store them, with the shape to restore.

    Raises:
        FormatError: For other dtypes, empty arrays, and specifications that there are not.
        InterruptedError: Once cancelled.

    >>> found = wb.quantize(np.linspace(-2, 2, 64, dtype=np.float32), "nf4")
    >>> found.absmax, found.codes[[0, -1]], found.nbytes
    (array([2.], dtype=float32), array([ 0, 15], dtype=uint8), 36)
    """
    from workbench.kernels import blocks as block_kernels  # numba loads here
    from workbench.kernels import pool, rounding
    from workbench.kernels.bits import as_bits

    spec, weights = as_spec(spec), as_weights(array)
    form, block_size = spec.definition, spec.block_size
    bits = as_bits(weights)
    if spec.rotate:
        bits = as_bits(rotated(bits, stretch_of(weights.shape), cancelled))
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
