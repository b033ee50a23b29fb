"""A run's events become curves, bars, phases and words, without a run and without a browser."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from widgets import run_figures
from widgets.panels.run_view import tail
from widgets.run_history import BARS, POINTS, RunHistory, page_view, thin, why_no_gpu_paging
from widgets.wire import encode_figure

SECOND = 1_000_000_000


def event(k: str, t: float, attempt: int = 1, **fields: Any) -> dict[str, Any]:
    return {"k": k, "t": int(t * SECOND), "seq": 0, "attempt": attempt, **fields}


def fed(*events: dict[str, Any]) -> RunHistory:
    history = RunHistory()
    history.feed(events)
    return history


def step(n: int, t: float, attempt: int = 1, loss: float | None = 2.0) -> dict[str, Any]:
    return event("step", t, attempt, n=n, loss=loss, lr=1e-4, tokens=100, seconds=0.5)


CPU_HELLO = event(
    "hello", 0, device="cpu",
    capabilities={
        "host faults": {"works": True, "why": "host page faults (OS), not GPU paging"},
        "cupti": {"works": False, "why": "no CUDA device"},
        "paged optimizer state": {"works": False, "why": "the 100,000-element rule"},
    },
)  # fmt: skip


def test_time_starts_with_the_first_event_and_leaves_pauses_out() -> None:
    history = fed(event("phase", 1000, name="train", edge="begin"), step(1, 1010), step(2, 1020))
    history.feed([event("phase", 5000, 2, name="import", edge="begin"), step(3, 5010, 2)])
    assert history.now == 30
    assert [(phase.name, phase.begin, phase.end) for phase in history.phases] == [("train", 0, 20), ("import", 20, None)]


def test_a_step_taken_again_after_a_resume_counts_as_it_was_the_last_time() -> None:
    history = fed(step(1, 1), step(2, 2), step(3, 3), step(2, 100, 2, loss=1.5), step(3, 101, 2, loss=1.0))
    n, loss = history.step_curve("loss")
    assert n.tolist() == [1, 2, 3]
    assert loss.tolist() == [2.0, 1.5, 1.0]
    history.feed([step(2, 4, 1, loss=9.0)])  # a late line of the first attempt
    assert history.step_curve("loss")[1].tolist() == [2.0, 1.5, 1.0]


def test_a_loss_that_is_not_a_number_is_a_gap() -> None:
    _, loss = fed(step(1, 1), step(2, 2, loss=None)).step_curve("loss")
    assert np.isnan(loss[1])
    assert "Training loss" in run_figures.loss(fed(step(1, 1), step(2, 2, loss=None)))[1]


@pytest.mark.parametrize("n", [0, 1, POINTS, POINTS + 1, 3 * POINTS + 7, 200_001])
def test_curves_are_thinned_with_their_extremes_and_their_end(n: int) -> None:
    x = np.arange(n, dtype=float)
    y = np.sin(x)
    if n:
        y[n // 2], y[n // 3] = 50, -50
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) == len(thin_y) <= POINTS + 2
    assert (np.diff(thin_x) >= 0).all()
    if n:
        assert thin_y.max() == y.max()
        assert thin_y.min() == y.min()
        assert thin_x[-1] >= n - POINTS


def test_a_growing_curve_keeps_the_points_it_had() -> None:
    y = np.random.default_rng(0).normal(size=60_000)
    x = np.arange(60_000, dtype=float)
    shorter, longer = thin(x[:50_000], y[:50_000])[0], thin(x, y)[0]
    assert (shorter[:-2] == longer[: len(shorter) - 2]).all()


def test_host_faults_are_counted_over_time_and_never_called_gpu_paging() -> None:
    faults = [
        event("page", t, source="host faults", direction="fault", bytes=None, count=10, cause="minor", start=0, end=t * SECOND)
        for t in range(1, 5001)
    ]
    history = fed(CPU_HELLO, *faults)
    x, sums = history.bars(("host faults", "minor"))
    assert len(x) <= BARS + 1
    assert sums.sum() == 50_000
    figure, said = run_figures.paging(history)
    assert figure["layout"]["title"]["text"] == "Host page faults (OS), not GPU paging"
    assert "50,000 minor faults" in said
    assert page_view(history) == "host"
    assert why_no_gpu_paging(history) == [
        "Paged optimizer state: the 100,000-element rule.",
        "CUPTI migrations: no CUDA device.",
    ]


def test_on_a_gpu_migrations_and_requests_are_told_apart() -> None:
    history = fed(
        event("page", 1, source="cupti", direction="h2d", bytes=3_000_000, count=3, cause="prefetch", start=0, end=SECOND),
        event("page", 1, source="cupti", direction="gpu fault", bytes=None, count=7, cause="", start=0, end=SECOND),
        event("prefetch_req", 1, name="optimizer", bytes=5_000_000, count=2),
        event("page", 1, source="host faults", direction="fault", bytes=None, count=9, cause="minor", start=0, end=SECOND),
    )
    figure, _ = run_figures.paging(history)
    named = {trace["name"]: float(trace["y"].sum()) for trace in figure["data"]}
    assert named == {"migrated host → GPU (CUPTI)": 3.0, "requested by prefetch, not a migration": 5.0}
    assert "not yet run on a GPU" in figure["layout"]["title"]["text"]
    assert history.counts["cupti", "gpu fault"] == 7


def test_memory_is_the_processs_on_a_cpu_and_the_gpus_on_a_gpu() -> None:
    cpu = fed(event("sample", 1, source="worker", rss=5e8), event("sample", 2, source="supervisor", rss=6e8))
    figure, said = run_figures.memory(cpu)
    assert [trace["name"] for trace in figure["data"]] == ["RSS, by the worker itself", "RSS, by the supervisor"]
    assert said.startswith("Memory of the training process (RSS): 500.00 MB")
    gpu = fed(
        event("sample", 1, source="worker", rss=5e8, allocated=2e9, reserved=3e9, nvml_used=4e9, nvml_total=16e9, managed=1e9)
    )
    figure, _ = run_figures.memory(gpu)
    assert len(figure["data"]) == 4
    assert not any("RSS" in trace["name"] for trace in figure["data"])
    assert "16.0 GB" in figure["layout"]["shapes"][-1]["label"]["text"]


def test_phases_nest_and_an_open_one_tells_where_the_run_is() -> None:
    history = fed(
        event("phase", 0, name="train", edge="begin"),
        event("phase", 1, name="save", edge="begin"),
        event("phase", 2, name="save", edge="end"),
        event("phase", 5, name="<i>odd</i>", edge="begin"),
    )
    assert [(phase.name, phase.depth, phase.end) for phase in history.phases] == [
        ("train", 0, None), ("save", 1, 2.0), ("<i>odd</i>", 1, None),
    ]  # fmt: skip
    figure, _ = run_figures.phases(history)
    assert "<i>" not in json.dumps([figure["data"][0]["text"], figure["data"][0]["customdata"]])


def test_every_figure_of_an_empty_run_can_be_drawn() -> None:
    for name in ("loss", "learning_rate", "memory", "paging", "phases"):
        figure, said = getattr(run_figures, name)(RunHistory())
        assert encode_figure(figure)["layout"]["title"]["text"]
        assert said


def test_the_logs_tail_is_bounded_and_shows_progress_bars_once(tmp_path: Any) -> None:
    log = tmp_path / "log.txt"
    assert tail(log) == ""
    log.write_text("x\n" * 100_000 + "loading 1%\rloading 50%\rloading 100%\nstep 1\n")
    shown = tail(log)
    assert shown.endswith("loading 100%\nstep 1")
    assert len(shown.splitlines()) <= 60
