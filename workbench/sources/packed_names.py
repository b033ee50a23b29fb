"""Which tensors of a checkpoint hold quantized weights, found from names, dtypes and shapes alone.

Covers the layouts that ``packed.py`` can decode: bitsandbytes' NF4 and FP4 (with a state beside each weight) and LLM.int8,
MXFP4 blocks and scales as gpt-oss has them, and FP8 or INT8 with scales as DeepSeek, compressed-tensors and FBGEMM have them.
And the methods that can be named and no more (GPTQ, MLX and others), which ``refuse`` refuses. Reads no tensor's bytes and
trusts nothing: what a name promises is checked when the weight is read.

Sources: ``QuantState.as_dict`` and ``Linear8bitLt._save_to_state_dict`` in bitsandbytes; ``integrations/mxfp4.py`` and
``integrations/finegrained_fp8.py`` in transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import ModelError
from workbench.quant.formats import BLOCK_SIZES
from workbench.sources.header import Entry, shown

_TILE = (128, 128)
"""Rows × columns of FP8 weights that share a scale, where config.json does not say otherwise: DeepSeek-V3's."""
_8BIT = {"F8_E4M3": "fp8", "F8_E5M2": "fp8", "F8_E4M3FNUZ": "fp8", "F8_E5M2FNUZ": "fp8", "I8": "int8"}
_TITLES = {"llm.int8": "LLM.int8"}


@dataclass(frozen=True, slots=True)
class Packing:
    """How one weight is stored: its scheme, and the tensors it consists of."""

    scheme: str
    """``nf4``, ``fp4``, ``mxfp4`` (4 bits), ``llm.int8``, ``int8`` or ``fp8`` (8 bits)."""
    detail: str
    """What to show beside the scheme: block size, double quantization."""
    parts: Mapping[str, str]
    """Role (``absmax``, ``state``, ``scales`` …) → the tensor beside the codes that has it."""

    @property
    def title(self) -> str:
        """A short name, such as "NF4, blocks of 64, double quantized"."""
        name = _TITLES.get(self.scheme, self.scheme.upper())
        return f"{name}, {self.detail}" if self.detail else name

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return 4 if self.scheme.endswith("4") else 8


def find_packing(name: str, entries: Mapping[str, Entry], config: Mapping[str, Any]) -> Packing | None:
    """How the weight whose codes are in the tensor ``name`` is packed; None where it is not, or not in a way known here."""
    entry = entries[name]
    dtype = entry.dtype.name
    for scheme in ("nf4", "fp4"):
        if (state := f"{name}.quant_state.bitsandbytes__{scheme}") in entries:
            return _bitsandbytes(scheme, state, entry, entries)
    if dtype == "I8" and name.endswith(".weight") and (scb := f"{name.removesuffix('weight')}SCB") in entries:
        return Packing("llm.int8", "a scale per row", {"scales": scb, **_beside(entries, order=f"{name}_format")})
    if dtype == "U8" and name.endswith("_blocks") and (scales := f"{name.removesuffix('blocks')}scales") in entries:
        return Packing("mxfp4", "blocks of 32", {"scales": scales})
    if dtype in _8BIT:
        for suffix in ("_scale_inv", "_scale"):
            if (scales := name + suffix) in entries:
                tile = tile_of(entry.shape, entries[scales].shape, config)
                kind = f"{dtype.removeprefix('F8_')}, " if dtype != "I8" else ""
                unread = _beside(entries, input=f"{name.removesuffix('weight')}input_scale", zero=f"{name}_zero_point")
                return Packing(_8BIT[dtype], kind + _tile_title(tile, entry.shape), {"scales": scales, **unread})
    return None


def find_packings(entries: Mapping[str, Entry], config: Mapping[str, Any]) -> dict[str, Packing]:
    """Every packed weight of a checkpoint: the name of the tensor with its codes → how it is packed."""
    return {name: packing for name in entries if (packing := find_packing(name, entries, config)) is not None}


def _block_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """config.json's ``weight_block_size`` (rows, columns), or DeepSeek's where it has none that makes sense."""
    method = config.get("quantization_config")
    size = method.get("weight_block_size") if isinstance(method, dict) else None
    if isinstance(size, list) and len(size) == 2 and all(type(s) is int and 0 < s < 2**31 for s in size):
        return size[0], size[1]
    return _TILE


def tile_of(shape: tuple[int, ...], scales: tuple[int, ...], config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows × columns of the last two dimensions that share a scale; None where the two shapes do not fit together.

    One scale is one for all; a vector has one per row. A grid is cut into tiles as config.json says, the last of a row or
    column cut short as in DeepSeek-V3, or else into as many equal tiles as it has.
    """
    if len(shape) < 2 or 0 in shape or 0 in scales:
        return None
    rows, columns = shape[-2:]
    if math.prod(scales) == 1:
        return (rows, columns) if len(shape) == 2 else None
    if scales == (rows,) and len(shape) == 2:
        return 1, columns
    if len(scales) != len(shape) or scales[:-2] != shape[:-2]:
        return None
    down, across = scales[-2:]
    for tile in (_block_size(config), _TILE):
        if (down, across) == (-(-rows // tile[0]), -(-columns // tile[1])):
            return min(tile[0], rows), min(tile[1], columns)
    return None if rows % down or columns % across else (rows // down, columns // across)


def _bitsandbytes(scheme: str, state: str, entry: Entry, entries: Mapping[str, Entry]) -> Packing:
    roles = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    parts = _beside(entries, **{role: f"{entry.name}.{role}" for role in roles})
    detail = []
    if "absmax" in parts:
        blocks, count = math.prod(entries[parts["absmax"]].shape), 2 * (entry.end - entry.begin)
        fitting = [size for size in BLOCK_SIZES if -(-count // size) == blocks]
        detail += [f"blocks of {fitting[0]}"] if len(fitting) == 1 else []
    detail += ["double quantized"] if "nested_absmax" in parts else []
    return Packing(scheme, ", ".join(detail), {"state": state, **parts})


def _beside(entries: Mapping[str, Entry], **names: str) -> dict[str, str]:
    return {role: name for role, name in names.items() if name in entries}


def _tile_title(tile: tuple[int, int] | None, shape: tuple[int, ...]) -> str:
    if tile is None:
        return "with scales"
    if tile == shape[-2:]:
        return "one scale"
    return "a scale per row" if tile == (1, shape[-1]) else f"tiles of {tile[0]} × {tile[1]}"


_METHODS = {
    "gptq": "GPTQ", "awq": "AWQ", "aqlm": "AQLM", "vptq": "VPTQ", "quanto": "Quanto", "eetq": "EETQ", "higgs": "HIGGS",
    "hqq": "HQQ", "torchao": "torchao", "bitnet": "BitNet", "spqr": "SpQR", "quark": "Quark", "fp_quant": "FP-Quant",
    "auto-round": "AutoRound", "modelopt": "ModelOpt", "exl2": "EXL2", "exl3": "EXL3", "marlin": "Marlin", "sinq": "SINQ",
    "fouroversix": "FourOverSix", "metal": "Metal", "nvfp4": "NVFP4", "quip": "QuIP#", "mlx": "MLX",
}  # fmt: skip
_UNNAMED = "a method that config.json does not name"
# The ending of the codes' name, that of a tensor beside them, and the method that both together belong to where config.json
# names none. Of pairs that share an ending the most specific comes first.
_CODES = (
    (".qweight", "", ""), (".weight_packed", "", "compressed-tensors"), (".bitmask", ".compressed", "compressed-tensors"),
    (".W_q", "", "HQQ"), (".codes", ".codebooks", "AQLM"), (".indices", ".centroids.weight", "VPTQ"),
    ("._data", "._scale", "Quanto"), ("_weight_qdata", "_weight_scale", "torchao"),
    ("_weight_qdata", "_weight_scale_and_zero", "torchao"),
    (".dense_weights", ".row_offsets", "SpQR"), (".q_weight", ".q_scale", "EXL2"), (".trellis", ".suh", "EXL3"),
    (".Qidxs", "", "QuIP#"), (".B", ".s", "Marlin"), (".weight", ".weight_scale_2", "ModelOpt"),
    (".weight", ".weight_scales", "EETQ"), (".weight", ".tables2", "HIGGS"), (".weight", ".qbiases", "Metal"),
    (".weight", ".biases", "MLX"), (".weight", ".scales", "MLX"), (".weight", ".weight_scale", _UNNAMED),
    (".weight", ".weight_scale_inv", _UNNAMED),
)  # fmt: skip


def refuse(entries: Mapping[str, Entry], config: Mapping[str, Any], where: str) -> None:
    """ModelError, with the method's name and the remedy, where the weights are packed in a way that is not decoded here.

    What config.json says is believed only of a checkpoint that holds something else than floating-point numbers.
    """
    packed, by_names = _codes(entries, config)
    method = config.get("quantization_config") or config.get("quantization")  # the latter is MLX's
    named = method.get("quant_method") if isinstance(method, dict) else None
    key = named.lower() if isinstance(named, str) and len(named) < 40 else ""
    title = _METHODS.get(key) or by_names
    # FP8 is decoded here whatever made it, except ModelOpt's, which transformers would load without its scales.
    narrow = 8 if key == "modelopt" else 0
    if not title or (packed is None and all(e.dtype.floating and e.dtype.bits > narrow for e in entries.values())):
        return
    if title == _UNNAMED and key:
        title = shown(key)
    bits, group = (_small(method, field) for field in ("bits", "group_size"))
    how = ", ".join([*([f"{bits} bits"] if bits else []), *([f"groups of {group}"] if group else [])])
    what = (
        f"Its weights are quantized with {title}{f' ({how})' if how else ''}: codes in an order of their own, which "
        "bitsandbytes cannot load and QLoRA cannot use."
    )
    remedy = "Open the model that it was made from (its card names it), in 16 bits; the workbench quantizes that to 4 bits."
    raise ModelError(what, where=where, remedy=remedy)


def _codes(entries: Mapping[str, Entry], config: Mapping[str, Any]) -> tuple[str | None, str]:
    """A tensor of codes that are not decoded here, and the method that goes with the names; None and nothing without any."""
    coded = [name for name, entry in entries.items() if not entry.dtype.floating or entry.dtype.bits <= 8]
    for ending, beside, title in _CODES:
        for name in coded:
            there = name.endswith(ending) and (not beside or f"{name.removesuffix(ending)}{beside}" in entries)
            if there and (title == "ModelOpt" or find_packing(name, entries, config) is None):
                return name, title or _gptq_or_awq(name, entries)
    return None, ""


def _gptq_or_awq(packed: str, entries: Mapping[str, Entry]) -> str:
    stem = packed.removesuffix("qweight")
    if not {f"{stem}qzeros", f"{stem}scales"} <= entries.keys():
        return _UNNAMED
    codes, scales = entries[packed].shape, entries[f"{stem}scales"].shape
    # GPTQ packs along the input, so that codes and scales have the same columns; AWQ packs eight columns into one.
    return "AWQ" if f"{stem}g_idx" not in entries and codes[-1:] != scales[-1:] else "GPTQ"


def _small(method: Any, field: str) -> int | None:
    value = method.get(field) if isinstance(method, dict) else None
    return value if type(value) is int and 0 < value <= 65_536 else None
