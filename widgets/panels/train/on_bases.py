"""What a run's adapter loses on other bases than the one that it was trained on: measured on demand, and shown as a table.

Covers a GGUF of one's own beside the bases that are always there, progress and Cancel. ``wb.deployed`` measures, in a process
of its own, and keeps what it found in the run's folder, which is shown at once the next time.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from concurrent.futures import Executor

import ipywidgets

from widgets import code
from widgets.background.tasks import guard
from widgets.background.work import Work
from widgets.controls.copy_code import CopyCode
from widgets.controls.message import Message
from widgets.controls.progress import ProgressRow
from widgets.controls.style import column, fields, heading, note, row
from widgets.figures import merge
from workbench.cost.deployed import BASES, deployed
from workbench.progress import Cancelled, Progress
from workbench.training.results import on_bases
from workbench.training.results.on_bases import OnBase
from workbench.training.runs import Run

_WHY = (
    "The adapter was trained on one base and may run on another: each is held against the model as it was trained, on held-out "
    "rows. KL divergence says how far its predictions are off, 0 where they are the same; a flipped token is one whose most "
    "likely successor is another. Weights are dequantized; llama.cpp also rounds activations. Q4_K_M and others: name a GGUF."
)


class OnBases:
    """``widget`` is a part of the export; ``follow`` sets the run; ``found(run)`` is called when there is more to show."""

    def __init__(self, executor: Executor | None = None) -> None:
        self._run: Run | None = None
        self.found: Callable[[Run], object] = lambda run: None
        self.message = Message()
        self._work = Work(executor, self._measured, self.message.error)
        self._reading = Work(executor, self._show, self.message.error)
        self.gguf = ipywidgets.Text(description="GGUF of the base (optional)", continuous_update=False)
        self.gguf.add_class("wb-span")
        self.measure = ipywidgets.Button(description="Measure on other bases", tooltip="In a process of its own")
        self.measure.on_click(guard(self.message)(lambda _: self._measure()))
        self.gguf.observe(lambda _: self._as_code(), "value")
        self.table, self.copy = ipywidgets.HTML(), CopyCode()
        self.widget = column(
            heading("The adapter on the base that it will run on", _WHY),
            fields(self.gguf, width=170),
            row(self.measure),
            ProgressRow(self._work),
            self.message,
            self.table,
            note("Measured by passes of torch on this machine. Nothing is written but figures, into the run's folder."),
            self.copy,
        )

    def follow(self, run: Run) -> None:
        """Another run: what is kept in its folder is shown."""
        self._work.cancel()
        self._run = run
        self.message.clear()
        self.table.value = ""
        self._reading.submit("Reading what was measured", "", lambda progress, cancelled: _kept(run))
        self._as_code()

    def close(self) -> None:
        """End the thread, and the process that measures."""
        self._work.close()
        self._reading.close()

    def _as_code(self) -> None:
        if self._run is not None:
            self.copy.code = code.deployed(self._run.dir, self._named())

    def _named(self) -> tuple[str, ...]:
        """All bases, where there is a GGUF of the reader's among them."""
        gguf = self.gguf.value.strip()
        return (*BASES, gguf) if gguf else ()

    def _show(self, rows: tuple[OnBase, ...]) -> None:
        self.table.value = merge.bases_table(rows) if rows else ""

    def _measure(self) -> None:
        run = self._run
        assert run is not None  # the controls are hidden until there is one
        bases = self._named() or BASES

        def work(progress: Progress, cancelled: Cancelled) -> tuple[Run, tuple[OnBase, ...]]:
            deployed(run, bases, progress=progress, cancelled=cancelled).run()
            return run, _kept(run)

        self._work.submit("Measuring the adapter on other bases", "passes", work)

    def _measured(self, measured: tuple[Run, tuple[OnBase, ...]]) -> None:
        run, rows = measured
        self._reading.cancel()
        self._show(rows)
        self.found(run)


def _kept(run: Run) -> tuple[OnBase, ...]:
    """The figures in the run's folder; the adapter is read whole, so this is not for the kernel's thread."""
    return on_bases.read(run.dir, run.adapter_dir)


def said(run: Run) -> str:
    """What is known of the adapter on other bases, in sentences of HTML for the result's card; empty where nothing is."""
    rows = [each for each in _kept(run) if each.kl > 0]
    return " ".join(html.escape(each.said()) for each in rows)
