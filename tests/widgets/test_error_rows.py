"""The error's rows without a browser: what each row is sent, what a choice does, and a model that is not measured yet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import workbench as wb
from tests.helpers.immediate import Immediate
from widgets import BlockErrorView, State, Workbench
from widgets.background import surveying
from widgets.figures import blocks
from workbench.surveys.places import Places

LEAD = wb.QuantSpec("nf4")


def model(folder: Path, **tensors: np.ndarray) -> str:
    """A model of one layer, the keywords its tensors: ``down_proj`` is ``model.layers.0.mlp.down_proj.weight``."""
    folder.mkdir()
    save_file({f"model.layers.0.mlp.{name}.weight": x for name, x in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return str(folder)


@pytest.fixture
def view() -> Iterator[BlockErrorView]:
    view = BlockErrorView("builtin", executor=Immediate())
    yield view
    view.close()


def choose(view: BlockErrorView, what: str, value: Any = None) -> None:
    """What the page sends."""
    view.rows._handle_custom_msg({"type": "choose", "what": what, "value": value}, [])
    assert view.message.value == ""


def shown(view: BlockErrorView, part: str) -> Any:
    return view.rows.content[part]


def test_each_row_shows_what_is_chosen_in_the_one_before(view: BlockErrorView) -> None:
    survey = wb.survey("builtin", LEAD, progress=False).to_frame().set_index("tensor")["relative_rmse"]
    cells = shown(view, "model")
    assert (cells["layers"], cells["kinds"]) == (list("012345"), ["q", "k", "v", "o", "gate", "up", "down"])
    assert cells["values"].reshape(6, 7)[5, 6] == np.float32(survey["model.layers.5.mlp.down_proj.weight"])
    assert cells["offer"] is None, "a small model is measured by itself"

    choose(view, "cell", [4, 2])
    name = "model.layers.4.self_attn.v_proj.weight"
    assert view.session.store.value.tensor == name == shown(view, "tensor")["name"]
    assert shown(view, "model")["selected"] == [4, 2]
    x = wb.open_model("builtin").read(name)
    e = wb.measure(x, LEAD)
    worst = int(e.block_rmse.argmax())
    assert shown(view, "map")["selected"] == view.block.index == worst

    choose(view, "block", 9)
    b = wb.inspect_block(x, e, 9)
    np.testing.assert_array_equal(shown(view, "block")["codes"], b.codes)
    np.testing.assert_array_equal(shown(view, "block")["restored"], b.restored)
    assert view.weight == b.worst

    choose(view, "weight", 3)
    terms = {label.split(" ")[0]: number.replace("−", "-") for _, number, label in shown(view, "weight")["terms"]}
    assert terms["weight"] == f"{b.weights[3]:.4g}"
    assert terms["becomes"] == f"{b.restored[3]:.4g}"
    assert terms["error"] == f"{b.errors[3]:.4g}"
    assert shown(view, "weight")["steps"] == list(b.arithmetic(3))

    choose(view, "field", "block_absmax")
    assert view.block.index == int(e.block_absmax.argmax())
    assert shown(view, "map")["high"] == e.block_absmax.max()


def test_a_block_picked_on_the_lying_map_is_the_one_under_the_pointer(view: BlockErrorView) -> None:
    lead = view.session.analysis.stats[0]
    assert lead.blocks_per_row == 11
    assert shown(view, "map")["shape"] == [11, 256], "256 rows side by side"
    pick = {"type": "pick", "number": shown(view, "map")["number"], "rows": [2, 3], "columns": [7, 8]}
    view.rows._handle_custom_msg(pick, [])
    assert view.session.store.value.block == view.rows.selected == view.block.index == 7 * 11 + 2
    x = view.session.analysis.weights[view.block.index * 64 :][:64].astype(np.float32)
    np.testing.assert_array_equal(shown(view, "block")["weights"], x)
    assert f"absmax {np.abs(x).max():.4g}" in shown(view, "block")["aside"]
    restored = wb.quantize(x, lead.spec).dequantize()
    np.testing.assert_array_equal(shown(view, "block")["restored"], restored)
    assert view.weight == np.abs(x - restored).argmax(), "the weight that errs most"
    worst = shown(view, "worst")["lines"]
    assert worst[0][0] == int(np.argmax(lead.block_rmse))
    choose(view, "block", worst[3][0])
    assert view.rows.selected == worst[3][0]


def test_one_change_is_one_message_and_a_weight_s_is_small(view: BlockErrorView, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[Any, list[bytes]]] = []
    monkeypatch.setattr(view.rows, "send", lambda message, buffers=(): sent.append((message, list(buffers))))
    choose(view, "weight", 5)
    [(message, buffers)] = sent
    assert message["type"] == "patch"
    assert len(json.dumps(message)) + sum(map(len, buffers)) < 4_000
    sent.clear()
    view.update(block_size=128)
    patches = [message for message, _ in sent if any(path[0] == "map" for path, *_ in message["operations"])]
    assert len(patches) == 1


def test_double_quantization_shows_both_scales_and_how_one_became_the_other(view: BlockErrorView) -> None:
    view.update(double_quant=True)
    b = view.block
    assert b.nested is not None
    numbers = [number for _, number, _ in shown(view, "weight")["terms"]]
    assert f"{b.absmax:.4g}" in numbers
    assert f"{b.scale:.4g}" in numbers
    assert f"code {b.nested.code}" in shown(view, "weight")["aside"]


@pytest.mark.parametrize("shape", [(4096,), (64,), (1, 64), (64, 64), (3, 100), (8, 4096)], ids=str)
@pytest.mark.parametrize("block_size", [64, 4096])
def test_tensors_of_any_shape_and_blocks_of_any_size(shape: tuple[int, ...], block_size: int) -> None:
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    e = wb.measure(x, wb.QuantSpec("nf4", block_size))
    b = wb.inspect_block(x, e, blocks.worst_blocks(e, "block_rmse", 20)[-1])
    part = blocks.block_part(e, b)
    assert part["weights"].size == part["codes"].size == min(block_size, x.size - b.index * block_size)
    assert blocks.weight_part(b, b.worst)["terms"][-1][1] == f"{b.errors[b.worst]:.4g}".replace("-", "−")
    assert [curve.shape for curve in blocks.spread_part([e], "block_rmse")["curves"]] == [(64,)]


def test_the_curves_count_every_block_of_the_leading_format() -> None:
    x = np.random.default_rng(0).standard_normal((64, 640), np.float32)
    x[3, 3] = np.nan
    stats = wb.measure(x, ["nf4", "int4"])
    lead, other = blocks.spread_part(stats, "block_rmse")["curves"]
    values = stats[0].block_rmse[np.isfinite(stats[0].block_rmse)]
    counts = np.histogram(values, 64, (values.min(), values.max()))[0]
    assert np.argmax(lead) == np.argmax(counts)
    assert max(lead.max(), other.max()) == 1
    same = blocks.spread_part(wb.measure(np.ones((4, 64), np.float32), ["nf4"]), "block_rmse")["curves"]
    assert same[0][0] == 1, "all blocks alike"


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_blocks_of_zeros_and_those_without_a_scale_are_told(tmp_path: Path, value: float) -> None:
    x = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    x[7] = value
    view = BlockErrorView(model(tmp_path / "m", up_proj=x), executor=Immediate(), state=State(block=7))
    choose(view, "block", 7)
    weight = shown(view, "weight")
    assert (weight["line"] is None) == (value != 0)
    assert weight["terms"][0][2] == "weight"
    view.close()


def test_a_model_that_takes_long_is_measured_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveying, "OF_ITSELF", 1000)
    rng = np.random.default_rng(0)
    path = model(
        tmp_path / "m", up_proj=rng.standard_normal((64, 64), np.float32), down_proj=rng.standard_t(3, (64, 64)).astype("f4")
    )
    view = BlockErrorView(path, executor=Immediate())
    cells = shown(view, "model")
    assert cells["offer"]["text"] == "not measured yet"
    assert np.isfinite(cells["values"]).sum() == 1, "the tensor on show is measured"
    choose(view, "measure")
    cells = shown(view, "model")
    assert cells["offer"] is None
    assert np.isfinite(cells["values"]).all()
    view.close()


def test_the_model_s_map_and_the_rows_share_one_survey() -> None:
    app = Workbench("builtin", state={"tab": "Error"}, executor=Immediate())
    rows = app.session.survey.rows
    app.session.store.update(tab="Model")
    assert app.map.rows == tuple(rows)
    assert all(a is b for a, b in zip(app.map.rows, rows, strict=True))
    app.session.store.update(block_size=128)
    app.session.store.update(block_size=64)
    assert all(a is b for a, b in zip(app.session.survey.rows, rows, strict=True)), "going back costs nothing"
    app.close()


def test_a_cell_of_several_tensors_shows_the_worst_and_what_is_not_known_gives_way() -> None:
    names = [f"model.layers.0.block_sparse_moe.experts.{i}.w1.weight" for i in range(3)]
    places = Places.named([*names, "model.layers.1.self_attn.q_proj.weight"])
    assert places.worst({names[0]: np.nan, names[1]: 0.1, names[2]: 0.3}) == {(0, 1): names[2]}
    assert places.worst({names[0]: np.nan, names[1]: np.nan}) == {(0, 1): names[0]}
    few = Places.named([f"model.layers.0.part{i}.weight" for i in range(30)], most_kinds=24)
    assert (len(few.kinds), few.kinds[-1], len(few.in_cell(23, 0))) == (24, "other", 7)
    part = blocks.model_part(places, {names[1]: 0.1}, [names[0]], names[1])
    assert part["there"].tolist() == [0, 2, 1, 0]
    assert part["values"][1] == np.float32(0.1)
