"""What comparing formats gives: scores, the duel with its rounds, and the Pareto front.

Covers pooling over the tensors of a model or of a part of it (each weight counts alike) and finding who errs least. Does not
cover what is measured, and with which specifications (``surveys/duel.py``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import FormatError, ModelError, WorkbenchError
from workbench.quant.measure import Totals
from workbench.quant.spec import QuantSpec
from workbench.show import Line, Record, Shown, ShownTuple, View, bar, in_words
from workbench.surveys.rows import Row, pooled
from workbench.text import amount, count, counted, listed, number, percent, whole_or_sampled

if TYPE_CHECKING:
    import pandas as pd

MEASURES = {"rmse": False, "sqnr_db": True, "mean_sqnr_db": True}
"""The measures by which a winner can be found, and whether more is better."""


@dataclass(frozen=True, repr=False)
class Score(Record):
    """What one specification does to one or several tensors."""

    spec: QuantSpec
    totals: Totals
    """Pooled over the tensors."""
    numel: int
    """Weights of the tensors; more than ``totals.numel`` where a sample was measured."""
    nbytes: int
    """Bytes that they take, everything counted."""
    mean_sqnr_db: float
    """−10 · log10 of the mean noise-to-signal ratio, in decibels: as if every tensor were first scaled to the same rms, so
    that one of small weights counts as much as one of large ones. Of a single tensor it is its SQNR."""

    @property
    def bits(self) -> float:
        """Bits per weight of these tensors, partial blocks counted as the whole ones that they take."""
        return 8 * self.nbytes / self.numel

    @property
    def rmse(self) -> float:
        """Root mean square error over all weights together."""
        return self.totals.rmse

    @property
    def relative_rmse(self) -> float:
        """rmse / rms of all weights together."""
        return self.totals.relative_rmse

    @property
    def sqnr_db(self) -> float:
        """SQNR of all weights together. On the same weights it ranks exactly as ``rmse`` does."""
        return self.totals.sqnr_db

    @property
    def order(self) -> tuple[bool, float]:
        """What to sort scores by: the least error first, those without one last."""
        return math.isnan(self.rmse), self.rmse

    def _line_(self) -> Line:
        return {
            "format": self.spec.title, "bits": f"{self.bits:.4f}", "size": amount(self.nbytes),
            "relative RMSE": percent(self.relative_rmse), "SQNR, dB": number(self.sqnr_db, ".2f"),
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The numbers as a line of a table."""
        spec = self.spec
        return {
            "format": spec.format, "spec": spec.title, "block_size": spec.block_size, "double_quant": spec.double_quant,
            "bits_per_weight": spec.bits_per_weight, "stored_bits": self.bits, "nbytes": self.nbytes, "rmse": self.rmse,
            "relative_rmse": self.relative_rmse, "sqnr_db": self.sqnr_db, "mean_sqnr_db": self.mean_sqnr_db,
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Trade(Record):
    """What quantizing the scales too gains and costs, on the same tensors."""

    plain: Score
    double: Score

    @property
    def bits_saved(self) -> float:
        """Bits per weight."""
        return self.plain.bits - self.double.bits

    @property
    def bytes_saved(self) -> int:
        """Bytes on these tensors."""
        return self.plain.nbytes - self.double.nbytes

    @property
    def error_added(self) -> float:
        """The share by which the RMSE grows: 0.001 is a thousandth more."""
        return self.double.rmse / self.plain.rmse - 1 if self.plain.rmse else 0.0

    def _line_(self) -> Line:
        return {
            "double quantizing": self.plain.spec.title, "saves bits per weight": f"{self.bits_saved:.4f}",
            "saves": amount(self.bytes_saved), "adds to the RMSE": f"{self.error_added:+.3%}",
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Round(Shown):
    """The contenders on one tensor, layer or kind."""

    label: str | int | None
    """The tensor's name, the layer's number (None: outside the layers), or the kind."""
    scores: tuple[Score, ...]
    """In the order of the contenders."""

    def winners(self, on: str = "rmse") -> tuple[str, ...]:
        """The format that errs least here; several only where they err exactly alike, none where nothing has an error."""
        return winners(self.scores, on)

    def _line_(self) -> Line:
        return {"where": in_words(self.label), "least error": listed(self.winners()) or "none"}

    def _show_(self) -> View:
        return View(f"{in_words(self.label)}: {listed(self.winners()) or 'nothing'} errs least", lines=self.scores)


def winners(scores: Sequence[Score], on: str = "rmse") -> tuple[str, ...]:
    """The formats with the best of ``MEASURES`` among ``scores``; more than one where they are exactly equal."""
    if on not in MEASURES:
        raise WorkbenchError(f"A duel has no winner on {on!r}.", remedy=f"Choose one of: {', '.join(MEASURES)}.")
    values = {score.spec.format: getattr(score, on) for score in scores}
    known = [value for value in values.values() if not math.isnan(value)]
    best = (max if MEASURES[on] else min)(known, default=math.nan)
    return tuple(name for name, value in values.items() if value == best)


@dataclass(frozen=True, repr=False)
class MeasuredTensors(Shown):
    """Specifications on the tensors of a model, or on one array."""

    name: str
    """The model's, or ``array``."""
    rows: tuple[Row, ...]
    """What was measured, a tensor each."""
    specs: tuple[QuantSpec, ...]
    """What the rows' totals belong to, in their order."""
    failed: tuple[Row, ...] = ()
    """Tensors that could not be read, with their error; they are in no number."""
    sampled: float | None = None
    """The share of an array that was measured; None: the whole."""

    def score(self, spec: QuantSpec, rows: Sequence[Row] | None = None) -> Score:
        """One specification over ``rows`` (None: over all of them)."""
        i, rows = self.specs.index(spec), self.rows if rows is None else rows
        totals = [row.totals[i] for row in rows]
        noise = [(t.numel, t.relative_rmse**2) for t in totals if t.rms > 0]
        ratio = sum(n * r for n, r in noise) / sum(n for n, _ in noise) if noise else math.nan
        return Score(
            spec,
            totals[0] if len(totals) == 1 else pooled(totals),
            sum(row.tensor.numel for row in rows),
            sum(spec.nbytes(row.tensor.numel) for row in rows),
            -10 * math.log10(ratio) if ratio else math.inf,
        )

    @property
    def extent(self) -> str:
        """What was measured of what, in words."""
        weights = count(sum(row.tensor.numel for row in self.rows))
        failed = f"; {counted(len(self.failed), 'tensor')} could not be read" if self.failed else ""
        whole = whole_or_sampled(self.sampled)
        return f"{self.name}, {counted(len(self.rows), 'tensor')}, {weights} weights, measured, {whole}{failed}"

    def _show_(self) -> View:
        return View(self.extent, lines=[self.score(spec) for spec in self.specs])

    def only(self, *, tensor: str | None = None, layer: int | None = None, kind: str | None = None) -> MeasuredTensors:
        """The same with one tensor, or with those of a layer or kind alone."""
        asked = {"tensor": tensor, "layer": layer, "kind": kind}
        rows = tuple(
            row
            for row in self.rows
            if tensor in (None, row.tensor.name) and layer in (None, row.layer) and kind in (None, row.kind)
        )
        if not rows:
            asked_for = ", ".join(f"{name}={value!r}" for name, value in asked.items() if value is not None)
            raise ModelError(f"None of the {len(self.rows)} tensors that were measured has {asked_for}.", where=self.name)
        return dataclasses.replace(self, rows=rows)

    def grouped(self, by: str) -> dict[Any, list[Row]]:
        """The rows of each tensor, layer or kind; layers in their order, those outside the layers last."""
        if by not in ("tensor", "layer", "kind"):
            raise WorkbenchError(f"Tensors cannot be grouped by {by!r}.", remedy="Choose one of: tensor, layer, kind.")
        groups: dict[Any, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.tensor.name if by == "tensor" else getattr(row, by), []).append(row)
        return dict(sorted(groups.items(), key=lambda item: (item[0] is None, item[0]))) if by == "layer" else groups


@dataclass(frozen=True, repr=False)
class Duel(Shown):
    """Formats at equal bits: each in its configuration of least error not above ``bits``."""

    bits: float
    """The target, bits per weight."""
    contenders: tuple[Score, ...]
    """One a format, in the order of ``FORMATS``."""
    left_out: Mapping[str, float]
    """The formats that have no configuration so small, and the fewest bits per weight that each takes."""
    trades: Mapping[str, Trade]
    """By format what double quantization saves and costs: of the contender, or where its scales cannot be quantized again, of
    the configuration with float32 scales that it was chosen over."""
    measured: MeasuredTensors
    """The tensors behind the numbers."""

    @property
    def ranked(self) -> tuple[Score, ...]:
        """The contenders, the least error first."""
        return ShownTuple(
            sorted(self.contenders, key=lambda score: score.order), f"At {self.bits:g} bits, the least error first"
        )

    def winners(self, on: str = "rmse") -> tuple[str, ...]:
        """Who errs least over all: on ``rmse`` or ``sqnr_db`` (one ranking: the signal is the same), or ``mean_sqnr_db``."""
        return winners(self.contenders, on)

    def rounds(self, by: str = "tensor") -> tuple[Round, ...]:
        """The same contenders on each ``tensor``, ``layer`` or ``kind``."""
        rounds = [
            Round(label, tuple(self.measured.score(score.spec, rows) for score in self.contenders))
            for label, rows in self.measured.grouped(by).items()
        ]
        return ShownTuple(rounds, f"Who errs least at {self.bits:g} bits, by {by}")

    def wins(self, by: str = "tensor", on: str = "rmse") -> dict[str, int]:
        """How many rounds each contender wins; a round with several winners counts for each of them.

        Args:
            by: What a round is of, as in ``rounds``: ``tensor``, ``layer`` or ``kind``.
            on: What decides it, as in ``winners``: ``rmse``, ``sqnr_db`` or ``mean_sqnr_db``.

        Returns:
            Format → rounds won, in the order of the formats.
        """
        won = [name for fought in self.rounds(by) for name in fought.winners(on)]
        return {score.spec.format: won.count(score.spec.format) for score in self.contenders}

    def to_frame(self, by: str | None = None) -> pd.DataFrame:
        """A line for each contender; with ``by`` one for each tensor, layer or kind and contender. ``won`` is on RMSE."""
        import pandas as pd

        rounds = [Round(None, self.contenders)] if by is None else self.rounds(by)
        lines = []
        for fought in rounds:
            best = fought.winners()
            for score in fought.scores:
                lines.append(({by: fought.label} if by else {}) | score.to_dict() | {"won": score.spec.format in best})
                if by is None and (trade := self.trades.get(score.spec.format)):
                    lines[-1] |= {"dq_bits_saved": trade.bits_saved, "dq_bytes_saved": trade.bytes_saved}
                    lines[-1] |= {"dq_error_added": trade.error_added, "dq_of": trade.plain.spec.title}
        return pd.DataFrame(lines)

    def _show_(self) -> View:
        best = listed([score.spec.definition.title for score in self.contenders if score.spec.format in self.winners()])
        title = f"Duel at {self.bits:g} bits per weight: {best or 'nothing'} errs least"
        small = ", ".join(f"{name} ({fewest:.4g})" for name, fewest in self.left_out.items())
        note = f"{self.measured.extent}." + (f" With no configuration so small, and the fewest bits: {small}." if small else "")
        return View(title, lines=_with_bars(self.ranked), note=note)


def _with_bars(scores: Sequence[Score]) -> list[Line]:
    """The scores' lines, each with its error as a bar, the longest that of the largest error."""
    largest = max((score.relative_rmse for score in scores if score.relative_rmse == score.relative_rmse), default=0.0) or 1.0
    return [{**score._line_(), "": bar(score.relative_rmse / largest)} for score in scores]


@dataclass(frozen=True, repr=False)
class ParetoPoint(Record):
    """A specification in the plane of bits and error."""

    score: Score
    on_front: bool
    """Whether no other point is as small and as exact, and better in one of the two."""

    def _line_(self) -> Line:
        return {**self.score._line_(), "on the front": in_words(self.on_front)}


@dataclass(frozen=True, repr=False)
class Pareto(Shown):
    """Error against bits per weight: which points are worth their bits, and which are beaten by one that takes no more."""

    points: tuple[ParetoPoint, ...]
    """From the fewest bits to the most."""
    measured: MeasuredTensors
    """The tensors behind the numbers."""

    @property
    def front(self) -> tuple[Score, ...]:
        """The points on the front, from the fewest bits and the largest error on."""
        return ShownTuple((point.score for point in self.points if point.on_front), "The Pareto front, the fewest bits first")

    def best(self, bits: float) -> Score:
        """The least error for at most ``bits`` stored bits per weight.

        Raises:
            FormatError: Where every point takes more.
        """
        within = [score for score in self.front if score.bits <= bits]
        if not within:
            raise too_few(bits, {point.score.spec.title: point.score.bits for point in self.points})
        return within[-1]

    def only(self, *, tensor: str | None = None, layer: int | None = None, kind: str | None = None) -> Pareto:
        """The front over some of the tensors, without measuring again: ``front.only(layer=0, kind="q")``.

        Args:
            tensor: A tensor's name.
            layer: A layer's number.
            kind: A kind, such as ``q``.

        Returns:
            A front of the same configurations.
        """
        return front_of(self.measured.only(tensor=tensor, layer=layer, kind=kind))

    def to_frame(self) -> pd.DataFrame:
        """A line for each point, from the fewest bits to the most, and whether it is on the front."""
        import pandas as pd

        return pd.DataFrame([point.score.to_dict() | {"on_front": point.on_front} for point in self.points])

    def _show_(self) -> View:
        title = f"Error against bits: {len(self.front)} of {counted(len(self.points), 'configuration')} on the Pareto front"
        return View(
            title,
            lines=_with_bars(self.front),
            note=f"{self.measured.extent}. The other configurations are each beaten by one of the front.",
        )


def front_of(measured: MeasuredTensors) -> Pareto:
    """The points and the front of everything that was measured."""
    scores = sorted((measured.score(spec) for spec in measured.specs), key=lambda score: (score.bits, *score.order))
    points, least, bits = [], math.inf, math.nan
    for score in scores:  # errors that are not a number are never less than another
        on_front = score.rmse < least or (score.rmse == least and score.bits == bits)
        if on_front:
            least, bits = score.rmse, score.bits
        points.append(ParetoPoint(score, on_front))
    return Pareto(tuple(points), measured)


def too_few(bits: float, needed: Mapping[str, float]) -> FormatError:
    """The error for a number of bits that nothing keeps to, with the smallest there is."""
    name, fewest = min(needed.items(), key=lambda item: item[1])
    return FormatError(
        f"Nothing takes {bits:g} bits per weight or fewer.", remedy=f"{name} takes the fewest, {fewest:.4f}: ask for more."
    )
