"""What a QLoRA run's adapter repairs: how much of 4 bits' output error it takes back, by module and by checkpoint.

For an adapted module with the original weight W, the 4-bit weight Ŵ that the run trained on, and the adapter s·BA,

    error_base    = ‖(W − Ŵ)x‖ / ‖Wx‖            error_adapted = ‖(W − Ŵ − s·BA)x‖ / ‖Wx‖
    taken_back    = 1 − error_adapted / error_base
    along         = ⟨s·BAx, (W − Ŵ)x⟩ / ‖(W − Ŵ)x‖²

with norms and the inner product over all tokens and outputs. What an adapter of another kind makes of Ŵ (DoRA, OLoRA, PiSSA)
takes the place of Ŵ + s·BA. An adapter that begins with a product that is not zero is measured before its first step too: LoftQ
begins with what takes back most of W − Ŵ itself.

x are the inputs that the module gets in the *unquantized* model on held-out rows: W's own inputs, the same for every
checkpoint, so that the figures differ by the module's weights alone, and no error of earlier layers is mixed into them. The
run's own inputs differ a little, and change as it trains.

*The whole model.* Beside the modules stands the model itself: KL divergence of its next-token distributions from those of the
unquantized base, the tokens that flip, and the loss, before the first step (0) and with each adapter (``Repairs.models``). On
rows of the task the KL grows with training, as the model moves to where the task wants it, while the loss falls.

An adapter is trained on a task, and not to make up for quantization. It moves the outputs where the task wants them, which the
original W does not do either, so ``taken_back`` may be, and often is, negative: that says how far training has moved the module
in terms of 4 bits' error, and is no fault of the run. ``along`` looks at the error's own direction alone: 1 where the adapter
undoes it, whatever else it does, 0 where it goes at right angles to it. What a run gains is its held-out loss
(``wb.compare_methods``).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cost.process import Folder, Measuring, failure_in
from workbench.cost.row_costs import Interval, RowCosts
from workbench.errors import RunError, WorkbenchError
from workbench.given import is_whole
from workbench.memory.footprint import Plan
from workbench.progress import Progress, reporting
from workbench.show import Line, Record, Shown, View
from workbench.sources.kinds import kind_of, layer_of
from workbench.surveys.resumable import Unfolding
from workbench.text import counted, nats, number, percent
from workbench.training.events import EventReader
from workbench.training.folder import RunFolder, steps_of
from workbench.training.results.merging import Merge
from workbench.training.results.on_bases import adapter_digest
from workbench.training.runs import Run, attach

if TYPE_CHECKING:
    import pandas as pd

ROWS = 16
"""Held-out rows that are measured on by default."""


@dataclass(frozen=True, repr=False)
class Repair(Record):
    """One module with the adapter of one checkpoint. Measured; errors are relative to ‖Wx‖."""

    step: int
    """Optimizer steps that the adapter was trained for."""
    name: str
    """The module's path, as ``model.layers.0.self_attn.q_proj``."""
    layer: int | None
    kind: str
    """``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down`` …"""
    error_base: float
    """‖(W − Ŵ)x‖ / ‖Wx‖: without an adapter, the same for every checkpoint."""
    error_adapted: float
    """‖(W − Ŵ − s·BA)x‖ / ‖Wx‖: with it."""
    along: float
    """How much of the error's own direction the adapter goes back: 1 all of it, 0 none, below 0 where it adds to it."""

    @property
    def taken_back(self) -> float:
        """The share of the base's error that the adapter takes back: 1 all of it, 0 none, below 0 where it adds to it."""
        return 1 - self.error_adapted / self.error_base if self.error_base else 0.0

    def _line_(self) -> Line:
        return {
            "module": self.name, "step": f"{self.step}", "error in 4 bits": percent(self.error_base),
            "with the adapter": percent(self.error_adapted), "taken back": percent(self.taken_back),
            "along": percent(self.along),
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class RepairedModel(Record):
    """The run's model with the adapter of one checkpoint, on held-out rows. Measured; means a token."""

    step: int
    """Optimizer steps that the adapter was trained for; 0: the base in 4 bits, with what the adapter begins with."""
    kl: float
    """KL divergence of its next-token distributions from those of the unquantized base, in nats."""
    kl_interval: Interval
    """The 95 % interval of ``kl`` by bootstrap over held-out rows; NaN with a single row."""
    flips: float
    """The share of tokens before which it holds another token for the most likely than the unquantized base does."""
    flips_interval: Interval
    """The 95 % interval of ``flips``, as that of ``kl``."""
    loss: float
    """Cross-entropy in nats."""
    increase: float
    """loss − that of the unquantized base."""
    increase_interval: Interval
    """Its 95 % interval, paired: both models on the same rows."""

    def _line_(self) -> Line:
        (low, high), (fewest, most) = self.kl_interval, self.flips_interval
        return {
            "step": f"{self.step}", "KL": nats(self.kl), "95 % interval": f"{nats(low)} … {nats(high)}",
            "flips": percent(self.flips), "flips, 95 %": f"{percent(fewest)} … {percent(most)}",
            "loss": number(self.loss, ".4f"), "added": number(self.increase, "+.4f"),
        }  # fmt: skip


def repairs(
    run: Run | str | os.PathLike[str],
    *,
    max_rows: int = ROWS,
    folder: str | Path | None = None,
    changed_ok: bool = False,
    progress: bool | Progress = False,
    cancelled: Callable[[], bool] | None = None,
) -> Repairs:
    """The output errors of a run's 4-bit modules with the adapter of every checkpoint that it kept, and the final one.

    Runs keep ``save_total_limit`` checkpoints: raise it to see more of the way. The work is done by a process of its own, which
    holds the unquantized model in the compute dtype and a few copies of one weight.

    Args:
        run: A run or its folder, with method ``"qlora"``; one that is still going is measured as far as it has come.
        max_rows: Held-out rows that are measured on; of a run without any, the first rows that it learnt from.
        folder: Where what was measured is kept: with the same folder nothing is measured twice, and interrupted work continues.
            Without a folder the measurements go with the result.
        changed_ok: Go on where the base is no longer what the run was begun with.
        progress: True for a bar, or a function of the modules done and their total, over all batches.
        cancelled: Once it says yes, the work is cancelled, within a second.

    Returns:
        An iterable of ``Repair``, by module in the order of the model and then by checkpoint: errors relative, without unit.

    Raises:
        RunError: Where there is no run or adapter, or no error of 4 bits to take back; as ``Changed`` for what ``changed_ok``
            allows; and while iterating where the process fails.
        ModelError: As ``open_model`` does; and while iterating, where the process fails.
        InterruptedError: At once, where it is cancelled while the base is compared.

    >>> wb.repairs("runs/20260314-142200-builtin").run().to_frame()  # doctest: +SKIP
    """
    run = attach(run)
    if run.config.method != "qlora":
        what = f'the run\'s base was not in 4 bits (method "{run.config.method}"): there is no error to take back.'
        raise RunError(what, where=str(run.dir), remedy='Choose a run with method "qlora".')
    if not is_whole(max_rows, 1):
        raise RunError(f"max_rows is {max_rows!r}.", where="repairs", remedy="Give 1 or more.")
    adapters = adapters_of(run)
    if not adapters:
        raise RunError("nothing is saved yet.", where=str(run.dir), remedy="Wait for the run's first checkpoint, or its end.")
    merge = Merge(run, next(iter(adapters.values())), changed_ok=changed_ok, cancelled=cancelled)
    if merge.packed:
        what = "the checkpoint itself holds 4 bits: there is no original weight to compare with."
        raise RunError(what, where=run.config.model, remedy="Choose a run on a model that is not quantized yet.")
    return Repairs(run, adapters, merge, max_rows, folder, progress, cancelled)


def adapters_of(run: Run) -> dict[int, Path]:
    """Steps → the folder of the adapter after so many, oldest first; the final one in the place of a checkpoint of its step.

    0 is among them where the adapter begins with a product that is not zero (LoftQ, PiSSA, OLoRA).
    """
    folder = RunFolder(run.dir)
    places = {folder.beginning: 0.0} | {place: steps_of(place) for place in (*folder.complete_checkpoints(), folder.adapter)}
    found = {steps: place for place, steps in places.items() if (place / "adapter_config.json").exists()}
    return {int(steps): place for steps, place in sorted(found.items()) if steps != float("inf")}


class Repairs(Shown, Unfolding[Repair]):
    """The rows as they come, by module in the order of the model and then by checkpoint, and a table of them."""

    def __init__(
        self, run: Run, adapters: Mapping[int, Path], merge: Merge, max_rows: int, folder: str | Path | None,
        progress: bool | Progress, cancelled: Callable[[], bool] | None,
    ) -> None:  # fmt: skip
        self.modules = adapted_in_four_bits(merge)
        super().__init__(len(self.modules) * len(adapters), cancelled)
        self.adapters, self._progress = dict(adapters), progress
        self._asked_for = {
            "run": str(run.dir), "adapters": {str(step): str(path) for step, path in adapters.items()}, "max_rows": max_rows,
        }  # fmt: skip
        identity = {
            "run": str(run.dir), "number of rows": max_rows,
            "set of adapters": {str(step): adapter_digest(path) for step, path in adapters.items()},
        }  # fmt: skip
        self._folder = Folder(folder, identity, {})
        self._needed = sum(t.numel for t in merge.tensors) * Plan.of(run.config, "cpu").compute_bytes
        self._found: dict[tuple[str, int], Repair] = {}
        self._models: dict[int | None, RowCosts] = {}
        self._at = (0, len(self.modules))
        self._reader = EventReader(self._folder.root)
        self._poll()

    @property
    def steps(self) -> tuple[int, ...]:
        """The checkpoints, by their steps."""
        return tuple(self.adapters)

    @property
    def models(self) -> tuple[RepairedModel, ...]:
        """The whole model before the first step, and with the adapter of each checkpoint: as far as they are measured."""
        base = self._models.get(None)
        if base is None:
            return ()
        found = []
        for step in dict.fromkeys((0, *self.adapters)):
            if (rows := self._models.get(step)) is not None:
                found.append(
                    RepairedModel(
                        step, rows.kl, rows.kl_interval, rows.flips, rows.flips_interval, rows.loss, *rows.above(base)
                    )
                )
        return tuple(found)

    def to_frame(self) -> pd.DataFrame:
        """One line a module and checkpoint: step, name, layer, kind, error_base, error_adapted, along, taken_back."""
        import pandas as pd

        if not self._rows:
            self.run()
        columns = [*(field.name for field in fields(Repair)), "taken_back"]
        frame = pd.DataFrame([{**asdict(row), "taken_back": row.taken_back} for row in self.rows], columns=columns)
        return frame.astype({"layer": "Int64"})

    def _show_(self) -> View:
        title = f"What adapters take back of 4 bits' output error: {self._so_far('rows')}"
        return View(
            title, lines=self.rows, note=f"{self.summary} Measured; errors are relative to the module's output.".strip()
        )

    @property
    def summary(self) -> str:
        """The whole model, in a sentence: its KL from the unquantized base without and with the adapter, and the loss."""
        if len(models := self.models) < 2:
            return ""
        four, last = models[0], models[-1]
        return (
            f"KL from the unquantized base: {nats(four.kl)} nats a token in 4 bits ({percent(four.flips)} of tokens flip), "
            f"{nats(last.kl)} with the adapter after {counted(last.step, 'step')} ({percent(last.flips)}), which moves the "
            f"model to its task: the loss goes from {four.loss:.4f} to {last.loss:.4f}."
        )

    def _start(self) -> Generator[Repair, None, None]:
        wanted = [(module, step) for module in self.modules for step in self.adapters]
        process = Measuring(self._folder.root, "workbench.cost.repairing", self._request, self._poll, self._needed)
        with reporting(self._progress, "Repairs", "module", total=len(self.modules)) as report:
            try:
                if not process.until(lambda: not self._models_left(), self._stopped, lambda: report(*self._at)):
                    return
                for key in wanted[len(self._rows) :]:
                    if not process.until(lambda at=key: at in self._found, self._stopped, lambda: report(*self._at)):  # type: ignore[misc]
                        return
                    yield self._found[key]
            finally:
                process.close()

    def _request(self) -> dict[str, object]:
        done = {module for module in self.modules if all((module, step) in self._found for step in self.adapters)}
        left = [module for module in self.modules if module not in done]
        return {**self._asked_for, "modules": left, "measured": len(done), "models": self._models_left()}

    def _models_left(self) -> list[int]:
        """The steps whose whole models are not measured yet."""
        return [step for step in dict.fromkeys((0, *self.adapters)) if step not in self._models or None not in self._models]

    def _poll(self) -> WorkbenchError | None:
        events = self._reader.poll()
        for event in events:
            if event["k"] == "progress":
                self._at = event["done"], event["total"]
            elif event["k"] == "model":
                self._models[event["step"]] = RowCosts.from_event(event)
            elif event["k"] == "repair":
                name, step = event["name"], event["step"]
                values = (event[field] for field in ("error_base", "error_adapted", "along"))
                errors = (math.nan if value is None else float(value) for value in values)
                self._found[name, step] = Repair(step, name, layer_of(name), kind_of(name), *errors)
        return failure_in(events)


def adapted_in_four_bits(merge: Merge) -> tuple[str, ...]:
    """Paths of the modules that the run adapted and held in 4 bits, in the order of the checkpoint."""
    return tuple(merge.paths[t.name] for t in merge.tensors if t.name in merge.paths and merge.in_four_bits(t))
