"""Where the quantization error sits: in which tensors of the model, which blocks of one, and which weights of a block."""

from __future__ import annotations

from typing import Any

from widgets import code
from widgets.background.tasks import guard
from widgets.drawing.error_rows import Chosen, ErrorRows
from widgets.figures import blocks as figures
from widgets.figures.bins import title_of
from widgets.figures.palette import FORMAT_COLOURS
from widgets.panels.base import View
from widgets.session import Analysis, choosable
from widgets.state import ERROR_FIELDS
from workbench.quant.inspect import Block, inspect_block
from workbench.quant.measure import ErrorStats
from workbench.sources.kinds import kind_of
from workbench.surveys.places import Places
from workbench.text import amount

_LISTED = 20
_MOST_KINDS = 24


class BlockErrorView(View):
    """The model, the blocks of its chosen tensor under the leading format, the weights of one, and one weight's arithmetic."""

    block: Block
    """The block on show."""
    weight: int
    """The weight of it whose arithmetic is shown."""

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__("Error, block by block", model, **options)

    def build(self) -> list[Any]:
        """The rows, which are one drawing."""
        self.rows = ErrorRows()
        self._mapped: tuple[ErrorStats, str] | None = None
        self._worst: list[int] = []
        self._arranged: tuple[Any, Places] = (None, Places.named(()))
        guarded, survey = guard(self.message), self.session.survey
        self.rows.on_choice(guarded(self._choose))
        self.when_closed(survey.on_rows(guarded(self._surveyed)))
        self.when_closed(survey.on_progress(guarded(lambda step: self._surveyed() if step is None else None)))
        self.when_closed(survey.on_failure(self.message.error))
        self.plots = [self.rows]
        return [self.rows]

    def redraw_on(self) -> frozenset[str]:
        """What the map shows, which block is inspected, and which weight of it."""
        return frozenset({"error_field", "block", "weight"})

    def code(self, analysis: Analysis) -> str:
        """The map's values, the worst blocks, the block and the weight."""
        return code.block(analysis, self.session.store.value.error_field, self.block.index, self.weight)

    def draw(self, analysis: Analysis) -> None:
        """The rows for the analysis, the state's block and its weight; the model fills in as it is surveyed."""
        state, lead = self.session.store.value, analysis.stats[0]
        self.session.survey.look_at(analysis.source, choosable(analysis.source), lead.spec)
        field, name = state.error_field, ERROR_FIELDS[state.error_field]
        values = getattr(lead, field)
        parts: dict[str, Any] = {}
        if other := self._mapped is None or self._mapped[0] is not lead or self._mapped[1] != field:
            self._worst = figures.worst_blocks(lead, field, _LISTED)
            parts = {
                "name": name, "spread": figures.spread_part(analysis.stats, field), "field": field,
                "worst": figures.worst_part(lead, field, self._worst),
            }  # fmt: skip
        chosen = self._worst[0] if state.block is None else min(state.block, values.size - 1)
        self.block = b = inspect_block(analysis.weights, lead, chosen)
        self.weight = b.worst if state.weight is None else min(state.weight, b.weights.size - 1)
        self.rows.show_rows(
            f"{name} of each of {values.size:,} blocks under {title_of(lead.spec)}, as a map; choose one.",
            chosen,
            values if other else None,
            figures.map_row_length(lead),
            "row" if lead.blocks_per_row else "line",
            **parts,
            tensor={"name": analysis.tensor.name, "kind": kind_of(analysis.tensor.name)},
            after=lead.spec.definition.title,
            fields=list(ERROR_FIELDS.items()),
            colours=FORMAT_COLOURS[: len(analysis.stats)],
            block=figures.block_part(lead, b),
            weight=figures.weight_part(b, self.weight),
            model=self._model(analysis),
        )
        self._mapped = (lead, field)

    def _surveyed(self) -> None:
        """Rows of the survey have come, or none will come any more."""
        if not self.active:
            self._behind = True
        elif self._mapped is not None and self.session.analysis is not None:
            self.rows.show_model(self._model(self.session.analysis))

    def _places(self) -> Places:
        tensors = self.session.survey.tensors
        if self._arranged[0] is not tensors:
            self._arranged = (tensors, Places.arrange(tensors, _MOST_KINDS))
        return self._arranged[1]

    def _model(self, analysis: Analysis) -> dict[str, Any]:
        """What is known of the model: the survey's rows, and the tensor on show, which is measured already."""
        survey, places = self.session.survey, self._places()
        errors = {row.tensor.name: row.totals[0].relative_rmse for row in survey.rows if row.error is None}
        errors[analysis.tensor.name] = analysis.stats[0].relative_rmse
        failed = [row.tensor.name for row in survey.rows if row.error is not None]
        part = figures.model_part(places, errors, failed, analysis.tensor.name)
        return part | {"offer": self._offer()}

    def _offer(self) -> dict[str, str] | None:
        """What is not measured yet of a model that is not measured by itself, and the button for it."""
        survey = self.session.survey
        left = survey.left
        if not left or (survey.of_itself and (survey.busy or not survey.rows)):
            return None
        so_far = f"{len(survey.rows)} of {len(survey.tensors)} tensors"
        if survey.busy:
            return {"text": so_far, "button": "Stop", "title": "Keep what is measured, and measure no further"}
        text, cost = so_far if survey.rows else "not measured yet", amount(sum(tensor.nbytes for tensor in left))
        return {"text": text, "button": "Measure the model", "title": f"Read {cost} and measure every tensor"}

    def _choose(self, chosen: Chosen) -> None:
        """What the reader did on the rows."""
        survey = self.session.survey
        if chosen.what == "cell":
            self._choose_cell((int(chosen.value[0]), int(chosen.value[1])))
        elif chosen.what == "block":
            self.update(block=int(chosen.value))
        elif chosen.what == "weight":
            self.update(weight=int(chosen.value))
        elif chosen.what == "field":
            self.update(error_field=str(chosen.value), block=None)
        elif chosen.what == "measure":
            if survey.busy:
                survey.cancel()
            else:
                survey.begin()
            self._surveyed()

    def _choose_cell(self, cell: tuple[int, int]) -> None:
        """The tensor that the cell shows: the worst that is known, else its first."""
        places = self._places()
        known = {row.tensor.name: row.totals[0].relative_rmse for row in self.session.survey.rows if row.error is None}
        name = places.worst(known).get(cell) or next((name for name, place in places.of.items() if place == cell), "")
        if name and name != self.session.store.value.tensor:
            self.rows.mark(cell)
            self.update(tensor=name)
