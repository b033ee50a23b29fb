"""What a QLoRA run's adapter repairs: how much of 4 bits' output error it takes back, by module and by checkpoint.

For an adapted module with the original weight W, the 4-bit weight Ŵ that the run trained on, and the adapter s·BA,

    error_base    = ‖(W − Ŵ)x‖ / ‖Wx‖            error_adapted = ‖(W − Ŵ − s·BA)x‖ / ‖Wx‖
    taken_back    = 1 − error_adapted / error_base
    along         = ⟨s·BAx, (W − Ŵ)x⟩ / ‖(W − Ŵ)x‖²

with norms and the inner product over all tokens and outputs. What an adapter of another kind makes of Ŵ (DoRA, OLoRA) takes
the place of Ŵ + s·BA.

x are the inputs that the module gets in the *unquantized* model on held-out rows: W's own inputs, the same for every
checkpoint, so that the figures differ by the module's weights alone, and no error of earlier layers is mixed into them. The
run's own inputs differ a little, and change as it trains.

An adapter is trained on a task, and not to make up for quantization. It moves the outputs where the task wants them, which the
original W does not do either, so ``taken_back`` may be, and often is, negative: that says how far training has moved the module
in terms of 4 bits' error, and is no fault of the run. ``along`` looks at the error's own direction alone: 1 where the adapter
undoes it, whatever else it does, 0 where it goes at right angles to it. What a run gains is its held-out loss
(``wb.compare_methods``).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import RunError
from workbench.kinds import kind_of, layer_of
from workbench.sources import open_model
from workbench.sources.base import Cancelled, Progress
from workbench.sources.packed import as_loaded
from workbench.training.folder import RunFolder, steps_of
from workbench.training.runs import Run, attach

if TYPE_CHECKING:
    import pandas as pd

ROWS = 16
"""Held-out rows that are measured on unless told otherwise."""


@dataclass(frozen=True)
class Repair:
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


def repairs(
    run: Run | str | Path, *, max_rows: int = ROWS, progress: Progress | None = None, cancelled: Cancelled | None = None
) -> Repairs:
    """The output errors of a run's 4-bit modules with the adapter of every checkpoint that it kept, and the final one.

    ``run``: a run or its folder, with method ``"qlora"``; one that is still going is measured as far as it has come. Runs keep
    ``save_total_limit`` checkpoints: raise it to see more of the way. ``max_rows``: held-out rows (of a run without any: the
    first rows that it learnt from) that the unquantized model is run on, whole, in this process: its memory is that model's in
    the compute dtype, and a few copies of one weight. ``progress(done, total)`` counts modules. Nothing is measured before the
    result is iterated, run, or asked for a table.

    Raises ``RunError`` where there is no adapter, or where there is no error of 4 bits to take back.
    """
    run = run if isinstance(run, Run) else attach(run)
    if run.config.method != "qlora":
        what = f'the run\'s base was not in 4 bits (method "{run.config.method}"): there is no error to take back.'
        raise RunError(what, where=str(run.dir), remedy='Choose a run with method "qlora".')
    if as_loaded(open_model(run.config.model))[1] is not None:
        what = "the checkpoint itself holds 4 bits: there is no original weight to compare with."
        raise RunError(what, where=run.config.model, remedy="Choose a run on a model that is not quantized yet.")
    if max_rows < 1:
        raise RunError(f"max_rows is {max_rows}.", where="repairs", remedy="Give 1 or more.")
    adapters = adapters_of(run)
    if not adapters:
        raise RunError("nothing is saved yet.", where=str(run.dir), remedy="Wait for the run's first checkpoint, or its end.")
    return Repairs(run, adapters, max_rows, progress, cancelled)


def adapters_of(run: Run) -> dict[int, Path]:
    """Steps → the folder of the adapter after so many, oldest first; the final one in the place of a checkpoint of its step."""
    folder = RunFolder(run.dir)
    places = [*folder.complete_checkpoints(), folder.adapter]
    found = {steps_of(place): place for place in places if (place / "adapter_config.json").exists()}
    return {int(steps): place for steps, place in sorted(found.items()) if steps != float("inf")}


class Repairs:
    """The rows as they come, by module in the order of the model and then by checkpoint, and a table of them."""

    def __init__(
        self, run: Run, adapters: Mapping[int, Path], max_rows: int, progress: Progress | None, cancelled: Cancelled | None
    ) -> None:
        self.source, self.adapters, self.max_rows = run, dict(adapters), max_rows
        self._progress, self._asked = progress, cancelled
        self._cancelled, self._working = threading.Event(), threading.Lock()
        self._rows: tuple[Repair, ...] = ()
        self.complete = False
        """Whether every module was measured."""

    @property
    def rows(self) -> tuple[Repair, ...]:
        """The rows that there are."""
        return self._rows

    @property
    def steps(self) -> tuple[int, ...]:
        """The checkpoints, by their steps."""
        return tuple(self.adapters)

    def __iter__(self) -> Iterator[Repair]:
        return iter(self.run().rows)

    def run(self) -> Repairs:
        """Measures what is left to measure, and returns this."""
        from workbench.cost.repairing import measure_repairs

        with self._working:
            if self.complete or self._stopped():
                return self
            found: list[Repair] = []

            def tell(name: str, step: int, without: float, adapted: float, along: float) -> None:
                found.append(Repair(step, name, layer_of(name), kind_of(name), without, adapted, along))
                self._rows = tuple(found)

            try:
                measure_repairs(self.source, self.adapters, self.max_rows, tell, self._progress, self._stopped)
            except InterruptedError:
                return self
            self.complete = True
        return self

    def cancel(self) -> None:
        """Ends the measuring for good, from any thread."""
        self._cancelled.set()

    def to_frame(self) -> pd.DataFrame:
        """One line a module and checkpoint: step, name, layer, kind, error_base, error_adapted, along, taken_back."""
        import pandas as pd

        if not self._rows:
            self.run()
        columns = [*(field.name for field in fields(Repair)), "taken_back"]
        frame = pd.DataFrame([{**asdict(row), "taken_back": row.taken_back} for row in self._rows], columns=columns)
        return frame.astype({"layer": "Int64"})

    def _stopped(self) -> bool:
        if self._asked is not None and self._asked():
            self._cancelled.set()
        return self._cancelled.is_set()
