"""The app on a page as Colab's: its tabs, its controls by mouse, keys and touch, what it copies, and a second cell."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.colab.app import App
from tests.browser.colab.conftest import Opener
from widgets.views import TABS

pytestmark = pytest.mark.colab

GROWN = 5000
"""Pixels that the product asks for its output, beyond Colab's 1,000."""


@pytest.mark.parametrize(("theme", "opened"), [("light", True), ("dark", False)])
def test_each_tab_is_alone_on_screen_whole_and_can_be_read(open_notebook: Opener, theme: str, opened: bool) -> None:
    book = open_notebook(theme=theme, opened=opened)
    app = App(book)
    assert app.panel.get_by_role("tab").all_inner_texts() == list(TABS)
    for name in TABS:
        app.tab(name)
        if (tools := app.button("Insert picture")).count():
            tools.first.focus()  # they show where they are used
        assert app.faint() == [], name
        content = app.panel.evaluate("e => document.body.getBoundingClientRect().height")
        assert book.heights[-1] == pytest.approx(min(content, GROWN), abs=1), f"{name} is not shown to its end"
        book.shot(f"{name.lower().replace(' ', '-')}-{theme}")


def test_the_header_is_used_by_mouse_keys_and_touch(open_notebook: Opener) -> None:
    app = App(open_notebook())
    keys = app.book.page.keyboard

    app.choose("Format", "FP4")
    app.until(formats=["fp4", "int4"])
    app.choice("Format").focus()
    keys.press("ArrowLeft")
    app.until(formats=["nf4", "int4"])

    app.choice("Block size").focus()
    keys.press("ArrowRight")
    app.until(block_size=128)
    app.choice("Block size").tap()
    app.offered("Block size", "256 weights a scale").tap()
    app.until(block_size=256)

    app.double_quant.click()
    app.until(double_quant=True)
    app.double_quant.press("Space")
    app.until(double_quant=False)
    app.double_quant.tap()
    app.until(double_quant=True)
    app.settled()


def test_a_slider_is_moved_by_mouse_keys_and_touch(open_notebook: Opener) -> None:
    app = App(open_notebook(opened=False), tab="Double quant")
    app.slider.focus()
    app.book.page.keyboard.press("ArrowRight")
    app.until(nested_block_size=512)
    box, handle = app.track.bounding_box(), app.slider.bounding_box()
    assert box is not None
    assert handle is not None
    middle = box["height"] / 2
    app.track.click(position={"x": 1, "y": middle})
    app.until(nested_block_size=32)
    gliding, whole = re.compile("noUi-state-tap"), app.slider.locator("xpath=ancestor::*[contains(@class, 'noUi-target')]")
    expect(whole).not_to_have_class(gliding)  # it hears no touch meanwhile
    app.track.tap(position={"x": box["width"] - 1, "y": middle})
    app.until(nested_block_size=1024)
    expect(whole).not_to_have_class(gliding)

    mouse = app.book.page.mouse
    app.slider.hover()
    mouse.down()
    app.track.hover(position={"x": 1, "y": middle}, force=True)
    mouse.up()
    app.until(nested_block_size=32)


def test_a_block_is_chosen_by_mouse_and_by_keys(open_notebook: Opener) -> None:
    app = App(open_notebook(opened=False))
    app.tab("Error")
    app.map.click()  # in its middle
    app.book.until("app.state['block'] is None", "False")
    before = app.book.ask("app.state['block']")
    app.map.focus()
    app.book.page.keyboard.press("ArrowDown")
    app.book.page.keyboard.press("Enter")
    app.book.until(f"app.state['block'] > {before}", "True")
    expect(app.pages.get_by_role("heading", name=re.compile(r"^Block \d"))).to_be_visible()


@pytest.mark.parametrize("clipboard", [True, False])
def test_code_is_copied_or_selected_and_a_picture_goes_below_the_app(open_notebook: Opener, clipboard: bool) -> None:
    book = open_notebook(clipboard=clipboard)
    app = App(book)
    app.button("Copy as code").click()
    if clipboard:
        expect(app.panel.get_by_text("Copied.")).to_be_visible()
    else:
        code = app.panel.get_by_role("dialog", name="The code").get_by_role("textbox")
        expect(code).to_be_focused()
        assert "wb.open_model" in code.evaluate("e => e.value.slice(e.selectionStart, e.selectionEnd)")

    drawing = app.pages.get_by_role("figure").first
    drawing.hover()
    app.button("Insert picture").first.click()
    expect(app.output.locator("img[src^='data:image/png']")).to_be_visible()


def test_the_same_view_in_a_second_cell_follows_the_first(open_notebook: Opener) -> None:
    book = open_notebook()
    first = App(book)
    second = App(book, again=True)
    assert len(book.outputs) == 2
    first.choose("Format", "FP4")
    expect(second.choice("Format")).to_have_text("FP4")
    second.double_quant.click()
    expect(first.double_quant).to_be_checked()


def test_a_page_four_times_slower_shows_all_the_same(open_notebook: Opener) -> None:
    book = open_notebook()
    book.run("from widgets import Plot\nPlot({})")
    book.throttle(4)
    app = App(book)
    for name in ("Error", "Train", "Distribution"):
        app.tab(name)
    app.choose("Format", "FP4")
    app.until(formats=["fp4", "int4"])
    app.settled()
    # anywidget gives up a model that is not ready in two seconds, of which other tests beside this one may take their part.
    book.errors = [error for error in book.errors if "[anywidget] Failed to initialize model" not in error]
