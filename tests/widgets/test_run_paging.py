"""What a run paged beside what the pager simulates, from a run's folder as a GPU would have left it, without one."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers.immediate import Immediate
from tests.helpers.texts import missing
from widgets import TrainingCell
from widgets.drawing.wire import encode_figure
from widgets.figures.pager import steps_figure
from widgets.panels.train.paging import RunPaging
from workbench.training.events import EventWriter
from workbench.training.folder import RunFolder, write_json

MB = 2**20
PAGES = wb.TrainConfig(page_min_numel=1, per_device_train_batch_size=2, max_length=128)


STEP = {
    "loss": 2.0, "lr": 2e-4, "grad_norm": 0.5, "longest": 64, "padded": 0, "tokens": 128, "seconds": 0.5, "peak": 500 * MB,
}  # fmt: skip


def move(step: int, direction: str, megabytes: int, cause: str) -> dict[str, Any]:
    at = 100 * step - 50
    return {
        "k": "page", "t": at, "source": "cupti", "direction": direction, "bytes": megabytes * MB, "count": 1, "cause": cause,
        "start": at, "end": at + 1,
    }  # fmt: skip


def left_by(root: Path, gpu: int, cupti: bool = True) -> wb.Run:
    """A run of three steps on a GPU of so many bytes: the folder that a worker there writes."""
    write_json(RunFolder(root).config, PAGES.to_dict())
    why = "CUPTI unified-memory counters" if cupti else "CUPTI: insufficient privileges"
    writer = EventWriter(RunFolder(root).events("rank0"), 1)
    writer.emit("hello", t=0, device="a GPU", capabilities={"cupti": {"works": cupti, "why": why}})
    writer.emit("sample", t=1, source="worker", managed=4 * MB, nvml_used=gpu - MB, nvml_total=gpu)
    for n in (1, 2, 3):
        if cupti:
            writer.emit_all([move(n, "h2d", 2 * n, "prefetch"), move(n, "d2h", n, "eviction"), move(n, "d2h", 9, "coherence")])
        writer.emit("step", t=100 * n, n=n, **STEP)
    writer.close()
    return wb.attach(root)


@pytest.fixture
def part() -> Iterator[RunPaging]:
    failed: list[Exception] = []
    part = RunPaging(failed.append, Immediate())
    yield part
    part.close()
    assert not failed


@pytest.fixture(scope="module")
def tight() -> int:
    """A GPU on which the simulation evicts."""
    enough = wb.simulate_paging(wb.open_model("builtin"), PAGES, "T4 16 GB").enough
    return enough - MB


def test_every_step_is_drawn_as_it_was_measured_beside_what_is_simulated_for_the_runs_own_gpu(
    part: RunPaging, tight: int, tmp_path: Path
) -> None:
    run = left_by(tmp_path, tight)
    part.follow(run.config)
    part.update(wb.paging_truth(run.config, run.events()))
    assert part.budget.value == tight
    assert part.budget.label.endswith("MiB, own")
    simulation = wb.simulate_paging(wb.open_model("builtin"), PAGES, tight)
    to_device, to_host = simulation.per_step[-1].tolist()
    assert to_host > 0
    drawn = steps_figure(simulation, wb.paging_truth(run.config, run.events()))
    assert drawn is not None
    figure, said = drawn
    drawn_as = {t["name"]: (t["type"], t["y"].tolist()) for t in figure["data"]}
    assert drawn_as == {
        "brought to the GPU, measured": ("bar", [2, 4, 6]),
        "brought to the GPU, simulated": ("scatter", pytest.approx([to_device / MB] * 2)),
        "evicted to the host, measured": ("bar", [1, 2, 3]),
        "evicted to the host, simulated": ("scatter", pytest.approx([to_host / MB] * 2)),
    }
    assert not missing(said, "Measured over 3 steps", "4.00 MiB brought", "2.00 MiB evicted", "Simulated")
    encode_figure(figure)
    assert part.measured.layout.display == ""
    assert part.measured.summary == said
    assert "4.00 MiB" in html.unescape(part._beside.value)


def test_the_budget_can_be_another_and_what_was_measured_stays(part: RunPaging, tight: int, tmp_path: Path) -> None:
    run = left_by(tmp_path, tight)
    part.follow(run.config)
    part.update(wb.paging_truth(run.config, run.events()))
    part.budget.value = part.budget.options[-1][1]
    assert part.measured.summary.endswith("Simulated: 0 B and 0 B.")
    assert "4.00 MiB brought" in part.measured.summary


def test_a_gpu_on_which_all_fits_is_a_budget_to_choose_too(part: RunPaging, tmp_path: Path) -> None:
    run = left_by(tmp_path, 80 * 2**30)
    part.follow(run.config)
    part.update(wb.paging_truth(run.config, run.events()))
    assert part.budget.options[-1] == ("80.00 GiB, own", 80 * 2**30)
    assert part.budget.value == 80 * 2**30


def test_a_run_that_is_picked_up_shows_it_in_the_training_panel(tight: int, tmp_path: Path) -> None:
    cell = TrainingCell(run=left_by(tmp_path, tight), executor=Immediate())
    paging = cell.view.details.open("Paging truth").part
    assert paging.measured.summary.startswith("Measured over 3 steps")
    assert "evicted" in html.unescape(paging._table.value)
    cell.close()


def test_where_nobody_could_see_pages_move_nothing_is_drawn(part: RunPaging, tight: int, tmp_path: Path) -> None:
    run = left_by(tmp_path, tight, cupti=False)
    part.follow(run.config)
    part.update(wb.paging_truth(run.config, run.events()))
    assert part.measured.layout.display == "none"
    assert "insufficient privileges" in html.unescape(part._table.value)
    seen = left_by(tmp_path / "another", tight)
    part.follow(seen.config)
    part.update(wb.paging_truth(seen.config, seen.events()))
    assert part.measured.layout.display == ""
    part.follow(run.config)
    assert part.measured.layout.display == "none", "that was another run's"
