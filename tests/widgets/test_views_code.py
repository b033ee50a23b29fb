"""Copy as code: the lines behind each view run as they are and give the numbers that it shows."""

import contextlib
import io
import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import workbench as wb
from tests.helpers.immediate import Immediate
from widgets import Workbench
from workbench.quant.formats import _formats

STATES = [
    {},
    {"formats": ["int4-asym", "mxfp4", "nvfp4"], "block_size": 128, "tensor": "model.layers.2.self_attn.o_proj.weight"},
    {"formats": ["nf4"], "double_quant": True, "nested_block_size": 64, "quantiles_of": "blocks", "block": 40, "weight": 3},
    {"gpu": "RTX 3060 12 GB", "lora_r": 64, "target_modules": ["q_proj"], "max_length": 8192, "optim": "paged_adamw_8bit"},
]


@pytest.fixture(params=STATES, ids=["as it opens", "other formats", "double quantized", "another fine-tune"])
def app(request):
    app = Workbench(state=request.param, executor=Immediate())
    yield app
    app.close()


def run(app, tab, view):
    """What the code behind a view leaves behind."""
    app.session.store.update(tab=tab)
    assert view.message.value == ""
    names: dict = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(view.copy.code, names)
    return names, printed.getvalue()


def test_the_distribution(app):
    app.session.store.update(distribution_figures="normal")
    names, _ = run(app, "Distribution", app.distribution)
    shown, part = app.session.analysis, app.distribution.normality
    assert [e.rmse for e in names["stats"]] == [e.rmse for e in shown.stats]
    np.testing.assert_array_equal(names["counts"], shown.histogram)
    np.testing.assert_array_equal(names["normal"].observed, part.normal.observed)
    assert [b.weights for b in names["tails"].beyond] == [b.weights for b in part.tails.beyond]
    lead = next(trace for trace in app.distribution.bins._state["content"]["data"] if trace["type"] == "bar")
    assert lead["customdata"][3].endswith(f"\t{names['bins'][0].rmse[3]:.3e}")


def test_the_block_and_its_weight(app):
    names, printed = run(app, "Error", app.error)
    shown, rows = app.error.block, app.error.rows.content
    np.testing.assert_array_equal(names["block"].restored, shown.restored)
    np.testing.assert_array_equal(names["errors"], app.session.analysis.stats[0].block_rmse)
    assert names["worst"].tolist() == [block for block, _, _ in rows["worst"]["lines"][:10]]
    steps = printed.strip().split("\n")
    assert steps == list(shown.arithmetic(app.error.weight)) == rows["weight"]["steps"]


def test_the_formats(app):
    names, _ = run(app, "Formats", app.formats)
    assert [s.rmse for s in names["duel"].contenders] == [s.rmse for s in app.formats.duel.contenders]
    assert names["duel"].winners() == app.formats.duel.winners()
    assert [s.bits for s in names["front"].front] == [s.bits for s in app.formats.pareto.front]
    for score in names["duel"].contenders:
        shown = f"</td><td class=wb-number>{score.spec.block_size}</td><td class=wb-number>{score.bits:.4f}</td>"
        named = score.spec.title.replace(f", blocks of {score.spec.block_size}", "")
        assert f"{named}{shown}" in app.formats.table.value.replace(" (least)", "")


def test_the_scales(app):
    names, _ = run(app, "Double quant", app.double_quant)
    shown = app.session.analysis.scales
    assert (names["plain"].rmse, names["doubled"].rmse) == (shown.plain.rmse, shown.doubled.rmse)
    np.testing.assert_array_equal(names["nested"].codes, shown.nested.codes)
    assert sum(row.saved for row in names["by_tensor"]) == names["saved"]
    assert "meta-llama/Llama-3.1-70B" in names["by_size"]
    assert f"{names['by_size']['huggyllama/llama-7b'].saved / 1e6:.2f} MB" in app.double_quant.sizes.value


def test_the_memory(app):
    names, _ = run(app, "Memory", app.memory)
    assert names["cfg"] == app.memory.config
    assert names["ledger"].total == wb.forecast(app.session.source, app.memory.config).total
    assert wb.memory_size(names["verdict"].ledger.total) in app.memory.table.value
    assert names["verdict"].gpu.name == app.memory.bar.gpu
    assert names["verdict"].verdict == app.memory.bar.content["verdict"]


def test_the_model_map(app):
    names, _ = run(app, "Model", app.map)
    table = names["table"]
    assert dict(zip(table["tensor"], table["relative_rmse"], strict=True)) == pytest.approx(
        {row.tensor.name: row.totals[0].relative_rmse for row in app.map.rows}
    )
    names, printed = run(app, "Model", app.model)
    assert "model.embed_tokens.weight" in printed


def test_a_format_of_one_s_own_comes_along():
    wb.register_format("halves", np.linspace(-1, 1, 16), title="Even halves")
    try:
        app = Workbench(state={"formats": ["halves"]}, executor=Immediate())
        code = app.distribution.copy.code
        rmse = app.session.analysis.stats[0].rmse
        app.close()
        del _formats["halves"]
        names: dict = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, names)
        assert names["stats"][0].rmse == rmse
    finally:
        _formats.pop("halves", None)


def test_a_tensor_that_is_stored_transposed_is_read_as_bitsandbytes_sees_it(tmp_path):
    x = np.random.default_rng(0).standard_normal((64, 192), np.float32)
    save_file({"h.0.attn.c_attn.weight": x}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))
    app = Workbench(str(tmp_path), executor=Immediate())
    assert app.session.analysis.shape == (192, 64)
    assert "shown transposed" in app.header.status["more"]
    names, _ = run(app, "Distribution", app.distribution)
    np.testing.assert_array_equal(names["x"], x.T)
    assert names["stats"][0].rmse == wb.measure(np.ascontiguousarray(x.T), wb.QuantSpec()).rmse
    app.close()


def test_a_name_in_quotes_stays_inside_its_quotes(tmp_path):
    folder = tmp_path / 'it\'s a "model"\n'
    folder.mkdir()
    save_file({"model.layers.0.mlp.up_proj.weight": np.ones((64, 64), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    app = Workbench(str(folder), executor=Immediate())
    names, _ = run(app, "Distribution", app.distribution)
    assert names["src"].path == folder
    app.close()
