"""A part of the cost view: how far each format takes the model from itself in 16 bits, beside the error of the weights.

Covers the button, what a press will cost, bars (or KL against bits) and table as formats finish. The measuring is
``wb.evaluate``'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import ipywidgets

from widgets.controls.binding import bind
from widgets.controls.message import Message
from widgets.controls.streamed import Streamed
from widgets.controls.style import bar, choice, column, heading, note, set_note
from widgets.drawing.plot import Plot
from widgets.figures import cost as figures
from widgets.figures.kl_curve import kl_curve_figure, why_four
from widgets.figures.tables import table
from widgets.panels.cost.asked import Asked
from widgets.session import Session
from widgets.state import COST_BITS
from workbench.cost.curve import CURVE
from workbench.cost.evaluation import USUAL, Cost, Evaluation
from workbench.cost.mixing import Mix
from workbench.text import NONE, amount, nats, percent

_WHY = """\
All that QLoRA would quantize is put through a format and back. KL divergence: how far that model's next-token distributions \
are from those in 16 bits; a token flips where another one becomes the most likely. Thin lines: 95 % intervals over held-out \
rows. Hatched: diverges more than a format erring more on the weights. The loss is in the table: mostly chance on few rows."""


class FormatsPart:
    """``evaluation`` is what has been measured so far of what the state asks for; ``mix()`` gives a mix, once there is one."""

    def __init__(self, session: Session, message: Message, mix: Callable[[], Mix | None]) -> None:
        self._asked: Asked | None = None
        self._bits, self._mix = "own", mix
        self.evaluation: Evaluation | None = None
        self.bits = choice("Bits per weight", COST_BITS)
        bind(self.bits, session.store, "cost_bits", message)
        self.stream = Streamed(message, session.executor, begin=self._begin, show=self.show, ended=self._offer)
        self.bars, self.table = Plot(height=284), ipywidgets.HTML()
        self.bars.add_class("wb-losses")
        self.plots = [self.bars]
        self.summary = note()
        self.widget = column(
            bar(heading("Divergence, format by format", _WHY), self.bits),
            self.stream.widget, self.summary, self.bars, self.table,
        )  # fmt: skip

    def draw(self, asked: Asked, bits: str, found: Evaluation | None) -> None:
        """What is known of another model, rows or bits; nothing is measured before the button is pressed."""
        self.stream.work.cancel()
        self._asked, self._bits, self.evaluation = asked, bits, found
        self._show_rows(found)

    def show(self, found: Evaluation) -> None:
        """The rows that there are by now."""
        self.evaluation = found
        self._show_rows(found)

    def _begin(self) -> None:
        bits = self._bits
        if (asked := self._asked) is not None:
            what = f"Measuring the divergence of {asked.source.name}, format by format"
            self.stream.follow(what, "batches", lambda p, c: asked.evaluation(bits, progress=p, cancelled=c))

    def _offer(self) -> None:
        if self._asked is None:
            return
        found = self.evaluation
        if found is not None and found.complete:
            self.stream.offer("", "")
            return
        passes = 1 + len(CURVE if self._bits == "curve" else USUAL)
        begun = found is not None and found.rows
        self.stream.offer("Go on measuring formats" if begun else "Measure the formats", self._asked.cost_of(passes))

    def _show_rows(self, found: Evaluation | None) -> None:
        rows = found.rows if found is not None else ()
        curve = self._bits == "curve"
        summary = why_four(rows) if curve else figures.costs_summary(rows)
        self.table.value = _table(rows, found.ranks) if found is not None and len(rows) > 1 else ""
        if len(rows) < 2:
            self.bars.wait("How far each format takes the model from 16 bits: nothing is measured yet.")
        elif curve:
            self.bars.show(kl_curve_figure(rows, self._mix()), f"KL divergence from 16 bits against bits per weight. {summary}")
        else:
            said = f"KL divergence of each format from 16 bits, beside its weights' error. {summary}"
            self.bars.show(figures.format_costs_figure(rows), said)
        set_note(self.summary, summary if rows else "")
        self._offer()


def _table(rows: Sequence[Cost], ranks: Mapping[str, int]) -> str:
    head = [
        "format",
        "rank",
        "bits per weight",
        "all weights",
        "KL",
        "95 % interval",
        "flips",
        "loss",
        "added",
        "95 % interval",
        "relative RMSE",
    ]
    ordered = sorted(rows, key=lambda row: (row.spec is not None, not math.isfinite(row.kl), row.kl))
    lines = [
        (
            row.name, str(ranks.get(row.name, NONE)), f"{row.bits_per_weight:.4f}", amount(row.nbytes), *_divergence(row),
            f"{row.loss:.4f}", *_differences(row),
        )
        for row in ordered
    ]  # fmt: skip
    return table(head, lines, "Divergence from 16 bits and held-out loss by format")


def _divergence(row: Cost) -> tuple[str, str, str]:
    """What a format changes of the predictions."""
    if row.spec is None:
        return NONE, NONE, NONE
    low, high = map(nats, row.kl_interval)
    return nats(row.kl), f"{low} to {high}", percent(row.flips)


def _differences(row: Cost) -> tuple[str, str, str]:
    """What a format changes of the loss, with its interval, and of the weights."""
    if row.spec is None:
        return NONE, NONE, NONE
    low, high = map(figures.nats, row.increase_interval)
    return figures.nats(row.increase), f"{low} to {high}", percent(row.relative_rmse)
