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


def test_the_bits_dial_answers_and_turns(open_notebook: Opener) -> None:
    book = open_notebook()
    book.run("import widgets\ndial = widgets.BitsDial('to run, v.', bits=2)\ndial")
    book.page.locator("iframe").last.scroll_into_view_if_needed()
    frame = book.output
    book.run("dial.wait()")
    expect(frame.locator(".wb-hero-said mark")).not_to_be_empty()
    frame.get_by_role("slider", name="Bits a weight").press("Home")
    book.until("dial.state['bits']", "16")
    expect(frame.locator(".wb-hero-line b")).to_have_text("16 bits")
    expect(frame.locator(".wb-hero-said mark")).to_have_count(0)
    prompt = frame.get_by_role("textbox", name="Prompt")
    prompt.fill("music, n.")
    prompt.press("Enter")
    book.until("dial.state['prompt']", "'music, n.'")
    expect(frame.locator(".wb-hero-said b")).to_have_text("music, n.")
    book.run("dial.close()")


def test_a_claim_is_guessed_turned_and_counted(open_notebook: Opener) -> None:
    book = open_notebook()
    claims = "{'7B shrinks to 3.5 GB': ('What do its weights take?', 1, 30, 'GB'), 'NF4 is uniform': None}"
    book.run(f"import widgets\ncards = widgets.ClaimCards({claims})\ncards")
    frame = book.output
    frame.get_by_role("slider", name="What do its weights take?").press("Home")
    frame.get_by_role("button", name="Reveal").click()
    book.until("cards.state['guesses']", "{'7B shrinks to 3.5 GB': 1}")
    expect(frame.locator(".wb-turned")).to_contain_text("Not computed yet")
    book.run("cards.judge('7B shrinks to 3.5 GB', 'holds only if', value=3.87, why='you count four bits alone.')")
    expect(frame.locator(".wb-turned")).to_contain_text("Holds only if")
    frame.get_by_role("button", name="Next").click()
    frame.get_by_role("button", name="does not hold").click()
    book.run("cards.judge('NF4 is uniform', 'does not hold', computed='gaps of 0.08 to 0.30')")
    expect(frame.locator(".wb-hero-line b")).to_have_text("1 of 2 right")
    book.until("cards.score", "(1, 2)")
