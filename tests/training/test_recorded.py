"""The run that comes with the workbench: like any other to look at, and without a trace of the machine that recorded it."""

from __future__ import annotations

import re

import pytest

import workbench as wb
from widgets import TrainingCell
from workbench.training.answers.values import Voice
from workbench.training.recorded import FOLDER, note_of

PATHS = re.compile(r'"(~|[A-Z]:\\\\)?/')
NAMING = re.compile(r'"(host|hostname|node|user|cwd|anchors|time_ns)"|pid": \d')
SIZE = 2_200_000


def test_it_is_a_finished_run_with_all_that_the_cockpit_shows() -> None:
    run = wb.recorded_run()
    kinds = {event["k"] for event in run.events()}
    assert {"hello", "phase", "sample", "step", "eval", "generated", "memory", "page", "forecast"} <= kinds
    assert run.status.state == "finished"
    assert wb.attach(FOLDER).dir == run.dir
    assert re.fullmatch(r"recorded on an? .+, \d{1,2} \w+ \d{4}", note_of(run))
    with pytest.raises(wb.RunError, match="finished"):
        run.resume()
    with pytest.raises(wb.RunError, match="no checkpoint"):
        run.extend(10)


def test_nothing_in_it_names_a_machine_and_it_is_small() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < SIZE
    for path in files:
        if path.suffix == ".safetensors":  # names, shapes and numbers
            continue
        text = path.read_text("utf-8")
        assert not PATHS.search(text), path.name
        assert not NAMING.search(text), path.name


def test_its_adapter_answers_otherwise_than_the_base() -> None:
    said = wb.try_out(wb.recorded_run(), "happiness, n.", max_new_tokens=8, original=False)[0]
    assert said[Voice.ADAPTER].text not in ("", said[Voice.BASE].text)


def test_the_training_cell_shows_it_with_its_note() -> None:
    cell = TrainingCell(run=wb.recorded_run())
    assert cell.view.cockpit._state["content"]["label"] == note_of(wb.recorded_run())
    cell.close()
