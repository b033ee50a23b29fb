"""A survey on the workers of an executor: threads, processes, or another machine's.

Covers cutting the tensors into tasks, what travels to a worker, stopping there, and rows as they come back. Needs nothing of
the executor but ``submit`` and the futures' ``cancel``. Does not cover measuring (``surveys/stream.py``).
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import socket
import tempfile
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from workbench.errors import WorkbenchError
from workbench.progress import Cancelled
from workbench.quant.formats import FORMATS, Format, register_format
from workbench.quant.spec import QuantSpec
from workbench.sources import BUILTIN, Source, TensorInfo, open_model
from workbench.sources.grouping import by_bytes
from workbench.surveys.rows import Row
from workbench.surveys.stream import failed, measured

TASK = 64 << 20
"""Bytes of tensors that make a task, unless a single one has more: enough to be worth sending."""
_PATIENCE = 0.1  # seconds between two checks for a stop

Way = tuple[str, str | None] | bytes
"""How to open a source in another process: its id and revision, its path and None, or, for any other kind, its pickle."""


class Order:
    """What every task of a survey has in common. In another process than its own it opens the source again."""

    def __init__(self, source: Source, specs: Sequence[QuantSpec], threads: int) -> None:
        self.token = uuid4().hex
        self.specs, self.threads = tuple(specs), threads
        self.formats: tuple[Format, ...] = tuple({spec.format: spec.definition for spec in specs}.values())
        self.stop_file = Path(tempfile.gettempdir()) / f"workbench-survey-{self.token}.stop"
        """Appears when running tasks are to stop: files are what a caller and its workers on one machine are sure to share."""
        self._home = _process()
        self._source: Source | None = source
        self._way: Way = b""

    def __getstate__(self) -> dict[str, Any]:
        if not self._way and self._source is not None:
            self._way = _way_to(self._source)
        return self.__dict__ | {"_source": None}

    def source(self) -> Source:
        """The source, opened once in each process."""
        return self._source if self._source is not None else _opened(self.token, self._way)

    def settle(self) -> None:
        """Prepares this process: registers the formats, and sets how many threads the kernels run on."""
        if self._home == _process():
            return
        from workbench.kernels import pool

        for form in self.formats:
            if FORMATS.get(form.name) != form:
                register_format(form.name, form.steps, form.title, form.source)
        if pool.threads() != self.threads:
            pool.set_threads(self.threads)


def dispatched(
    executor: Executor,
    source: Source,
    infos: Sequence[TensorInfo],
    specs: Sequence[QuantSpec],
    threads: int,
    stopped: Cancelled,
) -> Generator[Row, None, None]:
    """A row for each tensor, as the executor's workers finish them; ends early once ``stopped()``.

    WorkbenchError where the executor takes no tasks. A task that fails as a whole gives each of its tensors a row with the
    error. Running tasks on this machine stop soon after the iteration ends; on others they finish what they are at.
    """
    order = Order(source, specs, threads)
    finished: queue.SimpleQueue[Future[list[Row]]] = queue.SimpleQueue()
    waiting: dict[Future[list[Row]], list[TensorInfo]] = {}
    try:
        for task in sorted(by_bytes(infos, TASK), key=lambda task: -sum(info.nbytes for info in task)):
            try:
                future = executor.submit(measure_task, order, task)
            except RuntimeError as error:
                remedy = "Give one that is running and has not been shut down."
                raise WorkbenchError(f"The executor takes no tasks: {error}.", where="executor", remedy=remedy) from error
            waiting[future] = task
            future.add_done_callback(finished.put)
            if stopped():
                return
        while waiting and not stopped():
            try:
                future = finished.get(timeout=_PATIENCE)
            except queue.Empty:
                continue
            task = waiting.pop(future)
            try:
                rows = future.result()
            except (Exception, CancelledError) as error:
                rows = [failed(info, error) for info in task]
            yield from rows
    finally:
        for future in waiting:
            future.cancel()
        if waiting:  # an executor need not know, or say, that a task is running
            order.stop_file.touch()
            atexit.register(order.stop_file.unlink, missing_ok=True)


def measure_task(order: Order, task: list[TensorInfo]) -> list[Row]:
    """What a worker does: the rows of a task's tensors, without those that it was stopped before."""
    try:
        order.settle()
        source = order.source()
    except Exception as error:  # a worker that cannot begin says so in each row
        return [failed(info, error) for info in task]
    return list(measured(source, task, order.specs, order.stop_file.exists, lambda info, share: None))


def _process() -> tuple[str, int]:
    return socket.gethostname(), os.getpid()


def _way_to(source: Source) -> Way:
    if revision := getattr(source, "revision", None):
        return source.name, revision
    if source.path is not None:
        return "builtin" if source.path == BUILTIN else str(source.path), None
    return pickle.dumps(source)


@lru_cache(maxsize=2)
def _opened(token: str, way: Way) -> Source:
    """The source of the survey ``token``, which sees the model as it is now; a later survey opens it again."""
    return pickle.loads(way) if isinstance(way, bytes) else open_model(way[0], revision=way[1])
