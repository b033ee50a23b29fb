"""The state that bitsandbytes keeps beside a 4-bit weight: a small JSON object inside a uint8 tensor.

Covers reading and checking it: the text comes from the model's author, so that its length, depth and every field are bounded
before anything is allocated from them. Does not cover the scales, which are tensors of their own.

What bitsandbytes writes (``QuantState.as_dict``): quant_type, blocksize, dtype, shape, and with double quantization
nested_blocksize, nested_dtype and nested_offset.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, NoReturn

from workbench.errors import ModelError
from workbench.quant.formats import BLOCK_SIZES
from workbench.sources.header import shown, unique

MAX_STATE = 2_048
"""Bytes; bitsandbytes writes less than 200."""
_FIELDS = frozenset({"quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset"})
_DTYPES = ("float32", "float16", "bfloat16")
_MAX_DIM = 2**40
_MAX_NESTED = 2**20


@dataclass(frozen=True, slots=True)
class State:
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


def parse_state(raw: bytes, quant_type: str, name: str, where: str) -> State:
    """The state in the bytes of the tensor ``name`` of a weight in ``quant_type``; ModelError on any fault."""

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
    return State(quant_type, fields["blocksize"], fields["dtype"], tuple(shape), size, float(offset))


def _whole(value: Any, largest: int) -> bool:
    return type(value) is int and 0 < value <= largest
