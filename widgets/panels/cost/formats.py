"""A part of the cost view: what each format adds to the model's loss, beside the error that it leaves in the weights.

Covers the button, what a press will cost, bars and table as formats finish. The measuring is ``wb.evaluate``'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets

from widgets.controls.binding import bind
from widgets.controls.message import Message
from widgets.controls.streamed import Streamed
from widgets.controls.style import bar, choice, column, heading, note, set_note
from widgets.drawing.plot import Plot
from widgets.figures import cost as figures
from widgets.figures.tables import table
from widgets.panels.cost.asked import Asked
from widgets.session import Session
from widgets.state import COST_BITS
from workbench.cost.evaluation import USUAL, Cost, Evaluation
from workbench.text import NONE, amount, number, percent

_WHY = """\
All that QLoRA would quantize is put through a format and back, and the loss of that model is measured. Thin lines: 95 % \
intervals over the held-out batches, against 16 bits on the same batches. Hatched: costs more than a format that errs more on \
the weights, by more than both intervals."""


class FormatsPart:
    """``evaluation`` is what has been measured so far of what the state asks for."""

    def __init__(self, session: Session, message: Message) -> None:
        self._asked: Asked | None = None
        self._equal = False
        self.evaluation: Evaluation | None = None
        self.bits = choice("Bits per weight", COST_BITS)
        bind(self.bits, session.store, "cost_bits", message)
        self.stream = Streamed(message, session.executor, begin=self._begin, show=self.show, ended=self._offer)
        self.bars, self.table = Plot(height=284), ipywidgets.HTML()
        self.bars.add_class("wb-losses")
        self.plots = [self.bars]
        self.summary = note()
        self.widget = column(
            bar(heading("Loss, format by format", _WHY), self.bits), self.stream.widget, self.summary, self.bars, self.table
        )

    def draw(self, asked: Asked, equal: bool, found: Evaluation | None) -> None:
        """What is known of another model, rows or bits; nothing is measured before the button is pressed."""
        self.stream.work.cancel()
        self._asked, self._equal, self.evaluation = asked, equal, found
        self._show_rows(found.rows if found is not None else ())

    def show(self, found: Evaluation) -> None:
        """The rows that there are by now."""
        self.evaluation = found
        self._show_rows(found.rows)

    def _begin(self) -> None:
        equal = self._equal
        if (asked := self._asked) is not None:
            what = f"Measuring the loss of {asked.source.name}, format by format"
            self.stream.follow(what, "batches", lambda p, c: asked.evaluation(equal, progress=p, cancelled=c))

    def _offer(self) -> None:
        if self._asked is None:
            return
        found = self.evaluation
        if found is not None and found.complete:
            self.stream.offer("", "")
            return
        begun = found is not None and found.rows
        self.stream.offer("Go on measuring losses" if begun else "Measure the losses", self._asked.cost_of(1 + len(USUAL)))

    def _show_rows(self, rows: Sequence[Cost]) -> None:
        summary = figures.costs_summary(rows)
        self.table.value = _table(rows) if len(rows) > 1 else ""
        if len(rows) > 1:
            self.bars.show(
                figures.format_costs_figure(rows), f"Loss that each format adds, beside its weights' error. {summary}"
            )
        else:
            self.bars.wait("What each format adds to the loss, beside the error of its weights: nothing is measured yet.")
        base = f"In 16 bits the loss is {rows[0].loss:.4f} nats a token. " if rows else ""
        set_note(self.summary, f"{base}{summary}" if rows else "")
        self._offer()


def _table(rows: Sequence[Cost]) -> str:
    head = ["format", "bits per weight", "all weights", "loss", "perplexity", "added", "95 % interval", "relative RMSE"]
    lines = [
        (
            row.name, f"{row.bits_per_weight:.4f}", amount(row.nbytes), f"{row.loss:.4f}", number(row.perplexity, ".3f"),
            *(_differences(row) if row.spec is not None else (NONE,) * 3),
        )
        for row in rows
    ]  # fmt: skip
    return table(head, lines, "Held-out loss of the model by format")


def _differences(row: Cost) -> tuple[str, str, str]:
    """What a format changes: loss, with its interval, and weights."""
    low, high = map(figures.nats, row.increase_interval)
    return figures.nats(row.increase), f"{low} to {high}", percent(row.relative_rmse)
