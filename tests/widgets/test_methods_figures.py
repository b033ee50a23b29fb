"""The figures and tables of methods side by side, and of what an adapter repairs, without a browser and without a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.helpers.texts import quantities
from widgets.drawing.wire import encode_figure
from widgets.figures import methods
from workbench.cost.method_results import MethodResult
from workbench.memory.ledger import BY_NAME
from workbench.training.results.receipts import MeasuredStep, Receipt, ReceiptRow, ReceiptTotal

MB = 2**20


def receipt(measured: dict[str, int]) -> Receipt:
    rows = tuple(ReceiptRow(name, BY_NAME[name].title, None, size, "walked", "") for name, size in measured.items())
    total = ReceiptTotal("resident memory of the worker", 600 * MB, "rss", 0, "")
    return Receipt("cpu", rows, (total,), MeasuredStep(1, 4, 32, 0, None), None, None, "")


def result(method: str, after: float, weights: int, **changed: object) -> MethodResult:
    held = {"weights" if method != "qlora" else "4-bit weights": weights, "gradients": MB, "libraries": 500 * MB}
    fields = {
        "method": method, "config": wb.TrainConfig(method=method), "run_dir": Path(method), "state": "finished", "message": "",
        "remedy": "", "losses": ((1, 3.0), (2, 2.5)), "held_out": ((0, 3.25), (2, after)), "seconds_per_step": 0.5,
        "seconds": 12.0, "receipt": receipt(held), "trained": 10, "parameters": 1_000, "saved_bytes": MB,
    }  # fmt: skip
    return MethodResult(**{**fields, **changed})  # type: ignore[arg-type]


THREE = (result("full", 2.25, 40 * MB), result("lora", 2.5, 40 * MB), result("qlora", 2.75, 6 * MB))


def test_the_curves_have_a_colour_a_method_and_say_how_the_held_out_loss_moved() -> None:
    figure, said = methods.methods_curves(THREE)
    names = [trace["name"] for trace in figure["data"]]
    assert names[:2] == ["full fine-tuning, training", "full fine-tuning, held out"]
    assert len({trace["line"]["color"] for trace in figure["data"]}) == 3
    assert figure["data"][5]["x"].tolist() == [0, 2]
    assert figure["data"][5]["y"].tolist() == [3.25, 2.75]
    assert quantities(said) == ["3.2500", "2.2500", "3.2500", "2.5000", "3.2500", "2.7500"]
    encode_figure(figure)


def test_memory_is_stacked_by_groups_without_the_libraries() -> None:
    figure, said = methods.methods_memory(THREE)
    bars = {trace["name"]: trace for trace in figure["data"]}
    assert list(bars) == ["base model", "gradients"]
    assert bars["base model"]["x"].tolist() == [40, 40, 6]
    assert figure["layout"]["xaxis"]["title"]["text"] == "MiB"
    assert quantities(said) == ["41.00 MiB", "41.00 MiB", "7.00 MiB"]
    encode_figure(figure)


def test_the_table_tells_a_failed_run_with_what_is_known_of_it() -> None:
    failed = result(
        "full", 0.0, MB, state="failed", message="Out of <memory>.", held_out=((0, 3.25),), losses=(), seconds_per_step=None,
        saved_bytes=None,
    )  # fmt: skip
    table = methods.methods_table((failed, *THREE[1:]))
    first, second = table.split("<tr>")[2:4]
    assert "failed: Out of &lt;memory&gt;." in first
    assert first.count("–") == 3  # the loss after, the time of a step, what is left on disk
    for cell in ("LoRA", "3.2500", "2.5000", "0.5 s", "12.0 s", "41.00 MiB", "600.00 MiB", "10 (1.00 %)", "1.05 MB"):
        assert f">{cell}<" in second
    figure, said = methods.methods_curves((failed,))
    assert figure["data"][0]["x"].size == 0
    assert said == "No method has finished yet."


def test_nothing_yet_is_drawn_and_said() -> None:
    for figure, said in (
        methods.methods_curves(()),
        methods.methods_memory(()),
        methods.repairs_map(()),
        methods.repairs_curves(()),
    ):
        encode_figure(figure)
        assert "yet" in said


def repair(step: int, layer: int, kind: str, adapted: float) -> wb.Repair:
    return wb.Repair(step, f"model.layers.{layer}.mlp.{kind}_proj", layer, kind, 0.1, adapted, 0.05 * layer)


REPAIRS = [
    repair(5, 0, "up", 0.1), repair(10, 0, "up", 0.08), repair(5, 0, "down", 0.11), repair(10, 0, "down", 0.15),
    repair(5, 1, "up", 0.1), repair(10, 1, "up", 0.06),
]  # fmt: skip


@pytest.mark.parametrize(("step", "up"), [(None, [0.2, 0.4]), (10, [0.2, 0.4]), (5, [0.0, 0.0])])
def test_the_map_shows_one_checkpoint_with_zero_in_the_middle_of_its_colours(step: int | None, up: list[float]) -> None:
    figure, said = methods.repairs_map(REPAIRS, step, selected="model.layers.1.mlp.up_proj", layer=1)
    heat = figure["data"][1]
    np.testing.assert_allclose(heat["z"][:, 0], up, atol=1e-6)  # layers × kinds: up, down
    assert np.isnan(heat["z"][1, 1])  # not measured
    assert (heat["colorscale"], heat["zmid"], heat["reversescale"]) == ("RdBu", 0, True)
    assert figure["layout"]["xaxis"]["ticktext"] == ["up", "down"]
    assert "model.layers.0.mlp.up_proj" in heat["text"][0][0]
    assert {trace["name"] for trace in figure["data"][2:]} == {"chosen tensor", "listed layer"}
    assert quantities(said)[0] == f"{step or 10}"
    assert "takes back" in said
    encode_figure(figure)


def test_what_is_said_counts_the_modules_that_got_worse() -> None:
    said = methods.repairs_map(REPAIRS)[1]
    assert "adds to it in 1 of" in said
    assert quantities(said) == ["10", "20.00 %", "4", "3", "1", "0 %"]


def test_an_adapter_that_adds_to_the_error_is_said_to_add() -> None:
    said = methods.repairs_map([repair(3, 0, "up", 0.25)])[1]
    assert "adds 150.00 %" in said
    assert "takes back" not in said


def test_either_way_of_counting_can_be_shown() -> None:
    figure = methods.repairs_map(REPAIRS, field="along")[0]
    np.testing.assert_allclose(figure["data"][1]["z"][:, 0], [0.0, 0.05], atol=1e-6)
    assert figure["data"][1]["colorbar"]["title"]["text"] == "undone along the error itself"
    figure, said = methods.repairs_curves(REPAIRS, field="along")
    assert figure["data"][0]["y"].tolist() == pytest.approx([0.025, 0.025])
    assert "along the error itself" in figure["layout"]["title"]["text"]
    assert "up 2.50 %" in said


def test_the_curves_are_the_median_of_each_kind_over_the_checkpoints() -> None:
    figure, said = methods.repairs_curves(REPAIRS)
    assert [trace["name"] for trace in figure["data"]] == ["up", "down"]
    assert figure["data"][0]["x"].tolist() == [5, 10]
    np.testing.assert_allclose(figure["data"][0]["y"], [0.0, 0.3], atol=1e-6)
    assert quantities(said) == ["30.00 %", "-50.00 %"]
    encode_figure(figure)
