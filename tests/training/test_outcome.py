"""What a run came to, read from its events without its samples."""

from __future__ import annotations

from pathlib import Path

import pytest

import workbench as wb
from workbench.training.events import Event, EventWriter
from workbench.training.folder import RunFolder, write_json
from workbench.training.results.outcome import outcome

SECOND = 10**9


def run_with(root: Path, *events: Event) -> wb.Run:
    folder = RunFolder(root)
    write_json(folder.config, wb.TrainConfig(max_steps=2).to_dict())
    writer = EventWriter(folder.events("rank0"), 1)
    writer.emit_all(events)
    writer.close()
    return wb.attach(root)


def step(n: int, t: int, **more: object) -> Event:
    return {"k": "step", "t": t * SECOND, "n": n, "loss": 2.0, "tokens": 8, "seconds": 1.0, **more}


def test_a_run_on_a_cpu_has_its_held_out_loss_its_time_and_its_resident_peak(tmp_path: Path) -> None:
    samples = [{"k": "sample", "t": t * SECOND, "source": "worker", "rss": rss} for t, rss in ((1, 300), (2, 900), (3, 400))]
    run = run_with(
        tmp_path, {"k": "hello", "t": 0, "device": "cpu", "capabilities": {}},
        {"k": "dataset", "t": SECOND, "split": "heldout", "kept": 12}, {"k": "eval", "t": SECOND, "n": 0, "loss": 3.5},
        *samples, step(1, 4), step(2, 5), {"k": "eval", "t": 6 * SECOND, "n": 2, "loss": 2.25},
    )  # fmt: skip
    came_to = outcome(run)
    assert (came_to.held_out, came_to.held_out_rows) == ((3.5, 2.25), 12)
    assert (came_to.steps, came_to.seconds, came_to.peak, came_to.on_gpu) == (2, 6.0, 900, False)
    assert came_to.evicting_steps == 0


def test_a_run_on_a_gpu_has_the_allocator_s_peak(tmp_path: Path) -> None:
    run = run_with(
        tmp_path, {"k": "hello", "t": 0, "device": "A GPU", "capabilities": {}}, step(1, 1, peak=700), step(2, 2, peak=500)
    )
    came_to = outcome(run)
    assert (came_to.peak, came_to.on_gpu, came_to.held_out) == (700, True, None)


def test_a_run_that_has_not_begun_came_to_nothing_and_one_that_is_gone_is_named(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    assert (outcome(run).steps, outcome(run).peak, outcome(run).held_out) == (0, None, None)
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(wb.RunError, match="no longer there"):
        outcome(run)
