"""A part of the cost view: which modules to leave in 16 bits for the memory there is, and what that gives.

Covers the slider, the curve, measuring the mix, handing it to training, and its configuration as code. Which modules they are
is ``wb.mix``'s choice, from the sensitivities measured so far.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import ipywidgets

from widgets.background.tasks import guard
from widgets.background.work import Work
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
from workbench.errors import ConfigError, WorkbenchError
from workbench.memory.gpus import known
from workbench.progress import Cancelled, Progress
from workbench.text import amount, counted, listed, nats, percent

_WHY = """\
Modules are left in 16 bits by the KL divergence taken back per byte. They are chosen by every second held-out row; what is \
shown is of the others. Like: a checkpoint whose configuration lists the modules it leaves out of 4 bits."""


class MixPart:
    """``mix`` is the one for the memory that the state names; None before all modules are measured."""

    def __init__(self, session: Session, message: Message, sensitivity: Callable[[], Sensitivity | None]) -> None:
        self._session, self._sensitivity, self._quiet = session, sensitivity, Quiet()
        self.mix: Mix | None = None
        guarded = guard(message)
        self.stream = Streamed(
            message, session.executor, begin=self._begin, show=lambda mixes: self._show(mixes[0]), ended=self._offer, style=""
        )
        self.look = Work(session.executor, guarded(self._found), message.error)
        self.memory = number_slider("All weights may take (MB)", step=0.01, readout_format=".2f")
        self.gpu = ipywidgets.Dropdown(
            description="Or what a GPU leaves them", options=[("as the slider says", ""), *((name, name) for name in known())]
        )
        self.like = ipywidgets.Text(description="Beside it, like", placeholder="folder or owner/name", continuous_update=False)
        self.like.observe(guarded(lambda _: self.draw()), "value")
        self.beside: Mix | None = None
        self._looked: tuple[Sensitivity, str] | None = None
        """What ``beside`` was last asked for with: the checkpoint may lie on the Hub."""
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
        self._controls, self._after = bar(self.memory, self.gpu, self.like), column(self.modules, row(self.hand, self.copy))
        self.widget = column(
            heading("A mix of 4 and 16 bits", _WHY), self._controls, self.stream.widget, self.summary, self.curve, self._after
        )

    def draw(self) -> None:
        """The mix for the state's memory, as soon as every module is measured; it is chosen anew, and nothing is measured."""
        found, state, before = self._sensitivity(), self._session.store.value, self.mix
        ready = found is not None and found.complete
        self._controls.layout.display = "" if ready else "none"
        self._look(found if ready else None, self.like.value.strip())
        if found is None or not ready:
            self._show_none("Once the sensitivities are measured, memory that is left can be spent where it helps most.")
            return
        whole = mix(found, found.job.nbytes_16bit)
        self._show_state(whole)
        budget = {"gpu": state.mix_gpu, "config": state.training} if state.mix_gpu else {"budget_bytes": self._budget(whole)}
        try:
            chosen = mix(found, **budget)
        except WorkbenchError:
            self._show_none("There is no mix for this memory.")
            raise
        if before is None or before.point != chosen.point:
            self.stream.work.cancel()
        self._show(_read(chosen))

    def _show_none(self, why: str) -> None:
        self.mix = None
        self._after.layout.display = "none"
        set_note(self.summary, "")
        self.curve.wait(why)
        self._offer()

    def _look(self, sensitivity: Sensitivity | None, like: str) -> None:
        """Asks for the mix of another checkpoint, off the kernel's thread; nothing where it was asked for already."""
        if sensitivity is None or not like:
            self.look.cancel()
            self.beside = self._looked = None
        elif self._looked != (sensitivity, like):
            self.beside, self._looked = None, (sensitivity, like)
            self.look.submit("Reading what the checkpoint leaves out", "", lambda p, c: _read(mix(sensitivity, like=like)))

    def _found(self, beside: Mix) -> None:
        self.beside = beside
        if self.mix is not None:
            self._show(self.mix)

    def _show(self, chosen: Mix) -> None:
        self.mix, four = chosen, chosen.in_4_bits
        self._after.layout.display = ""
        left, of = chosen.modules_left_out, len(chosen.sensitivity.modules)
        summary = (
            f"{counted(len(left), 'module')} of {of} in 16 bits: all weights take {amount(chosen.nbytes)}. KL from 16 bits: "
            f"predicted {nats(chosen.predicted_kl)} nats a token"
        )
        if (found := chosen.measured) is not None:
            low, high = map(nats, found.kl_interval)
            added = figures.nats(found.loss - chosen.in_16_bits.loss)
            summary += f", measured {nats(found.kl)} ({low} to {high}); {percent(found.flips)} flip, loss {added}"
        by, on = chosen.rows
        summary += (
            f". All in 4 bits: {nats(four.kl)}, {percent(four.flips)} flip. Chosen by {by} rows, measured on {on} others."
        )
        if self.beside is not None:
            kl = self.beside.predicted_kl if self.beside.measured_kl is None else self.beside.measured_kl
            known = "predicted" if self.beside.measured_kl is None else "measured"
            summary += f" As {self.beside.like}: {amount(self.beside.nbytes)}, {known} {nats(kl)}."
        set_note(self.summary, summary)
        said = f"KL divergence against what all weights take. {summary}"
        self.curve.show(figures.memory_curve_figure(chosen, self.beside), said)
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
        shown = () if self.mix is None else (self.mix, self.beside)
        left = [one for one in shown if one is not None and one.measured is None]
        label = "" if not left else "Measure this mix" if self.beside is None else "Measure both mixes"
        self.stream.offer(label, "A pass of the model in 16 bits, and one of each mix, over the same rows.")

    def _begin(self) -> None:
        if (chosen := self.mix) is not None:
            both = [chosen, *([self.beside] if self.beside else [])]

            def measure(progress: Progress, cancelled: Cancelled) -> list[Mix]:
                for _ in chosen.sensitivity.measurements.measured([one.point for one in both], (), progress, cancelled):
                    pass
                return list(map(_read, both))

            self.stream.follow("Measuring the mix", "batches", measure)

    def _hand_over(self) -> None:
        if self.mix is not None:
            state = self._session.store.value
            self._session.store.update(**state.changes_to(self.mix.to_config(state.training)), tab="Train")


def _read(one: Mix) -> Mix:
    """The mix with what was measured of it before; nothing is measured by this."""
    with contextlib.suppress(InterruptedError):
        one.measure(cancelled=lambda: True)
    return one
