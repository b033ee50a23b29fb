"""The header in a real JupyterLab: lists by pointer and keys, chips, and what opens over the app without moving it."""

from __future__ import annotations

from typing import Any

import pytest

import workbench as wb
from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook
from tests.browser.test_app import choice, choose, open_app, shows, tab

pytestmark = pytest.mark.slow

_BOXES = """() => {
    const app = document.querySelector('.wb-panel').getBoundingClientRect();
    const open = document.querySelector('.wb-popup:not([hidden])')?.getBoundingClientRect();
    const tabs = document.querySelector('.widget-tab').getBoundingClientRect();
    const within = !open || (open.left >= app.left && open.right <= app.right && open.bottom <= app.bottom);
    return { within, open: Boolean(open), tabs: Math.round(tabs.top - app.top) };
}"""


def holds(lab: Lab, **fields: Any) -> None:
    """Wait until the kernel has these fields in the state."""
    lab.knows(f"[app.state[name] for name in {[*fields]}]", [*fields.values()])


def test_layer_and_tensor_are_found_by_typing_and_chosen_by_keys(lab: Lab, lab_server: Server) -> None:
    open_app(lab, lab_server)
    layer, tensor = choice(lab, "Layer"), choice(lab, "Tensor")
    layer.focus()
    lab.page.keyboard.type("layer 4")
    lab.page.keyboard.press("Enter")
    shows(lab, "Layer", "layer 4")
    shows(lab, "Tensor", "down_proj")
    tensor.press("ArrowDown")
    assert tensor.get_attribute("aria-expanded") == "true"
    lab.page.keyboard.type("attn")
    lines = lab.page.get_by_role("listbox", name="Tensor", exact=True).get_by_role("option")
    assert lines.all_inner_texts() == [f"self_attn.{kind}_proj" for kind in "qkvo"]
    lab.page.keyboard.press("ArrowDown")
    active = tensor.get_attribute("aria-activedescendant")
    assert lab.page.locator(f"#{active}").inner_text() == "self_attn.k_proj"
    holds(lab, layer=4)
    lab.kernel("app.session.store.update(tensor='model.layers.4.self_attn.v_proj.weight')")
    shows(lab, "Tensor", "v_proj")
    active = tensor.get_attribute("aria-activedescendant")
    assert lab.page.locator(f"#{active}").inner_text() == "self_attn.k_proj", "a late answer moves nothing under the hand"
    lab.page.keyboard.press("Enter")
    shows(lab, "Tensor", "k_proj")
    holds(lab, tensor="model.layers.4.self_attn.k_proj.weight")
    tensor.press("ArrowRight")  # without opening: the neighbour
    shows(lab, "Tensor", "v_proj")
    holds(lab, tensor="model.layers.4.self_attn.v_proj.weight")
    tensor.click()
    lines.filter(has_text="o_proj").hover()
    lab.page.mouse.down()
    lab.kernel("app.session.store.update(tensor='model.layers.4.self_attn.q_proj.weight')")
    shows(lab, "Tensor", "q_proj")
    lab.page.mouse.up()
    shows(lab, "Tensor", "o_proj")
    tensor.press("Enter")
    lab.page.keyboard.press("Escape")
    assert tensor.get_attribute("aria-expanded") == "false"
    assert tensor.evaluate("e => e === document.activeElement"), "the notebook has not heard of it"
    lab.until_plot(0, "plot.data.length > 0")


def test_formats_are_chips_that_are_added_swapped_and_removed(lab: Lab, lab_server: Server) -> None:
    open_app(lab, lab_server)
    choose(lab, "Add a format", "FP4")
    shows(lab, "Also compare with", "FP4")
    assert not lab.page.get_by_role("combobox", name="Add a format", exact=True).is_visible(), "three are all"
    choose(lab, "Format", "FP4")
    shows(lab, "Also compare with", "NF4")
    holds(lab, formats=["fp4", "int4", "nf4"])
    choose(lab, "Compare with", "remove")
    shows(lab, "Compare with", "NF4")
    choice(lab, "Format").press("Delete")
    shows(lab, "Format", "NF4")
    holds(lab, formats=["nf4"])
    choice(lab, "Format").press("Delete")  # the last one stays
    lab.page.get_by_role("checkbox", name="Double quantization").check()
    lab.until("() => document.querySelector('.wb-check input').checked")
    holds(lab, formats=["nf4"], double_quant=True)


def test_integers_of_any_bits_stand_behind_a_line_of_the_list(lab: Lab, lab_server: Server) -> None:
    open_app(lab, lab_server)
    button, lines = choice(lab, "Format"), lab.page.get_by_role("listbox", name="Format", exact=True).get_by_role("option")
    button.click()
    usual = len([form for form in wb.FORMATS.values() if form.usual])
    assert lines.count() == usual + 2, "with the line behind which the others are, and remove"
    lines.filter(has_text="integers of any bits").click()
    assert lines.count() == len(wb.FORMATS) + 1
    active = button.get_attribute("aria-activedescendant")
    assert lab.page.locator(f"#{active}").inner_text().startswith("INT2 symmetric"), "keys go on where the line was"
    lab.page.keyboard.press("ArrowDown")
    lab.page.keyboard.press("Enter")
    shows(lab, "Format", "INT3 symmetric")
    holds(lab, formats=["int3-sym", "int4"])
    button.press("Enter")
    assert lines.count() == usual + 3, "what is chosen is listed"
    lab.page.keyboard.type("int6")
    assert [text.split("\n")[0] for text in lines.all_inner_texts()] == ["INT6 symmetric", "INT6 asymmetric"]
    lab.page.keyboard.press("Escape")
    button.press("Home")  # without opening: the first of what is listed
    shows(lab, "Format", "NF4")


@pytest.mark.parametrize("width", [1400, 760])
def test_what_opens_stays_inside_the_app_and_moves_nothing(lab: Lab, lab_server: Server, width: int) -> None:
    open_app(lab, lab_server)
    lab.page.set_viewport_size({"width": width, "height": 900})
    lab.alone()
    tab(lab, "Train")
    lab.page.get_by_role("button", name="Launch", exact=True).wait_for()
    before = lab.page.evaluate(_BOXES)
    assert not before["open"]
    buttons = [lab.page.get_by_role("button", name=name, exact=True).first for name in ("Model", "Copy as code")]
    lists = [choice(lab, name) for name in ("Layer", "Tensor", "Format", "Compare with", "Add a format", "Block size")]
    for opener in [*buttons, *lists]:
        opener.click()
        lab.until("() => document.querySelector('.wb-popup:not([hidden])')")
        assert lab.page.evaluate(_BOXES) == before | {"open": True}
        lab.page.keyboard.press("Escape")
        assert lab.page.evaluate(_BOXES) == before


@pytest.mark.parametrize(("view", "chooses"), [("DistributionView", True), ("ModelPicker", False)])
def test_a_view_alone_has_the_header_with_what_applies_to_it(lab: Lab, lab_server: Server, view: str, chooses: bool) -> None:
    write_notebook(lab_server.folder / "view.ipynb", f"from widgets import {view}\n{view}('builtin')")
    lab.open("view.ipynb")
    lab.alone()
    lab.run_all()
    header = lab.page.locator(".wb-header")
    header.get_by_role("button", name="Model", exact=True).filter(has_text="builtin").wait_for()
    for name in ("Layer", "Tensor", "Format", "Compare with"):
        assert header.get_by_role("combobox", name=name, exact=True).is_visible() == chooses, name
    assert header.get_by_role("button", name="Copy as code", exact=True).is_visible()
    assert header.evaluate("e => e.offsetHeight") <= 40
