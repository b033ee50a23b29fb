"""The explorable page: it is what its script makes of the widgets as they are, asks for nothing, and says what was measured."""

from __future__ import annotations

import json
import re

import pytest

import workbench as wb
from scripts.explore.page import LISTED, MEASURED, TARGET, page
from workbench.cost.ladder import FORMATS, ROWS


def test_the_committed_page_is_what_the_script_makes() -> None:
    assert TARGET.read_text("utf-8") == page(), "Run: python -m scripts.explore.page"
    assert TARGET.stat().st_size < 1_500_000


def test_the_page_refers_to_nothing_elsewhere() -> None:
    text = TARGET.read_text("utf-8")
    assert "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href|action|poster)=|url\(|@import|fetch\(|XMLHttpRequest|WebSocket""", text)
    assert set(re.findall(r"https?://[^\"\\]+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_page_names_no_date_and_every_place_in_it_is_filled() -> None:
    assert not re.findall(r"20\d\d-\d\d|@[A-Z]+@", TARGET.read_text("utf-8"))


@pytest.mark.slow
def test_kl_divergence_is_as_it_was_measured() -> None:
    found = json.loads(MEASURED.read_text("utf-8"))
    kept = {line["name"]: line for line in found["lines"]} | {
        wb.QuantSpec(name, 64).title: found["costs"][str(bits)] for bits, name in FORMATS.items()
    }
    specs = (LISTED[3], LISTED[-1])
    for cost in wb.kl_curve("builtin", specs, max_rows=ROWS):
        if cost.spec is not None:
            assert cost.kl == pytest.approx(kept[cost.name]["kl"], rel=0.05), "other processors round otherwise"
            assert cost.flips == pytest.approx(kept[cost.name]["flips"], abs=0.01)
