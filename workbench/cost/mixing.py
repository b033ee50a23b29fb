"""Where to spend the memory that is left: which modules to leave out of 4 bits, by what each costs. ``mix`` and ``Mix``.

Covers the choice under a budget in bytes or for a GPU, its predicted and its measured loss, the curve of loss against memory
from everything in 4 bits to everything in 16, and handing the choice to ``TrainConfig`` and ``BitsAndBytesConfig``. What a
module costs is measured by ``sensitivities``; that the costs add up is assumed, and held to a measurement by ``Mix.measure``.

*Prediction.* With L₁₆ and L₄ the losses with nothing and with everything quantized, and sᵢ the shares of the modules
(``ModuleCost.share``), corrected by as much as they miss L₄ − L₁₆ in proportion to |sᵢ|, leaving the set S out gives
L₄ − Σ sᵢ over S: exact at both ends. Where only some modules were measured, ``decrease_all_but`` stands for sᵢ. A module in 8
bits gives back sᵢ · (1 − (e₈ / e₄)²), e being the relative RMSE of its weight: to first order the loss grows with the square
of the error, which is inferred and not measured. All of it is of the rows that were measured: on others expect less, and where
a mix comes below the loss in 16 bits that is chance.

*Choice.* Modules in the order of share per byte, the most first, each if it still fits and its share is above zero: the greedy
rule for the knapsack problem (Dantzig, Operations Research 5, 1957), off from the best set by less than one module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.cost.assignments import EIGHT, Assignment
from workbench.cost.measurements import Losses
from workbench.cost.sensitivities import Sensitivity
from workbench.errors import ConfigError, RunError
from workbench.given import described, is_a, is_number, several
from workbench.memory.footprint import Plan, base_weights
from workbench.memory.forecast import MemoryLedger, fit, forecast
from workbench.memory.gpus import Gpu, find
from workbench.progress import Progress, reporting
from workbench.show import Line, Record, Shown, View, bar
from workbench.surveys.survey import survey
from workbench.text import amount, counted
from workbench.training.config import TrainConfig, as_config

if TYPE_CHECKING:
    import pandas as pd

_CANNOT_MIX = "A BitsAndBytesConfig cannot mix 4 and 8 bits: it loads a model's linear layers in the one or in the other."


@dataclass(frozen=True, repr=False)
class CurvePoint(Record):
    """A set of modules left out of 4 bits, the best for its memory by prediction."""

    nbytes: int
    """Bytes of all the model's weights: quantized ones with their scales, and the rest in 16 bits."""
    predicted_loss: float
    """Nats a token."""
    modules: tuple[str, ...]
    """Those in 16 bits."""
    eight_bit: tuple[str, ...] = ()
    """Those in 8 bits."""

    def _line_(self) -> Line:
        kept = {"in 16 bits": f"{len(self.modules)}", "in 8 bits": f"{len(self.eight_bit)}"}
        return {"weights": amount(self.nbytes), **kept, "loss": f"{self.predicted_loss:.4f}"}


@dataclass(frozen=True)
class _Step:
    """One module raised from 4 to 8 or 16 bits, or from 8 to 16."""

    module: str
    bits: int
    gain: float
    """By how much the loss falls, predicted."""
    extra: int
    """Bytes more that are stored."""
    cost: int
    """Bytes more of what the budget counts."""


class Mix(Shown):
    """A choice of modules to leave out of 4 bits, what it is predicted to give, and once ``measure`` has run what it does."""

    def __init__(
        self, sens: Sensitivity, chosen: CurvePoint, curve: tuple[CurvePoint, ...], gpu: Gpu | None, ledger: MemoryLedger | None
    ) -> None:
        self.sensitivity = sens
        self.modules_left_out = chosen.modules
        """Modules in 16 bits, in the order of the checkpoint."""
        self.modules_8bit = chosen.eight_bit
        """Modules in 8 bits: none unless ``options`` has 8."""
        self.nbytes = chosen.nbytes
        """Bytes of all the model's weights, as ``CurvePoint.nbytes``."""
        self.predicted_loss = chosen.predicted_loss
        self.measured: Losses | None = None
        """The held-out loss, batch by batch; None before ``measure``."""
        self.curve = curve
        """From everything in 4 bits on, each point with one module more; the last has everything in 16 bits."""
        self.gpu, self.ledger = gpu, ledger
        """The GPU, and the forecast of training this mix on it; None with a budget in bytes."""

    @property
    def measured_loss(self) -> float | None:
        """Nats a token; None before ``measure``."""
        return None if self.measured is None else self.measured.loss

    @property
    def all_4bit(self) -> CurvePoint:
        """Nothing left out; its loss is measured."""
        return self.curve[0]

    @property
    def all_16bit(self) -> CurvePoint:
        """Everything left out; its loss is measured."""
        return self.curve[-1]

    @property
    def point(self) -> Assignment:
        """What ``measure`` measures."""
        return Assignment(self.sensitivity.spec, but=(*self.modules_left_out, *self.modules_8bit), eight=self.modules_8bit)

    def measure(self, *, progress: bool | Progress = False, cancelled: Callable[[], bool] | None = None) -> float | None:
        """Measures the mix on the sensitivity's held-out rows, in a process of its own; returns ``measured_loss``.

        InterruptedError once ``cancelled()`` says yes. Raises what ``evaluate`` raises while it runs.
        """
        found = self.sensitivity.measurements
        with reporting(progress, "Mix", "batch") as report:
            for assignment in found.measured([self.point], (), report, cancelled or (lambda: False)):
                self.measured = found.losses[assignment.key]
        if self.measured is None:
            raise InterruptedError("Measuring the mix was cancelled.")
        return self.measured_loss

    def to_config(self, cfg: TrainConfig) -> TrainConfig:
        """The same run on this mix: ``llm_int8_skip_modules`` leaves exactly these modules out, the format is the measured one.

        Raises ConfigError where training cannot hold it: modules in 8 bits, a format that bitsandbytes has not, or nothing left
        in 4 bits.
        """
        job = self.sensitivity.job
        if self.modules_8bit:
            raise ConfigError([_CANNOT_MIX], where="options", remedy="Mix with options=(16,) for a model to train.")
        if len(self.modules_left_out) == len(job.weights):
            remedy = 'Use method="lora".'
            raise ConfigError(["Everything is left in 16 bits: there is nothing to quantize."], where="mix", remedy=remedy)
        return _trained(cfg, self.sensitivity, self.sensitivity.names_for(self.modules_left_out))

    def as_code(self) -> str:
        """Python that loads the model so with transformers, its ``BitsAndBytesConfig`` above all. Raises as ``to_config``."""
        from workbench.training.recipe import loading_code

        return loading_code(self.to_config(self.sensitivity.job.config))

    def to_frame(self) -> pd.DataFrame:
        """The curve, a line a point: bytes, predicted loss, how many modules in 16 and in 8 bits."""
        import pandas as pd

        lines = [(p.nbytes, p.predicted_loss, len(p.modules), len(p.eight_bit)) for p in self.curve]
        return pd.DataFrame(lines, columns=["nbytes", "predicted_loss", "in_16_bits", "in_8_bits"])

    def _show_(self) -> View:
        kept = f"{len(self.modules_left_out)} of {counted(len(self.sensitivity.job.weights), 'module')} in 16 bits"
        eight = f", {len(self.modules_8bit)} in 8 bits" if self.modules_8bit else ""
        three = (
            ("all in 4 bits", self.all_4bit.nbytes, self.all_4bit.predicted_loss, "measured"),
            ("this mix", self.nbytes, self.predicted_loss, "predicted"),
            *((("this mix", self.nbytes, self.measured_loss, "measured"),) if self.measured_loss is not None else ()),
            ("all in 16 bits", self.all_16bit.nbytes, self.all_16bit.predicted_loss, "measured"),
        )
        most = self.all_16bit.nbytes or 1
        lines = [
            {"weights": name, "size": amount(nbytes), "": bar(nbytes / most), "loss": f"{loss:.4f}", "known": known}
            for name, nbytes, loss, known in three
        ]
        left_out = f"Left out of 4 bits: {', '.join(self.modules_left_out)}." if self.modules_left_out else ""
        return View(f"Mix: {kept}{eight}, {amount(self.nbytes)}; losses are nats a token", lines=lines, note=left_out)


def mix(
    sens: Sensitivity,
    budget_bytes: int | None = None,
    *,
    gpu: Gpu | str | None = None,
    config: TrainConfig | None = None,
    options: int | Sequence[int] = (16,),
) -> Mix:
    """The modules to leave out of 4 bits for the least predicted loss within a budget.

    ``budget_bytes``: what all the model's weights may take, everything counted as in ``CurvePoint.nbytes``. Or ``gpu``, a name
    of ``workbench.memory.gpus`` or a ``Gpu``: then it is what the forecast of training with ``config`` (by default
    TrainConfig's own values) leaves of its memory, a tenth kept free; a module left out is counted as training holds it, in
    fp32 (the forecast has not been checked on every GPU). ``options``: what a module may be in instead of 4 bits. 8 is for
    looking: bitsandbytes cannot load such a mix, and ``to_config`` refuses it.

    ``sens`` must be complete. Raises RunError where it is not, ConfigError where everything in 4 bits is over the budget
    already, or where the options or the budget make no sense.
    """
    if not is_a(sens, Sensitivity):
        remedy = "Measure it first: sens = wb.sensitivity(src).run()."
        raise RunError(f"It takes a sensitivity, not {described(sens)}.", where="mix", remedy=remedy)
    if not sens.complete:
        raise RunError("the sensitivity is not complete.", where="mix", remedy="Run it to its end: sens.run().")
    if (budget_bytes is None) == (gpu is None):
        raise ConfigError(["mix takes a budget: budget_bytes or gpu."], where="mix", remedy="Give one of them.")
    if budget_bytes is not None and not is_number(budget_bytes):
        what = f"budget_bytes is {described(budget_bytes)}; it must be a number of bytes."
        raise ConfigError([what], where="mix", remedy="Give a number such as 4_800_000, or gpu='T4 16 GB'.")
    options = several(options)
    if not set(options) <= {8, 16} or 16 not in options:
        raise ConfigError([f"options is {tuple(options)!r}."], where="mix", remedy="Give (16,), or (16, 8) to look.")
    if gpu is None:
        assert budget_bytes is not None  # one of them is given
        steps = _steps(sens, options, None)
        left, ledger = budget_bytes - sens.job.nbytes(Assignment(sens.spec)), None
        over = f"Everything in 4 bits takes {amount(budget_bytes - left)} already, and the budget is {amount(budget_bytes)}."
        remedy = "Raise the budget."
    else:
        gpu = find(gpu)
        base = _trained(TrainConfig() if config is None else as_config(config, "mix"), sens, ())
        steps = _steps(sens, options, base)
        ledger = forecast(sens.job.source, base)
        left = fit(ledger, gpu).spare
        over = f"Training with everything in 4 bits is forecast to need more than 85 % of {gpu.name}."
        remedy = "workbench.memory.ways_to_fit(src, cfg, gpu) names changes that help."
    if left < 0:
        raise ConfigError([over], where="mix", remedy=remedy)
    taken: list[_Step] = []
    for step in steps:
        ready = step.bits == 8 or 8 not in options or any(s.module == step.module for s in taken)
        if step.gain > 0 and ready and step.cost <= left:
            taken.append(step)
            left -= step.cost
    if gpu is not None:
        modules = _at(sens, taken).modules
        if len(modules) < len(sens.job.weights):
            ledger = forecast(sens.job.source, dataclasses.replace(base, llm_int8_skip_modules=sens.names_for(modules)))
    curve = tuple(_at(sens, steps[:n]) for n in range(len(steps) + 1))
    return Mix(sens, _at(sens, taken), curve, gpu, ledger)


def _trained(cfg: TrainConfig, sens: Sensitivity, names: tuple[str, ...]) -> TrainConfig:
    """The run on the sensitivity's format, with these names left out."""
    if not sens.spec.trainable or sens.spec.nested_block_size != 256:
        what = f"bitsandbytes does not hold weights in {sens.spec.title}: what was measured cannot be trained."
        raise ConfigError([what], where="mix", remedy="Measure sensitivities to nf4 or fp4, not rotated.")
    return dataclasses.replace(
        cfg, method="qlora", quant_type=sens.spec.format, block_size=sens.spec.block_size, double_quant=sens.spec.double_quant,
        llm_int8_skip_modules=names,
    )  # fmt: skip


def _steps(sens: Sensitivity, options: Sequence[int], training: TrainConfig | None) -> list[_Step]:
    """Every module's steps, the most loss per byte first. ``training``: the budget counts what a module takes in that run."""
    gains, eight = _gains(sens), _errors_at_8(sens) if 8 in options else {}
    steps = []
    for row in sens.rows:
        numel, share = row.nbytes_16bit // 2, gains[row.name]
        whole = row.saved_bytes if training is None else _in_training(sens, row.name, training)
        if 8 not in options:
            steps.append(_Step(row.name, 16, share, row.saved_bytes, whole))
            continue
        error = eight[row.name] / row.relative_rmse if row.relative_rmse else 0.0
        first, extra = share * (1 - error**2), EIGHT.nbytes(numel) - row.nbytes_4bit
        steps.append(_Step(row.name, 8, first, extra, extra))
        steps.append(_Step(row.name, 16, share - first, row.saved_bytes - extra, whole - extra))
    return sorted(steps, key=lambda step: -step.gain / max(step.cost, 1))


def _gains(sens: Sensitivity) -> dict[str, float]:
    """By how much the loss falls as each module is left out; all of them together, exactly to that in 16 bits."""
    if len(sens.rows) < len(sens.job.weights):  # the others stay in 4 bits, where a module was measured with all others in them
        return {row.name: row.decrease_all_but for row in sens.rows}
    gains = {row.name: row.share for row in sens.rows}
    weight = sum(map(abs, gains.values()))
    if not weight or sens.loss_4bit is None or sens.loss_16bit is None:
        return gains
    missed = sens.loss_4bit - sens.loss_16bit - sum(gains.values())
    return {name: gain + missed * abs(gain) / weight for name, gain in gains.items()}


def _errors_at_8(sens: Sensitivity) -> dict[str, float]:
    """The relative RMSE of each module's weight in 8 bits, measured here."""
    names = [sens.job.weights[row.name].name for row in sens.rows]
    rows = survey(sens.job.source, EIGHT, names, progress=False).run().rows
    return {row.tensor.name.removesuffix(".weight"): row.totals[0].relative_rmse for row in rows}


def _in_training(sens: Sensitivity, module: str, config: TrainConfig) -> int:
    """Bytes more that a module left out takes in a QLoRA run on a GPU."""
    info, plan = sens.job.weights[module], Plan.of(config, "cuda")
    out = dataclasses.replace(plan, llm_int8_skip_modules=(f"{module}$",))
    return _bytes(base_weights([info], out)) - _bytes(base_weights([info], plan))


def _bytes(pieces: Iterable[Any]) -> int:
    return sum(piece.bytes for piece in pieces)


def _at(sens: Sensitivity, steps: Sequence[_Step]) -> CurvePoint:
    """The point of the curve after these steps."""
    bits = {step.module: step.bits for step in sorted(steps, key=lambda step: step.bits)}
    loss = (sens.loss_4bit or 0.0) - sum(step.gain for step in steps)
    nbytes = sens.job.nbytes(Assignment(sens.spec)) + sum(step.extra for step in steps)
    kept = [tuple(name for name in sens.job.weights if bits.get(name) == wanted) for wanted in (16, 8)]
    return CurvePoint(nbytes, loss, *kept)
