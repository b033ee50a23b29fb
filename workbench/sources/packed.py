"""Weights that a checkpoint holds quantized, found, checked and opened; and any tensor as bitsandbytes sees it.

``packed`` opens a weight in one of the layouts that ``packed_names.py`` recognises, ``weights`` gives any tensor's weights,
packed or not, and ``logical`` lists a checkpoint by its weights instead of by its stored tensors. Every part is checked against
the others before it is read. MXFP4 follows OCP's Microscaling specification, in which the scale 255 is NaN. The arithmetic is
``packed_weight.py``'s; what a QLoRA load quantizes is ``rule.py``'s.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError
from workbench.progress import Cancelled, Progress
from workbench.quant.double_quant import NestedScales, dynamic_levels
from workbench.quant.formats import BLOCK_SIZES, find_format
from workbench.quant.spec import QuantSpec
from workbench.sources.base import Source
from workbench.sources.header import Entry, shown, unique
from workbench.sources.packed_names import Packing, find_packing, find_packings, tile_of
from workbench.sources.packed_weight import PackedWeight
from workbench.sources.rule import TRANSPOSED, is_transposed
from workbench.sources.tensor_info import Role, TensorInfo

_NONE = np.zeros(0, np.float32)
_SCALES = ("F32", "F16", "BF16", "F8_E8M0", "U8")


def packed(source: Source, name: str) -> PackedWeight | None:
    """The packed weight whose codes are in the tensor ``name``, None where it holds no packed weight.

    Reads the scales and the state, not the codes. ModelError where they do not fit the codes, or are hostile.
    """
    _, entry = source.find(name)
    entries = _entries(source)
    packing = find_packing(name, entries, source.config)
    return None if packing is None else _Opener(source, entry, packing, entries).open()


def logical(source: Source) -> list[TensorInfo]:
    """``source.tensors()`` by weights: a packed weight has its own shape and dtype, and the bytes of all its parts.

    The tensors that hold its scales are left out. Reads bitsandbytes' states, some hundred bytes a weight, and nothing else.
    """
    entries = _entries(source)
    packings = find_packings(entries, source.config)
    parts = {part for packing in packings.values() for part in packing.parts.values()}
    found = []
    for info in source.tensors():
        if info.name in packings:
            found.append(_Opener(source, entries[info.name], packings[info.name], entries).info())
        elif info.name not in parts:
            found.append(info)
    return found


def as_loaded(source: Source) -> tuple[list[TensorInfo], QuantSpec | None]:
    """``logical(source)`` as a QLoRA load has it: what bitsandbytes packed in 4 bits counts as quantizable.

    Also gives the specification that it is packed in, which a load keeps whatever the configuration says; None where nothing is
    packed.
    """
    found, spec = [], None
    packings = find_packings(entries := _entries(source), source.config)
    for info in logical(source):
        packing = packings.get(info.name)
        if packing is not None and packing.scheme in ("nf4", "fp4"):
            if spec is None:
                state = _Opener(source, entries[info.name], packing, entries).state()
                nested = state.nested_block_size
                spec = QuantSpec(state.quant_type, state.block_size, double_quant=nested > 0, nested_block_size=nested or 256)
            reason = f"{Role.LINEAR.sentence()}, {info.reason}"
            info = replace(info, quantizable=True, reason=reason, role=Role.LINEAR)
        found.append(info)
    return found, spec


def weights(
    source: Source | str | os.PathLike[str],
    name: str,
    layout: str | None = None,
    *,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> NDArray[Any]:
    """A tensor as bitsandbytes sees it: dequantized where the checkpoint holds it packed, transposed where its layout says so.

    Args:
        source: A source, or what ``open_model`` takes.
        name: The tensor's name.
        layout: ``TensorInfo.layout``; without it the fast rule's.
        progress: As in ``Source.read``.
        cancelled: As in ``Source.read``.

    Returns:
        The weights, (out, in) where they are a matrix, in the stored dtype; packed ones as they are dequantized.

    Raises:
        ModelError: As ``open_model`` does, for an unknown tensor, and for one of integers that are no weights.
        InterruptedError: Once cancelled.

    >>> wb.weights("builtin", "model.layers.0.mlp.down_proj.weight").shape
    (256, 704)
    """
    from workbench.sources import open_model

    source = open_model(source)
    if (held := packed(source, name)) is not None:
        return held.dequantize(progress=progress, cancelled=cancelled)
    _, entry = source.find(name)
    if not entry.dtype.floating:
        what = f"The tensor {shown(name)} is stored as {entry.dtype.name} and holds no weights that could be shown."
        raise ModelError(what, where=source.name)
    array = source.read(name, progress=progress, cancelled=cancelled)
    turn = is_transposed(name, source.config) if layout is None else layout == TRANSPOSED
    return np.ascontiguousarray(array.T) if turn and array.ndim == 2 else array


def _entries(source: Source) -> dict[str, Entry]:
    return {name: entry for name, (_, entry) in source.entries().items()}


class _Opener:
    """Checks one packed weight against its parts."""

    def __init__(self, source: Source, entry: Entry, packing: Packing, entries: dict[str, Entry]) -> None:
        self.source, self.entry, self.packing, self.entries = source, entry, packing, entries

    def open(self) -> PackedWeight:
        match self.packing.scheme:
            case "nf4" | "fp4":
                return self.bitsandbytes()
            case "mxfp4":
                return self.mxfp4()
            case "llm.int8":
                return self.llm_int8()
            case _:
                return self.tiled()

    def info(self) -> TensorInfo:
        """What the weight is, without its scales."""
        if self.packing.scheme in ("nf4", "fp4"):
            state = self.state()
            return self.weight(state.title, state.shape, _dtype(state.dtype), (state.block_size,)).info
        return self.open().info

    def state(self) -> PackedState:
        name = self.packing.parts["state"]
        if self.entries[name].end - self.entries[name].begin > MAX_STATE:
            self.fail("has a quantization state larger than such a state ever is")
        state = parse_state(self.part("state", ("U8",)).tobytes(), self.packing.scheme, name, self.source.name)
        numel, stored = math.prod(state.shape), self.entry.end - self.entry.begin
        if not -(-numel // 2) <= stored < -(-numel // 2) + self.entry.dtype.bits // 8:
            self.fail(f"has {stored:,} bytes of codes, not those of its shape {list(state.shape)}")
        if ("nested_absmax" in self.packing.parts) != bool(state.nested_block_size):
            self.fail("has a state and scales that disagree on whether it is double quantized")
        return state

    def bitsandbytes(self) -> PackedWeight:
        state, form = self.state(), find_format(self.packing.scheme)
        if "quant_map" in self.packing.parts:
            levels = self.part("quant_map", ("F32",), (16,))
            if not np.allclose(levels, form.level_of_code, rtol=0, atol=1e-6):
                self.fail(f"has a table of levels that is not {form.title}'s, and that bitsandbytes would ignore")
        nested, scales = self.absmax(state, -(-math.prod(state.shape) // state.block_size))
        levels, tile = form.level_of_code, (state.block_size,)
        return self.weight(state.title, state.shape, _dtype(state.dtype), tile, levels, scales, nested)

    def absmax(self, state: PackedState, blocks: int) -> tuple[NestedScales | None, NDArray[np.float32]]:
        if not state.nested_block_size:
            return None, self.part("absmax", ("F32", "F16", "BF16"), (blocks,)).astype(np.float32)
        codes = self.part("absmax", ("U8",), (blocks,))
        second = self.part("nested_absmax", ("F32",), (-(-blocks // state.nested_block_size),))
        levels = self.part("nested_quant_map", ("F32",), (256,))
        if not np.allclose(levels, dynamic_levels(), rtol=0, atol=1e-6):
            self.fail("has a second table of levels that is not bitsandbytes' dynamic map")
        nested = NestedScales(codes, second, np.float32(state.offset), state.nested_block_size)
        with np.errstate(over="ignore", invalid="ignore"):
            # The table that came with the checkpoint: its last bits are those of the torch that made it.
            scales = levels[codes] * np.repeat(second, state.nested_block_size)[:blocks] + nested.offset
        return nested, scales

    def mxfp4(self) -> PackedWeight:
        shape = self.entry.shape
        if len(shape) < 2 or shape[-1] != 16 or 0 in shape:
            self.fail(f"has the shape {list(shape)}; MXFP4 blocks are sixteen bytes each")
        scales = self.part("scales", ("U8", "F8_E8M0"), shape[:-1]).view(ml_dtypes.float8_e8m0fnu)
        logical, levels = (*shape[:-2], shape[-2] * 32), find_format("mxfp4").level_of_code
        return self.weight(self.packing.title, logical, _dtype("bfloat16"), (32,), levels, scales)

    def llm_int8(self) -> PackedWeight:
        shape = self.entry.shape
        if len(shape) != 2 or 0 in shape:
            self.fail(f"has the shape {list(shape)}; LLM.int8 weights are matrices")
        if "order" in self.packing.parts and self.part("order", ("U8", "I8"), (), (1,)).reshape(-1).tolist() != [0]:
            self.fail("is stored in an order of its own of LLM.int8, not row by row")
        scales = self.part("scales", ("F32", "F16", "BF16"), (shape[0],)).astype(np.float32)[:, None]
        return self.weight(self.packing.title, shape, np.dtype(np.float32), (1, shape[1]), self.bytes_as_levels(), scales)

    def tiled(self) -> PackedWeight:
        shape, config, stored = self.entry.shape, self.source.config, self.entries[self.packing.parts["scales"]].shape
        tile = tile_of(shape, stored, config)
        if tile is None:
            self.fail(f"has scales of shape {list(stored)}, which do not fit its own, {list(shape)}")
        if "zero" in self.packing.parts:
            self.fail("has zero points, which are not read")
        scales = self.part("scales", _SCALES, stored)
        if scales.dtype == np.uint8:
            scales = scales.view(ml_dtypes.float8_e8m0fnu)
        grid = (*shape[:-2], -(-shape[-2] // tile[0]), -(-shape[-1] // tile[1]))
        dtype = _dtype(config.get("dtype") or config.get("torch_dtype"))
        return self.weight(self.packing.title, shape, dtype, tile, self.bytes_as_levels(), scales.reshape(grid))

    def bytes_as_levels(self) -> NDArray[np.float32]:
        dtype = self.entry.dtype.numpy
        assert dtype is not None  # Source.find refuses what has none
        with np.errstate(invalid="ignore"):  # a NaN among the 256 codes of an FP8 format
            return np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)

    def weight(
        self, title: str, shape: tuple[int, ...], dtype: np.dtype[Any], tile: tuple[int, ...],
        levels: NDArray[np.float32] = _NONE, scales: NDArray[Any] = _NONE, nested: NestedScales | None = None,
    ) -> PackedWeight:  # fmt: skip
        held = [self.entry, *(self.entries[name] for name in self.packing.parts.values())]
        nbytes = sum(entry.end - entry.begin for entry in held)
        name, source = self.entry.name, self.source
        return PackedWeight(name, title, shape, dtype, levels, scales, tile, nbytes, self.packing, nested, source)

    def part(self, role: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> NDArray[Any]:
        """One of the parts, read once its dtype and shape are what they must be; without shapes, of any."""
        name = self.packing.parts.get(role)
        if name is None:
            self.fail(f"lacks its {role}")
        entry = self.entries[name]
        if entry.dtype.name not in dtypes or (shapes and entry.shape not in shapes):
            fits = f"{' or '.join(dtypes)}{f' of shape {list(shapes[0])}' if shapes else ''}"
            self.fail(f"has its {role} in {entry.dtype.name} of shape {list(entry.shape)}, where {fits} belongs")
        return self.source.read(name)

    def fail(self, why: str) -> NoReturn:
        what = f"The packed weight {shown(self.entry.name)} {why}."
        raise ModelError(what, where=self.source.name, remedy="Fetch the checkpoint again from a source you trust.")


def _dtype(name: Any) -> np.dtype[Any]:
    """The dtype that config.json or a state names; bfloat16 where it names none that weights have."""
    return np.dtype(np.float16 if name == "float16" else np.float32 if name == "float32" else ml_dtypes.bfloat16)


MAX_STATE = 2_048
"""Bytes; bitsandbytes writes less than 200."""
_FIELDS = frozenset({"quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset"})
_DTYPES = ("float32", "float16", "bfloat16")
_MAX_DIM = 2**40
_MAX_NESTED = 2**20


@dataclass(frozen=True, slots=True)
class PackedState:
    """A checked state."""

    quant_type: str
    block_size: int
    dtype: str
    """What the weight was before it was quantized: a NumPy or ml_dtypes name."""
    shape: tuple[int, ...]
    nested_block_size: int
    """0 without double quantization."""
    offset: float

    @property
    def title(self) -> str:
        """A short name, such as "NF4, blocks of 64, double quantized"."""
        double = ", double quantized" if self.nested_block_size else ""
        return f"{self.quant_type.upper()}, blocks of {self.block_size}{double}"


def parse_state(raw: bytes, quant_type: str, name: str, where: str) -> PackedState:
    """The state in the bytes of the tensor ``name`` of a weight in ``quant_type``; ModelError on any fault.

    It is what bitsandbytes' ``QuantState.as_dict`` writes: quant_type, blocksize, dtype, shape, and with double quantization
    nested_blocksize, nested_dtype and nested_offset. The text comes from the model's author, so its length, depth and every
    field are bounded before anything is allocated from them.
    """

    def fail(why: str) -> NoReturn:
        remedy = "Fetch the checkpoint again from a source you trust, or save it again with transformers."
        raise ModelError(f"The quantization state {shown(name)} {why}.", where=where, remedy=remedy)

    if len(raw) > MAX_STATE or raw.count(b"{") != 1 or raw.count(b"[") > 1:
        fail("is not the small JSON object that bitsandbytes writes")
    try:
        fields: Any = json.loads(raw, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        fail(f"is not JSON: {shown(str(error), 100)}")
    if not isinstance(fields, dict) or not fields.keys() <= _FIELDS:
        fail("has fields that bitsandbytes does not know")
    if fields.get("quant_type") != quant_type:
        fail(f"is named for {quant_type} and says {shown(str(fields.get('quant_type')))}")
    if not _whole(fields.get("blocksize"), BLOCK_SIZES[-1]) or fields["blocksize"] not in BLOCK_SIZES:
        fail(f"has the block size {shown(str(fields.get('blocksize')))}, which bitsandbytes does not have")
    if fields.get("dtype") not in _DTYPES:
        fail(f"has the dtype {shown(str(fields.get('dtype')))}, not one of {', '.join(_DTYPES)}")
    shape = fields.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= 8 or not all(_whole(dim, _MAX_DIM) for dim in shape):
        fail("has a shape that is not a list of 1 to 8 whole numbers above 0")
    if math.prod(shape) > _MAX_DIM:
        fail("has a shape too large to address")
    nested = "nested_offset" in fields
    offset = fields.get("nested_offset", 0.0)
    if nested and (not _whole(fields.get("nested_blocksize"), _MAX_NESTED) or fields.get("nested_dtype") != "float32"):
        fail("has a second level whose block size is no whole number or whose dtype is not float32")
    if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not -3e38 < offset < 3e38:
        fail("has a nested_offset that is not a finite number")
    size = fields["nested_blocksize"] if nested else 0
    return PackedState(quant_type, fields["blocksize"], fields["dtype"], tuple(shape), size, float(offset))


def _whole(value: Any, largest: int) -> bool:
    return type(value) is int and 0 < value <= largest
