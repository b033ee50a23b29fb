"""Which modules matter: the divergence from 16 bits with one module quantized, and with all but that one. ``sensitivity``.

Covers every module that a QLoRA load quantizes, one row each, and what a row says. Each is measured twice: alone, which shows
what it costs by itself, and with all others, which shows what leaving it out of 4 bits gains. They differ where errors of
several modules add to or make up for one another. What to do with them is ``mixing``'s part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from workbench.cost.assignments import Assignment, spec_key
from workbench.cost.jobs import Job, job_of
from workbench.cost.measurements import Channel, Measurements, MemoryUse
from workbench.cost.row_costs import Interval, RowCosts, interval
from workbench.cost.skip_names import names_for
from workbench.errors import FormatError, ModelError
from workbench.given import is_a, nearest, several
from workbench.progress import Progress, reporting
from workbench.quant.spec import QuantSpec, SpecLike, as_specs
from workbench.show import Line, Record, Shown, View, bar
from workbench.sources import Source
from workbench.sources.kinds import kind_of, layer_of
from workbench.surveys.resumable import Unfolding
from workbench.text import NONE, amount, nats, percent
from workbench.training.config import TrainConfig

if TYPE_CHECKING:
    import pandas as pd

NF4 = QuantSpec("nf4", double_quant=True)
"""What modules are quantized to by default: the format that ``TrainConfig`` holds a base in."""


@dataclass(frozen=True, repr=False)
class ModuleCost(Record):
    """What quantizing one module does, measured on held-out rows. KL divergences and losses are nats a token."""

    name: str
    """The module: its weight's name in the checkpoint without ``.weight``."""
    layer: int | None
    """The number of its layer, None outside the layers."""
    kind: str
    """``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down`` … or the module's own name."""
    kl_only: float
    """KL divergence from the model in 16 bits with this module alone quantized."""
    kl_gain: float
    """By how much the KL with every module quantized falls where this one stays in 16 bits."""
    share_interval: Interval
    """The 95 % interval of ``share``, paired, by bootstrap over held-out rows."""
    flips_only: float
    """The share of tokens before which the most likely token changes with this module alone quantized."""
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
    channels: tuple[Channel, ...]
    """The input channels in which x stands out, at most 8, the most first: from 5 times the median channel on."""
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
        """What it adds to the KL, in the mean over all orders in which modules could be quantized one after the other.

        (``kl_only`` + ``kl_gain``) / 2: its Shapley value where modules interact in pairs at most, since the first is what it
        adds before all others and the second after them. So it is to the second order, in which the KL grows with the errors.
        Over all modules these then sum to the KL with everything quantized.
        """
        return (self.kl_only + self.kl_gain) / 2

    @property
    def loss_share(self) -> float:
        """The same of the loss: on few rows mostly chance."""
        return (self.increase_only + self.decrease_all_but) / 2

    def _line_(self) -> Line:
        low, high = self.share_interval
        return {
            "module": self.name, "adds to the KL": nats(self.share), "95 % interval": f"{nats(low)} … {nats(high)}",
            "output error": percent(self.output_error), "relative RMSE": percent(self.relative_rmse),
            "outlier channels": outliers_of(self.channels), "saved": amount(self.saved_bytes),
        }  # fmt: skip


def outliers_of(channels: Sequence[Channel], most: int = 2) -> str:
    """The first of the channels as text, each with its size in multiples of the median's."""
    shown = [f"{channel.number} ({channel.times:.0f} ×)" for channel in channels[:most]]
    return ", ".join([*shown, *([f"{len(channels) - most} more"] if len(channels) > most else [])]) or NONE


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
    """What each module costs when it is quantized.

    A module takes two passes over the held-out rows, so that a model of many layers takes a while. Modules come layer by layer,
    since that is the order in which their weights are exchanged.

    Args:
        src: The model, as in ``evaluate``.
        spec: A specification, or the name of a format as it usually is.
        data: The rows, as in ``evaluate``.
        modules: Names, in the order in which they are to come; None for all, in the checkpoint's. The numbers are the same in
            every order.
        max_length: Tokens of a row that are used, as in ``evaluate``.
        max_rows: Rows that are used, as in ``evaluate``.
        folder: Where what was measured is kept; it may be that of ``evaluate``. With one, a sensitivity that was interrupted,
            by ``cancel``, by a kill or by a lost machine, continues where it was.
        progress: True for a bar, or a function of the batches done and their total, as in ``evaluate``.
        cancelled: Once it says yes, the work is cancelled, as in ``evaluate``.

    Returns:
        An iterable of ``ModuleCost`` as they finish.

    Raises:
        ModelError: What ``evaluate`` raises, and for modules that the model has not.
        DataError: What ``evaluate`` raises.
        FormatError: For an unknown format, and for more than one.
        ConfigError: What ``evaluate`` raises.
        RunError: What ``evaluate`` raises, at once and while iterating.

    >>> found = wb.sensitivity("builtin", "nf4")  # measures nothing before it is run or iterated
    >>> len(found), found.modules[0]
    (42, 'model.layers.0.mlp.down_proj')
    >>> found.run().to_frame().nlargest(3, "share")  # doctest: +SKIP
    """
    job = job_of(src, data, max_length, max_rows, progress, cancelled)
    wanted = dict.fromkeys(as_specs(spec, "spec"))
    if len(wanted) > 1:
        raise FormatError("A sensitivity is to one format.", where="spec", remedy="Give one specification.")
    named = tuple(job.weights if modules is None else several(modules))
    if unknown := [name for name in named if not is_a(name, str) or name not in job.weights]:
        what = f"It has no module {', '.join(map(repr, unknown[:3]))} that a QLoRA load would quantize."
        remedy = f"Name weights as in tensors(), without '.weight'. {nearest(unknown[0], job.weights)}".strip()
        raise ModelError(what, where=job.source.name, remedy=remedy)
    if not named:
        raise ModelError("No module is named.", where="modules", remedy="Leave modules out for all of them.")
    return Sensitivity(job, next(iter(wanted)), tuple(dict.fromkeys(named)), folder, progress, cancelled)


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
    def text(self) -> str:
        """What was measured on, in words."""
        return self.job.text

    @property
    def in_16_bits(self) -> RowCosts | None:
        """The model in 16 bits, row by row; None before it is measured."""
        return self.measurements.rows.get(Assignment().key)

    @property
    def quantized(self) -> RowCosts | None:
        """The model with every module quantized, row by row: its KL divergence above all; None before it is measured."""
        return self.measurements.rows.get(Assignment(self.spec).key)

    @property
    def loss_16bit(self) -> float | None:
        """The model's loss in 16 bits; None before it is measured."""
        return None if (found := self.in_16_bits) is None else found.loss

    @property
    def loss_4bit(self) -> float | None:
        """The loss with every module quantized; None before it is measured."""
        return None if (found := self.quantized) is None else found.loss

    def shares_on(self, rows: slice) -> dict[str, float]:
        """``ModuleCost.share`` of every finished module, of some of the held-out rows."""
        return {row.name: sum(sums[rows]) / sum(tokens[rows]) for row in self.rows for sums, tokens in [self._share(row.name)]}

    def gains_on(self, rows: slice) -> dict[str, float]:
        """``ModuleCost.kl_gain`` of every finished module, of some of the held-out rows."""
        whole = self._known(Assignment(self.spec)).of(rows).kl
        return {row.name: whole - self._known(self._of(row.name)[1]).of(rows).kl for row in self.rows}

    def _known(self, assignment: Assignment) -> RowCosts:
        return self.measurements.rows[assignment.key]

    def _share(self, module: str) -> tuple[list[float], tuple[int, ...]]:
        """Of each held-out row what the module adds to its KL, and its tokens."""
        whole, (only, but) = self._known(Assignment(self.spec)), map(self._known, self._of(module))
        sums = [(a + b - c) / 2 for a, b, c in zip(only.kls, whole.kls, but.kls, strict=True)]
        return sums, whole.tokens

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
        lines = [module_line(row) for row in self.rows]
        return pd.DataFrame(lines).astype({"layer": "Int64"})

    def _start(self) -> Generator[ModuleCost, None, None]:
        order = [Assignment(), Assignment(self.spec), *self._assignments()]
        left = set(self.modules[len(self._rows) :])
        ready: set[str] = set()
        with reporting(self._progress, "Sensitivity", "batch") as report:
            for assignment in self.measurements.measured(order, (self.spec,), report, self._stopped):
                for name in (*(assignment.only or ()), *assignment.but):
                    if name in left and all(p.key in self.measurements.rows for p in self._of(name)):
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
        base, whole, only, but = map(self._known, (Assignment(), Assignment(self.spec), *self._of(module)))
        key = module, spec_key(self.spec)
        return ModuleCost(
            module, layer_of(module), kind_of(module), only.kl, whole.kl - but.kl, interval(*self._share(module)), only.flips,
            only.loss, but.loss, only.loss - base.loss, whole.loss - but.loss, found.outputs[key].value,
            found.weights[key].value, found.channels[module], self.spec.nbytes(info.numel), 2 * info.numel,
        )  # fmt: skip

    def _show_(self) -> View:
        worst = sorted(self.rows, key=lambda row: -row.share)
        most = max((abs(row.share) for row in worst), default=0.0) or 1.0
        return View(
            f"Sensitivity of {self.job.source.name} to {self.spec.title}: {self._so_far('modules')}, the costliest first",
            lines=[{**row._line_(), "": bar(row.share / most)} for row in worst],
            note=f"Measured on {self.text}: KL divergence from 16 bits in nats a token; intervals over rows.",
        )


def module_line(row: ModuleCost) -> dict[str, object]:
    """A module's fields and what follows from them, for a table."""
    fields = asdict(row) | {"channels": tuple(channel.number for channel in row.channels)}
    low, high = fields.pop("share_interval")
    more = {"share": row.share, "share_low": low, "share_high": high, "loss_share": row.loss_share}
    return fields | more | {"saved_bytes": row.saved_bytes}
