"""Formats against each other: every configuration, the duel at equal bits, and the Pareto front of error against bits.

Covers arrays, and models streamed by ``survey``. No winner is assumed: who wins follows from what was measured. Does not cover
what the results can say (``scores.py``).

Bits per weight count everything that is stored: codes, scales in their dtype, zero points, second-level scales.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import product
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from workbench.errors import FormatError, ModelError
from workbench.given import described, is_number, several
from workbench.quant.formats import FORMATS, Format, find_format, usual_formats
from workbench.quant.measure import measure
from workbench.quant.quantize import as_weights
from workbench.quant.rotation import HADAMARD
from workbench.quant.spec import QuantSpec, SpecLike, as_specs
from workbench.show import ShownTuple
from workbench.sources.base import Source
from workbench.sources.tensor_info import TensorInfo
from workbench.surveys.rows import Row
from workbench.surveys.scores import Duel, MeasuredTensors, Pareto, Score, Trade, front_of, too_few
from workbench.text import counted

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from workbench.progress import Progress
    from workbench.surveys.survey import Survey


def configurations(
    formats: Format | str | Collection[Format | str] | None = None,
    *,
    block_sizes: int | Collection[int] | None = None,
    scale_dtypes: str | Collection[str | None] | None = None,
    double_quant: bool | Collection[bool] = (False, True),
    rotate: str | Collection[str | None] | None = None,
) -> tuple[QuantSpec, ...]:
    """Every specification that the formats have: block sizes × scale dtypes × with and without double quantization.

    Each argument takes one value or several. What a format does not have is left out.

    Args:
        formats: None for the usual ones, of 4 bits and ``int8``: integers of other widths are named, or all of ``FORMATS``
            given.
        block_sizes: Weights of a block; None for all there are.
        scale_dtypes: How a block's scale is stored; None for all there are. A None among several is the format's own dtype.
        double_quant: False, True, or both of them.
        rotate: None, ``"hadamard"``, or both of them.

    Returns:
        The specifications, format by format, each by ascending block size.

    Raises:
        FormatError: For an unknown format, and if nothing remains.

    >>> [spec.title for spec in wb.configurations("nf4", block_sizes=64, scale_dtypes="float32")]
    ['NF4, blocks of 64', 'NF4, blocks of 64, double quantized']
    """
    found = []
    for form in map(find_format, usual_formats() if formats is None else several(formats)):
        asked = form.scale_dtypes if scale_dtypes is None else several(scale_dtypes)
        wanted = [form.scale_dtype if dtype is None else dtype for dtype in asked]
        # The format's own first: of equal sizes the first is taken.
        dtypes = [form.scale_dtype, *(d for d in form.scale_dtypes if d != form.scale_dtype)]
        for block_size in form.block_sizes:
            if block_sizes is None or block_size in several(block_sizes):
                kinds = product((d for d in dtypes if d in wanted), several(double_quant), several(rotate))
                specs = (_possible(form.name, block_size, dtype, double, turn) for dtype, double, turn in kinds)
                found += [spec for spec in specs if spec is not None]
    if not found:
        raise FormatError("No format has such a configuration.", remedy="Ask for fewer things at once.")
    return ShownTuple(found, counted(len(found), "configuration"))


def _possible(name: str, block_size: int, dtype: str, double: bool, rotate: str | None) -> QuantSpec | None:
    """The specification; None where ``QuantSpec`` refuses double quantization."""
    if rotate not in (None, HADAMARD):
        return QuantSpec(rotate=rotate)  # raises
    try:
        return QuantSpec(name, block_size, dtype, double, rotate=rotate)
    except FormatError:
        return None


def duel(
    model: Source | str | os.PathLike[str] | Any,
    bits: float = 4.5,
    candidates: SpecLike | Iterable[SpecLike] | None = None,
    *,
    tensors: Sequence[str | TensorInfo] | str | None = None,
    sample: float | None = None,
    executor: Executor | None = None,
    progress: bool | Progress = False,
    cancelled: Callable[[], bool] | None = None,
) -> Duel:
    """Formats at equal bits: each in the configuration of at most ``bits`` bits per weight that errs least, as measured.

    Block size, the scales' dtype and double quantization are chosen for each format by its RMSE over everything measured. Of a
    format that is named, each way to store scales is tried with the smallest blocks that the bits allow, since larger ones
    store less of the same kind; specifications that are given are all tried. Of equal errors the fewest bits are taken, then
    scales in the format's own dtype. Formats with nothing so small are named in ``left_out``.

    Args:
        model: A source, or what ``open_model`` takes: every tensor that QLoRA quantizes is then streamed. Or an array.
        bits: Stored bits per weight that a configuration may take.
        candidates: The configurations to choose from; the name of a format stands for all that it has, and unless given all
            usual formats enter.
        tensors: Of a model, those to measure, as in ``survey``.
        sample: Of an array, the part in (0, 1) that is measured in place of the whole, as in ``measure``.
        executor: Of a model, what measures the tensors, as in ``survey``.
        progress: Of a model, True for a bar or a function, as in ``survey``.
        cancelled: Asked meanwhile; a yes ends the call, within a second; a model then has no progress bar.

    Returns:
        A score for each format in its best configuration, who wins over all, by tensor, layer or kind, and what was left out.

    Raises:
        FormatError: Where no format has anything so small, and for what cannot be quantized.
        ModelError: As ``survey`` does, and where no tensor could be measured.
        WorkbenchError: As ``survey`` does.
        InterruptedError: Once cancelled.

    >>> found = wb.duel("builtin", 4.5, ["nf4", "fp4", "iq4_nl"])
    >>> found.winners(), found.contenders[0].spec.title
    (('iq4_nl',), 'NF4, blocks of 32, float16 scales')
    """
    if not is_number(bits):
        raise FormatError(f"{described(bits)} is no number of bits per weight.", where="bits", remedy="Give one such as 4.5.")
    entering, left_out = entrants(bits, candidates)
    twins = {spec: twin for spec in entering if (twin := _twin(spec)) is not None}
    specs = tuple(dict.fromkeys([*entering, *twins.values()]))
    found = _measured(model, specs, tensors, sample, executor, progress, cancelled)
    chosen, trades = _best(found, entering), {}
    for spec in [*(score.spec for score in chosen), *sorted(entering, key=lambda spec: spec.double_quant)]:
        if spec in twins and spec.format not in trades:
            plain, double = (twins[spec], spec) if spec.double_quant else (spec, twins[spec])
            trades[spec.format] = Trade(found.score(plain), found.score(double))
    return Duel(bits, chosen, MappingProxyType(left_out), MappingProxyType(trades), found)


def pareto(
    model: Source | str | os.PathLike[str] | Any,
    specs: SpecLike | Iterable[SpecLike] | None = None,
    *,
    tensors: Sequence[str | TensorInfo] | str | None = None,
    sample: float | None = None,
    executor: Executor | None = None,
    progress: bool | Progress = False,
    cancelled: Callable[[], bool] | None = None,
) -> Pareto:
    """Error against bits per weight over formats × block sizes, and which of them nothing else beats.

    Of a model's result, ``only`` gives the front of one tensor, layer or kind.

    Args:
        model: A source, what ``open_model`` takes, or an array, as in ``duel``.
        specs: The points: unless given, every usual format in every block size with scales in its own dtype and without double
            quantization.
        tensors: Of a model, those to measure, as in ``survey``.
        sample: Of an array, the part in (0, 1) that is measured in place of the whole, as in ``measure``.
        executor: Of a model, what measures the tensors, as in ``survey``.
        progress: Of a model, True for a bar or a function, as in ``survey``.
        cancelled: As in ``duel``.

    Returns:
        The points from the fewest bits to the most, each with its error and whether it is on the front.

    Raises:
        FormatError: For what cannot be quantized.
        ModelError: As ``survey`` does, and where no tensor could be measured.
        WorkbenchError: As ``survey`` does.
        InterruptedError: Once cancelled.

    >>> wb.pareto("builtin", ["nf4, blocks of 128", "nf4", "fp4"]).best(4.25).spec.title
    'NF4, blocks of 128'
    """
    points = configurations(scale_dtypes=(None,), double_quant=(False,)) if specs is None else as_specs(specs)
    return front_of(_measured(model, tuple(dict.fromkeys(points)), tensors, sample, executor, progress, cancelled))


def entrants(
    bits: float, candidates: SpecLike | Iterable[SpecLike] | None = None
) -> tuple[tuple[QuantSpec, ...], dict[str, float]]:
    """What ``duel`` measures of its ``candidates``, in the order of FORMATS, and the fewest bits of formats left out.

    FormatError where no candidate has so few bits.
    """
    found: dict[QuantSpec, None] = {}
    fewest: dict[str, float] = {}
    for one in several(usual_formats() if candidates is None else candidates):
        named = not isinstance(one, QuantSpec)
        specs = configurations([one]) if named else (one,)
        least = min(spec.bits_per_weight for spec in specs)
        fewest[specs[0].format] = min(least, fewest.get(specs[0].format, least))
        within = [spec for spec in specs if spec.bits_per_weight <= bits]
        smallest: dict[QuantSpec, QuantSpec] = {}
        for spec in within:  # each way to store scales with its smallest blocks, which come first
            smallest.setdefault(replace(spec, block_size=max(spec.definition.block_sizes)) if named else spec, spec)
        found |= dict.fromkeys(smallest.values())
    if not found:
        raise too_few(bits, {find_format(name).title: least for name, least in fewest.items()})
    order = list(FORMATS)
    entering = sorted(found, key=lambda spec: order.index(spec.format))
    taken = {spec.format for spec in entering}
    return tuple(entering), {name: fewest[name] for name in sorted(fewest, key=order.index) if name not in taken}


def _best(measured: MeasuredTensors, entering: Iterable[QuantSpec]) -> tuple[Score, ...]:
    """Each format's configuration of least error, in the order in which the formats enter."""
    best: dict[str, Score] = {}
    for score in map(measured.score, entering):
        before = best.get(score.spec.format)
        if before is None or _merit(score) < _merit(before):
            best[score.spec.format] = score
    return tuple(best.values())


def _merit(score: Score) -> tuple[bool, float, float, bool, bool]:
    """The less, the better; of two alike the first that enters is taken."""
    spec = score.spec
    return *score.order, spec.bits_per_weight, spec.scale_dtype != spec.definition.scale_dtype, spec.double_quant


def _twin(spec: QuantSpec) -> QuantSpec | None:
    """The specification with double quantization where it has none, and without where it has; None if that is not possible."""
    assert spec.scale_dtype is not None  # QuantSpec fills it in
    return _possible(spec.format, spec.block_size, spec.scale_dtype, not spec.double_quant, spec.rotate)


def _measured(
    model: Source | str | os.PathLike[str] | Any,
    specs: tuple[QuantSpec, ...],
    tensors: Sequence[str | TensorInfo] | str | None,
    sample: float | None,
    executor: Executor | None,
    progress: bool | Progress,
    cancelled: Callable[[], bool] | None,
) -> MeasuredTensors:
    if isinstance(model, Source | str | os.PathLike):
        if sample is not None:
            raise FormatError("A model is measured whole; only an array can be sampled.", remedy="Leave sample out.")
        return _of_model(model, specs, tensors, executor, progress, cancelled)
    if tensors is not None:
        raise FormatError("An array has no tensors to choose from.", remedy="Leave tensors out.")
    weights = as_weights(model)
    totals = measure(weights, specs, sample, cancelled=cancelled)
    info = TensorInfo("array", weights.shape, weights.dtype.name, weights.size, weights.nbytes, True, "", "as stored")
    return MeasuredTensors("array", (Row(info, None, "", tuple(totals), float("nan"), None),), specs, (), totals[0].sampled)


def _of_model(
    model: Source | str | os.PathLike[str],
    specs: tuple[QuantSpec, ...],
    tensors: Sequence[str | TensorInfo] | str | None,
    executor: Executor | None,
    progress: bool | Progress,
    cancelled: Callable[[], bool] | None,
) -> MeasuredTensors:
    from workbench.surveys.survey import survey

    surveyed = survey(model, specs, tensors, executor, progress, cancelled=cancelled)
    surveyed.run()
    if surveyed.cancelled:
        raise InterruptedError("comparing was cancelled")
    return of_survey(surveyed)


def of_survey(surveyed: Survey) -> MeasuredTensors:
    """What a survey has found so far, to be compared; ModelError where that is nothing."""
    good = tuple(row for row in surveyed.rows if row.error is None)
    if not good:
        why = f"Of the first: {surveyed.errors[0].error}" if surveyed.errors else "No tensor was to be measured."
        raise ModelError("There is nothing to compare formats on.", where=surveyed.source.name, remedy=why)
    return MeasuredTensors(surveyed.source.name, good, surveyed.specs, surveyed.errors)
