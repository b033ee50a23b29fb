"""The model map, the formats, the way down and back up, and long work that is overtaken, cancelled or goes wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import workbench as wb
from tests.helpers.immediate import Immediate, Later
from tests.helpers.texts import missing
from widgets import DistributionView, FormatsView, MemoryView, ModelMapView, Workbench
from widgets.background import surveying
from widgets.figures import model
from widgets.panels import formats as formats_panel
from widgets.session import Session
from widgets.state import State
from widgets.views import TABS
from workbench.errors import ModelError
from workbench.sources.local import LocalSource
from workbench.surveys.places import Places


@pytest.fixture
def app():
    app = Workbench("builtin", executor=Immediate())
    yield app
    app.close()


@pytest.fixture
def later():
    return Later()


def folder(path, tensors, **config):
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], **config}))
    return str(path)


def layers(count, seed=0):
    rng = np.random.default_rng(seed)
    kinds = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (64, 64), "mlp.up_proj": (128, 64), "mlp.down_proj": (64, 128)}
    return {
        f"model.layers.{i}.{kind}.weight": rng.standard_normal(shape, np.float32)
        for i in range(count)
        for kind, shape in kinds.items()
    }


def test_the_map_has_a_cell_for_each_tensor_with_what_the_survey_says(app):
    app.session.store.update(tab="Model")
    table = wb.survey(app.session.source, wb.QuantSpec(), progress=False).to_frame().set_index("tensor")
    for field in ("relative_rmse", "sqnr_db", "kurtosis", "nbytes"):
        app.map.field.value = field
        assert app.state["map_field"] == field
        z = app.map.map._state["content"]["data"][1]["z"]
        assert z["shape"] == [6, 7]
        places = Places.arrange(app.session.survey.tensors)
        figure = model.model_map(places, app.map.rows, field)
        for name, (row, column) in places.of.items():
            assert figure["data"][1]["z"][row, column] == pytest.approx(table[field][name], rel=1e-6)
    assert "42 of 42 tensors" in app.map.summary.value
    assert app.map.start.layout.display == "none"


def test_a_cell_and_a_line_of_the_list_choose_the_tensor_everywhere(app):
    app.session.store.update(tab="Model")
    app.map._clicked({"x": 3.2, "y": 2})
    assert app.state["tensor"] == "model.layers.2.self_attn.o_proj.weight"
    assert app.session.analysis.tensor.name == app.map.list.value == app.header.state["tensor"] == app.state["tensor"]
    app.map.list.index = 0
    assert app.state["tensor"] == app.map.list.options[0][1]
    assert app.map.list.options[0][1] in app.map.map.summary, "the list begins with the worst"


def test_what_is_bad_comes_first_whatever_is_shown(app):
    app.session.store.update(tab="Model")
    table = wb.survey(app.session.source, wb.QuantSpec(), progress=False)
    for field in ("relative_rmse", "sqnr_db", "kurtosis"):
        app.session.store.update(map_field=field)
        assert app.map.list.options[0][1] == table.worst(1, by=field)["tensor"][0]


def test_the_list_beside_the_map_is_of_the_model_or_of_one_layer(app):
    app.session.store.update(tensor="model.layers.4.mlp.up_proj.weight", tab="Model")
    assert len(app.map.list.options) == 42
    assert app.map.one_layer.description == "only layer 4"
    app.map.one_layer.value = True
    assert app.state["layer"] == 4
    assert {name.split(".")[2] for _, name in app.map.list.options} == {"4"}
    assert len(app.map.list.options) == 7
    app.header.ask("choose", {"layer": 2})
    assert {name.split(".")[2] for _, name in app.map.list.options} == {"2"}
    app.map.one_layer.value = False
    assert len(app.map.list.options) == 42


def test_a_weight_chosen_in_its_block_is_in_the_state(app):
    app.session.store.update(tensor="model.layers.4.mlp.up_proj.weight", tab="Error")
    block = app.error.rows.content["worst"]["lines"][2][0]
    app.error.rows._handle_custom_msg({"type": "choose", "what": "block", "value": block}, [])
    app.error.rows._handle_custom_msg({"type": "choose", "what": "weight", "value": 7}, [])
    assert (app.state["block"], app.state["weight"]) == (block, 7)
    app.session.store.update(tab="Model")
    assert app.tabs.selected_index == TABS.index("Model")


def test_a_state_brings_tab_block_weight_and_settings_back(app):
    app.session.store.update(tensor="model.layers.1.mlp.up_proj.weight", formats=("fp4", "af4"), tab="Error")
    app.session.store.update(block=11, weight=5, map_field="kurtosis", layer=1, duel_bits=4.25, lora_r=64, gpu="L4 24 GB")
    again = Workbench(state=json.loads(json.dumps(app.state)), executor=Immediate())
    assert again.state == app.state
    assert again.tabs.selected_index == TABS.index("Error")
    assert again.error.rows.content["weight"]["terms"] == app.error.rows.content["weight"]["terms"]
    assert (again.error.block.index, again.error.weight) == (11, 5)
    again.session.store.update(tab="Memory")
    assert (again.memory.rank.value, again.memory.bar.gpu) == (64, "L4 24 GB")
    again.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"tab": "Nowhere"},
        {"weight": -1},
        {"block": True},
        {"layer": "3"},
        {"duel_bits": 0},
        {"gpu": "GPU"},
        {"lora_r": 0},
        {"scope": "x"},
    ],
)
def test_a_state_with_an_impossible_new_field_is_refused(wrong):
    with pytest.raises(wb.WorkbenchError):
        State.from_dict(wrong)


def test_experts_share_a_cell_which_shows_the_worst(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        f"model.layers.0.block_sparse_moe.experts.{i}.w1.weight": rng.standard_t(9 - 2 * i, (64, 64)).astype(np.float32)
        for i in range(4)
    }
    source = wb.open_model(folder(tmp_path / "moe", tensors, model_type="mixtral"))
    rows = wb.survey(source, wb.QuantSpec(), tensors=list(tensors), progress=False).run().rows
    places = Places.arrange([row.tensor for row in rows])
    assert places.in_cell(0, 0) == list(tensors)
    shown = model.model_map(places, rows, "relative_rmse")["data"][1]
    assert shown["z"][0, 0] == np.float32(max(row.totals[0].relative_rmse for row in rows))
    assert max(rows, key=lambda row: row.totals[0].relative_rmse).tensor.name in shown["text"][0][0]


def test_rows_appear_while_the_survey_goes_on_and_it_can_be_cancelled_and_gone_on_with(later, tmp_path, monkeypatch):
    monkeypatch.setattr(surveying, "EVERY", 0.0)
    view = ModelMapView(folder(tmp_path / "m", layers(3)), executor=later)
    later.run()  # opens the model
    later.run()  # measures its first tensor, whereupon the survey is asked for
    seen = []

    def watch(change):
        seen.append(change["new"])
        if "3 of 12" in change["new"]:
            view.session.survey.cancel()

    view.summary.observe(watch, "value")
    later.run()
    assert "1 of 12" in seen[0]
    assert "3 of 12" in seen[-1]
    assert len(view.rows) == 3
    assert view.start.layout.display == ""
    assert "Go on surveying" in view.start.description
    view.start.click()
    assert view.start.layout.display == "none"
    later.run()
    assert sorted(row.tensor.name for row in view.rows) == sorted(layers(3))
    assert view.start.layout.display == "none"
    view.close()


def test_a_survey_that_is_overtaken_leaves_no_row(later, tmp_path):
    view = ModelMapView(folder(tmp_path / "m", layers(2)), executor=later)
    later.run()
    later.run()
    old = later.jobs.pop()  # the survey under blocks of 64, which has a slow thread
    view.update(block_size=128)
    later.run()
    later.run()
    assert {row.totals[0].spec.block_size for row in view.rows} == {128}
    old()
    assert {row.totals[0].spec.block_size for row in view.rows} == {128}
    assert len(view.rows) == 8
    view.close()


class Broken(LocalSource):
    """A folder of which a tensor cannot be read."""

    def chunks(self, name, *args, **kwargs):
        if "up_proj" in name:
            raise ModelError("The <disk> is gone.", where=name)
        return super().chunks(name, *args, **kwargs)


def test_a_tensor_that_cannot_be_read_is_in_the_map_as_what_went_wrong(tmp_path):
    view = ModelMapView(Broken(Path(folder(tmp_path / "m", layers(1)))), executor=Immediate())
    assert "1 could not be measured" in view.summary.value
    text = view.map._state["content"]["data"][1]["text"]
    assert any("The &lt;disk&gt; is gone." in cell for cell in text[0])
    assert len(view.list.options) == 3
    view.close()


def test_a_large_or_distant_model_is_surveyed_and_compared_only_when_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(surveying, "OF_ITSELF", 1000)
    monkeypatch.setattr(formats_panel, "OF_ITSELF", 1000)
    path = folder(tmp_path / "m", layers(2))
    view = ModelMapView(path, executor=Immediate())
    assert view.rows == ()
    assert "196.61 kB" in view.start.description
    view.start.click()
    assert len(view.rows) == 8
    view.close()
    view = FormatsView(path, executor=Immediate())
    view.scope.value = "model"
    assert view.duel is None
    assert "press Compare" in view.front.summary
    view.start.click()
    assert len(view.duel.measured.rows) == 8
    assert view.start.layout.display == "none"
    view.close()


def test_formats_follow_tensor_scope_and_bits(app):
    app.session.store.update(tab="Formats")
    view = app.formats
    array = app.session.source.read(app.session.analysis.tensor.name)
    assert view.duel.winners() == wb.duel(array, 4.5).winners()
    assert "least" in view.table.value
    view.bits.value = 4.25
    assert view.duel.bits == app.state["duel_bits"] == 4.25
    assert all(score.spec.bits_per_weight <= 4.25 for score in view.duel.contenders)
    view.scope.value = "model"
    assert len(view.duel.measured.rows) == 42
    assert [s.rmse for s in view.duel.contenders] == [s.rmse for s in wb.duel("builtin", 4.25).contenders]
    first = view.pareto
    view.bits.value = 4.5
    assert view.pareto is first, "the front does not depend on the duel's bits"


def test_codes_of_more_than_two_widths_share_their_axes():
    x = np.random.default_rng(0).standard_normal((64, 512), np.float32)
    two, many = (wb.pareto(x, names) for names in (["int4-sym", "int8"], [f"int{bits}-sym" for bits in range(2, 9)]))
    assert {"xaxis", "xaxis2"} < set(model.pareto_figure(two, 4.5)["layout"])
    drawn = model.pareto_figure(many, 4.5)
    assert "xaxis2" not in drawn["layout"]
    assert drawn["layout"]["yaxis"]["type"] == "log"
    heights = {note["text"]: note["y"] for note in drawn["layout"]["annotations"]}
    assert heights["INT2 symmetric"] == pytest.approx(np.log10(many.points[0].score.relative_rmse)), "plotly counts in powers"
    assert len(drawn["data"]) == 1 + 7 + 1, "the front, a line a format, the duel's bits"


def test_a_number_of_bits_that_nothing_keeps_to_is_told_and_can_be_corrected(app):
    app.session.store.update(tab="Formats")
    app.formats.bits.value = 4
    assert 'role="alert"' in app.formats.message.value
    assert "ask for more" in app.formats.message.value
    app.formats.bits.value = 4.5
    assert app.formats.message.value == ""
    assert app.formats.duel.bits == 4.5


def test_a_large_tensor_is_compared_on_a_sample_that_is_said(monkeypatch):
    monkeypatch.setattr(formats_panel, "MOST", 1 << 16)
    view = FormatsView("builtin", executor=Immediate())
    assert view.duel.measured.sampled == pytest.approx(1 / 3, rel=0.1)
    assert "measured on a sample of 3" in view.summary.value
    assert "sample=0.333" in view.copy.code
    view.close()


def test_outliers_are_counted_later_and_again_on_request(later):
    session = Session(State(distribution_figures="normal"), later)
    view = DistributionView(session=session)
    session.start()
    later.run()
    part = view.normality
    assert "NF4, blocks of 64…" in part.tails_summary.value
    part.work.cancel()
    assert part.count.layout.display == ""
    later.run()
    assert part.tails is None
    part.count.click()
    later.run()
    x = session.source.read(session.analysis.tensor.name)
    assert part.tails.beyond == wb.outliers(x).beyond
    assert f"{part.tails.beyond[0].weights:,}" in part.tails_table.value
    view.close()
    session.close()


def test_counting_outliers_makes_way_for_what_is_measured_next(later):
    session = Session(State(distribution_figures="normal"), later)
    view = DistributionView(session=session)
    session.start()
    later.run()
    part = view.normality
    assert part.work.busy
    session.store.update(block_size=128)
    assert not part.work.busy
    assert part.count.layout.display == "none", "it is counted later, and nobody need ask for it"
    session.cancel()
    assert part.work.busy, "nothing new came, so it goes on with what is shown"
    session.store.update(block_size=256)
    later.run()
    later.run()
    assert part.tails.spec == wb.QuantSpec("nf4", 256)
    view.close()
    session.close()


def test_memory_names_the_adapters_by_the_model_s_modules_and_what_is_not_quantized():
    view = MemoryView("builtin", executor=Immediate())
    titles = [title for title, _ in view.targets.options]
    assert titles[1] == "queries and values (q_proj, v_proj)"
    every = wb.forecast(view.session.source, view.config)["adapters"]
    view.targets.value = ("q_proj", "v_proj")
    assert view.session.store.value.target_modules == ("q_proj", "v_proj")
    assert 0 < wb.forecast(view.session.source, view.config)["adapters"] < every
    assert not missing(view.stays_summary.value, "14 tensors", "2.01 MiB", "3.20 MiB less")
    assert "model.embed_tokens.weight" in view.stays.value
    view.checkpointing.value = False
    assert not view.config.gradient_checkpointing
    view.bar.gpu, view.length.value, view.batch.value = "RTX 3060 12 GB", 8192, 64
    assert view.bar.content["verdict"] == "does not fit"
    assert "Cheapest changes" in view.ways.value
    view.close()


def test_packed_weights_are_shown_dequantized_and_said_to_be(tmp_path):
    import bitsandbytes as bnb
    import torch

    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    packed, state = bnb.functional.quantize_4bit(x, quant_type="nf4")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors = {name: packed.numpy()} | {f"{name}.{key}": value.numpy() for key, value in state.as_dict(packed=True).items()}
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}
    app = Workbench(folder(tmp_path / "m", tensors, **config), executor=Immediate())
    np.testing.assert_array_equal(
        app.session.analysis.weights.reshape(64, 128), bnb.functional.dequantize_4bit(packed, state).numpy()
    )
    assert "The checkpoint holds it in NF4" in app.header.status["more"]
    for tab in TABS:
        app.session.store.update(tab=tab)
    assert [view.message.value for view in app.views] == [""] * len(app.views)
    assert len(app.map.rows) == 1
    app.close()
