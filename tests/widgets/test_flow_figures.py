"""The data-flow diagram of a model under training: its boxes hold the forecast's bytes, and say what is stored in what."""

from __future__ import annotations

import dataclasses

import pytest

import workbench as wb
from widgets.figures.flow import boxes_of, flow_figure
from workbench.memory.forecast import MemoryLedger
from workbench.memory.shortlist import PublishedShapes
from workbench.sources.base import Source

MODELS = {"tied": "HuggingFaceTB/SmolLM2-135M-Instruct", "with a head": "meta-llama/Llama-3.1-8B-Instruct"}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def src(request: pytest.FixtureRequest) -> Source:
    return PublishedShapes(request.param)


def ledger(src: Source, **fields: object) -> MemoryLedger:
    return wb.forecast(src, dataclasses.replace(wb.TrainConfig(), **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_boxes_hold_all_bytes_of_the_forecast_but_casts_and_scratch(src: Source, method: str) -> None:
    led = ledger(src, method=method)
    outside = {"16-bit casts", "CUDA context", "cuBLAS workspace", "spare"}
    assert sum(part.bytes for part in boxes_of(src, led)) == sum(row.bytes for row in led.rows if row.category not in outside)


def test_what_is_stored_in_what(src: Source) -> None:
    def stored(method: str) -> dict[str, tuple[str, str, str]]:
        return {part.name: (part.stored, part.computes, part.role) for part in boxes_of(src, ledger(src, method=method))}

    full, lora, qlora = stored("full"), stored("lora"), stored("qlora")
    assert full["linear weights W"] == ("bf16", "bf16", "trained")
    assert lora["linear weights W"] == ("bf16", "bf16", "frozen")
    assert qlora["linear weights W"] == ("NF4, two a byte", "bf16, as Ŵ", "frozen")
    assert full["norms and head"][0] == lora["norms and head"][0] == "bf16"
    assert qlora["norms and head"][0] == "bf16, norms fp32"
    assert lora["A and B, rank 16"] == qlora["A and B, rank 16"] == ("fp32", "bf16", "trained")
    assert qlora.keys() - lora.keys() == {"scales, levels", "Ŵ, one at a time"}
    assert "gradients of W" in full
    assert "gradients of A, B" in qlora


@pytest.mark.parametrize(("method", "ways"), [("full", (5, 5, 2)), ("lora", (6, 6, 2)), ("qlora", (8, 6, 2))])
def test_arrows_run_between_boxes_forward_backward_and_to_what_is_trained(method: str, ways: tuple[int, int, int]) -> None:
    figure, told = flow_figure(src := PublishedShapes(MODELS["tied"]), ledger(src, method=method))
    colours = [note["arrowcolor"] for note in figure["layout"]["annotations"] if note["showarrow"]]
    lines = {trace["name"]: trace["line"]["color"] for trace in figure["data"] if trace.get("name")}
    assert tuple(colours.count(lines[kind]) for kind in ("forward", "backward", "update")) == ways
    boxes = [shape for shape in figure["layout"]["shapes"] if shape["type"] == "rect"]
    assert all(0 < box["x0"] < box["x1"] < 100 for box in boxes)
    assert told.startswith(f"Data flow of {method}, forecast.")
