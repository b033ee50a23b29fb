"""A run's events become curves, bars, phases and words, without a run and without a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.helpers.texts import quantities
from widgets.drawing.wire import encode_figure
from widgets.figures import run, run_memory
from widgets.figures.pager import comparison_table, simulation_figure, truth_table
from widgets.panels.train.receipt import bars, hows, receipt_table
from widgets.panels.train.words import duration, from_here, log, tail
from workbench.training.results.history import BARS, POINTS, RunHistory, page_view, thin
from workbench.training.results.receipts import MeasuredStep, Receipt, ReceiptRow, ReceiptTotal

SECOND = 1_000_000_000
MIB, GIB = 2**20, 2**30


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
    assert "Training loss" in run.loss_figure(fed(step(1, 1), step(2, 2, loss=None)))[1]


@pytest.mark.parametrize("n", [0, 1, POINTS, POINTS + 1, 3 * POINTS + 7, 200_001])
def test_curves_are_thinned_with_their_extremes_and_their_end(n: int) -> None:
    x = np.arange(n, dtype=float)
    y = np.sin(x)
    if n:
        y[n // 2], y[n // 3] = 50, -50
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) == len(thin_y) <= POINTS
    assert (np.diff(thin_x) > 0).all()
    if n:
        assert thin_y.max() == y.max()
        assert thin_y.min() == y.min()
        assert (thin_x[0], thin_x[-1]) == (x[0], x[-1])


def test_a_growing_curve_keeps_the_points_it_had() -> None:
    y = np.random.default_rng(0).normal(size=60_000)
    x = np.arange(60_000, dtype=float)
    shorter, longer = thin(x[:50_000], y[:50_000])[0], thin(x, y)[0]
    assert np.isin(shorter[:-6], longer).all(), "but for those of the last, unfinished bucket"


def test_host_faults_are_counted_over_time_and_never_called_gpu_paging() -> None:
    faults = [
        event("page", t, source="host faults", direction="fault", bytes=None, count=10, cause="minor", start=0, end=t * SECOND)
        for t in range(1, 5001)
    ]
    history = fed(CPU_HELLO, *faults)
    x, sums = history.bars(("host faults", "minor"))
    assert len(x) <= BARS + 1
    assert sums.sum() == 50_000
    figure, said = run.paging_figure(history)
    assert figure["layout"]["title"]["text"] == "Host page faults (OS), not GPU paging"
    assert "50,000 minor faults" in said
    assert page_view(history) == "host"


def test_on_a_gpu_migrations_and_requests_are_told_apart() -> None:
    history = fed(
        event("page", 1, source="cupti", direction="h2d", bytes=3_000_000, count=3, cause="prefetch", start=0, end=SECOND),
        event("page", 1, source="cupti", direction="gpu fault", bytes=None, count=7, cause="", start=0, end=SECOND),
        event("prefetch_req", 1, name="optimizer", bytes=5_000_000, count=2),
        event("page", 1, source="host faults", direction="fault", bytes=None, count=9, cause="minor", start=0, end=SECOND),
    )
    figure, _ = run.paging_figure(history)
    named = {trace["name"]: float(trace["y"].sum()) for trace in figure["data"]}
    assert named == {"migrated host → GPU (CUPTI)": 3.0, "requested by prefetch, not a migration": 5.0}
    assert figure["layout"]["title"]["text"] == "GPU paging"
    assert history.counts["cupti", "gpu fault"] == 7


def test_each_steps_batch_stands_beside_its_memory_peak() -> None:
    def batch(n: int, longest: int, padded: int, **more: Any) -> dict[str, Any]:
        return step(n, 10 * n) | {"longest": longest, "padded": padded} | more

    history = fed(
        event("sample", 3, source="worker", rss=400 * MIB), event("sample", 5, source="worker", rss=300 * MIB), batch(1, 40, 6),
        event("sample", 15, source="worker", rss=700 * MIB), batch(2, 120, 90), batch(3, 30, 0),
    )  # fmt: skip
    figure, said = run_memory.batches_figure(history)
    peak, padded, longest = figure["data"]
    assert (peak["x"].tolist(), peak["y"].tolist()) == ([1, 2], [400, 700]), "a step without a sample of its own has no peak"
    assert (longest["y"].tolist(), padded["y"].tolist()) == ([40, 120, 30], [6, 90, 0])
    assert quantities(said) == ["120", "2", "700.00 MiB", "2"]
    assert fed(batch(1, 40, 6, peak=123)).peaks == {1: 123}, "what the allocator says goes before samples"


def test_the_time_left_follows_the_last_steps() -> None:
    history = fed(*(step(n, 3 * n) for n in range(1, 41)))
    assert history.seconds_left(50) == pytest.approx(30)
    assert history.seconds_left(40) == 0
    assert fed(step(1, 1)).seconds_left(50) is None
    assert [duration(seconds) for seconds in (59.6, 100, 3600, 7500)] == ["60 s", "2 min", "60 min", "2 h 5 min"]


def test_paging_bars_have_a_mark_for_every_step() -> None:
    steps = [step(n, n) for n in range(1, 1001)]
    figure, _ = run.paging_figure(fed(CPU_HELLO, *steps))
    marks = figure["data"][-1]
    assert (marks["name"], len(marks["x"])) == ("end of a step, every 3 steps", 333)


def test_earlier_runs_lie_over_the_loss_with_names_that_cannot_be_markup() -> None:
    figure, said = run.loss_figure(fed(step(1, 1)), beside={"<b>old</b>": fed(step(1, 1, loss=3.0), step(2, 2, loss=2.5))})
    assert [trace["name"] for trace in figure["data"]] == ["training", "&lt;b&gt;old&lt;/b&gt;"]
    assert figure["data"][1]["y"].tolist() == [3.0, 2.5]
    assert "Beside it 1 earlier run" in said


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


def test_every_figure_of_an_empty_run_can_be_drawn() -> None:
    for drawing in (run.loss_figure, run.paging_figure, run_memory.batches_figure):
        figure, said = drawing(RunHistory())
        assert encode_figure(figure)["layout"]["title"]["text"]
        assert said


def test_the_logs_tail_is_bounded_and_shows_progress_bars_once(tmp_path: Any) -> None:
    log = tmp_path / "log.txt"
    assert tail(log) == ""
    log.write_text("x\n" * 100_000 + "loading 1%\rloading 50%\rloading 100%\nstep 1\n")
    shown = tail(log)
    assert shown.endswith("loading 100%\nstep 1")
    assert len(shown.splitlines()) <= 60


def test_a_folder_is_named_from_the_working_folder_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert from_here(tmp_path / "runs" / "one") == "runs/one"
    assert from_here(tmp_path.parent / "elsewhere") == str(tmp_path.parent / "elsewhere")


def test_a_log_and_a_runs_words_cannot_become_markup(tmp_path: Any) -> None:
    history = fed(event("log", 1, level="warning", text="<img src=x onerror=alert(1)>"))
    shown = log("step 1 <script>", history)
    assert "<img" not in shown
    assert "<script>" not in shown
    assert "[warning] &lt;img" in shown


RECEIPT = Receipt(
    "cpu",
    (
        ReceiptRow("4-bit weights", "4-bit weights, packed", 10 * MIB, 10 * MIB, "walked", "two weights a byte", "host"),
        ReceiptRow("activations", "activations", 40 * MIB, 44 * MIB, "saved", "", "host"),
        ReceiptRow("dequantized weight", "dequantized weight", 2 * MIB, None, "", "it lives for moments", "host"),
        ReceiptRow("CUDA context", "CUDA context", 0, 0, "inferred", "", "host"),
        ReceiptRow("libraries", "interpreter and libraries", None, 400 * MIB, "rss", "", "host"),
        ReceiptRow("unexplained", "not explained", None, -4 * MIB, "inferred", "<b>peaks</b>", "host"),
    ),
    (ReceiptTotal("resident memory of the worker", 450 * MIB, "rss", 454 * MIB, "at its peak"),),
    MeasuredStep(3, 8, 121, 40, 450 * MIB), None, (8, 121), "Measured at step 3.",
)  # fmt: skip


def test_the_receipt_is_bars_in_pairs_and_a_table_with_the_residual() -> None:
    figure, said = bars(RECEIPT)
    measured, forecast = figure["data"]
    assert measured["y"] == ["4-bit weights, packed", "activations", "dequantized weight", "not explained"]
    assert (measured["x"].tolist(), forecast["x"].tolist()) == ([10, 44, 0, -4], [10, 40, 2, 0])
    assert measured["text"] == ["10.00 MiB", "44.00 MiB", "–", "-4.00 MiB"]
    assert figure["layout"]["xaxis"]["range"][0] < -4
    assert said.endswith("-4.00 MiB are not explained.")
    shown = receipt_table(RECEIPT)
    assert "CUDA context" not in shown, "a row of nothing"
    assert ">+4.00 MiB</td>" in shown
    assert "in all: resident memory of the worker" in shown
    assert "&lt;b&gt;" in shown
    assert hows(RECEIPT).startswith("walked: storages of the live tensors")


def test_a_simulated_step_says_so_and_keeps_within_what_is_left_of_its_budget() -> None:
    source, config = wb.open_model("builtin"), wb.TrainConfig(per_device_train_batch_size=2, max_length=128)
    enough = wb.simulate_paging(source, config, "T4 16 GB", managed="everything").enough
    simulation = wb.simulate_paging(source, config, enough - 20 * MIB, managed="everything")
    figure, said = simulation_figure(simulation)
    assert figure["layout"]["title"]["text"].startswith("Simulated")
    assert said == simulation.summary
    [line] = figure["layout"]["shapes"]
    held = np.sum([trace["y"] for trace in figure["data"] if "stackgroup" in trace], axis=0)
    assert 0 < held.max() <= line["y1"] * 1.0001
    moved = {trace["name"]: float(trace["y"].sum()) * MIB for trace in figure["data"] if trace["type"] == "bar"}
    to_device, to_host = simulation.per_step[-1].tolist()
    assert moved == pytest.approx({"brought to the GPU": to_device, "evicted to the host": to_host})
    assert figure["layout"]["xaxis"]["ticktext"] == ["forward", "backward", "optimizer"]


def test_the_moment_that_did_not_fit_is_drawn_above_the_budget() -> None:
    source, config = wb.open_model("builtin"), wb.TrainConfig(per_device_train_batch_size=2, max_length=128)
    least = wb.simulate_paging(source, config, "T4 16 GB").least
    figure, said = simulation_figure(wb.simulate_paging(source, config, least - MIB))
    assert "out of memory" in said
    [cross] = [trace for trace in figure["data"] if trace["name"] == "did not fit"]
    [line] = figure["layout"]["shapes"]
    assert line["y1"] < cross["y"][0] < figure["layout"]["yaxis"]["range"][1]
    held = [trace["x"] for trace in figure["data"] if "stackgroup" in trace]
    assert cross["x"][0] == len(held[0]), "after the last moment that fitted"


def test_measured_steps_stand_beside_the_simulation_where_anybody_saw_them() -> None:
    simulation = wb.simulate_paging(wb.open_model("builtin"), wb.TrainConfig(), "T4 16 GB")
    hello = event("hello", 0, device="a GPU", capabilities={"cupti": {"works": True, "why": ""}})
    page = event("page", 1, source="cupti", direction="h2d", bytes=3 * MIB, count=1, cause="", start=SECOND, end=SECOND)
    seen = wb.paging_truth(wb.TrainConfig(), [hello, page, step(1, 2)])
    assert "3.00 MiB" in comparison_table(simulation, seen)
    assert "3.00 MiB" in truth_table(seen)
    unseen = wb.paging_truth(wb.TrainConfig(), [CPU_HELLO, step(1, 2)])
    assert "not known" in truth_table(unseen)
    assert "3.00 MiB" not in comparison_table(simulation, unseen)
