"""The claim cards on a plain page, without Jupyter: guessed by mouse and by keyboard, turned, counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import widgets
from tests.browser.alone import DARK, LIGHT
from tests.browser.test_heroes import Alone
from tests.browser.test_heroes import alone as alone
from tests.browser.test_heroes import shared as shared

SMALL, EVEN, LATER = "7B shrinks to 3.5 GB", "Every bin holds as many", "Nobody has computed this"


@pytest.fixture
def cards() -> Iterator[widgets.ClaimCards]:
    made = widgets.ClaimCards({SMALL: ("What do its weights take?", 1, 30, "GB"), EVEN: None, LATER: None})
    made.judge(SMALL, "holds only if", value=3.87, computed="13.5 GB → 3.87 GB", why="scales are not counted.")
    made.judge(EVEN, "does not hold", computed="1.7% to 9.2%", why="blocks are divided by their own largest.")
    yield made
    made.close()


def test_a_guess_turns_the_card_and_counts(alone: Alone, cards: widgets.ClaimCards) -> None:
    alone.open(cards)
    assert alone.headline() == "3 claims"
    slider = alone.slider("What do its weights take?")
    slider.press("Home")
    for _ in range(80):  # of 200 places, on a logarithmic scale from 1 to 30
        slider.press("ArrowRight")
    alone.page.get_by_role("button", name="Reveal").press("Enter")
    shown = alone.shown()
    assert (shown["right"], shown["done"], shown["verdict"]) == ("1", "1", "holds only if")
    assert 3.8 < alone.state()["guesses"][SMALL] < 4
    assert "… scales are not counted." in alone.page.locator(".wb-card").inner_text()
    assert alone.headline() == "1 of 1 right"


def test_a_wrong_verdict_is_told_and_cannot_be_taken_back(alone: Alone, cards: widgets.ClaimCards) -> None:
    alone.open(cards)
    alone.page.get_by_role("button", name="Next ›").click()
    alone.page.get_by_role("button", name="holds", exact=True).click()
    assert (alone.shown()["right"], alone.shown()["done"]) == ("0", "1")
    assert alone.page.get_by_role("button", name="does not hold", exact=True).is_disabled()
    assert alone.page.get_by_role("button", name="Claim 2, wrong").is_visible()


def test_a_card_that_is_not_computed_yet_says_so(alone: Alone, cards: widgets.ClaimCards) -> None:
    alone.open(cards)
    alone.page.get_by_role("button", name="Claim 3").click()
    alone.page.get_by_role("button", name="holds", exact=True).click()
    assert alone.shown()["done"] == "0"
    assert "Not computed yet" in alone.page.locator(".wb-card").inner_text()


@pytest.mark.parametrize(("width", "theme"), [(960, LIGHT), (960, DARK), (380, DARK)])
def test_it_fits_its_place(alone: Alone, cards: widgets.ClaimCards, width: int, theme: str) -> None:
    guesses: dict[str, Any] = {SMALL: 12.0, EVEN: "does not hold"}
    for card in range(3):
        cards.state = {"card": card, "guesses": guesses}
        alone.open(cards, width)
        alone.page.evaluate("(theme) => { document.body.dataset.jpThemeLight = theme; }", theme)
        box = alone.page.locator(".wb-hero").bounding_box()
        assert box is not None
        assert width < 500 or box["height"] <= 440
        assert alone.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert len(str(alone.page.get_by_role("figure").get_attribute("aria-label"))) > 40
