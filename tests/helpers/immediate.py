"""Executors for tests: ``Immediate`` runs work at once, ``Later`` once it is told to; so a test sees what the work led to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class Immediate(Executor):
    """Runs each job within ``submit``: background work becomes ordinary calls."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run now and return the finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Later(Executor):
    """Holds each job until ``run``: what happens in between is in the test's hands."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done once ``run`` has run the job."""
        future: Future[Any] = Future()
        self.jobs.append(lambda: future.set_result(fn(*args, **kwargs)))
        return future

    def run(self) -> None:
        """The jobs that wait, in the order in which they came."""
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()
