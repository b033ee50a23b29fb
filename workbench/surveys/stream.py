"""A model's tensors through memory a chunk at a time: read ahead on a thread, and measured as the chunks come.

Covers the two buffers that every tensor passes through, and the row that comes of it, with its error where it cannot be read.
Does not cover which tensors are measured, on what machine, or what is made of the rows (``surveys/survey.py``).
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ModelError, WorkbenchError
from workbench.progress import Cancelled
from workbench.quant.measure import Tally
from workbench.quant.quantize import as_weights
from workbench.quant.spec import QuantSpec
from workbench.sources.base import Source
from workbench.sources.kinds import kind_of, layer_of
from workbench.sources.tensor_info import TensorInfo
from workbench.sources.weight_chunks import as_seen, packings_of, weight_chunks
from workbench.surveys.rows import Row

BUFFER = 8 << 20
"""Bytes of each of the two buffers."""
_MANY = 16  # specifications from which on chunks are smaller, so that stopping between two of them stays prompt
_PATIENCE = 0.1  # seconds between two checks for a stop, while waiting for bytes
_LONGEST_ERROR = 1_000  # characters

Seen = Callable[[TensorInfo, float], object]


class _Stop(Exception):
    """The survey was stopped."""


@dataclass
class _Chunk:
    """What the reading thread hands over: a part of a tensor, or the tensor's end."""

    seconds: float = 0.0
    """Time that reading took."""
    share: float = 1.0
    """How much of the tensor's work is done with this chunk."""
    array: NDArray[Any] | None = None
    """None at the end."""
    buffer: NDArray[np.uint8] | None = None
    """What ``array`` is a view of."""
    look: bool = False
    feed: bool = False
    info: TensorInfo | None = None
    """The weight that is read, which is not the stored tensor where that holds it packed; None at an end with an error."""
    error: Exception | None = None
    """Why the tensor ended before it was read."""


def measured(
    source: Source, infos: Sequence[TensorInfo], specs: Sequence[QuantSpec], stopped: Cancelled, seen: Seen
) -> Generator[Row, None, None]:
    """A row for each tensor, in their order; ends early, without the row it is at, once ``stopped()``.

    ``seen`` is called after each chunk with the share of the present tensor that is done.
    """
    ahead = _ReadAhead(source, infos, specs, stopped)
    try:  # from before the start, which an interrupt may hit when the thread is there already
        ahead.start()
        for info in infos:
            yield _measure(info, specs, ahead, seen)
    except _Stop:
        return
    finally:
        ahead.close()


def failed(info: TensorInfo, error: BaseException, *seconds: float) -> Row:
    """The row of a tensor that could not be measured; ``seconds`` went into reading and computing it."""
    text = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
    return Row(info, layer_of(info.name), kind_of(info.name), (), math.nan, text[:_LONGEST_ERROR], *seconds)


def _measure(info: TensorInfo, specs: Sequence[QuantSpec], ahead: _ReadAhead, seen: Seen) -> Row:
    from workbench.kernels.moments import Moments, moments

    tally, of_weights = None, Moments()
    reading = computing = 0.0
    weight, error = info, None
    for chunk in ahead.chunks():
        reading += chunk.seconds
        weight, error = chunk.info or weight, error or chunk.error
        if error is None and chunk.array is not None:
            began = time.perf_counter()
            try:
                tally = tally or Tally(specs, as_seen(weight))
                weights = as_weights(chunk.array)
                if chunk.look:
                    tally.look(weights)
                if chunk.feed:
                    tally.feed(weights)
                    of_weights = moments(weights, of_weights)
            except Exception as fault:  # one tensor's trouble, whatever it is, must not end the survey of the others
                error = fault
            computing += time.perf_counter() - began
        seen(info, chunk.share)
    if error is not None or tally is None:
        return failed(info, error or ModelError("It has no weights.", where=info.name), reading, computing)
    totals = tuple(tally.totals())
    return Row(weight, layer_of(info.name), kind_of(info.name), totals, of_weights.kurtosis, None, reading, computing)


class _ReadAhead:
    """Reads tensor after tensor on a thread of its own, one chunk ahead of the one in use."""

    def __init__(self, source: Source, infos: Sequence[TensorInfo], specs: Sequence[QuantSpec], stopped: Cancelled) -> None:
        self._source, self._infos, self._stopped = source, infos, stopped
        self._looks_first = Tally(specs).looks_first
        self._size = BUFFER // (1 + len(specs) // _MANY)
        self._packings = packings_of(source)
        self._free: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[_Chunk] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="workbench-read", daemon=True)

    def start(self) -> None:
        """Begins to read."""
        for _ in range(2):
            self._free.put(np.empty(BUFFER, np.uint8))
        self._thread.start()

    def close(self) -> None:
        """Ends the thread. One that hangs in a read that cannot be cancelled ends when the read does."""
        self._closed.set()
        self._free.put(np.empty(0, np.uint8))  # wakes it
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def chunks(self) -> Iterator[_Chunk]:
        """The next tensor's chunks and its end; _Stop once stopped. A chunk is overwritten when the next is asked for."""
        while True:
            try:
                chunk = self._ready.get(timeout=_PATIENCE)
            except queue.Empty:
                chunk = None
            if self._stopped():
                raise _Stop
            if chunk is not None:
                yield chunk
                if chunk.buffer is None:
                    return
                self._free.put(chunk.buffer)

    def _run(self) -> None:
        for info in self._infos:
            if self._closed.is_set():
                return
            try:
                end = _Chunk(info=self._read(info))
            except Exception as error:  # becomes the tensor's row; the thread lives on for the others
                end = _Chunk(error=error)
            self._ready.put(end)

    def _read(self, info: TensorInfo) -> TensorInfo:
        """Hands over the tensor's chunks, once or twice, and returns the weight that they are of."""
        cancelled = self._closed.is_set
        weight, count, chunks = weight_chunks(
            self._source, info, self._packings, Tally.STEP, self._size, self._buffers(), cancelled
        )
        at_once = weight.numel <= count
        passes = [(self._looks_first, True)] if at_once or not self._looks_first else [(True, False), (False, True)]
        done, everything = 0, weight.numel * len(passes)
        for look, feed in passes:
            self._began = time.perf_counter()
            for array in chunks():
                done += array.size
                seconds = time.perf_counter() - self._began
                self._ready.put(_Chunk(seconds, done / everything, array, self._buffer, look, feed, weight))
                self._began = time.perf_counter()
        if done != everything:
            what = f"It has {done // len(passes):,} weights where {weight.numel:,} were listed."
            raise ModelError(what, where=info.name, remedy="The model has changed: open it again.")
        return weight

    def _buffers(self) -> Iterator[NDArray[np.uint8]]:
        while True:
            waiting = time.perf_counter()
            self._buffer = self._free.get()
            self._began += time.perf_counter() - waiting
            if self._closed.is_set():
                raise InterruptedError
            yield self._buffer
