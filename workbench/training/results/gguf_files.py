"""GGUF files, through the package ``gguf``: writing one a tensor at a time, and reading one that somebody else made.

Covers the package where it is missing, what a damaged file raises, and each tensor dequantized. What the names and keys mean
for a model is ``gguf_layouts.py``'s part.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError, RunError
from workbench.training.paths import path_of

Array = NDArray[Any]
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""GGUF type of a key's value → bytes; texts and lists have no fixed number."""
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 24
"""Values in a list at most: vocabularies and their merges have less than a million."""


def library() -> Any:
    """The package ``gguf``; RunError with the line that installs it where it is missing."""
    try:
        import gguf
    except ImportError as error:
        what = f"GGUF needs the package gguf ({error})."
        raise RunError(what, where="gguf", remedy="pip install gguf, or pip install 'qlora-workbench[gguf]'.") from error
    return gguf


@dataclass(frozen=True)
class Tensor:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    """As NumPy has it: a weight is (out, in)."""
    kind: str
    """``F32``, ``F16``, ``BF16``, ``Q8_0`` …"""

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        gguf = library()
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        return math.prod(self.shape) // int(block) * int(size)


def encoded(values: Array, kind: str) -> Array:
    """Float32 values in a GGUF type, rows of bytes for those that are no dtype of NumPy's."""
    gguf = library()
    found: Array = gguf.quants.quantize(np.ascontiguousarray(values, np.float32), gguf.GGMLQuantizationType[kind])
    return found


def decoded(data: Array, kind: str) -> Array:
    """The float32 values of what ``encoded`` gave."""
    gguf = library()
    found: Array = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    return found


class Writer:
    """A GGUF file: its keys and the list of its tensors first, then their data in the same order."""

    def __init__(self, path: Path, architecture: str, keys: Mapping[str, Any], tensors: Iterable[Tensor]) -> None:
        """Keys are numbers, texts, truths and lists of them; ``(value, type, item type)`` keeps the types of a file read."""
        gguf = library()
        self._writer = gguf.GGUFWriter(path, architecture)
        for name, value in keys.items():
            self._add(name, value)
        for tensor in tensors:
            kind = gguf.GGMLQuantizationType[tensor.kind]
            self._writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind)
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_ti_data_to_file()

    def _add(self, name: str, value: Any) -> None:
        if isinstance(value, tuple):
            self._writer.add_key_value(name, *value)
        elif isinstance(value, bool):
            self._writer.add_bool(name, value)
        elif isinstance(value, int):
            self._writer.add_uint32(name, value)
        elif isinstance(value, float):
            self._writer.add_float32(name, value)
        elif isinstance(value, str):
            self._writer.add_string(name, value)
        else:
            self._writer.add_array(name, value)

    def write(self, data: Array) -> None:
        """The next tensor's data, ``encoded``."""
        self._writer.write_tensor_data(data)

    def close(self) -> None:
        """Writes out what is buffered."""
        self._writer.close()


def _check(data: Array) -> None:
    """Walks a file's keys, so that no count of its own sends its reader past its end, or round and round there.

    ValueError or struct.error where one does. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
    """
    whole = data.data
    magic, version, _, keys = struct.unpack_from("<4sIQQ", whole)
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError("it does not begin as one of version 2 or 3")
    at = 24

    def string(at: int) -> int:
        return at + 8 + int(struct.unpack_from("<Q", whole, at)[0])

    for _ in range(keys):
        at = string(at)
        (kind,) = struct.unpack_from("<I", whole, at)
        at += 4
        if kind == _ARRAY:
            kind, count = struct.unpack_from("<IQ", whole, at)
            at += 12
            if count > _LONGEST or kind == _ARRAY:
                raise ValueError("a list in it is too long, or holds lists")
        else:
            count = 1
        if kind == _STRING:
            for _ in range(count):
                at = string(at)
        else:
            at += count * _BYTES[kind]
        if at > len(whole):
            raise ValueError("it is cut off")


class Read:
    """A GGUF file that is there already: keys and tensors. ``ModelError`` where it cannot be read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path_of(path, "a GGUF file")
        gguf = library()
        try:
            _check(np.memmap(self.path, np.uint8, "r"))
            self._reader = gguf.GGUFReader(self.path)
            self.architecture = str(self._reader.fields["general.architecture"].contents())
            self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        except OSError as error:
            what = f"the GGUF file cannot be read ({error.strerror or error})."
            raise ModelError(what, where=str(self.path), remedy="Name a file that is there.") from error
        except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, UnicodeError, struct.error) as error:
            what = f"this is no whole GGUF file ({type(error).__name__}: {error})."
            raise ModelError(what, where=str(self.path), remedy="Fetch it again, or name another.") from error
        if self.number("split.count", 1) > 1:
            what, remedy = "the model is split into several files.", "Join them first: llama-gguf-split --merge FIRST OUT.gguf"
            raise ModelError(what, where=str(self.path), remedy=remedy)

    def value(self, name: str) -> Any:
        """A key's value; None where it is missing."""
        field = self._reader.fields.get(name)
        return None if field is None else field.contents()

    def number(self, name: str, default: int) -> int:
        """A key that is a whole number."""
        value = self.value(name)
        return value if isinstance(value, int) else default

    def keys(self) -> dict[str, Any]:
        """Every key with its types, as ``Writer`` takes them; empty lists are left out, which no file can hold."""
        found = {}
        for name, field in self._reader.fields.items():
            if name.startswith("GGUF.") or (len(field.types) < 2 and field.types[0].name == "ARRAY"):
                continue
            found[name] = (field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
        return found

    @property
    def kinds(self) -> dict[str, int]:
        """GGUF type → the bytes that it takes in the file."""
        found: dict[str, int] = {}
        for tensor in self.tensors.values():
            kind = tensor.tensor_type.name
            found[kind] = found.get(kind, 0) + int(tensor.n_bytes)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape as NumPy has it."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape.tolist()))

    def read(self, name: str) -> Array:
        """A tensor's values in float32. ``ModelError`` for a type that ``gguf`` cannot dequantize."""
        tensor = self.tensors[name]
        kind = tensor.tensor_type.name
        try:
            values = decoded(tensor.data, kind)
        except NotImplementedError as error:
            what, remedy = f"{name} is in {kind}, which gguf does not dequantize.", "Use a file in another type."
            raise ModelError(what, where=str(self.path), remedy=remedy) from error
        return np.asarray(values, np.float32).reshape(self.shape(name))
