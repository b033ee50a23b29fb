"""The model's held-out loss in 16 bits and in each format: ``evaluate``, and ``Evaluation``, its rows and tables.

Covers which configurations are measured, at their own and at equal bits per weight, and what each row says. What is measured is
the model with every weight that a QLoRA load quantizes put through the format and back (*fake-quantized*), held in 16 bits as
the layers of a 4-bit model see it, and multiplied in float32. How it is measured: ``measurements`` and ``engine``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.cost.assignments import Assignment, spec_key
from workbench.cost.jobs import Job, job_of
from workbench.cost.measurements import Interval, Losses, Measurements, MemoryUse, Ratio
from workbench.errors import FormatError
from workbench.given import described, is_a, is_number
from workbench.progress import Progress, reporting
from workbench.quant.spec import QuantSpec, SpecLike, as_specs
from workbench.show import Line, Record, Shown, View
from workbench.sources import Source
from workbench.sources.kinds import kind_of, layer_of
from workbench.surveys.duel import duel
from workbench.surveys.resumable import Unfolding
from workbench.text import NONE, amount, number, percent
from workbench.training.config import TrainConfig

if TYPE_CHECKING:
    import pandas as pd

EQUAL_BITS = 4.5
"""Bits per weight that formats are compared at by default, as in ``duel``."""
USUAL = (
    QuantSpec("nf4"), QuantSpec("nf4", double_quant=True), QuantSpec("fp4"), QuantSpec("int4"), QuantSpec("int4-asym"),
    QuantSpec("af4"), QuantSpec("mxfp4"), QuantSpec("nvfp4"),
)  # fmt: skip
"""What is measured by default."""
IN_16_BITS = "16 bits"


@dataclass(frozen=True, repr=False)
class Cost(Record):
    """The model in one format, measured on held-out rows. Losses are nats a token, over the tokens that bear a loss."""

    spec: QuantSpec | None
    """None: the model in 16 bits."""
    name: str
    """The specification in words, or ``16 bits``."""
    bits_per_weight: float
    """Stored bits of the quantized weights, scales and zero points counted; 16 for the model in 16 bits."""
    nbytes: int
    """Bytes of all the model's weights: the quantized ones, and the rest in 16 bits."""
    loss: float
    perplexity: float
    """exp(loss)."""
    interval: Interval
    """The loss's 95 % interval by bootstrap over held-out batches; NaN with a single batch."""
    batch_losses: tuple[float, ...]
    """The loss of each held-out batch; the same batches in every row."""
    increase: float
    """loss − the loss in 16 bits."""
    increase_interval: Interval
    """Its 95 % interval, paired: both models on the same batches. Far narrower than ``interval``."""
    relative_rmse: float
    """The error of the weights themselves, ‖W − Ŵ‖ / ‖W‖ over all quantized weights; 0 in 16 bits."""

    def _line_(self) -> Line:
        low, high = self.increase_interval
        added = (
            (NONE, NONE) if self.spec is None else (f"{self.increase:+.4f}", f"{number(low, '+.4f')} … {number(high, '+.4f')}")
        )
        return {
            "model": self.name, "bits": f"{self.bits_per_weight:.4f}", "size": amount(self.nbytes),
            "loss": number(self.loss, ".4f"), "added": added[0], "95 % interval": added[1],
            "relative RMSE": percent(self.relative_rmse),
        }  # fmt: skip


def evaluate(
    src: Source | str | os.PathLike[str],
    specs: SpecLike | Sequence[SpecLike] = USUAL,
    *,
    data: TrainConfig | str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    max_rows: int | None = None,
    equal_bits: bool | float = False,
    output_error: bool = False,
    folder: str | os.PathLike[str] | None = None,
    progress: bool | Progress = False,
    cancelled: Callable[[], bool] | None = None,
) -> Evaluation:
    """What each format does to the model's held-out loss: an iterable of ``Cost`` as they finish, the model in 16 bits first.

    ``src`` is a source or what ``open_model`` takes; it must be on this machine, whole and with its tokenizer. ``specs``:
    specifications, or names of formats as they usually are. ``equal_bits``: True, or bits per weight: in place of each
    specification its format's configuration of at most 4.5 (or so many) bits whose weights err least, as in ``duel``, which
    reads the model's weights once first.

    ``data``: None for the builtin dataset's held-out rows; a ``TrainConfig`` for those that it names; or a file, a folder or
    ``owner/name`` on the Hub with a column ``text``. ``max_length`` tokens of a row and ``max_rows`` rows are used, by default
    as many as ``TrainConfig`` has it (512 and 64).

    The work is done by a process of its own, which holds the model in 16 bits and a layer more. ``folder`` keeps what was
    measured: with the same folder, model and rows nothing is measured twice, and an interrupted evaluation continues. Without
    a folder the measurements go with the result. ``output_error`` measures the layers' outputs first (``output_errors``).

    ``progress``: True for a bar, or a function of the batches done and their total. Once ``cancelled()`` says yes, the
    evaluation is cancelled, within a second.

    Raises ModelError, DataError, FormatError or ConfigError for what cannot be measured, at once; and while iterating RunError
    or ModelError where the process fails, or the model does not fit into memory.
    """
    job = job_of(src, data, max_length, max_rows)
    wanted = tuple(dict.fromkeys(as_specs(specs)))
    if not is_a(equal_bits, bool) and not is_number(equal_bits):
        what, remedy = f"{described(equal_bits)} is no number of bits per weight.", "Give True, or one such as 4.5."
        raise FormatError(what, where="equal_bits", remedy=remedy)
    if equal_bits:
        bits = EQUAL_BITS if equal_bits is True else equal_bits
        fought = duel(job.source, bits, dict.fromkeys(spec.format for spec in wanted), progress=progress, cancelled=cancelled)
        wanted = tuple(score.spec for score in fought.contenders)
    return Evaluation(job, wanted, output_error, folder, progress, cancelled)


class Evaluation(Shown, Unfolding[Cost]):
    """An evaluation's rows as they finish, and tables of them. Iterating does the work; leaving the loop stops it."""

    def __init__(
        self, job: Job, specs: tuple[QuantSpec, ...], output_error: bool, folder: str | os.PathLike[str] | None,
        progress: bool | Progress, cancelled: Callable[[], bool] | None,
    ) -> None:  # fmt: skip
        super().__init__(1 + len(specs), cancelled)
        self.specs = specs
        self._job, self._progress = job, progress
        self._outputs = specs if output_error else ()
        self._measurements = Measurements(job, folder)

    @property
    def model(self) -> str:
        """The model's name."""
        return self._job.source.name

    @property
    def phase(self) -> str:
        """What the measuring process is doing: ``import``, ``load``, ``measure``; empty where there is none."""
        return self._measurements.phase

    @property
    def memory(self) -> MemoryUse | None:
        """What the measuring process took, measured; None before it has measured a row."""
        return self._measurements.memory

    def to_frame(self) -> pd.DataFrame:
        """A line for each finished row; runs the evaluation first where nothing is finished."""
        import pandas as pd

        self._begin_once()
        return pd.DataFrame([_line(row) for row in self.rows])

    def output_errors(self) -> pd.DataFrame:
        """A line for each module and format: ‖(W − Ŵ)x‖ / ‖Wx‖ on real activations, beside ‖W − Ŵ‖ / ‖W‖ of the weight.

        The activations x are those that reach the module in the 16-bit model, over the first 8 held-out rows, in one forward
        pass. Without ``output_error`` the table is empty.
        """
        import pandas as pd

        if self._outputs:
            self._begin_once()
        columns = ("module", "layer", "kind", "spec", "output_error", "relative_rmse")
        lines = [
            (module, layer_of(module), kind_of(module), spec.title, self._measurements.outputs[key].value, self._own(key))
            for spec in self._outputs
            for module in self._job.weights
            if (key := (module, spec_key(spec))) in self._measurements.outputs
        ]
        return pd.DataFrame(lines, columns=list(columns)).astype({"layer": "Int64"})

    def _own(self, key: tuple[str, str]) -> float:
        ratio = self._measurements.weights.get(key)
        return math.nan if ratio is None else ratio.value

    def _start(self) -> Generator[Cost, None, None]:
        assignments = [Assignment(), *map(Assignment, self.specs)]
        with reporting(self._progress, "Evaluation", "batch") as report:
            for assignment in self._measurements.measured(assignments, self._outputs, report, self._stopped):
                if len(self._rows) <= assignments.index(assignment):
                    yield self._cost(assignment)

    def _cost(self, assignment: Assignment) -> Cost:
        losses = self._measurements.losses
        found, base = losses[assignment.key], losses[Assignment().key]
        increase, interval = found.above(base)
        assigned = self._job.assigned(assignment)
        bits, ratio = 16.0, Ratio(0.0, 0.0)
        if assignment.spec is not None:
            sizes = [self._job.weights[module].numel for module in assigned]
            bits = 8 * sum(map(assignment.spec.nbytes, sizes)) / sum(sizes)
            own = [self._measurements.weights[module, spec_key(assignment.spec)] for module in assigned]
            ratio = Ratio(sum(r.error for r in own), sum(r.signal for r in own))
        name = IN_16_BITS if assignment.spec is None else assignment.spec.title
        return Cost(
            assignment.spec, name, bits, self._job.nbytes(assignment), found.loss, perplexity(found), found.interval,
            found.batches, increase, interval, ratio.value,
        )  # fmt: skip

    def _show_(self) -> View:
        note = "Measured; losses are nats a token, intervals paired over the same held-out batches."
        return View(f"Evaluation of {self.model}: {self._so_far('rows')}", lines=self.rows, note=note)


def perplexity(losses: Losses) -> float:
    """exp(loss), infinite where that is too large for a float."""
    try:
        return math.exp(losses.loss)
    except OverflowError:
        return math.inf


def _line(row: Cost) -> dict[str, object]:
    return {
        "name": row.name, "format": row.spec.format if row.spec else "", "bits_per_weight": row.bits_per_weight,
        "nbytes": row.nbytes, "loss": row.loss, "loss_low": row.interval[0], "loss_high": row.interval[1],
        "perplexity": row.perplexity, "increase": row.increase, "increase_low": row.increase_interval[0],
        "increase_high": row.increase_interval[1], "relative_rmse": row.relative_rmse,
    }  # fmt: skip
