"""Events on disk: whole lines, read as they come, whatever was cut short."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from workbench.training.events import EventReader, EventWriter, latest_steps, read_events
from workbench.training.folder import RunFolder, RunStatus, write_json
from workbench.training.host import alive, create_time
from workbench.training.runs import attach


def test_events_carry_kind_time_number_and_attempt(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "events-rank0.jsonl", attempt=2)
    writer.emit("step", n=1, loss=math.nan, t=5)
    writer.emit("log", text="zwei\nZeilen – “so”")
    writer.close()
    writer.emit("step", n=2)  # after the end: dropped
    first, second = read_events(tmp_path)
    assert first == {"k": "step", "t": 5, "seq": 0, "attempt": 2, "n": 1, "loss": None}  # JSON has no NaN
    assert (second["seq"], second["text"]) == (1, "zwei\nZeilen – “so”")


def test_poll_returns_only_what_is_new_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events-rank0.jsonl"
    reader = EventReader(tmp_path)
    assert reader.poll() == []
    writer = EventWriter(path, 1)
    writer.emit("step", n=1)
    assert [e["n"] for e in reader.poll()] == [1]
    with path.open("ab") as handle:
        handle.write(b'{"k":"step","t":9,"attempt":1,')
    assert reader.poll() == []
    with path.open("ab") as handle:
        handle.write(b'"n":2}\n')
    assert [e["n"] for e in reader.poll()] == [2]
    assert reader.poll() == []


def test_a_line_torn_by_a_killed_writer_costs_that_line_only(tmp_path: Path) -> None:
    path = tmp_path / "events-rank0.jsonl"
    EventWriter(path, 1).emit("step", n=1)
    with path.open("ab") as handle:
        handle.write(b'{"k":"step","n":2,"lo')
    EventWriter(path, 2).emit("step", n=2)
    assert [(e["attempt"], e["n"]) for e in read_events(tmp_path)] == [(1, 1), (2, 2)]


def test_worker_and_supervisor_are_merged_in_order_of_time(tmp_path: Path) -> None:
    EventWriter(tmp_path / "events-rank0.jsonl", 1).emit_all([{"k": "sample", "t": 1}, {"k": "sample", "t": 3}])
    EventWriter(tmp_path / "events-supervisor.jsonl", 1).emit("sample", t=2)
    EventWriter(tmp_path / "events-rank0.jsonl", 2).emit("sample", t=0)  # after a restart of the machine clocks begin anew
    assert [(e["attempt"], e["t"]) for e in read_events(tmp_path)] == [(1, 1), (1, 2), (1, 3), (2, 0)]


def test_the_newest_attempt_wins_a_step_taken_twice() -> None:
    events = [{"k": "step", "n": n, "attempt": a, "t": n} for a, n in [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3)]]
    assert [(e["n"], e["attempt"]) for e in latest_steps(events)] == [(1, 1), (2, 2), (3, 2)]


def test_a_pid_given_to_another_process_is_not_the_run() -> None:
    mine = create_time(os.getpid())
    assert mine is not None
    assert alive(os.getpid(), mine)
    assert not alive(os.getpid(), mine - 3600)
    assert not alive(None, None)


def test_a_run_whose_supervisor_is_gone_is_told_as_killed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_json(folder.config, {})
    folder.write_status(RunStatus("running", pid=os.getpid(), create_time=1.0))  # this process, begun in another life
    status = attach(tmp_path).status
    assert (status.state, status.kind) == ("killed", "killed")
    assert "supervisor was killed" in status.message


def test_a_status_is_replaced_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_status(RunStatus("running"))
    with pytest.raises(TypeError):
        write_json(folder.status_file, {"state": object()})
    assert json.loads(folder.status_file.read_text())["state"] == "running"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["status.json"]
