"""Formats at equal bits: each in the configuration that a duel chooses, which a folder keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench.cost.evaluation import CHOSEN, EQUAL_BITS

pytestmark = pytest.mark.usefixtures("measured_here")


def test_at_equal_bits_each_format_has_the_configuration_that_a_duel_chooses(model: Path) -> None:
    ev = wb.evaluate(model, ["mxfp4", "nf4", "fp4"], equal_bits=True)
    assert set(ev.specs) == {score.spec for score in wb.duel(model, EQUAL_BITS, ["mxfp4", "nf4", "fp4"]).contenders}
    assert max(spec.bits_per_weight for spec in ev.specs) <= EQUAL_BITS
    small = wb.evaluate(model, ["nf4"], equal_bits=4.2)
    assert [spec.bits_per_weight <= 4.2 for spec in small.specs] == [True]


def test_what_was_chosen_at_equal_bits_is_read_and_not_chosen_again(model: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"equal_bits": True, "max_rows": 4, "max_length": 24, "folder": tmp_path / "kept"}
    with pytest.raises(InterruptedError):
        wb.evaluate(model, ["nf4", "fp4"], cancelled=lambda: True, **how)
    first = wb.evaluate(model, ["nf4", "fp4"], **how).run()
    assert first.complete
    assert wb.evaluate(model, ["nf4", "fp4"], cancelled=lambda: True, **how).specs == first.specs
    (tmp_path / "kept" / CHOSEN).write_text("[]")  # by another version
    assert wb.evaluate(model, ["nf4", "fp4"], **how).run().rows == first.rows


def test_equal_bits_are_of_formats_and_not_of_rotated_ones(model: Path) -> None:
    with pytest.raises(wb.FormatError, match="without rotation") as refused:
        wb.evaluate(model, ["fp4", wb.QuantSpec("nf4", rotate="hadamard")], equal_bits=True)
    assert refused.value.remedy
    with pytest.raises(wb.FormatError, match="0"):
        wb.evaluate(model, ["nf4"], equal_bits=0)
