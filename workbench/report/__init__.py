"""One self-contained HTML page about a model: its error by layer, formats at equal bits, double quantization, memory, outliers.

Covers gathering (``contents.py``), words and tables (``sections.py``, ``text.py``), plots as plotly JSON (``figures.py``) and
the page (``page.py``, ``page.css``, ``page.js``). The page holds plotly.js itself, asks the network for nothing, and runs
nothing that a model's names may hold. Does not import plotly: its JavaScript is read as a file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.atomic import replacing_for_user
from workbench.errors import WorkbenchError
from workbench.given import described, is_a

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from workbench.cost.evaluation import Evaluation
    from workbench.progress import Progress
    from workbench.surveys.survey import Survey

__all__ = ["write_report"]


def write_report(
    surveyed: Survey,
    path: str | os.PathLike[str],
    *,
    bits: float = 4.5,
    evaluation: Evaluation | None = None,
    executor: Executor | None = None,
    progress: bool | Progress = True,
) -> Path:
    """Writes the report of a survey as one HTML file of some two megabytes, which appears whole or not at all.

    Args:
        surveyed: The survey, which is run first where it has not been.
        path: Where the file goes.
        bits: Bits per weight of the duel in it, measured on the survey's tensors.
        evaluation: Of the same model. It puts first what each format costs: the KL divergence from 16 bits of the rows that
            have finished, or of all where none has.
        executor: The duel's, as in ``survey``.
        progress: The duel's, as in ``survey``.

    Returns:
        The file's path.

    Raises:
        ModelError: Where no tensor could be measured.
        FormatError: Where no format keeps to ``bits``.
        WorkbenchError: Where the file cannot be written, ``surveyed`` is no survey, or ``evaluation`` is not of its model.

    >>> wb.write_report(wb.survey("builtin", "nf4", progress=False), "report.html", progress=False).name
    'report.html'
    """
    from workbench.report.contents import gather
    from workbench.report.page import page
    from workbench.surveys.survey import Survey

    if not is_a(surveyed, Survey):
        remedy = 'Survey the model first: wb.write_report(wb.survey(model, "nf4"), "report.html").'
        raise WorkbenchError(f"A report is of a survey, not of {described(surveyed)}.", where="surveyed", remedy=remedy)
    if not is_a(path, str, os.PathLike):
        raise WorkbenchError(f"{described(path)} is no path.", where="path", remedy='Name a file, such as "report.html".')
    if evaluation is not None:
        _check(evaluation, surveyed)
    target = Path(path)
    text = page(gather(surveyed, bits, executor, progress), evaluation)
    with replacing_for_user(target) as draft:
        draft.write_text(text, encoding="utf-8")
    return target


def _check(evaluation: Evaluation, surveyed: Survey) -> None:
    """Raises WorkbenchError where it is no evaluation of the surveyed model; runs it where nothing of it is measured."""
    from workbench.cost.evaluation import Evaluation

    if not is_a(evaluation, Evaluation):
        what, remedy = f"It is {described(evaluation)}.", "Give what wb.evaluate(model) returns."
        raise WorkbenchError(what, where="evaluation", remedy=remedy)
    if evaluation.model != surveyed.source.name:
        what = f"It is of {evaluation.model}, and the survey of {surveyed.source.name}."
        raise WorkbenchError(what, where="evaluation", remedy="Evaluate and survey the same model.")
    if not evaluation.rows:
        evaluation.run()
