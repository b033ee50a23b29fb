"""``ClaimCards``: claims about QLoRA as cards. The reader guesses, turns the card, and sees what was computed, with a score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from widgets.drawing.drawing import script
from widgets.heroes.hero import Hero, among, hero_script
from workbench.errors import FormatError

VERDICTS = ("holds", "holds only if", "does not hold", "cannot be told here")
WITHIN = 0.2
"""How far a guessed number may be from the computed one and still count, as a share of the latter."""


class ClaimCards(Hero):
    """Claims to guess at: each a number on a slider, or a verdict to choose. ``judge`` gives a card its verdict.

    ``claims`` gives each claim's question as (question, least, most, unit), or None for a card that asks for the verdict. A
    guess counts where the verdict is right, or the number within a fifth of the computed one. A card that is not yet judged
    keeps the guess and turns once it is.

    Raises:
        FormatError: Without a claim, and for a guess between ends in the wrong order.

    >>> cards = widgets.ClaimCards({"7B shrinks to 3.5 GB": ("What do its weights take?", 1, 30, "GB"), "NF4 is uniform": None})
    >>> cards.judge("NF4 is uniform", "does not hold", computed="gaps of 0.08 to 0.30", why="They widen towards the ends.")
    >>> cards.judge("7B shrinks to 3.5 GB", "holds only if", value=3.87, why="embedding and scales are not counted.")
    >>> cards.state = {"card": 1, "guesses": {"NF4 is uniform": "holds", "7B shrinks to 3.5 GB": 4.0}}
    >>> cards
    ClaimCards(2 claims, 2 judged, 1 of 2 guesses right)
    """

    _esm = hero_script("claim_cards")
    _css = script("drawing/colab.css", "heroes/hero.css", "heroes/claim_cards.css")

    def __init__(self, claims: Mapping[str, Sequence[Any] | None]) -> None:
        if not claims:
            raise FormatError("There are no claims.", where="ClaimCards", remedy="Give at least one.")
        cards = [_card(claim, asked) for claim, asked in claims.items()]
        super().__init__({"cards": cards, "verdicts": list(VERDICTS), "within": WITHIN}, {"card": 0, "guesses": {}})

    def judge(self, claim: str, verdict: str, *, value: float | None = None, computed: str = "", why: str = "") -> None:
        """Give a claim its verdict.

        Args:
            claim: The claim of one of the cards.
            verdict: One of ``VERDICTS``.
            value: The computed number, of a card that asks for one.
            computed: What was computed, in words.
            why: Why the verdict follows from it.

        Raises:
            FormatError: No card has this claim, the verdict is another, or a number is asked for and none is given.
        """
        cards = self.data["cards"]
        among(claim, [card["claim"] for card in cards], "claim")
        among(verdict, VERDICTS, "verdict")
        asks = next(card for card in cards if card["claim"] == claim)["question"] is not None
        if asks and (value is None or not math.isfinite(value)):
            raise FormatError("This card asks for a number.", where=claim, remedy="Give the computed one as value.")
        found = {
            "verdict": verdict,
            "value": float(value) if asks and value is not None else None,
            "computed": computed,
            "why": why,
        }
        known = [{**card, "found": found} if card["claim"] == claim else card for card in cards]
        self.data = {**self.data, "cards": known}

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict of each claim that has one, in the order of the cards."""
        return {card["claim"]: card["found"]["verdict"] for card in self.data["cards"] if card["found"]}

    @property
    def score(self) -> tuple[int, int]:
        """How many guesses are right, of how many on judged cards."""
        guesses = self.state.get("guesses", {})
        of = [(card, guesses[card["claim"]]) for card in self.data["cards"] if card["found"] and card["claim"] in guesses]
        return sum(_right(card, guess) for card, guess in of), len(of)

    def __repr__(self) -> str:
        right, guessed = self.score
        judged = f"{len(self.data['cards'])} claims, {len(self.verdicts)} judged"
        return f"ClaimCards({judged}, {right} of {guessed} guesses right)"


def _card(claim: str, asked: Sequence[Any] | None) -> dict[str, Any]:
    card: dict[str, Any] = {"claim": claim, "question": None, "found": None}
    if asked is None:
        return card
    question, low, high, unit = asked
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise FormatError(f"There is nothing to guess from {low} to {high}.", where=claim, remedy="Give the smaller end first.")
    return {**card, "question": question, "low": float(low), "high": float(high), "unit": unit}


def _right(card: Mapping[str, Any], guess: Any) -> bool:
    """Whether a guess counts; claim_cards.js says the same."""
    found = card["found"]
    if card["question"] is None:
        return bool(guess == found["verdict"])
    return bool(abs(guess - found["value"]) <= WITHIN * abs(found["value"]))
