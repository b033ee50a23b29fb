"""A part of the cost view: which modules matter for the divergence, and their outputs' errors beside those of their weights.

Covers the button, the map that fills in, the list for use without a pointer, the lines over the layers. The measuring is
``wb.sensitivity``'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from widgets.background.tasks import guard
from widgets.controls.binding import Ranking, bind
from widgets.controls.message import Message
from widgets.controls.streamed import Streamed
from widgets.controls.style import bar, choice, column, fields, heading, note, set_note, split
from widgets.drawing.plot import Plot
from widgets.figures import cost as figures
from widgets.panels.cost.asked import Asked
from widgets.session import Session
from widgets.state import COST_FIELDS
from workbench.cost.sensitivities import ModuleCost, Sensitivity

_LISTED = 200
_WHY = """\
KL divergence from 16 bits, for each module measured twice: with it alone in 4 bits, and with all but it; its share is their \
mean. Click a cell, or choose from the list, and every view shows that tensor."""
_WHY_ERRORS = """\
‖(W − Ŵ)x‖ / ‖Wx‖ on the model's own activations over held-out rows, a line a kind. The band: the relative RMSE of the same \
weights, from the least kind to the most. Outlier channels: inputs of at least 5 times the median channel's size. Click a \
point, and every view shows its tensor."""


class ModulesPart:
    """``sensitivity`` is what has been measured so far; ``on_change()`` is called when there is more of it."""

    def __init__(self, session: Session, message: Message, on_change: Callable[[], None]) -> None:
        self._session, self._on_change = session, on_change
        self.asked: Asked | None = None
        self.sensitivity: Sensitivity | None = None
        guarded = guard(message)
        self.stream = Streamed(message, session.executor, begin=self._begin, show=self.show, ended=self._offer)
        self.field = choice("The map shows", COST_FIELDS)
        bind(self.field, session.store, "cost_field", message)
        self.map = Plot(height=264)
        self.errors = Plot(height=260)
        self.map.add_class("wb-sensitivities")
        self.plots = [self.map, self.errors]
        self.map.on_click(guarded(self._clicked_cell))
        self.errors.on_click(guarded(self._clicked_point))
        self.list = Ranking("Modules, the most sensitive first", 10, guarded(self._choose))
        self.summary = note()
        self.widget = column(
            bar(heading("Sensitivity", _WHY), self.field),
            self.stream.widget,
            self.summary,
            split(self.map, fields(self.list, width=280)),
            heading("Errors of outputs and of weights", _WHY_ERRORS),
            self.errors,
        )

    def draw(self, asked: Asked, found: Sensitivity | None) -> None:
        """What is known of another model, rows or format; nothing is measured before the button is pressed."""
        self.stream.work.cancel()
        self.asked, self.sensitivity = asked, found
        self.redraw()
        self._on_change()

    def redraw(self) -> None:
        """Draws the same results for another state: its field, chosen tensor and listed layer."""
        rows = self.sensitivity.rows if self.sensitivity is not None else ()
        state, analysis = self._session.store.value, self._session.analysis
        if analysis is None or self.asked is None:
            return
        field, chosen = state.cost_field, analysis.tensor.name.removesuffix(".weight")
        summary = self._summary(rows, field)
        if rows:
            self.map.show(figures.sensitivity_figure(self.asked.places, rows, field, chosen, state.layer), f"Map of {summary}")
            self.errors.show(
                figures.output_errors_figure(rows, chosen),
                f"Output error of {len(rows)} modules over the layers, a line a kind, beside the weights' relative RMSE.",
            )
        else:
            self.map.wait("A map of layers and kinds: nothing is measured yet.")
            self.errors.wait("The error of each module's output: nothing is measured yet.")
        set_note(self.summary, summary if rows else "")
        self._list(rows, field, chosen)
        self._offer()

    def _summary(self, rows: Sequence[ModuleCost], field: str) -> str:
        if not rows or self.asked is None:
            return ""
        most = max(rows, key=lambda row: _sortable(row, field))
        return (
            f"{self.asked.source.name} under {self.asked.spec.title}: {COST_FIELDS[field].lower()} of {len(rows)} of "
            f"{len(self.asked.modules)} modules, layers by kinds; the most has {most.name} with "
            f"{figures.format_cost(figures.cost_of(most, field), field)}.{self._outliers(rows)}"
        )

    def _outliers(self, rows: Sequence[ModuleCost]) -> str:
        """The input channel that stands out most."""
        known = [(row.channels[0], row.name) for row in rows if row.channels]
        if not known:
            return ""
        channel, name = max(known, key=lambda pair: pair[0].times)
        many = f"{len(known)} have outlier channels; " if len(known) > 1 else ""
        return f" {many}the largest is channel {channel.number} of {name}'s input, {channel.times:.0f} times the median."

    def _begin(self) -> None:
        if (asked := self.asked) is not None:
            what = f"Quantizing one module after the other of {asked.source.name}"
            self.stream.follow(what, "batches", lambda p, c: asked.sensitivity(progress=p, cancelled=c))

    def show(self, found: Sensitivity) -> None:
        """The rows that there are by now."""
        self.sensitivity = found
        self.redraw()
        self._on_change()

    def _offer(self) -> None:
        if self.asked is None:
            return
        found = self.sensitivity
        if found is not None and found.complete:
            self.stream.offer("", "")
            return
        left = len(self.asked.modules) - (len(found.rows) if found is not None else 0)
        label = "Go on measuring sensitivities" if found is not None and found.rows else "Measure the sensitivities"
        self.stream.offer(label, self.asked.cost_of(2 * left + 2))

    def _list(self, rows: Sequence[ModuleCost], field: str, chosen: str) -> None:
        """The list beside the map: the most of the field first."""
        ordered = sorted(rows, key=lambda row: _sortable(row, field), reverse=True)[:_LISTED]
        lines = [(f"{figures.format_cost(figures.cost_of(row, field), field):>9}   {row.name}", row.name) for row in ordered]
        self.list.show(f"Modules, the most first ({COST_FIELDS[field].lower()})", lines, chosen)

    def _clicked_cell(self, point: dict[str, Any]) -> None:
        if self.asked is None or point.get("x") is None or point.get("y") is None:
            return
        field, inside = self._session.store.value.cost_field, self.asked.places.in_cell(float(point["x"]), float(point["y"]))
        rows = {row.name: row for row in (self.sensitivity.rows if self.sensitivity is not None else ())}
        known = [rows[name] for name in inside if name in rows]
        if inside:
            self._choose(max(known, key=lambda row: _sortable(row, field)).name if known else inside[0])

    def _clicked_point(self, point: dict[str, Any]) -> None:
        if isinstance(name := point.get("customdata"), str):
            self._choose(name)

    def _choose(self, module: str) -> None:
        self._session.store.update(tensor=f"{module}.weight")


def _sortable(row: ModuleCost, field: str) -> float:
    value = figures.cost_of(row, field)
    return -math.inf if math.isnan(value) else value
