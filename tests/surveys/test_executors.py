"""Rows from an executor's workers (threads, processes, a dask cluster) are the local ones, bit for bit, and stop alike."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, LocalCluster

import workbench as wb
from tests.helpers.hub_server import HubServer
from tests.helpers.surveys import SPECS, assert_same, checkpoint, layers, weights
from workbench.kernels import pool
from workbench.quant.formats import _formats
from workbench.sources.local import LocalSource
from workbench.surveys import workers as survey_workers
from workbench.surveys.survey import Row
from workbench.surveys.workers import Order, measure_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("models") / "m", layers(6) | {"model.layers.9.big": weights(1_200_000)})


@pytest.fixture(scope="module")
def local(folder: Path) -> list[Row]:
    return list(wb.survey(folder, SPECS, "all", progress=False))


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the small tensors make a task."""
    monkeypatch.setattr(survey_workers, "TASK", 200_000)


@pytest.mark.usefixtures("small_tasks")
def test_threads_give_the_local_rows(folder: Path, local: list[Row]) -> None:
    told: list[tuple[int, int]] = []
    with ThreadPoolExecutor(2) as executor:
        survey = wb.survey(folder, SPECS, "all", executor, lambda *at: told.append(at))
        assert_same(survey, local)
    assert survey.done
    total = sum(row.tensor.nbytes for row in local)
    assert told[-1] == (total, total)
    assert survey.seconds_computing > 0


@pytest.mark.usefixtures("small_tasks")
def test_processes_give_the_local_rows(folder: Path, local: list[Row], processes: Executor) -> None:
    here = pool.threads()
    assert_same(wb.survey(folder, SPECS, "all", processes, progress=False), local)
    assert processes.submit(pool.threads).result() == 1, "processes share the cores"
    assert pool.threads() == here


@pytest.fixture
def even() -> Iterator[wb.Format]:
    yield wb.register_format("even", [k / 8 - 1 for k in range(16)])
    del _formats["even"]


def test_a_process_has_the_threads_that_it_is_given_and_the_formats_of_one_s_own(folder: Path, even: wb.Format) -> None:
    spec = wb.QuantSpec(even.name, 64)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        rows = wb.survey(folder, spec, executor=executor, progress=False, worker_threads=2)
        assert_same(rows, wb.survey(folder, spec, progress=False))
        assert executor.submit(pool.threads).result() == 2


def test_a_dask_cluster_gives_the_local_rows(folder: Path, local: list[Row]) -> None:
    before = set(listening(os.getpid()))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        workers = list(client.run(os.getpid).values())
        sockets = set(listening(os.getpid(), *workers)) - before
        executor = client.get_executor()
        assert_same(wb.survey(folder, SPECS, "all", executor, progress=False), local)
        assert_same(wb.survey(folder, SPECS, "all", executor, progress=False), local)
        survey = wb.survey(folder, SPECS, "all", executor, progress=lambda done, total: survey.cancel())
        assert len(survey.run().rows) < len(local)
    assert len(sockets) >= 3, "a scheduler and two workers"
    assert {address for address, _ in sockets} == {"127.0.0.1"}
    assert not [pid for pid in workers if psutil.pid_exists(pid)]


def listening(*pids: int) -> list[tuple[str, int]]:
    """Address and port of every socket that these processes listen on."""
    sockets = [c for pid in pids for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    return [(c.laddr.ip, c.laddr.port) for c in sockets]


def test_a_source_opens_once_in_each_process_and_anew_for_each_survey(folder: Path) -> None:
    def sent(order: Order) -> Order:
        return pickle.loads(pickle.dumps(order))

    source = wb.open_model(folder)
    order = Order(source, SPECS, 1)
    assert order.source() is source
    assert sent(order).source() is sent(order).source() is not source
    assert b"q_proj" not in pickle.dumps(order), "no headers travel"
    assert sent(Order(source, SPECS, 1)).source() is not sent(order).source()
    assert sent(Order(wb.open_model("builtin"), SPECS, 1)).source().name == "builtin"


def test_a_model_on_the_hub_gives_the_rows_of_its_folder(folder: Path, local: list[Row], hub: HubServer) -> None:
    hub.add("org/model", folder)
    source = wb.open_model("org/model")
    assert_same(wb.survey(source, SPECS, "all", progress=False), local)
    with ThreadPoolExecutor(2) as threads:
        assert_same(wb.survey(source, SPECS, "all", threads, progress=False), local)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as others:
        assert_same(wb.survey(source, SPECS, "all", others, progress=False), local)


class Elsewhere(LocalSource):
    """A kind of source that has no folder to open it by."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = None  # type: ignore[assignment]
        self._folder = folder

    def __reduce__(self) -> Any:
        return Elsewhere, (self._folder,)


class Stuck(Elsewhere):
    """One that cannot leave its process."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot be pickled")


def test_a_source_without_a_path_travels_as_it_pickles(folder: Path) -> None:
    again = pickle.loads(pickle.dumps(Order(Elsewhere(folder), SPECS, 1))).source()
    assert isinstance(again, Elsewhere)


def test_what_cannot_be_sent_or_opened_becomes_rows_with_the_error(folder: Path, tmp_path: Path, processes: Executor) -> None:
    rows = wb.survey(Stuck(folder), SPECS, executor=processes, progress=False).run().rows
    assert len(rows) == 6
    assert all("cannot be pickled" in str(row.error) for row in rows)
    gone = wb.open_model(checkpoint(tmp_path / "gone", layers(2)))
    (tmp_path / "gone").rename(tmp_path / "other")
    rows = wb.survey(gone, SPECS, executor=processes, progress=False).run().rows
    assert len(rows) == 2
    assert all("no such folder" in str(row.error) for row in rows)


def test_an_executor_that_takes_no_tasks_is_told_apart(folder: Path) -> None:
    with ThreadPoolExecutor(1) as executor:
        pass
    with pytest.raises(wb.WorkbenchError, match="takes no tasks: cannot schedule"):
        wb.survey(folder, SPECS, executor=executor, progress=False).run()


def test_workers_that_die_leave_rows_with_the_error(folder: Path) -> None:
    class Dying(Elsewhere):
        def __reduce__(self) -> Any:
            return os._exit, (1,)

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        survey = wb.survey(Dying(folder), SPECS, executor=executor, progress=False).run()
    assert len(survey.errors) == len(survey.rows) == 6
    assert "terminated abruptly" in str(survey.rows[0].error)


@pytest.mark.usefixtures("small_tasks")
def test_leaving_the_loop_stops_the_workers_and_iterating_again_goes_on(
    folder: Path, local: list[Row], processes: Executor
) -> None:
    survey = wb.survey(folder, SPECS, "all", processes, progress=False)
    for _ in survey:
        break
    assert 0 < len(survey.rows) < len(local)
    assert_same(survey, local)


def test_a_running_task_stops_when_it_is_told_to(folder: Path) -> None:
    source = wb.open_model(folder)
    order = Order(source, SPECS, 1)
    infos = source.tensors()
    assert len(measure_task(order, infos)) == len(infos)
    order.stop_file.touch()
    try:
        assert measure_task(order, infos) == []
    finally:
        order.stop_file.unlink()


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_cancel_ends_within_a_second_and_frees_the_workers(kind: str, tmp_path: Path, processes: Executor) -> None:
    """Cancelled when the first tensor is done, while the workers are at the next two."""
    big = checkpoint(tmp_path, {f"model.layers.{i}.x": weights(5_000_000, seed=i) for i in range(4)})
    specs = [wb.QuantSpec(name, size) for name in ("nf4", "int4", "fp4") for size in (32, 64, 128, 256)]
    asked: list[float] = []

    def cancel(done: int, total: int) -> None:
        asked.append(time.monotonic())
        survey.cancel()

    with ThreadPoolExecutor(2) as threads:
        executor = threads if kind == "threads" else processes
        survey = wb.survey(big, specs, "all", executor, progress=cancel)
        assert len(survey.run().rows) == 1
        assert time.monotonic() - asked[0] < 1
        executor.submit(os.getpid).result(timeout=60)
