"""Mutations of real files for the fuzz tests, and the rule they hold: success or a ModelError, in bounded time and memory.

``FUZZ_CASES`` says how many cases a test makes and ``FUZZ_SEED`` which; `make fuzz` makes 100,000.
"""

from __future__ import annotations

import os
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

import workbench as wb
from workbench.sources.base import Reader, Source, Watch
from workbench.sources.header import DTYPES, Entry

CASES = int(os.environ.get("FUZZ_CASES", "2000"))
SEED = os.environ.get("FUZZ_SEED", "0")
_SECONDS, _BYTES = 2.0, 32_000_000
_PIECES = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\u0000", b"\\ud800", b"9", b"-", b"e9", b".", b"\xff", b"\0", b"null", b"true",
    b"NaN", b"-Infinity", b"1e999", b"\x1b[2J", b"<img src=x>", b"[" * 3_000, b'{"a":' * 3_000, b"9" * 5_000, b"n" * 100_000,
]  # fmt: skip
HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 63, 64, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "x", "nf4", "float32", "bfloat16", "64", "../../x", "\x1b[2J", "\ud800", "n" * 5_000, [], [[]], {}, [0], [-1, 2],
    [2**40, 2**40], [64, 64], [1.5], ["a"], {"a": {"b": {}}},
]  # fmt: skip


def mutated(raw: bytes, draw: random.Random) -> bytes:
    """The bytes with one to four places flipped, cut, filled or repeated."""
    changed = bytearray(raw)
    for _ in range(draw.randint(1, 4)):
        at, count = draw.randrange(len(changed) + 1), draw.randint(1, 40)
        match draw.choice(["flip", "flip", "digit", "cut", "put", "repeat"]):
            case "flip" if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
            case "digit":
                digits = [i for i in range(at, min(at + 200, len(changed))) if 48 <= changed[i] <= 57]
                for i in digits[:1]:
                    changed[i] = draw.choice(b"0123456789-.e")
            case "cut":
                del changed[at : at + count]
            case "put":
                changed[at:at] = draw.choice(_PIECES)
            case _:
                changed[at:at] = changed[at : at + count]
    return bytes(changed)


def altered(value: Any, draw: random.Random) -> Any:
    """A JSON value with one of its parts, however deep, replaced, taken out, or put in a second time under another name."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        match draw.choice(["into", "into", "replace", "drop", "rename"]):
            case "into":
                return {**value, key: altered(value[key], draw)}
            case "replace":
                return {**value, key: draw.choice(HOSTILE)}
            case "drop":
                return {k: v for k, v in value.items() if k != key}
            case _:
                return {**value, draw.choice(["x", "", "quant_method", f"{key}.weight", "n" * 2_000]): value[key]}
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], altered(value[at], draw), *value[at + 1 :]]
    return draw.choice(HOSTILE)


def fuzz(case: Callable[[random.Random], object], cases: int = CASES) -> Counter[str]:
    """Runs ``case`` with as many seeds: it returns, or raises a ModelError fit to be shown; how often which, by name."""
    outcomes: Counter[str] = Counter()
    tracemalloc.start()
    try:
        for i in range(cases):
            draw = random.Random(f"{SEED}/{i}")
            tracemalloc.reset_peak()
            before, began = tracemalloc.get_traced_memory()[0], time.process_time()
            which, fault = f"case {i} of FUZZ_SEED={SEED}", None
            try:
                case(draw)
            except wb.ModelError as error:
                fault = error
            except Exception as error:
                raise AssertionError(f"{which} ended in {type(error).__name__}") from error
            assert time.process_time() - began < _SECONDS, f"{which} took too long"
            assert tracemalloc.get_traced_memory()[1] - before < _BYTES, f"{which} took too much memory"
            outcomes["success" if fault is None else "ModelError"] += 1
            if fault is not None:
                assert str(fault).isprintable(), which
                assert 0 < len(fault.what) < 1_000, which
                assert fault.where, which
    finally:
        tracemalloc.stop()
    return outcomes


class MemorySource(Source):
    """A source whose tensors are arrays: dtype names and shapes are as given, whether or not a file could say so."""

    def __init__(self, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], config: dict[str, Any]) -> None:
        self.name, self.config, self.path = "memory", config, None
        self._raw = b"".join(raw for _, _, raw in tensors.values())
        self._where, at = {}, 0
        for name, (dtype, shape, raw) in tensors.items():
            self._where[name] = ("file", Entry(name, DTYPES[dtype], shape, at, at + len(raw)))
            at += len(raw)

    def entries(self) -> dict[str, tuple[str, Entry]]:
        return self._where

    def _open(self, file: str, begin: int, end: int, watch: Watch) -> AbstractContextManager[Reader]:
        def read(offset: int, into: memoryview) -> None:
            into[:] = self._raw[offset : offset + len(into)]

        return nullcontext(read)


def resized(shape: tuple[int, ...], draw: random.Random) -> Iterator[int]:
    """Another shape near the one given."""
    for dim in shape:
        yield draw.choice([dim, dim, dim, dim + 1, max(dim - 1, 0), 2 * dim, dim // 2, 0, 1])
    if draw.random() < 0.2:
        yield draw.choice([1, 2, 16])


def raw_of(dtype: str, shape: tuple[int, ...], draw: random.Random) -> bytes:
    """Random bytes of the dtype and shape."""
    return draw.randbytes(int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].bits // 8)
