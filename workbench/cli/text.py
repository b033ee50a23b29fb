"""What the commands print: results as aligned text for a reader, or as JSON for a program.

Covers the layout alone. Names out of a model are made printable, so that none of them can steer a terminal; JSON is ASCII.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from workbench._version import __version__
from workbench.memory.forecast import Fit, MemoryLedger
from workbench.memory.ledger import GROUPS
from workbench.quant.formats import FORMATS
from workbench.quant.measure import Totals
from workbench.quant.spec import QuantSpec
from workbench.surveys.duel import of_survey
from workbench.surveys.rows import Row, nonfinite_summary
from workbench.surveys.scores import Duel
from workbench.surveys.survey import Survey
from workbench.text import (
    NONE,
    amount,
    columns,
    count,
    counted,
    jsonable,
    listed,
    memory_size,
    memory_size_or_none,
    number,
    percent,
    short,
)
from workbench.training.config import TrainConfig
from workbench.training.results.export import Exported
from workbench.training.results.merging import MergeErrors

_NAMED = 5
"""Tensors that a sentence names."""


def dumped(**fields: Any) -> str:
    """A JSON object, with the version that made it."""
    return json.dumps(jsonable({"workbench": __version__, **fields}), indent=1, allow_nan=False)


def survey_text(surveyed: Survey, worst: int) -> str:
    """Totals of each specification, then the worst tensors."""
    found = of_survey(surveyed)
    scores = [found.score(spec) for spec in found.specs]
    totals = columns(
        ("specification", "bits per weight", "size", "relative RMSE", "SQNR, dB", "largest error"),
        [
            (
                s.spec.title, f"{s.bits:.4f}", amount(s.nbytes), percent(s.relative_rmse), number(s.sqnr_db, ".2f"),
                number(s.totals.max),
            )
            for s in scores
        ],
    )  # fmt: skip
    lines = [(row, row.totals[i], spec) for row in found.rows for i, spec in enumerate(found.specs)]
    lines.sort(key=lambda line: -line[1].relative_rmse if math.isfinite(line[1].relative_rmse) else 0.0)
    worst_lines = columns(
        ("tensor", "specification", "relative RMSE", "SQNR, dB", "largest error", "kurtosis"),
        [
            (
                short(row.tensor.name), spec.title, percent(t.relative_rmse), number(t.sqnr_db, ".2f"), number(t.max),
                number(row.kurtosis, ".2f"),
            )
            for row, t, spec in lines[:worst]
        ],
        texts=2,
    )  # fmt: skip
    weights = count(sum(row.tensor.numel for row in found.rows))
    intro = f"{short(found.name)}: {counted(len(found.rows), 'tensor')}, {weights} weights, measured whole"
    if spoilt := nonfinite_text(found.rows, [s.totals for s in scores]):
        intro += f"\n{spoilt}"
    return f"{intro}\n\n{totals}\n\nThe worst by relative RMSE, {min(worst, len(lines))} of {len(lines):,}\n{worst_lines}"


def nonfinite_text(rows: Sequence[Row], totals: Sequence[Totals]) -> str:
    """How many weights are NaN or infinite, what that leaves of the averages, and in which tensors; "" where all are finite."""
    summary = nonfinite_summary(totals)
    spoilt = [short(row.tensor.name) for row in rows if row.totals[0].nans or row.totals[0].infinities]
    more = [f"{len(spoilt) - _NAMED:,} more"] if len(spoilt) > _NAMED else []
    return f"{summary} They are in {listed(spoilt[:_NAMED] + more)}." if summary else ""


def survey_json(surveyed: Survey) -> str:
    """``overall``, a line for each specification, and ``rows``, one for each tensor and specification."""
    found = of_survey(surveyed)
    frame = surveyed.to_frame()
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return dumped(
        model=found.name,
        specs=[spec.to_dict() for spec in found.specs],
        overall=[found.score(spec).to_dict() for spec in found.specs],
        rows=rows,
    )


def merge_text(errors: MergeErrors, worst: int) -> str:
    """What merging adds to the adapted weights it changes most, in percent of what was trained."""

    def share(value: float | None) -> str:
        return NONE if value is None else percent(value)

    rows = sorted(errors.rows, key=lambda row: -max(row.dequantized or 0.0, row.original or 0.0))
    table = columns(
        ("tensor", "adapter", "on dequantized base", "on original base", "in 4 bits again"),
        [
            (short(row.tensor), share(row.adapter), share(row.dequantized), share(row.original), share(row.requantized))
            for row in rows[:worst]
        ],
    )  # fmt: skip
    intro = f"What merging into {errors.dtype} adds, relative to what was trained, beside what the adapter changed"
    return f"{intro}; the worst {min(worst, len(rows))} of {len(rows):,}\n{table}"


def merge_json(errors: MergeErrors) -> str:
    """``rows``, one for each adapted weight."""
    return dumped(dtype=errors.dtype, rows=[dataclasses.asdict(row) for row in errors.rows])


def export_json(written: Exported) -> str:
    """What was written; ``errors`` has an entry for each adapted weight."""
    return dumped(**{**dataclasses.asdict(written), "folder": str(written.folder)})


def duel_text(duel: Duel, by: str | None) -> str:
    """The contenders, the least error first, who wins, and on request the winners of each tensor, layer or kind."""
    wins = duel.wins("tensor")
    table = columns(
        (
            "configuration", "bits per weight", "stored", "RMSE", "relative RMSE", "SQNR, dB", "each tensor alike",
            "tensors won", "double quantization",
        ),
        [
            (
                s.spec.title, f"{s.spec.bits_per_weight:.4f}", f"{s.bits:.4f}", number(s.rmse), percent(s.relative_rmse),
                number(s.sqnr_db, ".2f"), number(s.mean_sqnr_db, ".2f"), f"{wins[s.spec.format]:,}", _trade(duel, s.spec),
            )
            for s in duel.ranked
        ],
    )  # fmt: skip
    parts = [f"{short(duel.measured.name)} at no more than {duel.bits:g} bits per weight", table, _verdict(duel)]
    if duel.left_out:
        missing = [f"{FORMATS[name].title} ({fewest:.3f} at the least)" for name, fewest in duel.left_out.items()]
        parts.append(f"No configuration so small: {listed(missing)}.")
    if by is not None:
        rows = [
            (
                short("outside the layers" if fought.label is None else str(fought.label)), listed(_titles(fought.winners())),
                *(percent(s.relative_rmse) for s in fought.scores),
            )
            for fought in duel.rounds(by)
        ]  # fmt: skip
        parts.append(columns((by, "least error", *(FORMATS[s.spec.format].title for s in duel.contenders)), rows, texts=2))
    if failed := duel.measured.failed:
        parts.append(
            f"{counted(len(failed), 'tensor')} could not be read, and count nowhere; the first: {short(failed[0].tensor.name)}."
        )
    return "\n\n".join(parts)


def _titles(names: Iterable[str]) -> list[str]:
    return [FORMATS[name].title for name in names]


def _verdict(duel: Duel) -> str:
    plain, alike = (listed(_titles(duel.winners(on))) for on in ("rmse", "mean_sqnr_db"))
    same = "RMSE and SQNR, each tensor counted alike or not" if plain == alike else "RMSE and SQNR"
    return f"Least error on {same}: {plain}." + ("" if plain == alike else f" On SQNR with each tensor counted alike: {alike}.")


def _trade(duel: Duel, spec: QuantSpec) -> str:
    trade = duel.trades.get(spec.format)
    if trade is None:
        return "–"
    of = trade.plain.spec.title.removeprefix(f"{spec.definition.title}, ")
    return f"{of}: −{trade.bits_saved:.4f} bits, −{amount(trade.bytes_saved)}, {trade.error_added:+.3%} error"


def duel_json(duel: Duel, by: str | None) -> str:
    """``contenders``, ``winners`` by measure, ``left_out``, ``double_quantization`` and, on request, ``rounds``."""
    return dumped(
        model=duel.measured.name,
        bits=duel.bits,
        contenders=[score.to_dict() for score in duel.contenders],
        winners={on: duel.winners(on) for on in ("rmse", "sqnr_db", "mean_sqnr_db")},
        left_out=dict(duel.left_out),
        double_quantization={
            name: {"bits_saved": t.bits_saved, "bytes_saved": t.bytes_saved, "error_added": t.error_added}
            for name, t in duel.trades.items()
        },
        rounds=[
            {by: fought.label, "winners": fought.winners(), "scores": [score.to_dict() for score in fought.scores]}
            for fought in (duel.rounds(by) if by else ())
        ],
        failed=[{"tensor": row.tensor.name, "error": row.error} for row in duel.measured.failed],
    )


def forecast_text(config: TrainConfig, ledgers: Sequence[MemoryLedger], fits: Sequence[Sequence[Fit]]) -> str:
    """Memory by what takes it and by method, then the GPUs."""
    titles = [ledger.title for ledger in ledgers]
    groups = [(group, *(memory_size_or_none(ledger.groups[group]) for ledger in ledgers)) for group in GROUPS]
    total = ("total", *(memory_size(ledger.total) for ledger in ledgers))
    shape = f"{config.per_device_train_batch_size} rows of {config.max_length:,} tokens, adapters of rank {config.lora_r}"
    gpus = columns(("GPU", *titles), [(row[0].gpu.name, *(f.verdict for f in row)) for row in fits], texts=len(titles) + 1)
    note = "Forecast, not measured: what activations, scratch and context take is estimated, the rest follows from the shapes."
    intro = f"{short(ledgers[0].model)}: {shape}, one GPU"
    return f"{intro}\n\n{columns(('', *titles), [*groups, total])}\n\n{gpus}\n\n{note}"


def forecast_json(config: TrainConfig, ledgers: Sequence[MemoryLedger], fits: Sequence[Sequence[Fit]]) -> str:
    """``methods``, each with its rows in bytes, and ``gpus``, each with a verdict by method."""
    return dumped(
        model=ledgers[0].model,
        config={
            name: getattr(config, name) for name in ("per_device_train_batch_size", "max_length", "lora_r", "block_size")
        },
        methods=[
            {"method": ledger.title, "total": ledger.total, "rows": [dataclasses.asdict(row) for row in ledger.rows]}
            for ledger in ledgers
        ],
        gpus=[
            {
                "gpu": row[0].gpu.name, "usable": row[0].gpu.usable,
                "verdicts": {ledger.title: found.verdict for ledger, found in zip(ledgers, row, strict=True)},
            }
            for row in fits
        ],
    )  # fmt: skip


def formats_text() -> str:
    """A line for each format."""
    rows = []
    for name, form in FORMATS.items():
        sizes = form.block_sizes
        blocks = f"{sizes[0]}…{sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
        bits, double = f"{QuantSpec(name).bits_per_weight:.4f}", _double(name)
        rows.append((name, form.title, form.scale_dtype, form.source, blocks, bits, f"{double:.4f}" if double else "–"))
    head = ("name", "format", "scales", "defined by", "block sizes", "bits per weight", "double quantized")
    return columns(head, rows, texts=4) + "\n\nBits per weight in the format's own block size: 64, or the only one there is."


def _double(name: str) -> float | None:
    from workbench.errors import FormatError
    from workbench.surveys.duel import configurations

    try:
        found = configurations([name], block_sizes=(FORMATS[name].default_block_size,), double_quant=(True,))
    except FormatError:
        return None
    return found[0].bits_per_weight


def formats_json() -> str:
    """``formats``: every format's data."""
    return dumped(
        formats=[
            {
                "name": name, "title": form.title, "code_bits": form.bits, "bits_per_weight": QuantSpec(name).bits_per_weight,
                "double_quantized_bits_per_weight": _double(name), "block_sizes": form.block_sizes,
                "default_block_size": form.default_block_size, "scale_dtype": form.scale_dtype,
                "scale_dtypes": form.scale_dtypes, "levels": form.steps, "scale_rule": form.scale_rule,
                "source": form.source, "trainable": form.trainable,
            }
            for name, form in FORMATS.items()
        ]
    )  # fmt: skip
