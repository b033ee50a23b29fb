"""The notebooks' pictures to drag on a page as Colab's: they are drawn, move by key, and the kernel receives it."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.colab.conftest import Opener

pytestmark = pytest.mark.colab

MATRIX = "import workbench as wb, widgets\nmatrix = wb.open_model('builtin').read('model.layers.2.self_attn.k_proj.weight')"
HEROES = {
    "BlockScales(matrix[0])": ("Outlier", "End", "outlier", "100"),
    "LevelsEditor(matrix)": ("Level 12 of 16", "Home", "levels", None),
    "OutlierChannel(matrix)": ("Weights to one scale", "End", "size", "4096"),
    "OneWeight(matrix)": ("Weight of the block", "End", "weight", None),
    "ScaleBytes(matrix)": ("Weights to one scale", "Home", "size", "32"),
    "MemoryBoxes()": ("Rank", "End", "rank", "256"),
    "PagingSpike()": ("Batch 31, its length", "Home", "tokens", "256"),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_each_picture_is_drawn_and_moves(open_notebook: Opener, theme: str) -> None:
    book = open_notebook(theme=theme)
    book.run(MATRIX)
    for made, (label, key, name, wanted) in HEROES.items():
        book.run(f"hero = widgets.{made}\nhero")
        book.page.locator("iframe").last.scroll_into_view_if_needed()
        handle = book.output.get_by_role("slider", name=label, exact=True)
        line = book.output.locator(".wb-hero-line b")
        expect(line).not_to_be_empty()
        before = book.ask(f"hero.state[{name!r}]")
        said = line.inner_text()
        handle.press(key)
        expect(line).not_to_have_text(said)
        if wanted is None:
            book.until(f"hero.state[{name!r}] != {before}", "True")
        else:
            book.until(f"hero.state[{name!r}]", wanted)
    book.shot(f"heroes-{theme}")


def test_the_bits_dial_answers(open_notebook: Opener) -> None:
    book = open_notebook()
    book.run("import widgets\ndial = widgets.BitsDial('to run, v.', bits=2)\ndial")
    book.page.locator("iframe").last.scroll_into_view_if_needed()
    book.run("dial.wait()")
    expect(book.outputs[0].locator(".wb-hero-said mark")).not_to_be_empty()
    book.run("dial.close()")
