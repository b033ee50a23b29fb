"""How far each format takes the model from itself in 16 bits: ``evaluate``, and ``Evaluation``, its rows and tables.

Covers which configurations are measured, at their own and at equal bits per weight, what each row says, and their ranks. What
is measured is the model with every weight that a QLoRA load quantizes put through the format and back (*fake-quantized*), held
in 16 bits as the layers of a 4-bit model see it, and multiplied in float32. How it is measured: ``measurements`` and
``engine``.

*KL divergence* from the model in 16 bits leads: it compares whole distributions of the next token, and so distinguishes formats
on few rows (``divergence`` has its formula). The loss looks at one token of each distribution. Some tokens become likelier by
chance, so that on few rows its differences are mostly noise, and may even be below zero.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cost.assignments import Assignment, spec_key
from workbench.cost.jobs import job_of
from workbench.cost.measurements import Measurements, MemoryUse, Ratio
from workbench.cost.row_costs import Interval, RowCosts, ranks
from workbench.errors import FormatError
from workbench.given import described, is_a, is_number
from workbench.progress import Cancelled, Progress, reporting
from workbench.quant.spec import QuantSpec, SpecLike, as_specs
from workbench.show import Line, Record, Shown, View
from workbench.sources import Source
from workbench.sources.kinds import kind_of, layer_of
from workbench.surveys.duel import duel
from workbench.surveys.resumable import Unfolding
from workbench.text import NONE, amount, nats, number, percent
from workbench.training.config import TrainConfig
from workbench.training.folder import write_json

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
CHOSEN = "equal-bits.json"
"""In a folder of measurements: the configurations chosen at equal bits, by the bits and the formats."""


@dataclass(frozen=True, repr=False)
class Cost(Record):
    """The model in one format, measured on held-out rows: means a token, over the tokens that bear a loss."""

    spec: QuantSpec | None
    """None: the model in 16 bits."""
    name: str
    """The specification in words, or ``16 bits``."""
    bits_per_weight: float
    """Stored bits of the quantized weights, scales and zero points counted; 16 for the model in 16 bits."""
    nbytes: int
    """Bytes of all the model's weights: the quantized ones, and the rest in 16 bits."""
    kl: float
    """KL divergence of its next-token distributions from those of the model in 16 bits, in nats."""
    kl_interval: Interval
    """The 95 % interval of ``kl`` by bootstrap over held-out rows; NaN with a single row."""
    flips: float
    """The share of tokens before which it holds another token for the most likely than the model in 16 bits does."""
    flips_interval: Interval
    loss: float
    """Cross-entropy in nats."""
    perplexity: float
    """exp(loss)."""
    interval: Interval
    """That of ``loss``."""
    increase: float
    """loss − the loss in 16 bits."""
    increase_interval: Interval
    """Its 95 % interval, paired: both models on the same rows. Far narrower than ``interval``."""
    relative_rmse: float
    """The error of the weights themselves, ‖W − Ŵ‖ / ‖W‖ over all quantized weights; 0 in 16 bits."""
    rows: RowCosts
    """What all means are taken from: the sums of each held-out row."""

    def _line_(self) -> Line:
        (low, high), (fewest, most) = self.kl_interval, self.flips_interval
        measured = (
            (NONE,) * 5
            if self.spec is None
            else (
                nats(self.kl), f"{nats(low)} … {nats(high)}", percent(self.flips), f"{percent(fewest)} … {percent(most)}",
                f"{self.increase:+.4f}",
            )
        )  # fmt: skip
        return {
            "model": self.name, "bits": f"{self.bits_per_weight:.4f}", "size": amount(self.nbytes), "KL": measured[0],
            "95 % interval": measured[1], "flips": measured[2], "flips, 95 %": measured[3],
            "loss": number(self.loss, ".4f"), "added": measured[4], "relative RMSE": percent(self.relative_rmse),
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
    """What each format does to the model's predictions, measured on held-out rows.

    The work is done by a process of its own, which holds the model in 16 bits and a layer more.

    Args:
        src: A source, or what ``open_model`` takes; what of it is not on this machine is fetched first.
        specs: Specifications, or names of formats as they usually are.
        data: None for the builtin dataset's held-out rows; ``"bible"`` or ``"wordnet"`` for text of the embedded model's own
            training that was held out (``jobs.TEXTS``); a ``TrainConfig`` for the rows that it names; or a file, a folder or
            ``owner/name`` on the Hub with a column ``text``.
        max_length: Tokens of a row that are used; by default as many as ``TrainConfig`` has it (512).
        max_rows: Rows that are used; by default as many as ``TrainConfig`` has it (64).
        equal_bits: True, or bits per weight. In place of each specification its format's configuration of at most 4.5 (or so
            many) bits whose weights err least, as in ``duel``, which reads the model's weights once first; a folder keeps
            what was chosen.
        output_error: Measure the layers' outputs first (``output_errors``).
        folder: Where what was measured is kept: with the same folder, model and rows nothing is measured twice, and an
            interrupted evaluation continues. Without a folder the measurements go with the result.
        progress: True for a bar, or a function of the batches done and their total; of bytes, while a model is fetched.
        cancelled: Once it says yes, the evaluation is cancelled, within a second.

    Returns:
        An iterable of ``Cost`` as they finish, the model in 16 bits first.

    Raises:
        ModelError: For a model that cannot be measured: at once; while iterating, where it does not fit into memory or the
            process fails.
        DataError: At once, for faults of the rows.
        FormatError: At once, for formats and bits that there are not.
        ConfigError: At once, for a number of rows or tokens that there is not.
        RunError: At once, for a folder that holds anything else; while iterating, where the process fails.
        InterruptedError: At once, where it is cancelled while a model is fetched or configurations at equal bits are chosen.

    >>> found = wb.evaluate("builtin", ["nf4", "int4"])  # measures nothing before it is run or iterated
    >>> len(found), found.complete
    (3, False)
    >>> [(cost.name, cost.kl) for cost in found]  # doctest: +SKIP
    """
    job = job_of(src, data, max_length, max_rows, progress, cancelled)
    wanted = tuple(dict.fromkeys(as_specs(specs)))
    if not is_a(equal_bits, bool) and not is_number(equal_bits):
        what, remedy = f"{described(equal_bits)} is no number of bits per weight.", "Give True, or one such as 4.5."
        raise FormatError(what, where="equal_bits", remedy=remedy)
    if is_a(equal_bits, bool) and not equal_bits:
        return Evaluation(Measurements(job, folder), wanted, output_error, progress, cancelled)
    if rotated := next((spec for spec in wanted if spec.rotate is not None), None):
        what = f"at equal bits a format's configuration is chosen among those without rotation, and {rotated.title} has one."
        raise FormatError(what, where="equal_bits", remedy="Leave equal_bits out to measure rotated weights.")
    measurements, formats = Measurements(job, folder), tuple(dict.fromkeys(spec.format for spec in wanted))
    chosen = _at_equal_bits(measurements, EQUAL_BITS if equal_bits is True else float(equal_bits), formats, progress, cancelled)
    return Evaluation(measurements, chosen, output_error, progress, cancelled)


def _at_equal_bits(
    measurements: Measurements, bits: float, formats: tuple[str, ...], progress: bool | Progress, cancelled: Cancelled | None
) -> tuple[QuantSpec, ...]:
    """Each format's configuration, as a duel chooses it or has chosen it for this folder before."""
    file, key = measurements.root / CHOSEN, " ".join([f"{bits!r}", *(spec_key(QuantSpec(name)) for name in formats)])
    kept = _read(file)
    with contextlib.suppress(KeyError, TypeError, FormatError):  # chosen for something else, or by another version
        return tuple(QuantSpec(**fields) for fields in kept[key])
    fought = duel(measurements.job.source, bits, formats, progress=progress, cancelled=cancelled)
    chosen = tuple(score.spec for score in fought.contenders)
    with contextlib.suppress(OSError):  # a folder that can only be read has its measurements all the same
        write_json(file, kept | {key: [spec.to_dict() for spec in chosen]})
    return chosen


def _read(file: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        if isinstance(found := json.loads(file.read_text("utf-8")), dict):
            return found
    return {}


class Evaluation(Shown, Unfolding[Cost]):
    """An evaluation's rows as they finish, and tables of them. Iterating does the work; leaving the loop stops it."""

    def __init__(
        self, measurements: Measurements, specs: tuple[QuantSpec, ...], output_error: bool, progress: bool | Progress,
        cancelled: Callable[[], bool] | None,
    ) -> None:  # fmt: skip
        super().__init__(1 + len(specs), cancelled)
        self.specs = specs
        self._job, self._progress = measurements.job, progress
        self._outputs = specs if output_error else ()
        self._measurements = measurements

    @property
    def model(self) -> str:
        """The model's name."""
        return self._job.source.name

    @property
    def text(self) -> str:
        """What was measured on, in words."""
        return self._job.text

    @property
    def ranks(self) -> dict[str, int]:
        """Of each finished format, by ``Cost.name``: its rank, one more than how many formats diverge less (``ranks_of``)."""
        return ranks_of(self.rows)

    @property
    def phase(self) -> str:
        """What the measuring process is doing: ``import``, ``load``, ``measure``; empty where there is none."""
        return self._measurements.phase

    @property
    def memory(self) -> MemoryUse | None:
        """What the measuring process took, measured; None before it has measured a row."""
        return self._measurements.memory

    def to_frame(self) -> pd.DataFrame:
        """A line for each finished row, with its rank; runs the evaluation first where nothing is finished."""
        import pandas as pd

        self._begin_once()
        known = self.ranks
        return pd.DataFrame([_line(row, known.get(row.name)) for row in self.rows]).astype({"rank": "Int64"})

    def output_errors(self) -> pd.DataFrame:
        """A line for each module and format: ‖(W − Ŵ)x‖ / ‖Wx‖ on real activations, beside ‖W − Ŵ‖ / ‖W‖ of the weight.

        The activations x are those that reach the module in the 16-bit model, over the first 8 held-out rows, in one forward
        pass. ``outlier_channels`` numbers the input channels whose activations stand out (``Channel``). Without
        ``output_error`` the table is empty.
        """
        import pandas as pd

        if self._outputs:
            self._begin_once()
        columns = ("module", "layer", "kind", "spec", "output_error", "relative_rmse", "outlier_channels")
        found = self._measurements
        lines = [
            (module, layer_of(module), kind_of(module), spec.title, found.outputs[key].value, self._own(key),
             tuple(channel.number for channel in found.channels.get(module, ())))
            for spec in self._outputs
            for module in self._job.weights
            if (key := (module, spec_key(spec))) in found.outputs
        ]  # fmt: skip
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
        rows = self._measurements.rows
        found, base = rows[assignment.key], rows[Assignment().key]
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
            assignment.spec, name, bits, self._job.nbytes(assignment), found.kl, found.kl_interval, found.flips,
            found.flips_interval, found.loss, perplexity(found), found.loss_interval, increase, interval, ratio.value, found,
        )  # fmt: skip

    def _show_(self) -> View:
        note = (
            f"Measured on {self.text}: KL divergence from 16 bits in nats a token, the least first; intervals over rows. "
            "A format's rank is one more than how many diverge less, beyond the paired interval of the difference."
        )
        known = self.ranks
        order = sorted(self.rows, key=lambda row: (row.spec is not None, not math.isfinite(row.kl), row.kl))
        lines = [{"rank": str(known.get(row.name, "")), **row._line_()} for row in order]
        return View(f"Evaluation of {self.model}: {self._so_far('rows')}", lines=lines, note=note)


def ranks_of(rows: Iterable[Cost]) -> dict[str, int]:
    """Of each format, by ``Cost.name``: one more than how many of the others diverge less.

    Less is what these rows can tell: the paired 95 % interval of the difference in KL divergence is above zero. So rank 1 is
    shared by all formats than which none diverges less.
    """
    costs = [cost for cost in rows if cost.spec is not None]
    found = ranks([cost.kl for cost in costs], lambda i, j: costs[i].rows.further(costs[j].rows))
    return {cost.name: rank for cost, rank in zip(costs, found, strict=True)}


def perplexity(losses: RowCosts) -> float:
    """exp(loss), infinite where that is too large for a float."""
    try:
        return math.exp(losses.loss)
    except OverflowError:
        return math.inf


def _line(row: Cost, rank: int | None) -> dict[str, object]:
    return {
        "name": row.name, "format": row.spec.format if row.spec else "", "bits_per_weight": row.bits_per_weight,
        "nbytes": row.nbytes, "rank": rank, "kl": row.kl, "kl_low": row.kl_interval[0], "kl_high": row.kl_interval[1],
        "flips": row.flips, "flips_low": row.flips_interval[0], "flips_high": row.flips_interval[1], "loss": row.loss,
        "loss_low": row.interval[0], "loss_high": row.interval[1], "perplexity": row.perplexity, "increase": row.increase,
        "increase_low": row.increase_interval[0], "increase_high": row.increase_interval[1],
        "relative_rmse": row.relative_rmse,
    }  # fmt: skip
