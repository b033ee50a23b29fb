"""A run that comes with the workbench, recorded once: what a run looks like, for replay on any machine, and what it learnt.

Its folder is like any other run's without checkpoints and log: events, configuration, status, adapter. ``python -m
scripts.record`` makes it.
"""

from __future__ import annotations

import json
from pathlib import Path

from workbench.training.runs import Run, attach

FOLDER = Path(__file__).parents[1] / "builtin" / "recorded"
NOTE = "recorded.json"
"""The file in a run's folder that says where and when it was recorded."""


def recorded_run() -> Run:
    """The run that comes with the workbench, finished, with all its events; it can be looked at and replayed, not resumed.

    Its adapter can be asked (``wb.try_out``), exported, and begun from (``TrainConfig(init_adapter=…)``).

    Returns:
        The run, in the folder of the installation; it cannot be resumed or written to.

    >>> run = wb.recorded_run()
    >>> run.status.state, run.config.model
    ('finished', 'builtin')
    """
    return attach(FOLDER)


def note_of(run: Run) -> str:
    """Where and when a run was recorded, in words; "" for one of this machine's own."""
    try:
        return str(json.loads((run.dir / NOTE).read_text("utf-8"))["note"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
