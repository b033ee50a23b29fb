"""Where to spend the memory that is left: which modules to leave out of 4 bits, by what each costs. ``mix`` and ``Mix``.

Covers the choice under a budget in bytes or for a GPU, or as another checkpoint has made it, its predicted and its measured KL
divergence, the curve of KL against memory from everything in 4 bits to everything in 16, and handing the choice to
``TrainConfig`` and ``BitsAndBytesConfig``. What a module costs is measured by ``sensitivities``; that the costs add up is
assumed, and held to a measurement by ``Mix.measure``.

*Rows.* Every second held-out row, from the first on, is what modules are chosen by. The others are what is reported: predicted
and measured KL, and loss. So a choice that suits its rows by chance shows no gain from that.

*Prediction.* With K the KL with everything quantized, and sᵢ the shares of the modules (``ModuleCost.share``), corrected by as
much as they miss K in proportion to |sᵢ|, leaving the set S out takes back the part Σ sᵢ / K over S: all of it with every
module left out. That part is taken of the rows to choose by, K of the others. Where only some modules were measured,
``kl_gain`` stands for sᵢ.

*Choice.* Modules in the order of share per byte, the most first, each if it still fits and its share is above zero: the greedy
rule for the knapsack problem (Dantzig, Operations Research 5, 1957), off from the best set by less than one module.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.cost.assignments import Assignment
from workbench.cost.row_costs import RowCosts
from workbench.cost.sensitivities import Sensitivity
from workbench.cost.skip_names import skipped_by
from workbench.errors import ConfigError, DataError, RunError
from workbench.given import described, is_a, is_number
from workbench.memory.footprint import Plan, base_weights
from workbench.memory.forecast import MemoryLedger, fit, forecast
from workbench.memory.gpus import Gpu, find
from workbench.progress import Progress, reporting
from workbench.show import Line, Record, Shown, View, bar
from workbench.sources import Source
from workbench.text import amount, counted, nats, number, percent
from workbench.training.config import TrainConfig, as_config

if TYPE_CHECKING:
    import pandas as pd

CHOSEN_ON, REPORTED_ON = slice(0, None, 2), slice(1, None, 2)
"""Of the held-out rows, in the order of the data, those that modules are chosen by, and those that figures are of."""


@dataclass(frozen=True, repr=False)
class CurvePoint(Record):
    """A set of modules left out of 4 bits, the best for its memory by prediction."""

    nbytes: int
    """Bytes of all the model's weights: quantized ones with their scales, and the rest in 16 bits."""
    predicted_kl: float
    """KL divergence from 16 bits in nats a token, on the rows that are reported."""
    modules: tuple[str, ...]
    """Those in 16 bits."""

    def _line_(self) -> Line:
        return {"weights": amount(self.nbytes), "in 16 bits": f"{len(self.modules)}", "KL": nats(self.predicted_kl)}


@dataclass(frozen=True)
class _Step:
    """One module raised from 4 to 16 bits."""

    module: str
    part: float
    """The part of the KL with everything in 4 bits that this takes back, predicted."""
    extra: int
    """Bytes more that are stored."""
    cost: int
    """Bytes more of what the budget counts."""


class Mix(Shown):
    """A choice of modules to leave out of 4 bits, what it is predicted to give, and once ``measure`` has run what it does.

    Modules are chosen by half of the sensitivity's held-out rows; all figures here are of the other half.
    """

    def __init__(
        self, sens: Sensitivity, chosen: CurvePoint, curve: tuple[CurvePoint, ...], gpu: Gpu | None = None,
        ledger: MemoryLedger | None = None, like: str = "",
    ) -> None:  # fmt: skip
        self.sensitivity = sens
        self.modules_left_out = chosen.modules
        """Modules in 16 bits, in the order of the checkpoint."""
        self.nbytes = chosen.nbytes
        """Bytes of all the model's weights, as ``CurvePoint.nbytes``."""
        self.predicted_kl = chosen.predicted_kl
        self.measured: RowCosts | None = None
        """Row by row, of the rows that are reported; None before ``measure``."""
        self.curve = curve
        """From everything in 4 bits on, each point with one module more; the last has everything in 16 bits."""
        self.gpu, self.ledger = gpu, ledger
        """The GPU, and the forecast of training this mix on it; None with a budget in bytes."""
        self.like = like
        """The checkpoint whose modules these are; empty where they were chosen here."""

    @property
    def rows(self) -> tuple[int, int]:
        """How many held-out rows modules were chosen by, and how many others all figures here are of."""
        rows = range(len(_whole(self.sensitivity).tokens))
        return len(rows[CHOSEN_ON]), len(rows[REPORTED_ON])

    @property
    def basis(self) -> str:
        """What the modules were chosen by, and which rows all figures here are of, in a sentence."""
        chosen, reported = self.rows
        if self.like:
            return f"Modules as {self.like} leaves them; figures of {counted(reported, 'held-out row')}, every second one."
        return f"Modules chosen by {counted(chosen, 'held-out row')}; figures of {counted(reported, 'other')}."

    @property
    def measured_kl(self) -> float | None:
        """Nats a token; None before ``measure``."""
        return None if self.measured is None else self.measured.kl

    @property
    def measured_loss(self) -> float | None:
        """Nats a token; None before ``measure``."""
        return None if self.measured is None else self.measured.loss

    @property
    def in_4_bits(self) -> RowCosts:
        """The model with everything in 4 bits, measured, of the rows that are reported."""
        return _whole(self.sensitivity).of(REPORTED_ON)

    @property
    def in_16_bits(self) -> RowCosts:
        """The model with everything in 16 bits, measured, of the rows that are reported."""
        found = self.sensitivity.in_16_bits
        assert found is not None  # mix has refused a sensitivity that is not complete
        return found.of(REPORTED_ON)

    @property
    def all_4bit(self) -> CurvePoint:
        """Nothing left out; its KL is measured."""
        return self.curve[0]

    @property
    def all_16bit(self) -> CurvePoint:
        """Everything left out: a KL of 0, unless only some modules were measured."""
        return self.curve[-1]

    def bits_per_weight(self, point: CurvePoint | None = None) -> float:
        """Stored bits of the weights that a load could quantize, in the mean; of this mix, or of a point of its curve."""
        job = self.sensitivity.job
        weights = sum(t.numel for t in job.weights.values())
        return 16 - 8 * (job.nbytes_16bit - (self.nbytes if point is None else point.nbytes)) / weights

    @property
    def point(self) -> Assignment:
        """What ``measure`` measures."""
        return Assignment(self.sensitivity.spec, but=self.modules_left_out)

    def measure(self, *, progress: bool | Progress = False, cancelled: Callable[[], bool] | None = None) -> float | None:
        """Measures the mix on the sensitivity's held-out rows, in a process of its own.

        Args:
            progress: True for a bar, or a function of the batches done and their total.
            cancelled: Asked meanwhile; a yes ends the call.

        Returns:
            ``measured_kl``.

        Raises:
            InterruptedError: Once cancelled.
            WorkbenchError: What ``evaluate`` raises while it runs.
        """
        found = self.sensitivity.measurements
        with reporting(progress, "Mix", "batch") as report:
            for assignment in found.measured([self.point], (), report, cancelled or (lambda: False)):
                self.measured = found.rows[assignment.key].of(REPORTED_ON)
        if self.measured is None:
            raise InterruptedError("Measuring the mix was cancelled.")
        return self.measured_kl

    def to_config(self, cfg: TrainConfig) -> TrainConfig:
        """The same run on this mix: ``llm_int8_skip_modules`` leaves exactly these modules out, the format is the measured one.

        Raises:
            ConfigError: Where training cannot hold it: a format that bitsandbytes has not, or nothing left in 4 bits.
        """
        job = self.sensitivity.job
        if len(self.modules_left_out) == len(job.weights):
            remedy = 'Use method="lora".'
            raise ConfigError(["Everything is left in 16 bits: there is nothing to quantize."], where="mix", remedy=remedy)
        return _trained(cfg, self.sensitivity, self.sensitivity.names_for(self.modules_left_out))

    def as_code(self) -> str:
        """Python that loads the model so with transformers, its ``BitsAndBytesConfig`` above all.

        Raises:
            ConfigError: As ``to_config`` does.
        """
        from workbench.training.base_code import loading_code

        return loading_code(self.to_config(self.sensitivity.job.config))

    def to_frame(self) -> pd.DataFrame:
        """The curve, a line a point: bytes, predicted KL, how many modules in 16 bits."""
        import pandas as pd

        lines = [(p.nbytes, p.predicted_kl, len(p.modules)) for p in self.curve]
        return pd.DataFrame(lines, columns=["nbytes", "predicted_kl", "in_16_bits"])

    def lines(self) -> list[Line]:
        """All in 4 bits, this mix and all in 16 bits, each with its size, KL, flips and loss."""
        four, sixteen, most = self.in_4_bits, self.in_16_bits, self.all_16bit.nbytes or 1
        known: list[tuple[str, int, float, RowCosts | None, str]] = [
            ("all in 4 bits", self.all_4bit.nbytes, four.kl, four, "measured"),
            ("this mix", self.nbytes, self.predicted_kl, None, "predicted"),
        ]
        if self.measured is not None:
            known.append(("this mix", self.nbytes, self.measured.kl, self.measured, "measured"))
        known.append(("all in 16 bits", self.sensitivity.job.nbytes_16bit, 0.0, sixteen, "measured"))
        return [
            {
                "weights": name, "size": amount(nbytes), "": bar(nbytes / most), "KL": nats(kl),
                "95 % interval": "" if of is None else " … ".join(map(nats, of.kl_interval)),
                "flips": "" if of is None else percent(of.flips), "loss": "" if of is None else number(of.loss, ".4f"),
                "known": how,
            }
            for name, nbytes, kl, of, how in known
        ]  # fmt: skip

    def _show_(self) -> View:
        kept = f"{len(self.modules_left_out)} of {counted(len(self.sensitivity.job.weights), 'module')} in 16 bits"
        note = f"{self.basis} Measured on {self.sensitivity.text}."
        left_out = f" Left out of 4 bits: {', '.join(self.modules_left_out)}." if self.modules_left_out else ""
        title = f"Mix: {kept}, {amount(self.nbytes)}; KL from 16 bits and loss in nats a token"
        return View(title, lines=self.lines(), note=note + left_out)


def _whole(sens: Sensitivity) -> RowCosts:
    """Everything quantized, of all held-out rows."""
    found = sens.quantized
    assert found is not None  # mix has refused a sensitivity that is not complete
    return found


def mix(
    sens: Sensitivity,
    budget_bytes: float | None = None,
    *,
    gpu: Gpu | str | None = None,
    like: Source | str | os.PathLike[str] | None = None,
    config: TrainConfig | None = None,
) -> Mix:
    """The modules to leave out of 4 bits for the least predicted KL divergence within a budget.

    Modules are chosen by every second held-out row, and all figures are of the others (``CHOSEN_ON``, ``REPORTED_ON``).

    Args:
        sens: A sensitivity, which must be complete.
        budget_bytes: What all the model's weights may take, everything counted as in ``CurvePoint.nbytes``.
        gpu: In place of a budget, a name of ``workbench.memory.gpus`` or a ``Gpu``: the budget is what the forecast of training
            leaves of its memory, a tenth kept free. A module left out is counted as training holds it, in fp32 (the forecast
            has not been checked on every GPU).
        like: In place of a budget, a folder or ``owner/name`` on the Hub. Nothing is chosen then: the modules are those that
            this checkpoint's configuration leaves out of 4 bits, as the dynamic 4-bit checkpoints on the Hub do.
            ``mix(sens, that.nbytes)`` is the choice made here for the same memory.
        config: With a ``gpu``, the training that is forecast; by default TrainConfig's own values.

    Returns:
        The modules, the weights' bytes and the predicted KL, in nats a token; ``Mix.measure`` measures it.

    Raises:
        RunError: Where ``sens`` is no sensitivity, or not complete.
        DataError: Where it has a single row.
        ConfigError: Where everything in 4 bits is over the budget already, where the budget makes no sense, where not exactly
            one of ``budget_bytes``, ``gpu`` and ``like`` is given, or where ``like`` names no modules of this model.
        ModelError: As ``open_model`` does, for ``like``.

    >>> sens = wb.sensitivity("builtin").run()  # doctest: +SKIP
    >>> wb.mix(sens, 4_800_000).modules  # doctest: +SKIP
    """
    if not is_a(sens, Sensitivity):
        remedy = "Measure it first: sens = wb.sensitivity(src).run()."
        raise RunError(f"It takes a sensitivity, not {described(sens)}.", where="mix", remedy=remedy)
    if not sens.complete:
        raise RunError("the sensitivity is not complete.", where="mix", remedy="Run it to its end: sens.run().")
    if not all(any(_whole(sens).tokens[rows]) for rows in (CHOSEN_ON, REPORTED_ON)):
        what = (
            "the sensitivity has no second held-out row: modules are chosen by one half of the rows and measured on the other."
        )
        raise DataError(what, where="mix", remedy="Measure it on more rows (max_rows).")
    if sum(value is not None for value in (budget_bytes, gpu, like)) != 1:
        what = "mix takes a budget, budget_bytes or gpu, or a checkpoint to do as (like)."
        raise ConfigError([what], where="mix", remedy="Give one of them.")
    if like is not None:
        return _as(sens, like)
    if budget_bytes is not None and not (is_number(budget_bytes) and math.isfinite(budget_bytes)):
        what = f"budget_bytes is {described(budget_bytes)}; it must be a number of bytes."
        raise ConfigError([what], where="mix", remedy="Give a number such as 4_800_000, or gpu='T4 16 GB'.")
    if gpu is None:
        assert budget_bytes is not None  # one of them is given
        steps = _steps(sens, None)
        left, ledger = budget_bytes - sens.job.nbytes(Assignment(sens.spec)), None
        over = f"Everything in 4 bits takes {amount(budget_bytes - left)} already, and the budget is {amount(budget_bytes)}."
        remedy = "Raise the budget."
    else:
        gpu = find(gpu)
        base = _trained(TrainConfig() if config is None else as_config(config, "mix"), sens, ())
        steps = _steps(sens, base)
        ledger = forecast(sens.job.source, base)
        left = fit(ledger, gpu).spare
        over = f"Training with everything in 4 bits is forecast to need more than 85 % of {gpu.name}."
        remedy = "workbench.memory.ways_to_fit(src, cfg, gpu) names changes that help."
    if left < 0:
        raise ConfigError([over], where="mix", remedy=remedy)
    taken: list[_Step] = []
    for step in steps:
        if step.part > 0 and step.cost <= left:
            taken.append(step)
            left -= step.cost
    if gpu is not None:
        modules = _at(sens, taken).modules
        if len(modules) < len(sens.job.weights):
            ledger = forecast(sens.job.source, dataclasses.replace(base, llm_int8_skip_modules=sens.names_for(modules)))
    return Mix(sens, _at(sens, taken), _curve(sens, steps), gpu, ledger)


def _as(sens: Sensitivity, like: Source | str | os.PathLike[str]) -> Mix:
    """The mix whose modules another checkpoint's configuration leaves out of 4 bits."""
    name, left_out = skipped_by(like, sens.job.weights, sens.measurements.prefix)
    if unmeasured := [module for module in left_out if module not in sens.modules]:
        remedy = "Measure the sensitivity to its modules too."
        raise ConfigError([f"{name} leaves {unmeasured[0]} out, which was not measured."], where="like", remedy=remedy)
    steps = _steps(sens, None)
    return Mix(sens, _at(sens, [step for step in steps if step.module in left_out]), _curve(sens, steps), like=name)


def _trained(cfg: TrainConfig, sens: Sensitivity, names: tuple[str, ...]) -> TrainConfig:
    """The run on the sensitivity's format, with these names left out."""
    if not sens.spec.trainable or sens.spec.nested_block_size != 256:
        what = f"bitsandbytes does not hold weights in {sens.spec.title}: what was measured cannot be trained."
        raise ConfigError([what], where="mix", remedy="Measure sensitivities to nf4 or fp4, not rotated.")
    return dataclasses.replace(
        cfg, method="qlora", quant_type=sens.spec.format, block_size=sens.spec.block_size, double_quant=sens.spec.double_quant,
        llm_int8_skip_modules=names,
    )  # fmt: skip


def _steps(sens: Sensitivity, training: TrainConfig | None) -> list[_Step]:
    """Every module's step, the most KL per byte first. ``training``: the budget counts what a module takes in that run."""
    parts, steps = _parts(sens), []
    for row in sens.rows:
        whole = row.saved_bytes if training is None else _in_training(sens, row.name, training)
        steps.append(_Step(row.name, parts[row.name], row.saved_bytes, whole))
    return sorted(steps, key=lambda step: -step.part / max(step.cost, 1))


def _parts(sens: Sensitivity) -> dict[str, float]:
    """The part of the KL that is taken back as each module is left out; all of them together take back all of it."""
    whole = _whole(sens).of(CHOSEN_ON).kl
    if not whole > 0:
        return dict.fromkeys((row.name for row in sens.rows), 0.0)
    if len(sens.rows) < len(sens.job.weights):  # the others stay in 4 bits, where a module was measured with all others in them
        return {name: gain / whole for name, gain in sens.gains_on(CHOSEN_ON).items()}
    shares = sens.shares_on(CHOSEN_ON)
    weight = sum(map(abs, shares.values()))
    missed = whole - sum(shares.values())
    return {name: (share + missed * abs(share) / weight) / whole for name, share in shares.items()} if weight else shares


def _in_training(sens: Sensitivity, module: str, config: TrainConfig) -> int:
    """Bytes more that a module left out takes in a QLoRA run on a GPU."""
    info, plan = sens.job.weights[module], Plan.of(config, "cuda")
    out = dataclasses.replace(plan, llm_int8_skip_modules=(f"{module}$",))
    return _bytes(base_weights([info], out)) - _bytes(base_weights([info], plan))


def _bytes(pieces: Iterable[Any]) -> int:
    return sum(piece.bytes for piece in pieces)


def _curve(sens: Sensitivity, steps: Sequence[_Step]) -> tuple[CurvePoint, ...]:
    """From everything in 4 bits on, a module more at each point."""
    return tuple(_at(sens, steps[:n]) for n in range(len(steps) + 1))


def _at(sens: Sensitivity, steps: Sequence[_Step]) -> CurvePoint:
    """The point of the curve after these steps."""
    raised = {step.module for step in steps}
    kl = _whole(sens).of(REPORTED_ON).kl * (1 - sum(step.part for step in steps))
    nbytes = sens.job.nbytes(Assignment(sens.spec)) + sum(step.extra for step in steps)
    return CurvePoint(nbytes, kl, tuple(name for name in sens.job.weights if name in raised))
