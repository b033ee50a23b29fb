"""What every source of a model offers: its tensors by name, and the bytes of one at a time.

Covers listing, reading whole, and streaming in chunks through one buffer, on top of two things that a kind of source must give:
its files' headers, and ranges of their bytes. Does not know where the bytes come from.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError
from workbench.given import described, is_a
from workbench.progress import Cancelled, Progress
from workbench.show import Line, Shown, ShownList, View
from workbench.sources.header import Entry, shown
from workbench.sources.tensor_info import TensorInfo
from workbench.text import amount, count, counted


class Watch:
    """The caller's callbacks while a source works. Both are called on the thread that reads, and on no other."""

    def __init__(self, total: int, progress: Progress | None = None, cancelled: Cancelled | None = None) -> None:
        self.done, self.total = 0, total
        self._progress, self._cancelled = progress, cancelled

    def check(self) -> None:
        """Raise InterruptedError if the reading is no longer wanted."""
        if self._cancelled is not None and self._cancelled():
            raise InterruptedError("The reading was cancelled.")

    def moved(self, count: int) -> None:
        """Report that ``count`` more of the total are there."""
        self.done += count
        if self._progress is not None:
            self._progress(self.done, self.total)


class Reader(Protocol):
    """An open file of a source: fills a buffer from a place in the file."""

    def __call__(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` with the bytes at ``offset``; ModelError where they are not to be had."""


class Source(Shown, ABC):
    """A model's weights and configuration, read a tensor at a time."""

    name: str
    """Identity: ``builtin``, the folder's name, or the id on the Hub."""
    config: dict[str, Any]
    """config.json, or ``{}`` where there is none."""
    path: Path | None
    """The folder, None where there is none."""
    licence: str = ""
    """The licence as the model's card or licence file names it; empty where neither does."""

    @abstractmethod
    def entries(self) -> dict[str, tuple[str, Entry]]:
        """Tensor name → (the file that holds it, where in it), in the order of the checkpoint."""

    @abstractmethod
    def _open(self, file: str, begin: int, end: int, watch: Watch) -> AbstractContextManager[Reader]:
        """One of the source's files, open for reading the bytes from ``begin`` to ``end``: all of them as a rule, in order."""

    def tensors(self, exact: bool = False) -> list[TensorInfo]:
        """Every tensor of the checkpoint.

        ``quantizable``, ``reason`` and ``layout`` come at once from a rule by name, shape and model type; with ``exact=True``
        from transformers' own model class, built without weights (imports torch; seconds the first time).
        """
        from workbench.sources.rule import describe

        entries = {name: entry for name, (_, entry) in self.entries().items()}
        if exact:
            from workbench.sources.exact import describe_exactly

            found = describe_exactly(entries, self.config, self.name)
        else:
            found = describe(entries, self.config)
        return ShownList(found, f"{counted(len(found), 'tensor')} of {self.name}")

    def read(self, name: str, *, progress: Progress | None = None, cancelled: Cancelled | None = None) -> NDArray[Any]:
        """The tensor in its stored dtype and shape; no other tensor's bytes are read.

        Args:
            name: The tensor's name.
            progress: A function of the bytes done and their total, called as they arrive.
            cancelled: Asked meanwhile; a yes ends the call, within a tenth of a second also while the network keeps it waiting.

        Returns:
            The array, in the stored dtype and shape.

        Raises:
            ModelError: As ``find`` does.
            InterruptedError: Once cancelled.
        """
        file, entry = self.find(name)
        array = np.empty(entry.shape, entry.dtype.numpy)
        self._fill(file, entry.begin, array, progress, cancelled)
        return array

    def read_into(
        self,
        name: str,
        out: NDArray[Any],
        start: int = 0,
        *,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> None:
        """Fill an array with a tensor's elements.

        Args:
            name: The tensor's name.
            out: The array, contiguous and of the stored dtype.
            start: The flat position in the tensor of the first element.
            progress: As in ``read``.
            cancelled: As in ``read``.

        Raises:
            InterruptedError: Once cancelled.
        """
        file, entry = self.find(name)
        itemsize = _check_out(out, entry, start)
        self._fill(file, entry.begin + start * itemsize, out, progress, cancelled)

    def _fill(self, file: str, begin: int, out: NDArray[Any], progress: Progress | None, cancelled: Cancelled | None) -> None:
        with self._open(file, begin, begin + out.nbytes, Watch(out.nbytes, progress, cancelled)) as read:
            read(begin, _bytes(out))

    def chunks(
        self,
        name: str,
        count: int,
        buffer: NDArray[Any] | Iterator[NDArray[Any]] | None = None,
        *,
        cancelled: Cancelled | None = None,
    ) -> Iterator[NDArray[Any]]:
        """The tensor flat, some elements at a time; each chunk is a view of one buffer and is overwritten by the next.

        Args:
            name: The tensor's name.
            count: Elements of a chunk; only the last may be shorter.
            buffer: Bytes (uint8, contiguous) to use, so that a survey can take one through every tensor; without it one is
                allocated. An iterator is asked for a buffer before each chunk is read, so that one can be filled while another
                is in use.
            cancelled: As in ``read``.

        Returns:
            The chunks, (count,) each in the stored dtype, in the order of the elements.

        Raises:
            ModelError: As ``find`` does, and for a buffer that does not hold a chunk.
            InterruptedError: Once cancelled.
        """
        file, entry = self.find(name)
        dtype = entry.dtype.numpy
        assert dtype is not None  # find refuses what has none
        total = (entry.end - entry.begin) // dtype.itemsize
        size = min(max(count, 1), total) * dtype.itemsize
        if buffer is None or isinstance(buffer, np.ndarray):
            buffer = repeat(np.empty(size, np.uint8) if buffer is None else buffer)
        watch = Watch(entry.end - entry.begin, cancelled=cancelled)
        with self._open(file, entry.begin, entry.end, watch) as read:
            for start in range(0, total, max(count, 1)):
                held = next(buffer)
                if count < 1 or held.dtype != np.uint8 or held.nbytes < size:
                    what = f"A chunk of {count} elements needs a uint8 buffer of {max(size, 1):,} bytes."
                    raise ModelError(what, where=shown(name))
                part = held[: min(count, total - start) * dtype.itemsize]
                read(entry.begin + start * dtype.itemsize, _bytes(part))
                yield part.view(dtype)

    def find(self, name: str) -> tuple[str, Entry]:
        """The file that holds a tensor, and where in it.

        Raises:
            ModelError: Where there is none of that name or it cannot be read.
        """
        entries = self.entries()
        if not is_a(name, str):
            remedy = "Give its name; tensors() lists them."
            raise ModelError(f"{described(name)} is no tensor's name.", where=self.name, remedy=remedy)
        if name not in entries:
            near = difflib.get_close_matches(name, entries, n=3) if len(name) < 1_000 else []
            remedy = f"Near it: {', '.join(near)}." if near else "tensors() lists the names."
            raise ModelError(f"There is no tensor {shown(name)}.", where=self.name, remedy=remedy)
        file, entry = entries[name]
        if entry.dtype.numpy is None:
            what = f"The tensor {shown(name)} is {entry.dtype.name}, packed below a byte, in an order safetensors does not fix."
            raise ModelError(what, where=self.name, remedy="Such tensors are listed and not read.")
        return file, entry

    def _line_(self) -> Line:
        tensors = self.tensors()
        weights, size = sum(t.numel for t in tensors), sum(t.nbytes for t in tensors)
        return {"model": self.name, "tensors": f"{len(tensors):,}", "weights": count(weights), "size": amount(size)}

    def _show_(self) -> View:
        kinds: dict[tuple[str, bool], list[TensorInfo]] = {}
        for tensor in self.tensors():
            kinds.setdefault((tensor.role, tensor.quantizable), []).append(tensor)
        lines = [
            {
                "tensors by role": role, "how many": f"{len(those):,}", "weights": count(sum(t.numel for t in those)),
                "size": amount(sum(t.nbytes for t in those)), "in 4 bits": "yes" if quantizable else "no",
            }
            for (role, quantizable), those in kinds.items()
        ]  # fmt: skip
        facts = {
            "type": str(self.config.get("model_type", "")), "licence": self.licence,
            "folder": "" if self.path is None else str(self.path),
        }  # fmt: skip
        line = self._line_()
        title = f"Model {self.name}: {line['tensors']} tensors, {line['weights']} weights, {line['size']}"
        return View(title, facts, lines)


def _bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _check_out(out: NDArray[Any], entry: Entry, start: int) -> int:
    dtype = entry.dtype.numpy
    if out.dtype != dtype or not out.flags.c_contiguous or not out.flags.writeable:
        raise ModelError(f"The array to fill must be writeable, contiguous and of dtype {dtype}.", where=shown(entry.name))
    total = (entry.end - entry.begin) // out.dtype.itemsize
    if start < 0 or start + out.size > total:
        raise ModelError(f"Elements {start}…{start + out.size} lie outside its {total}.", where=shown(entry.name))
    return out.dtype.itemsize
