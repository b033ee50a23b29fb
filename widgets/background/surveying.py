"""One survey of a model for all views that map it: its rows under the leading format, as they stream in.

Covers what is kept, beginning, cancelling and going on. What a row says is ``workbench.surveys``'; nothing is drawn here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from widgets.background.listeners import Listeners
from widgets.background.pace import Step
from widgets.background.work import Work
from workbench.progress import Cancelled, Progress
from workbench.quant.spec import QuantSpec
from workbench.sources import Source, TensorInfo
from workbench.surveys.rows import Row
from workbench.surveys.survey import survey

OF_ITSELF = 4_000_000_000
"""Bytes up to which a model on this machine is surveyed without being asked for."""
EVERY = 0.25
"""Seconds between two batches of rows."""


class ModelSurvey:
    """The rows of a model's ``tensors`` under one specification. ``look_at`` says which, and begins where that is quick.

    Rows of each specification are kept as long as the model is the same, so that going back to one is instant. Listeners are
    called under ``UI``.
    """

    def __init__(self, executor: Executor | None) -> None:
        self._came, self._failed = Listeners(), Listeners()
        self._work = Work(executor, self._take_in, self._failed, debounce=0.3)
        self._source: Source | None = None
        self._spec: QuantSpec | None = None
        self._kept: dict[QuantSpec, list[Row]] = {}
        self.tensors: Sequence[TensorInfo] = ()
        """What is surveyed."""
        self.of_itself = True
        """Whether ``look_at`` begins without being asked: the model is on this machine, and not too large."""

    @property
    def rows(self) -> Sequence[Row]:
        """What has been found so far."""
        return self._kept[self._spec] if self._spec is not None else ()

    @property
    def left(self) -> list[TensorInfo]:
        """The tensors that have no row yet."""
        known = {row.tensor.name for row in self.rows}
        return [tensor for tensor in self.tensors if tensor.name not in known]

    @property
    def busy(self) -> bool:
        """Whether it is under way."""
        return self._work.busy

    def look_at(self, source: Source, tensors: Sequence[TensorInfo], spec: QuantSpec) -> None:
        """Turn to a model and specification; nothing happens where they are the present ones."""
        if self._source is source and self._spec == spec:
            return
        if self._source is not source:
            self._source, self.tensors, self._kept = source, tensors, {}
            self.of_itself = source.path is not None and sum(t.nbytes for t in tensors) <= OF_ITSELF
        self._spec = spec
        self._kept.setdefault(spec, [])
        if self.of_itself and self.left:
            self.begin()
        else:
            self.cancel()

    def begin(self) -> None:
        """Survey what is left."""
        source, spec = self._source, self._spec
        if source is None or spec is None:
            return
        names = [tensor.name for tensor in self.left]
        self._work.submit(f"Surveying {source.name}", "bytes", lambda p, c: self._survey(source, spec, names, p, c))

    def cancel(self) -> None:
        """Give up what is under way; the rows that came stay."""
        self._work.cancel()

    def on_rows(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls ``listener()`` when rows have come; returns a function that ends that."""
        return self._came.add(listener)

    def on_progress(self, listener: Callable[[Step | None], None]) -> Callable[[], None]:
        """Calls ``listener(step)`` while it takes more than half a second, and with None at its end."""
        return self._work.on_progress(listener)

    def on_failure(self, listener: Callable[[Exception], None]) -> Callable[[], None]:
        """Calls ``listener(error)`` when it cannot go on; what goes wrong with one tensor is in its row."""
        return self._failed.add(listener)

    def close(self) -> None:
        """Ends the thread and forgets every listener; closing twice is harmless."""
        self._work.close()
        self._came.clear()
        self._failed.clear()

    def _survey(self, source: Source, spec: QuantSpec, names: list[str], progress: Progress, cancelled: Cancelled) -> _Coming:
        """On the working thread: rows are handed over in batches."""
        surveyed = survey(source, spec, names, progress=progress, cancelled=cancelled)
        coming, due = _Coming(spec, deque()), time.monotonic() + EVERY
        for found in surveyed:
            coming.rows.append(found)
            if time.monotonic() >= due:
                self._work.partly(lambda: self._take_in(coming))
                due = time.monotonic() + EVERY
        if surveyed.cancelled:
            raise InterruptedError("the survey was cancelled")
        return coming

    def _take_in(self, coming: _Coming) -> None:
        while coming.rows:
            self._kept[coming.spec].append(coming.rows.popleft())
        self._came()


class _Coming(NamedTuple):
    """Rows on their way from the working thread."""

    spec: QuantSpec
    rows: deque[Row]
