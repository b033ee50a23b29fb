"""What a run is set up with, without a browser: what is on show and what is trained, and the forecast's changes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import workbench as wb
from tests.helpers.immediate import Immediate
from tests.helpers.training_cells import put, shown
from widgets import TrainingCell, Workbench
from widgets.panels.train import setup, view
from widgets.panels.train.fields import FIELDS, faults_by_field, in_labels, label
from widgets.state import State
from workbench.training import model_checks


@pytest.mark.parametrize(
    "place", ["/data/max_steps/model/seed", "max_steps.json", r"C:\max_steps\seed", "~/run-max_steps", "./seed"]
)
def test_a_path_is_told_as_it_is_and_names_no_field(place: str) -> None:
    assert in_labels(f"{place}: lower max_steps.") == f"{place}: lower {label('max_steps')}."
    said = faults_by_field([f"{place} is missing: lower max_steps, or seed.", f"nothing in {place}"])
    steps = f"{place} is missing: lower {label('max_steps')}, or seed."
    assert said == {"max_steps": [steps], "": [f"nothing in {place}"]}


def test_what_is_looked_at_is_not_what_is_trained() -> None:
    app = Workbench("builtin", executor=Immediate())
    panel, store = app.train, app.session.store
    assert (panel.config.quant_type, panel.config.block_size, panel.config.double_quant) == ("nf4", 64, True)
    assert store.value.double_quant is False, "the errors on show are those of one level of scales"
    assert "base: NF4, blocks of 64, double quantized" in panel.setup.base.value
    before = panel.config
    for shown_format in ("fp4", "mxfp4"):
        store.update(formats=(shown_format,), block_size=128, double_quant=True)
        assert panel.config == store.value.training == before
        assert f"quant_type={shown_format!r}" not in panel.copy.code

    # What bitsandbytes has no format for says so, and changes nothing.
    assert "MXFP4" in panel.setup.take.description
    panel.setup.take.click()
    assert "bitsandbytes holds no" in panel.message.value
    assert panel.config == before

    # One press takes over what it can hold, as it is on show.
    store.update(formats=("fp4",))
    assert panel.setup.take.description == "Train what is on show"
    panel.setup.take.click()
    assert (panel.config.quant_type, panel.config.block_size, panel.config.double_quant) == ("fp4", 128, True)
    assert "base: FP4, blocks of 128, double quantized" in panel.setup.base.value
    assert not shown(panel.setup.take), "it is what is trained"
    again = State.from_dict(json.loads(json.dumps(app.state)))
    assert again.training == panel.config
    store.update(formats=("nf4",))
    assert panel.config.quant_type == "fp4"
    put(panel, method="lora")
    assert not shown(panel.setup.take), "nothing is quantized"
    app.close()


def test_a_state_from_before_runs_had_a_base_of_their_own_still_opens() -> None:
    old = {"model": "builtin", "formats": ["fp4"], "block_size": 128, "double_quant": False, "lora_r": 8, "train": {"seed": 7}}
    state = State.from_dict(old)
    assert state.training == wb.TrainConfig(lora_r=8, seed=7)
    assert state.specs[0] == wb.QuantSpec("fp4", 128)


def test_the_forecast_offers_single_changes_and_a_press_makes_one() -> None:
    app = Workbench("builtin", executor=Immediate())
    panel = app.train
    bar = panel.forecast.widget
    assert bar.content["verdict"] == "fits"
    assert bar.content["total"] == wb.fit(wb.forecast("builtin", panel.config), bar.gpu).ledger.total
    labels = [way["label"] for way in bar.content["ways"]]
    assert labels == ["length 256", "batch 16", "rank 64", "LoRA", "Full"]
    bar.apply(labels.index("rank 64"))
    assert panel.config.lora_r == panel.form.controls["lora_r"].value == 64
    bar.apply([way["label"] for way in bar.content["ways"]].index("Full"))
    assert panel.config.method == "full"
    assert "nothing quantized" in panel.setup.base.value
    bar.gpu = "L4 24 GB"
    assert app.state["gpu"] == "L4 24 GB"
    assert bar.content["capacity"] == wb.GPUS["L4 24 GB"].usable
    app.close()


def test_a_button_of_a_forecast_from_before_does_nothing() -> None:
    app = Workbench("builtin", executor=Immediate())
    bar, before = app.train.forecast.widget, app.train.config
    bar._handle_custom_msg({"type": "apply", "label": "batch 1,000"}, [])
    assert app.train.config == before
    bar._handle_custom_msg({"type": "apply", "label": "batch 16"}, [])
    assert app.train.config.per_device_train_batch_size == 16
    app.close()


def test_a_model_that_cannot_be_opened_has_no_forecast_and_says_why(tmp_path: Path) -> None:
    panel = TrainingCell(str(tmp_path / "no model"), executor=Immediate())
    assert "No forecast" in panel.forecast.widget.problem
    assert panel.message.value == ""
    panel.close()


def test_the_other_settings_are_made_when_they_are_first_opened() -> None:
    panel = TrainingCell("builtin", executor=Immediate())
    assert set(panel.form.controls) == {
        "model", "dataset", "method", "max_steps", "num_train_epochs", "per_device_train_batch_size", "max_length",
        "learning_rate", "lora_r", "lora_alpha",
    }  # fmt: skip
    assert "paged_adamw_32bit" in panel.form.more.title.subtitle
    panel.form.more.title.opened = True
    assert set(panel.form.controls) == set(FIELDS)
    put(panel, weight_decay=0.01)
    assert "weight decay 0.01" in panel.form.more.title.subtitle
    panel.close()


def test_rules_of_thumb_stand_below_the_form_and_count_the_rows_once_they_are_looked_at() -> None:
    panel = TrainingCell("builtin", executor=Immediate())
    assert "Rules of thumb, not measured." in panel.setup.advice.value
    assert "fifteen times" in panel.setup.advice.value  # a first run is a short one
    assert "have room there" not in panel.setup.advice.value
    panel.setup.rows.click()
    assert "have room there" in panel.setup.advice.value
    put(panel, method="full")
    assert "a tenth of LoRA" in panel.setup.advice.value
    assert "have room there" not in panel.setup.advice.value, "its rows are not looked at yet"
    panel.close()


def test_a_family_that_overflows_in_float16_is_named_before_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_checks, "OVERFLOWING", {"llama"})  # the embedded model's type
    panel = TrainingCell("builtin", executor=Immediate())
    assert panel.setup.warning.value == ""
    panel.form.more.title.opened = True
    put(panel, compute_dtype="float16")
    assert "known to overflow in float16" in panel.setup.warning.value
    assert not {"rescale_mlp", "compute_dtype"} & set(re.findall(r"\w+", panel.setup.warning.value)), "the form's own words"
    put(panel, compute_dtype="bfloat16")
    assert panel.setup.warning.value == ""
    panel.close()


def test_one_press_trains_on_every_gpu_and_is_not_offered_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[wb.TrainConfig] = []

    def launch(config: wb.TrainConfig, *_: object, **__: object) -> None:
        launched.append(config)
        raise wb.RunError("it is not trained here.", where="test", remedy="None.")

    going = [SimpleNamespace(dir=Path("runs/another"))]
    monkeypatch.setattr(view, "launch", launch)
    monkeypatch.setattr(view, "live_runs", lambda folder: going)
    panel = TrainingCell("builtin", executor=Immediate())
    assert not shown(panel.setup.both)
    panel.close()
    asked: list[bool] = []
    monkeypatch.setattr(setup, "names", lambda: asked.append(True) or ("Tesla T4", "Tesla T4"))
    panel = TrainingCell("builtin", executor=Immediate())
    assert shown(panel.setup.both)
    assert panel.setup.both.description == "Train on both GPUs"
    panel.setup.both.click()
    assert panel.config.nproc_per_node == 2
    assert "nproc_per_node=2" in panel.code
    assert not shown(panel.setup.both)
    assert launched == []
    assert "A run is going on here: another." in panel._asked.value, "it asks as Launch does"
    going.clear()
    panel.form.more.fill()
    put(panel, nproc_per_node=1)
    panel.setup.both.click()
    assert [config.nproc_per_node for config in launched] == [2]
    panel.close()
    assert len(asked) == 1, "GPUs do not come and go"
    monkeypatch.setattr(setup, "names", lambda: ("Tesla T4",))
    panel = TrainingCell("builtin", executor=Immediate())
    assert not shown(panel.setup.both)
    panel.close()
