"""What the cockpit sends: each row once, as binary tails; the whole of it to a page that opens or missed something."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.helpers.gpu_run import gpu_events
from tests.helpers.immediate import Immediate
from widgets.drawing.cockpit import ACTIONS, TABLES, Cockpit
from widgets.drawing.wire import ARRAY, is_array
from widgets.panels.train import words
from widgets.panels.train.live import RunView
from workbench.training.folder import RunStatus, write_json


class Page:
    """Keeps what is sent, and what a page makes of it."""

    def __init__(self, cockpit: Cockpit) -> None:
        self.messages: list[tuple[dict[str, Any], list[bytes]]] = []
        self.wholes = 0
        cockpit.send = lambda message, buffers=None: self.messages.append((message, list(buffers or [])))  # type: ignore[method-assign]
        cockpit.send_state = self._whole  # type: ignore[method-assign]

    def _whole(self, key: str) -> None:
        assert key == "_current"
        self.wholes += 1

    @property
    def sent(self) -> int:
        """Bytes of the arrays so far."""
        return sum(len(data) for _, buffers in self.messages for data in buffers)


@pytest.fixture
def cockpit() -> Iterator[Cockpit]:
    made = Cockpit()
    yield made
    made.close()


def steps(first: int, last: int) -> dict[str, dict[str, np.ndarray]]:
    n = np.arange(first, last, dtype=np.int32)
    return {"steps": {"t": n.astype(np.float32), "n": n, "loss": np.ones(len(n), np.float32)}}


def column(cockpit: Cockpit, table: str, name: str) -> np.ndarray:
    node = cockpit._state["content"]["tables"][table][name]
    return np.frombuffer(node["data"], node[ARRAY])


def arrays(node: Any) -> int:
    if is_array(node):
        return 1
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return sum(map(arrays, children))


def test_the_first_state_holds_no_arrays_because_colab_drops_them(cockpit: Cockpit) -> None:
    assert arrays(cockpit._state) == 0
    assert set(cockpit._state["content"]["tables"]) == set(TABLES)


def test_rows_travel_once(cockpit: Cockpit) -> None:
    page = Page(cockpit)
    cockpit.begin("a run", settings="as it is set up")
    cockpit.update(steps(1, 1001), state="running")
    once = page.sent
    assert once == 1000 * (4 + 4 + 4)
    cockpit.update(steps(1001, 1003), state="running")
    message, buffers = page.messages[-1]
    assert sum(map(len, buffers)) == 2 * 12
    assert sorted(operation[:3] for operation in message["operations"]) == [
        [["tables", "steps", name], "tail", 1000] for name in ("loss", "n", "t")
    ], "and nothing else, for nothing else changed"
    assert column(cockpit, "steps", "n").tolist() == list(range(1, 1003))


def test_nothing_new_is_no_message(cockpit: Cockpit) -> None:
    cockpit.begin("a run")
    cockpit.update({}, state="running", left=3.0)
    page = Page(cockpit)
    cockpit.update({}, state="running", left=3.0)
    assert page.messages == []


def test_a_page_that_opens_or_missed_a_patch_gets_all_of_it(cockpit: Cockpit) -> None:
    cockpit.begin("a run")
    cockpit.update(steps(1, 9))
    page = Page(cockpit)
    revision = cockpit._state["revision"]
    cockpit._receive(cockpit, {"type": "hello", "revision": revision - 1}, [])
    assert page.wholes == 1
    cockpit._receive(cockpit, {"type": "hello", "revision": revision}, [])
    assert page.wholes == 1, "one that is up to date gets nothing"
    assert column(cockpit, "steps", "n").tolist() == list(range(1, 9))


def test_another_run_begins_empty(cockpit: Cockpit) -> None:
    cockpit.begin("one")
    cockpit.update(steps(1, 9), state="finished", ended=True, label="recorded")
    cockpit.begin("two", settings="another")
    content = cockpit._state["content"]
    assert (content["run"], content["state"], content["ended"], content["label"]) == ("two", "", False, "")
    assert arrays(content) == 0


def test_its_buttons_call_back_and_an_error_shows_over_it(cockpit: Cockpit) -> None:
    pressed: list[str] = []
    end = cockpit.on_action(pressed.append)
    for name in (*ACTIONS, "no such button"):
        cockpit._receive(cockpit, {"type": name}, [])
    assert pressed == list(ACTIONS)
    end()
    cockpit.on_action(lambda name: [][0])
    cockpit._receive(cockpit, {"type": "stop"}, [])
    assert "range" in cockpit.error


@pytest.fixture
def view() -> Iterator[RunView]:
    failed: list[Exception] = []
    made = RunView(lambda status: None, failed.append, Immediate())
    yield made
    made.close()
    assert not failed


def left_by(folder: Path, events: list[dict[str, Any]], state: str) -> wb.Run:
    """A run's folder with these events."""
    folder.mkdir()
    write_json(folder / "config.json", wb.TrainConfig(max_steps=60).to_dict())
    write_json(folder / "status.json", dataclasses.asdict(RunStatus(state)))
    (folder / "events-rank0.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return wb.attach(folder)


def test_a_run_on_a_gpu_is_told_by_its_sources_and_simulates_nothing(view: RunView, tmp_path: Path) -> None:
    view.follow(left_by(tmp_path / "run", gpu_events(8), "finished"))
    content = view.cockpit._state["content"]
    assert (content["device"], content["measures"], content["simulated"]) == ("An invented GPU", True, None)
    assert content["capacity"] > content["managed"] > 0
    named = {key: name for key, name, _ in content["layers"]}
    assert "inferred" in named["optimizer state, paged"]
    assert len(column(view.cockpit, "steps", "t")) == 8


def test_a_run_without_a_gpu_says_why_and_simulates_what_would_page(view: RunView) -> None:
    view.follow(wb.recorded_run())
    content = view.cockpit._state["content"]
    assert "no CUDA device" in content["why"]
    assert content["simulated"]["moves"]
    assert "simulated" in content["simulated"]["said"]
    assert content["libraries"] < content["capacity"]


def test_what_is_read_reaches_the_page_in_pieces_and_none_is_lost(view: RunView, tmp_path: Path) -> None:
    events = gpu_events(8)
    run = left_by(tmp_path / "run", events[:300], "finished")
    view.follow(run)
    with (run.dir / "events-rank0.jsonl").open("a") as file:
        for event in events[300:]:
            file.write(json.dumps(event) + "\n")
    view._look()
    assert len(column(view.cockpit, "samples", "t")) == sum(e["k"] == "sample" for e in events)
    view._look()
    assert len(column(view.cockpit, "steps", "t")) == 8


def test_the_tabs_are_built_when_they_are_first_opened(view: RunView) -> None:
    assert view.details.parts == {}
    view.follow(wb.recorded_run())
    assert set(view.details.parts) == {"Paging truth"}
    assert "Held-out loss" in view.details.open("Samples").widget.value
    assert set(view.details.parts) == {"Paging truth", "Samples"}


def test_which_buttons_suit_a_state() -> None:
    states = ("starting", "running", "stopping", "paused", "stopped", "failed", "killed", "finished")
    buttons = {state: set(words.actions(RunStatus(state))) - {"edit", "new"} for state in states}
    assert buttons == {
        "starting": {"pause", "stop"}, "running": {"pause", "stop"}, "stopping": set(), "paused": {"resume"},
        "stopped": {"resume"}, "failed": {"resume"}, "killed": {"resume"}, "finished": set(),
    }  # fmt: skip


def test_a_simulation_that_ends_after_the_run_has_changed_is_dropped(tmp_path: Path) -> None:
    class Later:
        """Runs what it is given when it is told to."""

        def __init__(self) -> None:
            self.calls: list[Any] = []

        def submit(self, call: Any, *args: Any) -> Future[None]:
            self.calls.append(functools.partial(call, *args))
            return Future()

    later = Later()
    view = RunView(lambda status: None, lambda error: None, later)  # type: ignore[arg-type]
    view.follow(wb.recorded_run())
    view.follow(left_by(tmp_path / "run", gpu_events(4), "finished"))
    for call in later.calls:
        call()
    assert view.cockpit._state["content"]["simulated"] is None
    view.close()
