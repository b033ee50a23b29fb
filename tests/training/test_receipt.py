"""The receipt: every byte of a run by category, forecast beside measured, told by the run's folder alone.

The worker runs inside the test's process here. What only a GPU can tell comes from events that are written by hand.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.texts import missing
from tests.helpers.tiny_model import write_tiny_model
from workbench.memory.ledger import BY_NAME, UNEXPLAINED, WEIGHTS
from workbench.training.events import Event
from workbench.training.results.receipts import HOW, MeasuredStep

WAYS: dict[str, dict[str, Any]] = {
    "qlora, double": {"method": "qlora", "double_quant": True},
    "qlora, plain": {"method": "qlora", "double_quant": False, "optim": "paged_adamw_8bit", "gradient_checkpointing": False},
    "qlora, modules left out": {
        "method": "qlora", "llm_int8_skip_modules": ("down_proj", "model.layers.0.self_attn.q_proj"), "optim": "adamw_torch",
    },
    "lora": {"method": "lora", "use_dora": True, "optim": "adamw_8bit"},
    "full": {"method": "full", "optim": "adamw_torch", "gradient_checkpointing": False},
}  # fmt: skip


@pytest.fixture(
    scope="module",
    params=[pytest.param(way, marks=[pytest.mark.slow] if way != "qlora, double" else []) for way in WAYS],
)
def receipt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> wb.Receipt:
    """Of one step on the embedded model."""
    config = in_process.config_of(
        Path("builtin"), **WAYS[request.param], max_steps=1, max_eval_rows=0, per_device_train_batch_size=2, max_length=64
    )
    return wb.receipt(in_process.train(config, tmp_path_factory.mktemp("run")).dir)


def test_what_does_not_change_in_a_step_is_forecast_to_the_byte(receipt: wb.Receipt) -> None:
    static = [receipt[category] for category in WEIGHTS if category != "buffers"]
    assert {row.category: row.forecast for row in static} == {row.category: row.measured for row in static}
    assert {row.how for row in static} == {"walked"}
    assert receipt["gradients"].measured
    assert receipt["optimizer state"].measured


def test_activations_are_forecast_within_15_percent(receipt: wb.Receipt) -> None:
    row = receipt["activations"]
    assert row.forecast == pytest.approx(row.measured, rel=0.15)
    assert row.how == "saved"


def test_all_rows_and_what_they_do_not_explain_are_the_total(receipt: wb.Receipt) -> None:
    assert [row.category for row in receipt.rows] == list(BY_NAME)
    assert {row.how for row in receipt.rows} <= set(HOW)
    assert sum(row.measured or 0 for row in receipt.rows) == receipt.total
    (total,) = receipt.totals
    assert (total.how, receipt.device) == ("rss", "cpu")
    assert receipt.rows[-1].measured == receipt.unexplained == total.unexplained
    assert receipt["libraries"].measured
    assert {row.place for row in receipt.rows} == {"host"}
    assert receipt["CUDA context"].note == "there is no CUDA device"
    assert receipt.forecast == sum(row.forecast or 0 for row in receipt.rows)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., wb.Run]:
    """Trains a tiny model."""
    model = write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))

    def train(**fields: Any) -> wb.Run:
        config = in_process.config_of(model, **{"max_eval_rows": 0, **fields})
        return in_process.train(config, tmp_path_factory.mktemp("run"))

    return train


@pytest.fixture(scope="module")
def run(tiny: Callable[..., wb.Run]) -> wb.Run:
    """Batches of rows of unequal length."""
    return tiny(max_length=128, max_steps=8, per_device_train_batch_size=3, gradient_checkpointing=False)


def of(run: wb.Run, kind: str) -> list[Event]:
    return [event for event in run.events() if event["k"] == kind]


def test_only_batches_that_are_larger_than_any_before_are_watched(run: wb.Run) -> None:
    watched = [(e["n"], e["rows"] * e["longest"]) for e in of(run, "memory") if e["moment"] == "step"]
    sizes = {e["n"]: e["tokens"] + e["padded"] for e in of(run, "step")}
    largest, expected = 0, []
    for n, size in sizes.items():
        if size > largest:
            largest = size
            expected.append((n, size))
    assert watched == expected
    step = wb.receipt(run).step
    assert step is not None
    assert (step.n, step.rows, step.longest) == (expected[-1][0], 3, largest // 3)


def test_the_step_that_took_most_is_named_with_its_longest_row(run: wb.Run) -> None:
    peak = wb.receipt(run).peak
    assert peak is not None
    told = next(e for e in of(run, "step") if e["n"] == peak.n)
    assert (peak.longest, peak.padded) == (told["longest"], told["padded"])
    assert peak.bytes
    assert peak.bytes > 100e6


def test_measuring_changes_no_loss(tiny: Callable[..., wb.Run], run: wb.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.training.worker import accounting

    monkeypatch.setattr(accounting.Account, "batch", lambda *_: contextlib.nullcontext())
    without = tiny(max_length=128, max_steps=8, per_device_train_batch_size=3, gradient_checkpointing=False)
    assert wb.receipt(without).step is None
    figures = [[(e["loss"], e["grad_norm"]) for e in of(some, "step")] for some in (run, without)]
    assert figures[0] == figures[1]


def test_any_process_can_make_it_without_torch(run: wb.Run) -> None:
    code = (
        "import sys, json, workbench as wb; r = wb.receipt(sys.argv[1]); print(json.dumps(r.to_dict()));"
        "print(sorted({'torch', 'numba', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run.dir)], capture_output=True, text=True, timeout=300, check=True)
    told, loaded = done.stdout.splitlines()
    assert json.loads(told) == json.loads(json.dumps(wb.receipt(run).to_dict()))
    assert loaded == "[]"


def test_it_prints_as_a_table_and_gives_a_frame(run: wb.Run) -> None:
    receipt = wb.receipt(run)
    text = repr(receipt)
    assert "4-bit weights, packed" in text
    assert "not explained" in text
    assert "spare" not in text
    assert "same batch" in text.splitlines()[-1]
    frame = receipt.to_frame()
    assert list(frame["category"]) == list(BY_NAME)
    assert frame["measured"].sum() == receipt.total


def until(run: wb.Run, moment: str) -> wb.Receipt:
    """The receipt of a run that was killed at a moment."""
    meter = wb.ReceiptMeter()
    for event in run.events():
        meter.feed([event])
        if event["k"] == "memory" and event["moment"] == moment:
            break
    return meter.receipt()


def test_a_run_that_was_killed_has_a_receipt_of_how_far_it_came(run: wb.Run) -> None:
    imported, loaded, attached = (until(run, moment) for moment in ("libraries", "load", "attach"))
    assert imported["libraries"].measured == imported.total
    assert imported["4-bit weights"].note.startswith("not measured")
    assert loaded["4-bit weights"].measured == attached["4-bit weights"].measured == attached["4-bit weights"].forecast
    assert (loaded["adapters"].measured, attached["adapters"].measured) == (0, attached["adapters"].forecast)
    assert (attached["gradients"].measured, attached["activations"].measured) == (None, None)
    assert attached.forecast_shape == (3, 128)
    assert attached.note.startswith("No step was measured")
    assert wb.ReceiptMeter().receipt().note == "Nothing was measured yet."
    assert wb.ReceiptMeter().receipt().total is None


def test_a_folder_without_a_run_has_no_receipt(tmp_path: Path) -> None:
    with pytest.raises(wb.RunError, match="no run"):
        wb.receipt(tmp_path)


# --- on a GPU: events as a run there would write them -----------------------------------------------------------------------

MB = 10**6
GPU = {"allocated": 500, "allocated_peak": 900, "reserved": 1_000, "nvml_used": 1_900, "nvml_process": None}


def on_a_gpu(attempt: int = 1, held: int = 600, **gpu: int | None) -> list[Event]:
    """A model of ``held`` MB of 4-bit weights, 50 MB of paged state, and 200 MB of activations; other programs hold 300 MB."""
    counters = {name: size and size * MB for name, size in {**GPU, **gpu}.items()}
    rows = [{"category": "4-bit weights", "bytes": held * MB, "known": "computed", "note": "two weights a byte"}]
    common = {"t": 0, "attempt": attempt}
    return [
        {**common, "k": "memory", "moment": "libraries", "rss": 700 * MB},
        {**common, "k": "forecast", "device": "cuda", "method": "qlora", "shape": [4, 512], "rows": rows},
        {**common, "k": "memory", "moment": "context", "rss": 900 * MB, "context": 500 * MB, "others": 300 * MB},
        {
            **common, "k": "memory", "moment": "step", "n": 1, "rows": 4, "longest": 100, "padded": 8, "rss": 950 * MB,
            "held": {"4-bit weights": held * MB, "optimizer state, paged": 50 * MB}, "recomputed": 80 * MB,
            "saved": {"activations": 120 * MB, "logits and loss": 60 * MB, "16-bit casts": 0},
            "forecast": {"4-bit weights": held * MB, "activations": 210 * MB}, "gpu": counters,
        },
        {**common, "k": "step", "n": 1, "longest": 99, "padded": 8, "peak": 900 * MB},
        {**common, "k": "step", "n": 2, "longest": 80, "padded": 30, "peak": 950 * MB},
    ]  # fmt: skip


def made_of(*events: list[Event]) -> wb.Receipt:
    meter = wb.ReceiptMeter()
    for some in events:
        meter.feed(some)
    return meter.receipt()


def test_on_a_gpu_it_is_reconciled_with_nvml_the_allocator_and_the_host() -> None:
    receipt = made_of(on_a_gpu())
    measured = {row.category: (row.measured or 0) // MB for row in receipt.rows if row.measured}
    assert measured == {
        "4-bit weights": 600, "optimizer state, paged": 50, "activations": 200, "logits and loss": 60, "spare": 100,
        "CUDA context": 500, "libraries": 700, "unexplained": 90,
    }  # fmt: skip
    assert [(total.how, total.bytes // MB, total.unexplained // MB) for total in receipt.totals] == [
        ("inferred", 1_600, 90),  # what NVML sees in use, without the other programs
        ("allocator", 900, 40),  # paged state is not the allocator's, nor are the context and what it has to spare
        ("rss", 950, 250),
    ]
    places = {row.category: row.place for row in receipt.rows}
    assert (places["optimizer state, paged"], places["libraries"], places["spare"]) == ("managed", "host", "device")
    assert not missing(receipt["activations"].note, "114.44 MiB kept", "76.29 MiB computed again")
    assert receipt.peak == MeasuredStep(2, None, 80, 30, 950 * MB)


def test_where_nvml_knows_the_process_other_programs_need_not_be_subtracted() -> None:
    total = made_of(on_a_gpu(nvml_process=1_550)).totals[0]
    assert (total.how, total.bytes) == ("nvml", 1_550 * MB)


def test_without_nvml_the_allocator_is_what_it_is_reconciled_with() -> None:
    receipt = made_of(on_a_gpu(nvml_used=None))
    assert (receipt.totals[0].how, receipt.unexplained) == ("allocator", 40 * MB)


def test_rows_that_come_to_more_than_there_was_are_told_so() -> None:
    receipt = made_of(on_a_gpu(nvml_process=1_400))
    assert receipt.unexplained == -110 * MB
    assert "below zero" in receipt[UNEXPLAINED].note


def test_of_several_attempts_the_last_that_measured_anything_counts() -> None:
    assert made_of(on_a_gpu(1), on_a_gpu(2, held=700)).rows[0].measured == 700 * MB
    begun: list[Event] = [{"k": "memory", "t": 9, "attempt": 2, "moment": "libraries", "rss": 5}]
    assert made_of(on_a_gpu(1), begun).rows[0].measured == 600 * MB


def test_the_context_is_what_the_process_took_before_it_loaded_anything() -> None:
    events = on_a_gpu()
    events[2]["gpu"] = {"nvml_process": 654 * MB, "reserved": 2 * MB}
    assert made_of(events)["CUDA context"].measured == 652 * MB
