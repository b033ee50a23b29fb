"""The header without a browser: what it offers, what a choice changes, what it copies."""

import numpy as np
import pytest

import workbench as wb
from tests.helpers.immediate import Immediate
from widgets import Workbench
from workbench.quant.formats import _formats


@pytest.fixture
def app():
    app = Workbench("builtin", executor=Immediate())
    yield app
    app.close()


def test_header_and_state_follow_each_other(app):
    app.header.ask("choose", {"block_size": 256, "double_quant": True})
    assert (app.state["block_size"], app.state["double_quant"]) == (256, True)
    app.session.store.update(formats=("int4",), block_size=32)
    assert (app.header.state["formats"], app.header.state["block_size"]) == (["int4"], 32)


def test_a_layer_is_chosen_with_the_tensor_that_does_the_same_there(app):
    app.header.ask("choose", {"tensor": "model.layers.0.self_attn.o_proj.weight"})
    assert [choice["label"] for choice in app.header.choices["layer"]] == [f"layer {i}" for i in range(6)]
    app.header.ask("choose", {"layer": 3})
    assert app.state["tensor"] == app.header.state["tensor"] == "model.layers.3.self_attn.o_proj.weight"
    assert {choice["value"].split(".")[2] for choice in app.header.choices["tensor"]} == {"3"}
    assert app.header.state["shape"] == "256 × 256"


def test_a_choice_that_is_refused_is_taken_back(app):
    choice = {"kind": "choose", "value": {"formats": []}, "page": "one", "number": 7}
    app.header._receive(app.header, choice, [])
    assert app.header.state["answered"] == ["one", 7]
    assert app.header.state["formats"] == ["nf4", "int4"]
    assert "one to three different names" in app.message.value


def test_the_header_copies_what_is_behind_the_view_in_front_and_is_quiet_where_no_tensor_matters(app):
    assert app.header.code == app.distribution.copy.code
    assert app.header.of_one_tensor
    app.session.store.update(tab="Memory")
    assert app.header.code == app.memory.copy.code
    assert not app.header.of_one_tensor


def test_a_registered_format_may_be_chosen_in_the_header():
    wb.register_format("<b>mine</b>", np.linspace(-1, 1, 16))
    try:
        app = Workbench("builtin", executor=Immediate())
        assert "<b>mine</b>" in [choice["value"] for choice in app.header.choices["format"]]
        app.header.ask("choose", {"formats": ["<b>mine</b>"]})
        assert app.session.analysis.stats[0].spec.format == "<b>mine</b>"
        assert "<b>mine" not in app.distribution.table.value
        app.close()
    finally:
        del _formats["<b>mine</b>"]
