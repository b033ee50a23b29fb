"""The claim cards without a browser: what a card may ask, how it is judged, and when a guess counts."""

from __future__ import annotations

import json
from typing import Any

import pytest

import widgets
from workbench.errors import FormatError


@pytest.fixture
def cards() -> widgets.ClaimCards:
    return widgets.ClaimCards({"it is small": ("How small?", 1, 100, "GB"), "it is even": None})


def test_all_that_a_page_needs_is_json(cards: widgets.ClaimCards) -> None:
    assert len(json.dumps([cards.data, cards.state])) < 1000
    assert "export default" in cards._esm


@pytest.mark.parametrize(("guess", "right"), [(10, True), (8, True), (12, True), (7.9, False), (12.1, False)])
def test_a_number_counts_within_a_fifth(cards: widgets.ClaimCards, guess: float, right: bool) -> None:
    cards.judge("it is small", "holds", value=10, why="It is.")
    cards.state = {"card": 0, "guesses": {"it is small": guess}}
    assert cards.score == (int(right), 1)


def test_a_guess_on_a_card_that_is_not_judged_waits(cards: widgets.ClaimCards) -> None:
    cards.state = {"card": 1, "guesses": {"it is even": "holds only if"}}
    assert cards.score == (0, 0)
    cards.judge("it is even", "holds only if", why="one rounds.")
    assert cards.score == (1, 1)
    assert cards.verdicts == {"it is even": "holds only if"}


def test_a_card_that_is_judged_again_has_the_later_verdict(cards: widgets.ClaimCards) -> None:
    cards.judge("it is even", "holds")
    cards.judge("it is even", "does not hold")
    assert cards.verdicts == {"it is even": "does not hold"}


@pytest.mark.parametrize(
    ("claim", "verdict", "value", "said"),
    [
        ("it is odd", "holds", None, "no claim"),
        ("it is even", "maybe", None, "no verdict"),
        ("it is small", "holds", None, "asks for a number"),
        ("it is small", "holds", float("nan"), "asks for a number"),
    ],
)
def test_what_cannot_be_judged_says_why(cards: widgets.ClaimCards, claim: str, verdict: str, value: Any, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        cards.judge(claim, verdict, value=value)


@pytest.mark.parametrize("claims", [{}, {"it is small": ("How small?", 5, 5, "GB")}, {"x": ("?", 0, float("inf"), "")}])
def test_there_must_be_something_to_guess(claims: Any) -> None:
    with pytest.raises(FormatError):
        widgets.ClaimCards(claims)
