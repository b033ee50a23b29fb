"""What formats cost stands first in a report, where an evaluation is given."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

import workbench as wb
from tests.helpers.cost_in_process import measuring
from tests.helpers.texts import missing
from tests.helpers.tiny_model import write_tiny_model
from workbench.text import nats


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_the_divergence_of_each_format_stands_first(model: Path, tmp_path: Path) -> None:
    evaluation = wb.evaluate(model, ["nf4", "int3-sym"], max_rows=6, max_length=32)
    with measuring():
        path = wb.write_report(
            wb.survey(model, "nf4", progress=False), tmp_path / "r.html", evaluation=evaluation, progress=False
        )
    page = html.unescape(path.read_text("utf-8"))
    assert page.index('<section id="costs"') < page.index('<section id="errors"')
    base, nf4, int3 = evaluation.rows
    assert not missing(page, nats(nf4.kl), nats(int3.kl), f"{base.loss:.4f}", "held-out rows of The Devil's Dictionary")
    assert evaluation.ranks == {nf4.name: 1, int3.name: 2}
    assert '"kl-bars"' in page


def test_an_evaluation_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    survey = wb.survey("builtin", "nf4", tensors=["model.layers.0.mlp.up_proj.weight"], progress=False)
    with pytest.raises(wb.WorkbenchError, match="and the survey of builtin"):
        wb.write_report(survey, tmp_path / "r.html", evaluation=wb.evaluate(model, "nf4"), progress=False)
    with pytest.raises(wb.WorkbenchError, match="It is 7"):
        wb.write_report(survey, tmp_path / "r.html", evaluation=7, progress=False)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
