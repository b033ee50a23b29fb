"""How a screen of text is cut, and numbers drawn as bars."""

from __future__ import annotations

import math

from tests.helpers.texts import missing
from workbench.show import PAGE, SCREEN, View, bar, sparkline


def test_lines_that_do_not_fit_are_counted() -> None:
    view = View(
        "Many", lines=[{"line": "x" * 60, "number": str(i)} for i in range(1_000)], total={"line": "in all"}, note="The end."
    )
    assert not missing(view.text, "more", "in all", "The end.")
    shown = sum(line.startswith("xxx") for line in view.text.splitlines())
    assert f"… and {1_000 - shown:,} more" in view.text
    assert len(view.text.encode()) <= SCREEN
    assert len(view.html.encode()) <= PAGE


def test_numbers_as_bars() -> None:
    assert (bar(1.0, 4), bar(0.5, 4), bar(0.0), bar(math.nan), bar(7.0, 2)) == ("████", "██", "", "", "██")
    assert sparkline([0, 1, 2]) == "▁▅█"
    assert (sparkline([]), sparkline([0, 0])) == ("", "▁▁")
