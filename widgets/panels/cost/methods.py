"""Two parts of the cost view: full fine-tuning, LoRA and QLoRA trained side by side, and what a run's adapter repairs.

Covers the buttons, what a press will cost, and showing results as they come. What is trained and measured is
``wb.compare_methods``' and ``wb.repairs``'; the figures are ``figures/methods.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import ipywidgets

from widgets import code
from widgets.background.tasks import guard
from widgets.controls.copy_code import CopyCode
from widgets.controls.message import Message
from widgets.controls.streamed import Streamed
from widgets.controls.style import bar, column, grid, heading, note, set_note
from widgets.drawing.plot import Plot
from widgets.figures import methods
from widgets.session import Analysis, Session
from workbench.cost.methods import MethodComparison, compare_methods
from workbench.cost.repairs import Repairs, repairs
from workbench.errors import RunError
from workbench.memory.forecast import forecast_methods
from workbench.surveys.places import Places
from workbench.text import counted, memory_size
from workbench.training.config import TrainConfig

_WHY = """\
Three runs on the same rows in the same order, as the Train tab has them set, one after another. One seed is one draw: \
differences no larger than those between seeds say nothing. KL before: how far the base is from 16 bits before training."""
_WHY_REPAIRS = """\
How much of ‖(W − Ŵ)x‖ a run's adapter takes back, and how far the whole model is from the unquantized base. An adapter learns \
its task, and not to make up for 4 bits, so it may as well add to both."""


class MethodsPart:
    """The same model, rows and seed under three methods, one run after another, as the training form has them set.

    ``trained(folder)`` is called with the QLoRA run's folder once that run has finished.
    """

    def __init__(self, session: Session, message: Message, trained: Callable[[str], None]) -> None:
        self._session, self._trained = session, trained
        self._of: TrainConfig | None = None
        self.comparison: MethodComparison | None = None
        self.stream = Streamed(message, session.executor, begin=self._begin, show=self._show, ended=self._offer)
        self.summary, self.table, self.copy = note(), ipywidgets.HTML(), CopyCode()
        self.curves = Plot(height=300, waiting="Loss by method: none has been trained yet.")
        self.memory = Plot(height=300, waiting="Memory by method: none has been trained yet.")
        self.plots = [self.curves, self.memory]
        pictures = grid(*self.plots)
        pictures.add_class("wb-methods")
        self.widget = column(
            heading("Full fine-tuning, LoRA and QLoRA side by side", _WHY),
            self.stream.widget,
            self.summary,
            pictures,
            self.table,
            self.copy,
        )

    def draw(self, analysis: Analysis) -> None:
        """Offers the comparison of what would be trained now; results of another configuration stay until it is begun."""
        self._config = self._session.store.value.training
        self._most = max(ledger.total for ledger in forecast_methods(analysis.source, self._config))
        self._offer()

    def _offer(self) -> None:
        config, found = self._config, self.comparison
        begun = found is not None and self._of == config
        self.copy.code = code.methods(config, str(found.folder) if begun and found is not None else "")
        if begun and found is not None and found.complete:
            self.stream.offer("", "")
            return
        steps = f"{config.max_steps:,} steps" if config.max_steps > 0 else f"{config.num_train_epochs:g} epochs"
        self.stream.offer(
            "Go on with the three methods" if begun else "Train with the three methods",
            f"Trains three times for {steps}, in processes of their own. Forecast: {memory_size(self._most)} of memory at most "
            "besides Python and its libraries; how long it takes shows once steps go by. It can be cancelled and gone on with.",
        )

    def _begin(self) -> None:
        config = self._config
        folder = self.comparison.folder if self.comparison is not None and self._of == config else None
        self._of = config

        def make(progress: Any, cancelled: Any) -> Iterable[Any]:
            self.comparison = compare_methods(config, folder=folder, progress=progress, cancelled=cancelled)
            return self.comparison

        self.stream.follow("Training with the three methods", "steps", make)

    def _show(self, found: MethodComparison) -> None:
        results = found.results
        curves, said = methods.methods_curves(results)
        memory, held = methods.methods_memory(results)
        self.curves.show(curves, said)
        self.memory.show(memory, held)
        self.table.value = methods.methods_table(results)
        sentences = ("Measured on this machine.", said, held, found.not_measured, f"The runs lie in {found.folder}.")
        set_note(self.summary, " ".join(filter(None, sentences)))
        for result in results:
            if result.method == "qlora" and result.state == "finished":
                self._trained(str(result.run_dir))
        self._offer()


class RepairsPart:
    """How much of 4 bits' output error a run's adapter takes back, module by module, over its checkpoints."""

    def __init__(self, session: Session, message: Message) -> None:
        self._session = session
        self.repairs: Repairs | None = None
        self.stream = Streamed(message, session.executor, begin=self._begin, show=self._show, ended=self._offer)
        self.run_dir = ipywidgets.Text(description="Folder of a QLoRA run", placeholder="runs/…", continuous_update=False)
        self.run_dir.observe(lambda _: self._offer(), "value")
        self.summary, self.copy = note(), CopyCode()
        self.map = Plot(height=300, waiting="A map of layers and kinds: nothing is measured yet.")
        self.curves = Plot(height=300, waiting="What is taken back over the checkpoints: nothing is measured yet.")
        self.plots = [self.map, self.curves]
        self.map.on_click(guard(message)(self._clicked))
        pictures = grid(*self.plots)
        pictures.add_class("wb-repairs")
        self.widget = column(
            bar(heading("What the adapter repairs", _WHY_REPAIRS), self.run_dir),
            self.stream.widget,
            self.summary,
            pictures,
            self.copy,
        )
        self._offer()

    def draw(self, _: Analysis) -> None:
        """Outlines the chosen tensor's module."""
        if self.repairs is not None and self.repairs.rows:
            self._show(self.repairs)

    def suggest(self, run_dir: str) -> None:
        """A run to look at, where the reader has named none."""
        if not self.run_dir.value:
            self.run_dir.value = run_dir

    def _offer(self) -> None:
        self.stream.offer(
            "Measure what the adapter repairs",
            "Loads the run's model, unquantized, into a process of its own, and runs held-out rows through it once.",
        )
        self.copy.code = code.repairs(self.run_dir.value.strip()) if self.run_dir.value.strip() else ""

    def _begin(self) -> None:
        run_dir = self.run_dir.value.strip()
        if not run_dir:
            remedy = "Enter the folder of a run with method qlora that has saved a checkpoint."
            raise RunError("no run folder is named.", where="Folder of a QLoRA run", remedy=remedy)
        self.stream.follow("Measuring repairs", "modules", lambda p, c: repairs(run_dir, progress=p, cancelled=c))

    def _clicked(self, point: dict[str, Any]) -> None:
        if self.repairs is None or point.get("x") is None or point.get("y") is None:
            return
        places = Places.named(row.name for row in self.repairs.rows)
        if inside := places.in_cell(float(point["x"]), float(point["y"])):
            self._session.store.update(tensor=f"{inside[0]}.weight")

    def _show(self, found: Repairs) -> None:
        self.repairs, state = found, self._session.store.value
        chosen = self._session.analysis.tensor.name if self._session.analysis is not None else ""
        figure, said = methods.repairs_map(found.rows, selected=chosen.removesuffix(".weight"), layer=state.layer)
        curves, described = methods.repairs_curves(found.rows)
        self.map.show(figure, said)
        self.curves.show(curves, described)
        set_note(self.summary, f"{found.summary} Measured at {counted(len(found.steps), 'checkpoint')}. {said}".strip())
        self._offer()
