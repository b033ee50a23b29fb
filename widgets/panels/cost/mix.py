"""A part of the cost view: which modules to leave in 16 bits for the memory there is, and what that gives.

Covers the slider, the curve, measuring the mix, handing it to training, and its configuration as code. Which modules they are
is ``wb.mix``'s choice, from the sensitivities measured so far.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import ipywidgets

from widgets.background.tasks import guard
from widgets.controls.binding import Quiet
from widgets.controls.copy_code import CopyCode
from widgets.controls.front_ends import number_slider
from widgets.controls.message import Message
from widgets.controls.streamed import Streamed
from widgets.controls.style import bar, column, heading, note, row, set_note
from widgets.drawing.plot import Plot
from widgets.figures import cost as figures
from widgets.session import Session
from workbench.cost.mixing import Mix, mix
from workbench.cost.sensitivities import Sensitivity
from workbench.errors import ConfigError
from workbench.memory.gpus import known
from workbench.progress import Cancelled, Progress
from workbench.text import amount, counted, listed

_WHY = """\
Modules are left in 16 bits by the loss taken back per byte. They are chosen by the rows on which the mix is measured: on \
others expect less, and nothing where the curve lies below the loss in 16 bits."""


class MixPart:
    """``mix`` is the one for the memory that the state names; None before all modules are measured."""

    def __init__(self, session: Session, message: Message, sensitivity: Callable[[], Sensitivity | None]) -> None:
        self._session, self._sensitivity, self._quiet = session, sensitivity, Quiet()
        self.mix: Mix | None = None
        guarded = guard(message)
        self.stream = Streamed(
            message, session.executor, begin=self._begin, show=lambda mixes: self._show(mixes[0]), ended=self._offer, style=""
        )
        self.memory = number_slider("All weights may take (MB)", step=0.01, readout_format=".2f")
        self.gpu = ipywidgets.Dropdown(
            description="Or what a GPU leaves them", options=[("as the slider says", ""), *((name, name) for name in known())]
        )
        for control, field in ((self.memory, "mix_megabytes"), (self.gpu, "mix_gpu")):
            self._quiet.on_change(control, guarded(lambda value, field=field: session.store.update(**{field: value})))
        self.curve = Plot(height=264)
        self.curve.add_class("wb-mix")
        self.plots = [self.curve]
        self.hand = ipywidgets.Button(
            description="Train with this mix", tooltip="Hand the modules left out to the training form"
        )
        self.hand.on_click(guarded(lambda _: self._hand_over()))
        self.summary, self.modules, self.copy = note(), note(), CopyCode()
        self._controls, self._after = bar(self.memory, self.gpu), column(self.modules, row(self.hand, self.copy))
        self.widget = column(
            heading("A mix of 4 and 16 bits", _WHY), self._controls, self.stream.widget, self.summary, self.curve, self._after
        )

    def draw(self) -> None:
        """The mix for the state's memory, as soon as every module is measured; it is chosen anew, and nothing is measured."""
        found, state, before = self._sensitivity(), self._session.store.value, self.mix
        ready = found is not None and found.complete
        self._controls.layout.display = self._after.layout.display = "" if ready else "none"
        self.mix = None
        if found is None or not ready:
            set_note(self.summary, "")
            self.curve.wait("Once the sensitivities are measured, memory that is left can be spent where it helps most.")
            self._offer()
            return
        whole = mix(found, found.job.nbytes_16bit)
        self._show_state(whole)
        budget = {"gpu": state.mix_gpu, "config": state.training} if state.mix_gpu else {"budget_bytes": self._budget(whole)}
        chosen = mix(found, **budget)
        if before is None or before.point != chosen.point:
            self.stream.work.cancel()
        with contextlib.suppress(InterruptedError):  # what was measured before is read; nothing is measured by this
            chosen.measure(cancelled=lambda: True)
        self._show(chosen)

    def _show(self, chosen: Mix) -> None:
        self.mix, base = chosen, chosen.all_16bit.predicted_loss
        left, of = chosen.modules_left_out, len(chosen.sensitivity.modules)
        summary = (
            f"{counted(len(left), 'module')} of {of} in 16 bits: all weights take {amount(chosen.nbytes)}. Predicted to add "
            f"{figures.nats(chosen.predicted_loss - base)} nats a token to the {base:.4f} in 16 bits"
        )
        if chosen.measured_loss is not None:
            summary += f", measured to add {figures.nats(chosen.measured_loss - base)}"
        summary += f". All in 4 bits adds {figures.nats(chosen.all_4bit.predicted_loss - base)}, measured."
        set_note(self.summary, summary)
        self.curve.show(figures.memory_curve_figure(chosen), f"Added loss against what all weights take. {summary}")
        set_note(self.modules, f"Left in 16 bits: {listed(left)}." if left else "No module is left in 16 bits.")
        try:
            self.copy.code = chosen.as_code()
        except ConfigError as error:  # what cannot be loaded has no code
            self.copy.code = "\n".join(f"# {line}" for line in str(error).splitlines())
        self._offer()

    def _budget(self, whole: Mix) -> int:
        """What the state allows, between all in 4 bits and all in 16."""
        least, most = whole.all_4bit.nbytes, whole.all_16bit.nbytes
        wanted = self._session.store.value.mix_megabytes
        return round(min(max((least + most) / 2 if wanted is None else 1e6 * wanted, least), most))

    def _show_state(self, whole: Mix) -> None:
        least, most = whole.all_4bit.nbytes / 1e6, whole.all_16bit.nbytes / 1e6
        with self._quiet, self.memory.hold_sync():  # no page can make a slider whose ends are one
            self.memory.min = min(least, self.memory.max)
            self.memory.max, self.memory.min = most, least
            self.memory.step = (most - least) / 100
            self.memory.value = self._budget(whole) / 1e6
            self.gpu.value = self._session.store.value.mix_gpu
            self.memory.disabled = bool(self.gpu.value)

    def _offer(self) -> None:
        done = self.mix is None or self.mix.measured_loss is not None
        self.stream.offer("" if done else "Measure this mix", "One evaluation, of this mix on the same rows.")

    def _begin(self) -> None:
        if (chosen := self.mix) is not None:

            def measure(progress: Progress, cancelled: Cancelled) -> list[Mix]:
                chosen.measure(progress=progress, cancelled=cancelled)
                return [chosen]

            self.stream.follow("Measuring the mix", "batches", measure)

    def _hand_over(self) -> None:
        if self.mix is not None:
            state = self._session.store.value
            self._session.store.update(**state.changes_to(self.mix.to_config(state.training)), tab="Train")
