"""The safetensors header: which tensors a file holds and where their bytes lie.

Covers parsing and checking a header, apart from how its bytes are fetched (a file, a byte range over HTTP). Does not read
tensor data. The format (https://github.com/huggingface/safetensors, "Format"): eight bytes little-endian header length N, N
bytes of JSON that begin with ``{`` and may be padded with spaces, then the data, which the tensors cover without gap or
overlap.

The JSON is read by its own narrow grammar instead of into a general tree, so that a hostile header costs time and memory in
proportion to its length and never recurses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeGuard

import ml_dtypes
import numpy as np

from workbench.errors import ModelError

MAX_HEADER = 100_000_000  # bytes; the reference implementation's limit
MAX_TENSORS = 300_000
MAX_METADATA = 10_000  # keys
MAX_RANK = 32  # numpy's limit before 2.0
MAX_NAME = 1_000  # characters
_MAX_ENTRY = 4_096  # characters of one tensor's {"dtype": …, "shape": …, "data_offsets": …}
_MAX_INT = 2**63 - 1
_POINTER = b"version https://git-lfs.github.com/spec/"
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\n\r]*")

Fetch = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype of safetensors: its bits per element and its numpy dtype (None: packed below a byte, listed but not read)."""

    name: str
    bits: int
    numpy: np.dtype[Any] | None

    @property
    def floating(self) -> bool:
        """Whether the elements are real floating-point numbers."""
        return self.name.startswith(("F", "BF"))


def _dtypes() -> dict[str, DType]:
    known: dict[str, tuple[int, Any]] = {
        "F64": (64, np.float64), "F32": (32, np.float32), "F16": (16, np.float16), "BF16": (16, ml_dtypes.bfloat16),
        "F8_E4M3": (8, ml_dtypes.float8_e4m3fn), "F8_E5M2": (8, ml_dtypes.float8_e5m2),
        "F8_E4M3FNUZ": (8, ml_dtypes.float8_e4m3fnuz), "F8_E5M2FNUZ": (8, ml_dtypes.float8_e5m2fnuz),
        "F8_E8M0": (8, ml_dtypes.float8_e8m0fnu), "F6_E2M3": (6, None), "F6_E3M2": (6, None), "F4": (4, None),
        "I64": (64, np.int64), "I32": (32, np.int32), "I16": (16, np.int16), "I8": (8, np.int8),
        "U64": (64, np.uint64), "U32": (32, np.uint32), "U16": (16, np.uint16), "U8": (8, np.uint8),
        "BOOL": (8, np.bool_), "C64": (64, np.complex64),
    }  # fmt: skip
    return {name: DType(name, bits, None if kind is None else np.dtype(kind)) for name, (bits, kind) in known.items()}


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An ``object_pairs_hook`` for json that refuses a key given twice (ValueError)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _natural(digits: str) -> int:
    """A whole number; −1 stands for every number with a sign, −0 included."""
    return -1 if digits.startswith("-") else int(digits)


DTYPES = _dtypes()
_FIELDS = json.JSONDecoder(object_pairs_hook=unique, parse_int=_natural)


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: dtype, shape, and its bytes as offsets from the beginning of the file."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: its tensors in the order of their bytes, and its free-text metadata."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def shown(name: str, limit: int = 80) -> str:
    """A name out of a file made fit for a message: printable ASCII, of bounded length."""
    return ascii(name if len(name) <= limit else f"{name[:limit]}…")


def check_pointer(head: bytes, where: str) -> None:
    """ModelError where a file that begins with ``head`` is what Git LFS leaves in its place until the file is fetched."""
    if head.startswith(_POINTER):
        what = "It is a pointer of Git LFS: a few lines that stand for the file, which was not fetched."
        remedy = "In its folder run 'git lfs install' and 'git lfs pull', or fetch the model with 'hf download'."
        raise ModelError(what, where=where, remedy=remedy)


def read_header(fetch: Fetch, size: int, where: str) -> Header:
    """The checked header of a file of ``size`` bytes, from ``fetch(offset, count) -> bytes``; ModelError on any fault.

    Fetches eight bytes and then the header, nothing else.
    """
    if size < 8:
        _fail("not a safetensors file, or cut off: it is shorter than the eight bytes of its header's length", where)
    length = int.from_bytes(fetch(0, 8), "little")
    if length > MAX_HEADER:
        head = fetch(0, min(size, len(_POINTER)))
        check_pointer(head, where)
        if all(32 <= byte < 127 for byte in head[:8]):  # no length, but a text: a web page, another pointer
            _fail(f"not a safetensors file: it begins with {shown(head.decode('ascii', 'replace'))}", where)
        _fail(f"not a safetensors file: it claims a header of {length:,} bytes (the format allows {MAX_HEADER:,})", where)
    if length > size - 8:
        _fail(f"truncated or not a safetensors file: a header of {length:,} bytes does not fit its {size:,}", where)
    raw = fetch(8, length)
    if not raw.startswith(b"{"):
        _fail("not a safetensors file: its header is not a JSON object", where)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        _fail("its header is not UTF-8", where)
    header = _Parser(text, 8 + length, where).parse()
    _check_coverage(header, 8 + length, size, where)
    return header


class _Parser:
    """A cursor over the header's text that accepts what the format allows and nothing else."""

    def __init__(self, text: str, data_start: int, where: str) -> None:
        self.text, self.data_start, self.where = text, data_start, where
        self.at = 0

    def parse(self) -> Header:
        entries: dict[str, Entry] = {}
        metadata: dict[str, str] | None = None
        self.expect("{")
        more = not self.accept("}")
        while more:
            name = self.string("a tensor's name")
            self.expect(":")
            if name == "__metadata__":
                if metadata is not None:
                    self.fail("__metadata__ is given twice")
                metadata = {} if self.null() else self.strings()
            elif name in entries:
                self.fail(f"the tensor {shown(name)} is given twice")
            else:
                entries[name] = self.entry(name)
                if len(entries) > MAX_TENSORS:
                    self.fail(f"more than {MAX_TENSORS:,} tensors")
            more = self.accept(",")
            if not more:
                self.expect("}")
        self.skip()
        if self.at != len(self.text):
            self.fail("something follows the header's JSON object")
        ordered = sorted(entries.values(), key=lambda e: (e.begin, e.end))
        return Header({e.name: e for e in ordered}, metadata or {})

    def entry(self, name: str) -> Entry:
        self.skip()
        end = self.text.find("}", self.at, self.at + _MAX_ENTRY)
        if self.text[self.at : self.at + 1] != "{" or end < 0:
            self.fail(f"the entry of {shown(name)} is not a short JSON object")
        text = self.text[self.at : end + 1]
        if "\\" in text:
            self.fail(f"the entry of {shown(name)} has escapes, which no dtype and no number needs")
        try:
            fields = _FIELDS.decode(text)
        except (ValueError, RecursionError) as error:
            self.fail(f"the entry of {shown(name)} is not a tensor's: {str(error)[:80]}")
        self.at = end + 1
        return _entry(name, fields, self.data_start, self.where)

    def strings(self) -> dict[str, str]:
        found: dict[str, str] = {}
        self.expect("{")
        more = not self.accept("}")
        while more:
            key = self.string("a metadata key")
            self.expect(":")
            if key in found:
                self.fail(f"the metadata key {shown(key)} is given twice")
            found[key] = self.string("a metadata value")
            if len(found) > MAX_METADATA:
                self.fail(f"more than {MAX_METADATA:,} metadata keys")
            more = self.accept(",")
            if not more:
                self.expect("}")
        return found

    def string(self, what: str) -> str:
        self.skip()
        if self.text[self.at : self.at + 1] != '"':
            self.fail(f"{what} is not a string")
        try:
            value, self.at = _DECODER.raw_decode(self.text, self.at)
            value.encode()  # half a surrogate is no text
        except ValueError:
            self.fail(f"{what} is not a JSON string")
        return str(value)

    def null(self) -> bool:
        """Whether null stands here, which safetensors takes for no metadata."""
        self.skip()
        found = self.text.startswith("null", self.at)
        self.at += 4 * found
        return found

    def skip(self) -> None:
        match = _BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def accept(self, char: str) -> bool:
        self.skip()
        if self.text[self.at : self.at + 1] != char:
            return False
        self.at += 1
        return True

    def expect(self, char: str) -> None:
        if not self.accept(char):
            self.fail(f"its header is not the JSON it should be: {char!r} expected at character {self.at:,}")

    def fail(self, what: str) -> NoReturn:
        _fail(what, self.where)


def _entry(name: str, fields: dict[str, Any], data_start: int, where: str) -> Entry:
    def fail(why: str) -> NoReturn:
        _fail(f"the tensor {shown(name)} {why}", where)

    if not name or len(name) > MAX_NAME or not name.isprintable() or "<" in name or ">" in name:
        fail(f"has a name that no model gives: empty, over {MAX_NAME:,} characters, control characters, < or >")
    dtype = DTYPES.get(fields["dtype"]) if isinstance(fields.get("dtype"), str) else None
    if dtype is None:
        fail(f"has the unknown dtype {shown(str(fields.get('dtype')))}")
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    if not _naturals(shape) or len(shape) > MAX_RANK:
        fail(f"has a shape that is not a list of at most {MAX_RANK} whole numbers of at least 0")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        fail("has data_offsets that are not two numbers, the first at most the second")
    # Zeros count as one, as numpy counts: the other dimensions of an empty tensor must not overflow either.
    extent = numel = 1
    for dim in shape:
        extent, numel = extent * max(dim, 1), numel * dim
        if extent * dtype.bits > _MAX_INT:
            fail("has a shape too large to address")
    begin, end = offsets
    if numel * dtype.bits != (end - begin) * 8:
        fail(f"has {end - begin:,} bytes, but its shape {shape} in {dtype.name} takes {numel * dtype.bits / 8:,.0f}")
    return Entry(name, dtype, tuple(shape), data_start + begin, data_start + end)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(v) is int and 0 <= v <= _MAX_INT for v in value)


def _check_coverage(header: Header, data_start: int, size: int, where: str) -> None:
    at = data_start
    for entry in header.entries.values():
        if entry.begin != at:
            fault = "overlaps the one before it" if entry.begin < at else "leaves a gap before it"
            _fail(f"the tensor {shown(entry.name)} {fault}", where)
        at = entry.end
    if at > size:
        _fail(
            f"truncated: its header describes {at:,} bytes, the file has {size:,}",
            where,
            "The download or copy was probably cut short: fetch the file again.",
        )
    if at < size:
        _fail(f"{size - at:,} bytes follow the last tensor", where)


def _fail(
    what: str, where: str, remedy: str = "The file is damaged or not safetensors: fetch it again from a source you trust."
) -> NoReturn:
    raise ModelError(f"{what[0].upper()}{what[1:]}.", where=where, remedy=remedy)
