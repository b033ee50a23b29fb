"""Which modules matter: the loss with one module quantized, and with all but that one. ``sensitivity`` and ``Sensitivity``.

Covers every module that a QLoRA load quantizes, one row each, and what a row says. The first of its two losses shows what
a module costs by itself, the second what leaving it out of 4 bits gains; they differ where errors of several modules add to or
make up for one another. What to do with them is ``mixing``'s part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from workbench.cost.assignments import Assignment, spec_key
from workbench.cost.jobs import Job, job_of
from workbench.cost.measurements import Measurements, MemoryUse
from workbench.cost.skip_names import names_for
from workbench.errors import FormatError, ModelError
from workbench.given import nearest, several
from workbench.progress import Progress, reporting
from workbench.quant.spec import QuantSpec, SpecLike, as_specs
from workbench.show import Line, Record, Shown, View, bar
from workbench.sources import Source
from workbench.sources.kinds import kind_of, layer_of
from workbench.surveys.resumable import Unfolding
from workbench.text import amount, number, percent
from workbench.training.config import TrainConfig

if TYPE_CHECKING:
    import pandas as pd

NF4 = QuantSpec("nf4", double_quant=True)
"""What modules are quantized to by default: the format that ``TrainConfig`` holds a base in."""


@dataclass(frozen=True, repr=False)
class ModuleCost(Record):
    """What quantizing one module does, measured on held-out rows. Losses are nats a token."""

    name: str
    """The module: its weight's name in the checkpoint without ``.weight``."""
    layer: int | None
    """The number of its layer, None outside the layers."""
    kind: str
    """``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down`` … or the module's own name."""
    loss_only: float
    """With this module alone quantized."""
    loss_all_but: float
    """With every module quantized but this one."""
    increase_only: float
    """``loss_only`` − the loss in 16 bits. Below zero where quantizing it happens to help on these rows."""
    decrease_all_but: float
    """The loss with every module quantized − ``loss_all_but``."""
    output_error: float
    """‖(W − Ŵ)x‖ / ‖Wx‖, x being the activations that reach it in the 16-bit model over 8 held-out rows."""
    relative_rmse: float
    """‖W − Ŵ‖ / ‖W‖ of its weight."""
    nbytes_4bit: int
    """Bytes of its weight as it is quantized, scales counted."""
    nbytes_16bit: int
    """Bytes of its weight in 16 bits."""

    @property
    def saved_bytes(self) -> int:
        """What quantizing it saves."""
        return self.nbytes_16bit - self.nbytes_4bit

    @property
    def share(self) -> float:
        """What it adds to the loss, in the mean over all orders in which modules could be quantized one after the other.

        (``increase_only`` + ``decrease_all_but``) / 2: its Shapley value where modules interact in pairs at most, since the
        first is what it adds before all others and the second after them. Over all modules these then sum to what quantizing
        everything adds.
        """
        return (self.increase_only + self.decrease_all_but) / 2

    def _line_(self) -> Line:
        return {
            "module": self.name, "adds to the loss": number(self.share, "+.5f"), "output error": percent(self.output_error),
            "relative RMSE": percent(self.relative_rmse), "saved": amount(self.saved_bytes),
        }  # fmt: skip


def sensitivity(
    src: Source | str | os.PathLike[str],
    spec: SpecLike = NF4,
    *,
    data: TrainConfig | str | os.PathLike[str] | None = None,
    modules: str | Sequence[str] | None = None,
    max_length: int | None = None,
    max_rows: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool | Progress = False,
    cancelled: Callable[[], bool] | None = None,
) -> Sensitivity:
    """What each module costs when it is quantized to ``spec``: an iterable of ``ModuleCost`` as they finish.

    ``modules``: names, in the order in which they are to come; None for all, in the checkpoint's. The numbers are the same in
    every order. A module takes two losses over the held-out rows, so that a model of many layers takes a while: with a
    ``folder`` a sensitivity that was interrupted, by ``cancel``, by a kill or by a lost machine, continues where it was.
    Modules come layer by layer, since that is the order in which their weights are exchanged.

    The other arguments, and what is raised, are those of ``evaluate``, whose folder may be the same.
    """
    job = job_of(src, data, max_length, max_rows)
    wanted = dict.fromkeys(as_specs(spec, "spec"))
    if len(wanted) > 1:
        raise FormatError("A sensitivity is to one format.", where="spec", remedy="Give one specification.")
    named = tuple(job.weights) if modules is None else tuple(dict.fromkeys(several(modules)))
    if unknown := [name for name in named if name not in job.weights]:
        what = f"It has no module {', '.join(map(repr, unknown[:3]))} that a QLoRA load would quantize."
        remedy = f"Name weights as in tensors(), without '.weight'. {nearest(unknown[0], job.weights)}".strip()
        raise ModelError(what, where=job.source.name, remedy=remedy)
    if not named:
        raise ModelError("No module is named.", where="modules", remedy="Leave modules out for all of them.")
    return Sensitivity(job, next(iter(wanted)), named, folder, progress, cancelled)


class Sensitivity(Shown, Unfolding[ModuleCost]):
    """A model's sensitivities as they are measured, a row a module. Iterating does the work; leaving the loop stops it."""

    def __init__(
        self, job: Job, spec: QuantSpec, modules: tuple[str, ...], folder: str | os.PathLike[str] | None,
        progress: bool | Progress, cancelled: Callable[[], bool] | None,
    ) -> None:  # fmt: skip
        super().__init__(len(modules), cancelled)
        self.job, self.spec, self.modules = job, spec, modules
        self.measurements = Measurements(job, folder)
        self._progress = progress

    @property
    def loss_16bit(self) -> float | None:
        """The model's loss in 16 bits; None before it is measured."""
        return self._loss(Assignment())

    @property
    def loss_4bit(self) -> float | None:
        """The loss with every module quantized; None before it is measured."""
        return self._loss(Assignment(self.spec))

    @property
    def phase(self) -> str:
        """What the measuring process is doing: ``import``, ``load``, ``measure``; empty where there is none."""
        return self.measurements.phase

    @property
    def memory(self) -> MemoryUse | None:
        """What the measuring process took, measured; None before it has measured a row."""
        return self.measurements.memory

    def names_for(self, modules: Collection[str]) -> tuple[str, ...]:
        """Names for ``llm_int8_skip_modules`` that leave exactly these modules out when transformers loads the model."""
        return names_for(modules, self.job.weights, self.measurements.prefix)

    def to_frame(self) -> pd.DataFrame:
        """A line for each finished row, with ``share`` and ``saved_bytes``; runs it first where nothing is finished."""
        import pandas as pd

        self._begin_once()
        lines = [asdict(row) | {"share": row.share, "saved_bytes": row.saved_bytes} for row in self.rows]
        return pd.DataFrame(lines).astype({"layer": "Int64"})

    def _loss(self, assignment: Assignment) -> float | None:
        found = self.measurements.losses.get(assignment.key)
        return None if found is None else found.loss

    def _start(self) -> Generator[ModuleCost, None, None]:
        order = [Assignment(), Assignment(self.spec), *self._assignments()]
        left = set(self.modules[len(self._rows) :])
        ready: set[str] = set()
        with reporting(self._progress, "Sensitivity", "batch") as report:
            for assignment in self.measurements.measured(order, (self.spec,), report, self._stopped):
                for name in (*(assignment.only or ()), *assignment.but):
                    if name in left and all(p.key in self.measurements.losses for p in self._of(name)):
                        ready.add(name)
                while (at := len(self._rows)) < len(self.modules) and self.modules[at] in ready:
                    yield self._row(self.modules[at])

    def _of(self, module: str) -> tuple[Assignment, Assignment]:
        return Assignment(self.spec, only=(module,)), Assignment(self.spec, but=(module,))

    def _assignments(self) -> Iterator[Assignment]:
        """Both assignments of every module, layer by layer.

        In one layer first all but one module, then one by one; in the next layer the other way round. So the whole model is
        quantized anew once a layer, and not twice a module.
        """
        for turn, (_, group) in enumerate(groupby(self.modules, layer_of)):
            alone, without = zip(*map(self._of, group), strict=True)
            yield from (*without, *alone) if turn % 2 == 0 else (*alone, *without)

    def _row(self, module: str) -> ModuleCost:
        found, info = self.measurements, self.job.weights[module]
        base, whole = found.losses[Assignment().key], found.losses[Assignment(self.spec).key]
        only, but = (found.losses[assignment.key] for assignment in self._of(module))
        key = module, spec_key(self.spec)
        return ModuleCost(
            module, layer_of(module), kind_of(module), only.loss, but.loss, only.loss - base.loss, whole.loss - but.loss,
            found.outputs[key].value, found.weights[key].value, self.spec.nbytes(info.numel), 2 * info.numel,
        )  # fmt: skip

    def _show_(self) -> View:
        worst = sorted(self.rows, key=lambda row: -row.share)
        most = max((abs(row.share) for row in worst), default=0.0) or 1.0
        return View(
            f"Sensitivity of {self.job.source.name} to {self.spec.title}: {self._so_far('modules')}, the costliest first",
            lines=[{**row._line_(), "": bar(row.share / most)} for row in worst],
            note="Measured; losses are nats a token on held-out rows.",
        )
