"""The whole model on one map: every tensor that QLoRA quantizes, filling in while a survey streams through the weights."""

from __future__ import annotations

import math
from concurrent.futures import Executor
from typing import Any

import ipywidgets

from widgets import code
from widgets.background.tasks import guard
from widgets.controls.binding import Quiet, Ranking, bind
from widgets.controls.progress import ProgressRow
from widgets.controls.style import bar, choice, column, fields, heading, note, set_note
from widgets.drawing.plot import Plot
from widgets.figures.model import badness, format_value, model_map, value_of
from widgets.panels.base import View
from widgets.session import Analysis, choosable
from widgets.state import MAP_FIELDS
from workbench.sources.kinds import layer_of, within_layer
from workbench.surveys.places import Places
from workbench.surveys.rows import Row
from workbench.text import amount

MAP_HEIGHT = 390
_LISTED = 200
_WHY = (
    "Each cell is a tensor under the leading format; where a layer has several of a kind, the worst of them. Click one, or "
    "choose it from the list, and every view shows it."
)


class ModelMapView(View):
    """Layers by kinds, coloured by error, SQNR, kurtosis or bytes; a click chooses the tensor in every view.

    Args:
        model: What ``wb.open_model`` takes.
        executor: For tests; without it the work has a thread of its own.
        **options: What else ``View`` takes.
    """

    def __init__(self, model: Any = None, *, executor: Executor | None = None, **options: Any) -> None:
        super().__init__("Map of the model", model, executor=executor, **options)

    def build(self) -> list[Any]:
        """What is shown, the progress, the map, the list for use without a pointer."""
        guarded = guard(self.message)
        survey = self.session.survey
        self.when_closed(survey.on_rows(guarded(self._came)))
        self.when_closed(survey.on_progress(lambda step: self._offer() if step is None else None))
        self.when_closed(survey.on_failure(self.message.error))
        self.title = heading("Map of the model", _WHY)
        self.field = choice("Colour shows", MAP_FIELDS)
        bind(self.field, self.session.store, "map_field", self.message)
        self.start = ipywidgets.Button(description="Survey the model", button_style="primary")
        self.start.on_click(guarded(lambda _: self._begin()))
        self.map = Plot(height=MAP_HEIGHT)
        self.plots = [self.map]
        self.map.on_click(guarded(self._clicked))
        self.list = Ranking("", 6, guarded(lambda name: self.update(tensor=name)))
        self.one_layer = ipywidgets.Checkbox(indent=False)
        self._quiet = Quiet()
        self._quiet.on_change(self.one_layer, guarded(lambda only: self.update(layer=self._chosen_layer() if only else None)))
        self.summary = note()
        drawn = column(bar(self.title, self.field), self.map, bar(self.summary, self.start, ProgressRow(survey)))
        worst = column(fields(self.list, width=300), self.one_layer)
        for part, name in ((drawn, "wb-map"), (worst, "wb-worst")):
            part.add_class(name)
        return [drawn, worst]

    def redraw_on(self) -> frozenset[str]:
        """What the colour means, and which tensor and layer are outlined."""
        return frozenset({"map_field", "layer"})

    def code(self, analysis: Analysis) -> str:
        """The survey."""
        return code.survey(analysis, analysis.stats[0].spec)

    def draw(self, analysis: Analysis) -> None:
        """The map as far as it is known; a survey begins where the model or the format is another one."""
        self.session.survey.look_at(analysis.source, choosable(analysis.source), analysis.stats[0].spec)
        self._show(analysis)

    @property
    def rows(self) -> tuple[Row, ...]:
        """What the survey has found so far."""
        return tuple(self.session.survey.rows)

    def _begin(self) -> None:
        self.session.survey.begin()
        self._offer()

    def _came(self) -> None:
        self._behind = not self.active
        if self.active and self.session.analysis is not None:
            self._show(self.session.analysis)

    def _show(self, analysis: Analysis) -> None:
        state, tensors, rows = self.session.store.value, self.session.survey.tensors, self.session.survey.rows
        spec, places = analysis.stats[0].spec, Places.arrange(tensors)
        name = MAP_FIELDS[state.map_field]
        good = [r for r in rows if not math.isnan(value_of(r, state.map_field))]
        worst = max(good, key=lambda r: badness(r, state.map_field), default=None)
        so_far = f"{len(rows)} of {len(tensors)} tensors"
        summary = f"Map of {analysis.source.name} under {spec.title}: {name} of {so_far}, layers by kinds"
        if worst is not None:
            summary += (
                f"; the worst is {worst.tensor.name} with {format_value(value_of(worst, state.map_field), state.map_field)}"
            )
        self.map.show(model_map(places, rows, state.map_field, analysis.tensor.name, state.layer), summary + ".")
        self._offer()
        broken = sum(r.error is not None for r in rows)
        set_note(
            self.summary,
            f"{spec.title}: {so_far}" + (f", {broken} could not be measured" if broken else "") + ", each measured whole.",
        )
        self._list(good, analysis)

    def _offer(self) -> None:
        """Shows the button where something is left to survey and no survey is under way."""
        survey = self.session.survey
        left = survey.left
        self.start.layout.display = "" if left and not survey.busy else "none"
        again = "Go on surveying" if survey.rows else "Survey the model"
        self.start.description = f"{again} ({amount(sum(t.nbytes for t in left))} to read)"

    def _list(self, good: list[Row], analysis: Analysis) -> None:
        """The list beside the map: the chosen layer's tensors, or the worst of the model."""
        state = self.session.store.value
        field = state.map_field
        layer = self._chosen_layer() if state.layer is None else state.layer
        with self._quiet:
            self.one_layer.description = "only its own layer" if layer is None else f"only layer {layer}"
            self.one_layer.value, self.one_layer.disabled = state.layer is not None, layer is None
        shown = [r for r in good if state.layer is None or layer_of(r.tensor.name) == state.layer]
        shown.sort(key=lambda r: badness(r, field), reverse=True)
        lines = [(_line(r, field), r.tensor.name) for r in shown[:_LISTED]]
        where = "of the model" if state.layer is None else f"of layer {state.layer}"
        self.list.show(f"Tensors {where}, the worst first ({MAP_FIELDS[field]})", lines, analysis.tensor.name)

    def _chosen_layer(self) -> int | None:
        return layer_of(self.session.analysis.tensor.name) if self.session.analysis is not None else None

    def _clicked(self, point: dict[str, Any]) -> None:
        if point.get("x") is None or point.get("y") is None:
            return
        names = Places.arrange(self.session.survey.tensors).in_cell(float(point["x"]), float(point["y"]))
        if not names:
            return
        field = self.session.store.value.map_field
        rows = {r.tensor.name: badness(r, field) for r in self.rows if r.tensor.name in names}
        known = {name: bad for name, bad in rows.items() if not math.isnan(bad)}
        self.update(tensor=max(known, key=lambda name: known[name]) if known else names[0])


def _line(row: Row, field: str) -> str:
    """A row's value, its layer and its name there, in columns."""
    layer = layer_of(row.tensor.name)
    return f"{format_value(value_of(row, field), field):>9}{'' if layer is None else layer:>5}  {within_layer(row.tensor.name)}"
