"""Views without a browser: what they draw, how they follow one state, and what they do with bad input."""

import gc
import json

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import pytest
from safetensors.numpy import save_file

import workbench as wb
from tests.helpers import living
from tests.helpers.immediate import Immediate
from tests.helpers.texts import missing
from widgets import DistributionView, DoubleQuantView, MemoryView, ModelPicker, Workbench
from widgets.controls.style import Panel
from widgets.figures import bins, blocks
from widgets.figures import memory as memory_figures
from widgets.figures import scales as scale_figures
from widgets.session import Analysis, Session
from widgets.state import State, Store
from widgets.views import TABS


@pytest.fixture
def session():
    session = Session(executor=Immediate())
    yield session
    session.close()


@pytest.fixture
def app():
    app = Workbench("builtin", executor=Immediate())
    yield app
    app.close()


def folder(path, x: np.ndarray):
    save_file({"model.layers.0.mlp.up_proj.weight": x}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return str(path)


def test_a_state_is_a_small_json_value_that_replays_in_plain_python(app):
    app.header.ask("choose", {"block_size": 128})
    app.header.ask("choose", {"formats": ["fp4", "int4"]})
    state = State.from_dict(json.loads(json.dumps(app.state)))
    shown = app.session.analysis.stats
    source = wb.open_model(state.model)
    replayed = wb.measure(source.read(state.tensor or app.session.analysis.tensor.name), state.specs)
    assert [e.rmse for e in replayed] == [e.rmse for e in shown]
    again = Workbench(state=app.state, executor=Immediate())
    assert again.state == app.state
    assert again.session.analysis.stats[0].rmse == shown[0].rmse
    again.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"formats": ["nf5"]},
        {"formats": []},
        {"formats": ["nf4", "nf4"]},
        {"block_size": 63},
        {"error_field": "x"},
        {"colour": 1},
    ],
)
def test_an_impossible_state_is_refused(wrong):
    with pytest.raises(wb.WorkbenchError):
        State.from_dict(wrong)


def test_a_state_names_the_field_that_was_meant_and_where_a_run_s_own_belong() -> None:
    with pytest.raises(wb.ConfigError, match=r"'blok_size' is no field\. Did you mean 'block_size'"):
        State(blok_size=32)  # type: ignore[call-arg]
    with pytest.raises(wb.ConfigError, match=r"'rank' is no field\. Did you mean 'lora_r'\?.*belongs into train: save_steps"):
        State(rank=8, save_steps=5)  # type: ignore[call-arg]


def test_a_store_tells_what_changed_and_forgets_the_block_with_its_tensor():
    store, seen = Store(State(block=3)), []
    end = store.observe(lambda state, changed: seen.append((state.block, changed)))
    store.update(block_size=64)  # as it is: nothing changes
    store.update(block_size=128)
    end()
    store.update(block_size=256)
    assert seen == [(None, {"block", "block_size"})]
    store.update(block=5, weight=2)
    store.update(formats=("fp4",))
    assert (store.value.block, store.value.weight) == (5, 2)
    store.update(block=6)
    assert store.value.weight is None


def test_only_the_view_on_screen_draws_and_the_others_catch_up(app):
    before = app.error.rows.summary
    app.header.ask("choose", {"formats": ["fp4"]})
    assert "FP4" in app.distribution.bins.summary
    assert app.error.rows.summary == before
    app.tabs.selected_index = 2
    assert "FP4" in app.error.rows.summary


def test_distribution_shows_every_weight_once(session):
    view = DistributionView(session=session)
    session.start()
    analysis = session.analysis
    assert analysis.histogram.sum() == analysis.tensor.numel
    data = view.bins._state["content"]["data"]
    assert [trace["name"] for trace in data if "meta" in trace] == ["histogram", "NF4", "INT4"]
    for e in analysis.stats:
        assert f"{e.sqnr_db:.2f} dB" in view.table.value
    view.close()


def test_how_normal_the_weights_are_is_found_when_a_reader_asks_for_it(session):
    view = DistributionView(session=session)
    session.start()
    assert view.normality is None, "it takes a pass over the weights"
    view.figures.value = "normal"
    assert session.store.value.distribution_figures == "normal"
    assert f"{view.normality.normal.correlation:.5f}" in view.normality.summary.value
    assert f"{view.normality.tails.beyond[0].weights:,}" in view.normality.tails_table.value
    assert view.table.layout.display == "none"
    view.figures.value = "numbers"
    assert (view.table.layout.display, view.normality.widget.layout.display) == ("", "none")
    view.close()


def test_every_figure_is_one_that_plotly_accepts(session):
    session.want(frozenset({"scales"}), True)
    session.start()
    analysis, scales = session.analysis, session.analysis.scales
    source = analysis.source
    ledgers = [wb.forecast(source, wb.TrainConfig())] * 2
    from workbench.memory.gpus import GPUS

    for figure in (
        bins.distribution(analysis.histogram, analysis.stats, log=True),
        scale_figures.scale_overhead(scales.doubled.spec),
        scale_figures.absmax_spread(scales.plain.block_absmax, scales.nested),
        scale_figures.nested_codes(scales.nested),
        memory_figures.memory_methods_figure(ledgers, GPUS["T4 16 GB"]),
    ):
        go.Figure(figure)


def test_the_worst_blocks_are_those_of_a_stable_sort():
    x = np.random.default_rng(0).integers(-8, 8, (200, 640)).astype(np.float32)
    x[7, 3] = np.nan
    e = wb.measure(x, wb.QuantSpec())
    expected = np.argsort(-np.nan_to_num(e.block_absmax, nan=-1), kind="stable")
    assert blocks.worst_blocks(e, "block_absmax", 20) == expected[:20].tolist()
    assert blocks.worst_blocks(e, "block_absmax", 10**6) == expected.tolist()


def test_double_quantization_is_told_in_bits_bytes_and_error(session):
    view = DoubleQuantView(session=session)
    session.start()
    assert "32/64 = 0.5" in view.sum.value
    assert "0.1270" in view.sum.value
    assert "256" in view.sum.value
    plain, doubled = session.analysis.scales.plain, session.analysis.scales.doubled
    assert f"{100 * (doubled.rmse / plain.rmse - 1):+.3f} %" in view.table.value
    session.store.update(nested_block_size=64)
    assert "32/(64·64)" in view.sum.value
    view.close()


def test_memory_follows_its_controls(session):
    view = MemoryView(session=session)
    session.start()
    before = wb.forecast(session.source, view.config)
    view.rank.value, view.optimizer.value = 256, "paged_adamw_8bit"
    after = wb.forecast(session.source, view.config)
    assert after["adapters"] == 16 * before["adapters"]
    assert view.bar.content["verdict"] == "fits"
    assert view.bar.content["rows"][0]["title"] == "Full fine-tuning, 16-bit"
    on_it = wb.fit(after, session.store.value.gpu).ledger
    assert sum(part["bytes"] for part in view.bar.content["parts"]) == view.bar.content["total"] == on_it.total
    session.store.update(double_quant=not session.store.value.double_quant, block_size=256, formats=("fp4",))
    assert wb.forecast(session.source, view.config) == after, "what is looked at is not what is trained"
    view.double_quant.value = False
    assert view.config.double_quant is False
    view.close()


def test_the_model_s_tensors_are_listed_with_their_fate(session):
    view = ModelPicker(session=session)
    session.start()
    assert "an embedding, tied to the output head" in view.table.value
    assert "model.layers.5.mlp.down_proj.weight" in view.table.value
    view.close()


@pytest.mark.parametrize("broken", ["missing", "truncated", "not a model"])
def test_a_model_that_cannot_be_opened_is_told_and_the_old_one_stays(app, tmp_path, broken):
    path = tmp_path / "model"
    path.mkdir()
    if broken == "truncated":
        folder(path, np.ones((64, 64), np.float32))
        whole = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(whole[:-1000])
    app.header.ask("open", str(tmp_path / "nowhere") if broken == "missing" else str(path))
    assert 'role="alert"' in app.message.value
    assert app.state["model"] == app.header.state["model"] == "builtin"
    app.header.ask("open", "builtin")
    assert app.message.value == ""


def test_opening_the_same_folder_again_reads_it_again(app, tmp_path):
    for value in (1, 3):
        app.header.ask("open", folder(tmp_path, np.full((64, 64), value, np.float32)))
    assert app.session.analysis.stats[0].block_absmax.max() == 3


def test_a_request_that_is_overtaken_by_another_model_leaves_no_weights_under_the_old_one(session, tmp_path):
    paths = []
    for value in (1, 3):
        (tmp_path / str(value)).mkdir()
        paths.append(folder(tmp_path / str(value), np.full((64, 64), value, np.float32)))
    session.open(paths[0])
    old = session.store.value
    session.open(paths[1])
    session._analyse(old)  # what a slow thread does with a state from before the model was changed
    session.open(paths[0])
    assert session.analysis.stats[0].block_absmax.max() == 1


def test_weights_that_are_nan_are_measured_and_told(app, tmp_path):
    x = np.random.default_rng(0).standard_normal((64, 256), np.float32)
    x[3, :2], x[9, 9] = np.nan, np.inf
    app.header.ask("open", folder(tmp_path, x))
    assert not missing(app.header.status["more"], "2 weights are NaN", "1 infinite", "2 blocks")
    for index in range(7):
        app.tabs.selected_index = index
    for view in app.views:
        assert view.message.value == ""
        assert [plot.error for plot in view.plots] == [""] * len(view.plots)
    app.tabs.selected_index = 2
    app.session.store.update(block=3 * 4)
    rows = app.error.rows.content
    assert np.isnan(rows["block"]["weights"][0])
    assert "NaN or infinite" in rows["block"]["aside"] + rows["weight"]["steps"][0]
    assert rows["weight"]["line"] is None


def test_text_from_a_model_is_escaped(app, tmp_path):
    save_file({"<img src=x onerror=alert(1)>": np.ones((64, 64), np.float32)}, tmp_path / "model.safetensors")
    app.header.ask("open", str(tmp_path))
    assert "&lt;img" in app.message.value, "such a name is refused, and told"
    good = tmp_path / "good"
    good.mkdir()
    folder(good, np.ones((64, 64), np.float32))
    (good / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["<script>alert(2)</script>"]}))
    app.header.ask("open", str(good))
    app.tabs.selected_index = 0
    assert "&lt;script" in app.model.summary.value
    shown = app.model.title.value + app.model.summary.value + app.model.table.value + app.message.value
    assert "<img" not in shown
    assert "<script" not in shown


def test_a_view_alone_has_a_header_and_closes_whole():
    from widgets.drawing.plot import PlotlyLibrary

    DistributionView("builtin", executor=Immediate()).close()  # plotly.js itself stays for the next plot
    before = len(living.widgets())
    view = DistributionView("builtin", executor=Immediate())
    assert len(living.widgets()) > before
    view.close()
    view.close()
    assert len(living.widgets()) == before
    assert PlotlyLibrary.shared() is PlotlyLibrary.shared()


@pytest.mark.parametrize("make", [Workbench, DistributionView])
def test_plotly_js_is_the_first_that_the_page_gets(make):
    """It is on its way while the kernel makes and measures the rest."""
    from widgets.drawing.plot import PlotlyLibrary

    PlotlyLibrary.shared().close()
    made = []
    ipywidgets.Widget.on_widget_constructed(made.append)
    try:
        make("builtin", executor=Immediate()).close()
    finally:
        ipywidgets.Widget.on_widget_constructed(None)
    own = [widget for widget in made if not isinstance(widget, ipywidgets.Layout)]
    assert isinstance(own[0], PlotlyLibrary)


@pytest.mark.parametrize("name", wb.FORMATS)
def test_every_format_is_shown_with_the_numbers_of_its_own_definition(app, name):
    """Formats with block sizes of their own, zero points or a scale of the tensor, in the lead of every view."""
    app.tabs.selected_index = 2
    app.session.store.update(formats=(name, "nf4" if name != "nf4" else "int4"), block_size=128, double_quant=True)
    source = app.session.source
    array = source.read(app.session.analysis.tensor.name)
    e = app.session.analysis.stats[0]
    form = wb.FORMATS[name]
    assert e.spec.block_size == (128 if 128 in form.block_sizes else form.block_sizes[0])
    assert e.spec.double_quant is form.double_quantizable
    block = blocks.worst_blocks(e, "block_rmse", 1)[0]
    inside = slice(block * e.spec.block_size, (block + 1) * e.spec.block_size)
    x, restored = array.reshape(-1)[inside].astype(np.float32), wb.quantize(array, e.spec).dequantize().reshape(-1)[inside]
    rows = app.error.rows.content
    np.testing.assert_array_equal(rows["block"]["restored"], restored)
    np.testing.assert_array_equal(rows["block"]["weights"], x)
    weight, at = rows["weight"], app.error.weight
    assert [weight["terms"][i][1] for i in (0, -2, -1)] == [
        f"{value:.4g}".replace("-", "−") for value in (x[at], restored[at], x[at] - restored[at])
    ]
    low, high = (-np.inf if weight["line"]["bin"][0] is None else weight["line"]["bin"][0]), weight["line"]["bin"][1]
    assert low <= weight["line"]["at"] <= (np.inf if high is None else high)
    assert weight["line"]["levels"][weight["line"]["rank"]] == weight["line"]["level"] == app.error.block.levels[at]
    assert np.sqrt(np.mean((x - restored) ** 2)) == pytest.approx(e.block_rmse[block], rel=1e-4)
    app.tabs.selected_index = 4
    assert ("NF4 is shown" in app.double_quant.sum.value) is not form.double_quantizable


def test_double_quantization_is_measured_only_while_a_view_of_it_is_on_screen(app):
    assert app.session.analysis.scales is None
    app.session.store.update(tab="Double quant")
    assert app.session.analysis.scales.doubled.spec.double_quant
    assert "32/64 = 0.5" in app.double_quant.sum.value
    app.session.store.update(block_size=128)
    assert "32/128 = 0.25" in app.double_quant.sum.value
    app.session.store.update(tab="Distribution")
    app.session.store.update(block_size=64)
    assert app.session.analysis.scales is None


def test_an_app_that_is_closed_leaves_no_panel_no_model_and_no_weights():
    def alive():
        gc.collect()
        return [type(o).__name__ for o in gc.get_objects() if issubclass(type(o), Panel | Session | Analysis)]

    before = alive()
    app = Workbench("builtin", executor=Immediate())
    for tab in TABS:
        app.session.store.update(tab=tab)
    assert len(alive()) > len(before)
    app.close()
    del app
    assert alive() == before
