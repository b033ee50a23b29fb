"""The cost view on a tiny model: measured by pressing its buttons, found again by another view, linked with the others."""

import contextlib
import dataclasses
import html
import io
import json
import shutil
import types

import numpy as np
import pytest

from tests.helpers.cost_in_process import measuring
from tests.helpers.immediate import Immediate
from tests.helpers.texts import missing
from tests.helpers.tiny_model import write_tiny_model
from widgets import CostView, Workbench
from widgets.figures import cost
from widgets.figures.kl_curve import kl_curve_figure, why_four
from widgets.state import COST_FIELDS, State
from workbench.cost import mixing, process
from workbench.quant.spec import QuantSpec
from workbench.text import amount, bracketed, nats

STATE = {"tab": "Cost", "double_quant": True, "max_length": 64, "train": {"max_eval_rows": 12}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny-llama")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("costs") / "of tiny")


@pytest.fixture(scope="module")
def measured(model, folder):
    """A view in which the losses, the sensitivities and the mix were measured by pressing its buttons."""
    view = CostView(state=State(model=model, cost_folder=folder, **STATE), executor=Immediate())
    with measuring():
        for part in (view.formats, view.modules, view.mix):
            part.stream.button.click()
            assert view.message.value == ""
    yield view
    view.close()


@pytest.fixture
def app(measured, model, folder):
    """An app that is opened afterwards."""
    app = Workbench(state=STATE | {"model": model, "cost_folder": folder}, executor=Immediate())
    yield app
    app.close()


def drawn(plot):
    return plot._state["content"]["data"]


def test_nothing_is_measured_before_a_button_is_pressed_and_the_view_says_what_a_press_will_cost(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    view = CostView(state=State(model=model, **STATE), executor=Immediate())
    assert list(tmp_path.iterdir()) == []
    for part, times in ((view.formats, 9), (view.modules, 30)):
        said = html.unescape(part.stream.cost.value)
        assert not missing(said, f"{times} passes", "12 held-out rows of The Devil's Dictionary", "Forecast")
        assert " MiB of memory" in said
        assert "costs/tiny-llama" in said
    assert "Once the sensitivities are measured" in view.mix.curve.summary
    assert drawn(view.mix.curve) == []
    assert "Forecast" in view.methods.stream.cost.value
    view.close()


def test_a_part_is_built_when_it_is_first_opened_and_shows_what_is_known_by_then(measured, model, folder):
    view = CostView(state=State(model=model, cost_folder=folder, **STATE), executor=Immediate())
    assert view.parts == (view.formats,)
    view.part.value = "sensitivity"
    assert view.session.store.value.cost_part == "sensitivity"
    assert view.parts == (view.formats, view.modules)
    assert view.modules.sensitivity.rows == measured.modules.sensitivity.rows
    assert (view.formats.widget.layout.display, view.modules.widget.layout.display) == ("none", "")
    view.close()


def test_each_format_has_a_bar_with_its_interval_beside_its_weight_error(measured):
    rows = measured.formats.evaluation.rows
    assert len(rows) == 9
    added, errors = drawn(measured.formats.bars)
    ordered = sorted(rows[1:], key=lambda row: row.kl)
    figure = cost.format_costs_figure(rows)["data"]
    np.testing.assert_array_equal(figure[0]["x"], [row.kl for row in ordered])
    np.testing.assert_allclose(figure[0]["x"] - figure[0]["error_x"]["arrayminus"], [r.kl_interval[0] for r in ordered])
    np.testing.assert_array_equal(figure[1]["x"], [row.relative_rmse for row in ordered])
    assert added["y"] == errors["y"]
    assert not missing(measured.formats.summary.value, ordered[0].name.split(",")[0], nats(ordered[0].kl))
    assert not missing(measured.formats.table.value, f"{rows[0].loss:.4f}", nats(rows[3].kl), "flips", "rank")
    ranks = measured.formats.evaluation.ranks
    for row in rows[1:]:
        assert ranks[row.name] == 1 + sum(row.rows.further(other.rows)[0] > 0 for other in rows[1:])
    first = [row.name for row in ordered[1:] if ranks[row.name] == 1]
    said = cost.costs_summary(rows)
    assert [bracketed(name) in said.partition("Weight error")[0] for name in ranks] == [
        name in first or name == ordered[0].name for name in ranks
    ]
    assert measured.formats.stream.button.layout.display == "none"


def test_the_map_shows_every_module_under_every_field(measured):
    rows = measured.modules.sensitivity.rows
    assert len(rows) == 14
    for field, title in COST_FIELDS.items():
        measured.modules.field.value = field
        assert measured.session.store.value.cost_field == field
        figure = cost.sensitivity_figure(measured.modules.asked.places, rows, field)
        for row in rows:
            at = measured.modules.asked.places.of[row.name]
            assert figure["data"][1]["z"][at] == pytest.approx(getattr(row, field), rel=1e-6)
        most = max(rows, key=lambda row: getattr(row, field))
        assert title.lower() in measured.modules.map.summary
        assert most.name in measured.modules.map.summary
        assert measured.modules.list.options[0][1] == most.name


def test_the_output_errors_lie_beside_those_of_the_weights(measured):
    rows = measured.modules.sensitivity.rows
    figure = cost.output_errors_figure(rows, rows[3].name)
    band, lines = figure["data"][:2], figure["data"][2:]
    assert {line["name"] for line in lines} == {row.kind for row in rows}
    found = {name: y for line in lines for name, y in zip(line["customdata"], line["y"], strict=True)}
    assert found == {row.name: row.output_error for row in rows}
    for layer in (0, 1):
        of = [row.relative_rmse for row in rows if row.layer == layer]
        assert (band[0]["y"][layer], band[1]["y"][layer]) == (min(of), max(of))
    assert max(max(line["marker"]["size"]) for line in lines) == 13, "the chosen one is larger"


def test_another_view_finds_what_was_measured_and_a_state_brings_it_back(measured, app):
    assert app.cost.message.value == ""
    assert app.cost.formats.evaluation.rows == measured.formats.evaluation.rows
    assert app.cost.modules.sensitivity.rows == measured.modules.sensitivity.rows
    assert app.cost.mix.mix.measured_loss == measured.mix.mix.measured_loss
    app.session.store.update(cost_field="output_error", mix_megabytes=0.2)
    again = Workbench(state=json.loads(json.dumps(app.state)), executor=Immediate())
    assert again.state == app.state
    assert again.cost.modules.field.value == "output_error"
    assert again.cost.mix.summary.value == app.cost.mix.summary.value
    again.close()


def test_a_cell_a_point_and_a_line_of_the_list_choose_the_tensor_everywhere(app):
    view = app.cost.modules
    view._clicked_cell({"x": 6.2, "y": 1.1})
    assert app.session.analysis.tensor.name == app.header.state["tensor"] == "model.layers.1.mlp.down_proj.weight"
    assert view.list.value == "model.layers.1.mlp.down_proj"
    view._clicked_point({"customdata": "model.layers.0.self_attn.k_proj"})
    assert app.state["tensor"] == "model.layers.0.self_attn.k_proj.weight"
    view.list.index = 0
    assert app.state["tensor"] == f"{view.list.options[0][1]}.weight"


def test_the_slider_goes_from_all_in_4_bits_to_all_in_16_and_the_curve_with_it(app):
    part = app.cost.mix
    part.memory.value = part.memory.min
    assert part.mix.modules_left_out == ()
    assert "No module" in part.modules.value
    counts = []
    for megabytes in np.linspace(part.memory.min, part.memory.max, 5):
        part.memory.value = megabytes
        assert part.mix.nbytes <= app.state["mix_megabytes"] * 1e6 + 1
        counts.append(len(part.mix.modules_left_out))
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    curve, four, sixteen, chosen = drawn(part.curve)[:4]
    assert (four["name"], sixteen["name"]) == ("all in 4 bits, measured", "all in 16 bits")
    assert chosen["x"] != sixteen["x"] or counts[-1] == 14
    assert curve["line"]["shape"] == "hv"


def test_the_mix_for_a_gpu_takes_the_forecast_of_training(app):
    part = app.cost.mix
    part.gpu.value = "T4 16 GB"
    assert app.state["mix_gpu"] == "T4 16 GB"
    assert part.memory.disabled
    assert part.mix.gpu.name == "T4 16 GB"
    part.gpu.value = ""
    assert not part.memory.disabled


def test_the_predicted_divergence_stands_beside_the_measured_one(measured):
    chosen = measured.mix.mix
    assert chosen.modules_left_out
    said = measured.mix.summary.value
    assert not missing(said, f"predicted {nats(chosen.predicted_kl)}", f"measured {nats(chosen.measured_kl)}")
    assert "Chosen by 6 rows, measured on 6 others." in said
    assert measured.mix.stream.button.layout.display == "none"
    assert drawn(measured.mix.curve)[-1]["name"] == "this mix, measured"
    assert cost.memory_curve_figure(chosen)["data"][-1]["y"] == pytest.approx([chosen.measured_kl])


def test_no_name_of_a_mark_is_cut_by_the_edge_of_the_picture(measured):
    """It stands on the side of the mark that has room, and there is some below zero."""
    figure = cost.memory_curve_figure(measured.mix.mix)
    ends = figure["data"][0]["x"]
    marks = {trace["name"]: trace for trace in figure["data"] if "text" in trace}
    for trace in marks.values():
        assert trace["textposition"].endswith("right" if trace["x"][0] < (ends[0] + ends[-1]) / 2 else "left")
        assert trace["cliponaxis"] is False
    assert len({trace["textposition"] for name, trace in marks.items() if name.startswith("this mix")}) == 2
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < 0 < max(marks["all in 4 bits, measured"]["y"]) < high


def test_a_checkpoint_s_own_list_stands_beside_the_mix(measured, app, model, tmp_path):
    folder = tmp_path / "dynamic"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    skipped = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["lm_head", "model.layers.1.mlp"]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": skipped}))
    part = app.cost.mix
    part.like.value = str(folder)
    assert len(part.beside.modules_left_out) == 3
    assert f"As dynamic: {amount(part.beside.nbytes)}, predicted" in part.summary.value
    assert drawn(part.curve)[-1]["name"] == "as dynamic, predicted"
    part.like.value = model
    assert "no list of modules" in app.cost.message.value
    assert part.mix is not None
    assert part.beside is None
    assert "As dynamic" not in part.summary.value
    part.like.value = ""
    assert app.cost.message.value == ""


def test_a_checkpoint_is_opened_off_the_kernel_s_thread_and_once(app, model, monkeypatch):
    """It may lie on the Hub, and the slider draws the mix again and again."""
    part, asked = app.cost.mix, []
    monkeypatch.setattr(part.look, "submit", lambda what, unit, work: asked.append(work))
    part.like.value = "somebody/dynamic"
    for megabytes in np.linspace(part.memory.min, part.memory.max, 3):
        part.memory.value = megabytes
    assert len(asked) == 1
    assert part.mix is not None


def test_a_gpu_that_is_too_small_leaves_no_mix_of_another_memory_behind(app, monkeypatch):
    part = app.cost.mix
    monkeypatch.setattr(mixing, "fit", lambda ledger, gpu: types.SimpleNamespace(spare=-1))
    part.gpu.value = "T4 16 GB"
    assert "T4 16 GB" in app.cost.message.value
    assert part.mix is None
    assert drawn(part.curve) == []
    assert part.summary.value == ""
    assert part.stream.button.layout.display == "none"
    monkeypatch.undo()
    part.gpu.value = ""
    assert part.mix is not None
    assert part.hand.layout.display != "none"


def test_both_mixes_are_measured_by_one_process(measured, model, tmp_path, monkeypatch):
    folder = tmp_path / "dynamic"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    skipped = {"llm_int8_skip_modules": ["model.layers.0.self_attn"]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": skipped}))
    part, begun = measured.mix, []
    begin = process.Measuring._begin
    monkeypatch.setattr(process.Measuring, "_begin", lambda self: begun.append(self) or begin(self))
    before = part.memory.value
    part.like.value, part.memory.value = str(folder), 0.9 * before + 0.1 * part.memory.min
    with measuring():
        part.stream.button.click()
    assert measured.message.value == ""
    assert None not in (part.mix.measured, part.beside.measured)
    assert len(begun) == 1
    part.like.value, part.memory.value = "", before


def test_what_was_measured_at_equal_bits_is_found_again(measured, model, folder):
    measured.formats.bits.value = "equal"
    assert measured.message.value == "", "nothing at equal bits is kept yet"
    assert measured.formats.evaluation is None
    with measuring():
        measured.formats.stream.button.click()
    rows = measured.formats.evaluation.rows
    assert len(rows) > 4
    view = CostView(state=State(model=model, cost_folder=folder, cost_bits="equal", **STATE), executor=Immediate())
    assert view.formats.evaluation.rows == rows
    view.close()
    measured.formats.bits.value = "own"


def test_all_bits_lie_on_one_curve_with_the_mix(app):
    view = app.cost
    assert view.mix.mix is not None
    view.formats.bits.value = "curve"
    assert app.state["cost_bits"] == "curve"
    assert "23 passes" in view.formats.stream.cost.value
    with measuring():
        view.formats.stream.button.click()
    assert view.message.value == ""
    rows = view.formats.evaluation.rows
    names = [trace["name"] for trace in drawn(view.formats.bars)]
    assert names == [
        "symmetric integers", "integers with a zero point", "NF4, by block size", "NF4, double quantized, by block size",
        "NF4 mixed with 16 bits, predicted",
    ]  # fmt: skip
    ladder = {row.spec.format: row.kl for row in rows[1:]}
    assert f"from 3 to 2 ×{ladder['int2-sym'] / ladder['int3-sym']:.2g}" in view.formats.summary.value
    assert "wb.kl_curve(" in view.copy.code
    other = dataclasses.replace(
        rows[-1], spec=QuantSpec("int4", 64), name="INT4", kl=9.0
    )  # of the same bits, and no step of it
    assert why_four([*rows, other]) == why_four(rows)
    assert "INT4, by block size" in [trace["name"] for trace in kl_curve_figure([*rows, other])["data"]]


def test_another_text_is_another_measurement(app):
    app.cost.folder.value = ""
    app.cost.text.value = "bible"
    assert app.state["cost_text"] == "bible"
    assert app.cost.formats.evaluation is None
    assert "at most 12 held-out rows of the King James Bible" in app.cost.formats.stream.cost.value
    assert app.cost.copy.code.count("data='bible', max_rows=12, max_length=64, ") == 2


def test_one_click_hands_the_mix_to_the_training_form(app):
    app.cost.mix.hand.click()
    assert app.state["tab"] == "Train"
    names = app.train.config.llm_int8_skip_modules
    assert names == app.cost.mix.mix.to_config(app.session.store.value.training).llm_int8_skip_modules
    assert names


def test_the_mix_s_code_is_its_configuration_and_the_view_s_gives_its_numbers(measured):
    code = measured.mix.copy.code
    assert "BitsAndBytesConfig(" in code
    assert "llm_int8_skip_modules" in code
    compile(code, "mix", "exec")
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(measured.copy.code, names)
    assert names["costs"].rows == measured.formats.evaluation.rows
    assert names["sens"].rows == measured.modules.sensitivity.rows


def test_other_rows_are_another_measurement_and_a_folder_of_others_is_refused_with_a_remedy(app, folder):
    app.cost.rows.value = 5
    assert app.session.store.value.training.max_eval_rows == 5
    assert "another max_eval_rows" in app.cost.message.value
    assert "Name another folder." in app.cost.message.value
    app.cost.folder.value = f"{folder} for five"
    assert app.state["cost_folder"] == f"{folder} for five"
    assert app.cost.message.value == ""
    assert app.cost.formats.evaluation is None
    assert "at most 5 held-out rows" in app.cost.formats.stream.cost.value


def test_three_methods_are_trained_side_by_side_and_what_the_adapter_repairs_is_measured(model, tmp_path, monkeypatch, forks):
    monkeypatch.chdir(tmp_path)
    train = {"max_steps": 2, "max_eval_rows": 4, "eval_steps": 1}
    state = State(model=model, max_length=32, per_device_train_batch_size=2, optim="adamw_torch", train=train)
    view = CostView(state=state, executor=Immediate())
    assert "Trains three times for 2 steps" in view.methods.stream.cost.value
    with forks.ready(), measuring():
        view.methods.stream.button.click()
    assert view.message.value == ""
    results = view.methods.comparison.results
    assert [result.state for result in results] == ["finished"] * 3
    assert all(f"{result.loss_after:.4f}" in view.methods.table.value for result in results)
    assert "QLoRA" in view.methods.curves.summary
    assert view.methods.stream.button.layout.display == "none"
    names: dict = {}
    exec(view.methods.copy.code, names)
    assert [result.losses for result in names["methods"]] == [result.losses for result in results]

    assert view.repairs.run_dir.value == str(results[2].run_dir)
    with measuring():
        view.repairs.stream.button.click()
    assert view.message.value == ""
    assert len(view.repairs.repairs.rows) == 14 * len(view.repairs.repairs.steps)
    view.repairs._clicked({"x": 1.0, "y": 1.0})
    assert view.session.analysis.tensor.name == "model.layers.1.self_attn.k_proj.weight"
    assert drawn(view.repairs.map)[-1]["name"] in ("chosen tensor", "listed layer")
    view.repairs.run_dir.value = str(results[1].run_dir)
    view.repairs.stream.button.click()
    assert "Choose a run with method" in view.message.value
    assert view.repairs.stream.button.layout.display == ""
    view.close()
