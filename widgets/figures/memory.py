"""Forecasts of memory as they are drawn: one stacked bar against a GPU, what would change it, and methods side by side.

Plain functions from values to values, no widgets. The forecasts are ``workbench.memory``'s.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from widgets.figures.layout import Figure
from widgets.figures.palette import BLUE, CRIMSON, GREEN, GREY, OCHRE, PURPLE, QUIET, SKY, VERMILION
from workbench.memory.alternatives import Alternative
from workbench.memory.forecast import Fit, MemoryLedger, fit
from workbench.memory.gpus import Gpu
from workbench.memory.ledger import ADAPTERS, BASE, GRADIENTS, GROUPS, LIVE, OPTIMIZER, PAGED, SCALES, SCRATCH, SPARE
from workbench.memory.ways import Change
from workbench.report.figures import stacked_memory
from workbench.text import memory_size, memory_unit

METHODS = {"qlora": "QLoRA", "lora": "LoRA", "full": "Full"}
"""The methods by name, as short as a button takes them."""
VERDICTS = {"fits": "fits", "close": "just fits", "pages": "fits by paging", "does not fit": "does not fit"}
"""``Fit.verdict`` in the words of the page."""
_TITLES = {
    SCRATCH: "context and scratch", BASE: "base model, frozen", SCALES: "scales", ADAPTERS: "adapters", GRADIENTS: "gradients",
    OPTIMIZER: "optimizer", PAGED: "optimizer, paged", LIVE: "activations, logits", SPARE: "allocator's slack",
}  # fmt: skip
"""The parts of a bar from its left, where what stays is, to its right, where it comes and goes."""
_CHANGES = {
    "max_length": "length {:,}", "per_device_train_batch_size": "batch {:,}", "lora_r": "rank {}", "optim": "{}",
    "gradient_checkpointing": "gradient checkpointing", "double_quant": "double quantization",
}  # fmt: skip
_OPTIMIZERS = {"paged_adamw_8bit": "paged 8-bit optimizer"}
MEMORY_COLOURS = (BLUE, SKY, GREEN, OCHRE, VERMILION, PURPLE, GREY, QUIET)
"""Of the groups in ``workbench.memory.ledger.GROUPS``, in their order."""


def forecast_bar(ledger: MemoryLedger, gpu: Gpu, ways: Sequence[Alternative] = (), rows: Sequence[MemoryLedger] = ()) -> Figure:
    """What ``ForecastBar`` shows of a forecast: its parts, the verdict, changes by a press, and other forecasts as ``rows``."""
    judged = fit(ledger, gpu)
    ledger = judged.ledger
    unit, size = memory_unit(ledger.total)
    return {
        "total": ledger.total, "capacity": gpu.usable, "unit": unit, "size": size,
        "said": rounded(ledger.total).partition(" ")[0],
        "of": f"{'' if unit == 'GiB' else f'{unit} '}of {rounded(gpu.usable)}",
        "parts": [
            {"group": group, "title": title, "bytes": taken, "text": f"{taken / size:,.2f}"}
            for group, title, taken in parts(ledger)
        ],
        "verdict": judged.verdict, "word": VERDICTS[judged.verdict], "more": spare(judged),
        "ways": [
            {
                "label": change_title(way.fields), "text": rounded(way.total), "verdict": way.fit.verdict,
                "word": VERDICTS[way.fit.verdict], "more": spare(way.fit),
            }
            for way in ways
        ],
        "rows": [
            {
                "title": row.ledger.title, "total": row.ledger.total, "text": rounded(row.ledger.total),
                "parts": [{"group": group, "title": title, "bytes": taken} for group, title, taken in parts(row.ledger)],
                "verdict": row.verdict, "word": VERDICTS[row.verdict],
            }
            for row in (fit(row, gpu) for row in rows)
        ],
    }  # fmt: skip


def parts(ledger: MemoryLedger) -> list[tuple[str, str, int]]:
    """Group, title and bytes of each part of the bar, at the peak; what may leave the GPU apart from what stays there."""
    sums = ledger.groups
    sums[OPTIMIZER] -= ledger[PAGED]
    sums[PAGED] = ledger[PAGED]
    return [(group, title, sums[group]) for group, title in _TITLES.items() if sums[group]]


def rounded(nbytes: float) -> str:
    """A forecast's bytes, no finer than a forecast is: 11.6 GiB, 590 MiB."""
    unit, size = memory_unit(nbytes)
    return f"{nbytes / size:,.{1 if unit == 'GiB' else 0}f} {unit}"


def spare(judged: Fit) -> str:
    """How much is left, would move to the host, or is missing."""
    left = rounded(abs(judged.headroom))
    return {
        "fits": f"{rounded(max(judged.gpu.usable - judged.ledger.total, 0))} to spare",
        "close": "if the allocator's slack gives way",
        "pages": f"{left} would move to the host",
        "does not fit": f"{left} missing",
    }[judged.verdict]


def change_title(fields: Mapping[str, Any]) -> str:
    """A change as a button names it: length 2,048 + batch 1."""

    def title(name: str, value: Any) -> str:
        if name == "method":
            return METHODS[value]
        return _CHANGES[name].format(_OPTIMIZERS.get(value, value))

    return " + ".join(title(name, value) for name, value in fields.items())


def ledger_table(ledger: MemoryLedger, model: str) -> str:
    """Every category of a forecast with its bytes, how they are known and what they are, as HTML."""
    group_of = {category: group for group, categories in GROUPS.items() for category in categories}
    rows = "".join(
        f'<tr title="{html.escape(row.note)}"><td><i data-group="{html.escape(_part(row.category, group_of))}"></i>'
        f"{html.escape(row.category)}</td><td class=wb-number>{memory_size(row.at(ledger.phase))}</td>"
        f"<td>{html.escape(row.known)}</td>"
        f"<td><small>{html.escape(row.note)}</small></td></tr>"
        for row in ledger.rows
    )
    whole = (
        f"<tr><th scope=row>in all</th><td class=wb-number><b>{memory_size(ledger.total)}</b></td><td>at the peak</td>"
        f"<td><small>while a {ledger.phase} is computed; what comes elsewhere is 0</small></td></tr>"
    )
    head = "<th scope=col>category</th><th scope=col class=wb-number>memory</th><th scope=col>known</th><th scope=col>what</th>"
    label = html.escape(f"Forecast of {model}, as set above")
    return (
        f'<div class="wb-scroll wb-ledger wb-forecast"><table class="wb-table" aria-label="{label}">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}{whole}</tbody></table></div>"
    )


def _part(category: str, group_of: Mapping[str, str]) -> str:
    return category if category == PAGED else group_of[category]


def ways_in_words(ways: Sequence[Change]) -> str:
    """Changes, each with what it saves after those before it."""
    return "; ".join(f"{change_title(way.fields)} (saves {memory_size(way.saved)})" for way in ways)


def memory_methods_figure(ledgers: Sequence[MemoryLedger], gpu: Gpu) -> Figure:
    """Stacked bars of forecast memory, one a ledger, and the GPU's memory as a line.

    A GPU with more than four times the largest ledger is named at the axis instead, so that the bars stay readable.

    Args:
        ledgers: The forecasts; the last is the chosen configuration.
        gpu: The GPU.

    Returns:
        The Plotly figure, as a dict of ``data`` and ``layout``.

    >>> import widgets
    >>> src, config = wb.open_model("builtin"), wb.TrainConfig()
    >>> ledgers = [*wb.forecast_methods(src, config), wb.forecast(src, config)]
    >>> widgets.memory_methods_figure(ledgers, wb.GPUS["T4 16 GB"])["layout"]["xaxis"]["title"]["text"]
    'MiB, forecast; T4 16 GB has 14.56 GiB'
    """
    names = [ledger.title for ledger in ledgers[:-1]] + ["as set above"]
    data = stacked_memory(names, ledgers, MEMORY_COLOURS)
    largest = max(ledger.total for ledger in ledgers)
    unit, size = memory_unit(largest)
    usable, inside = memory_size(gpu.usable), gpu.usable <= 4 * largest
    if inside:
        data.append(
            {
                "type": "scatter", "mode": "lines", "x": np.array([gpu.usable / size] * 2), "y": [names[0], names[-1]],
                "line": {"color": CRIMSON, "width": 2, "dash": "dash"}, "name": gpu.name,
                "hovertemplate": f"{gpu.name}: {usable} usable<extra></extra>",
            }
        )  # fmt: skip
    layout = {
        "barmode": "stack", "bargap": 0.35, "uirevision": "memory",
        "xaxis": {
            "title": {"text": f"{unit}, forecast" + ("" if inside else f"; {gpu.name} has {usable}")}, "rangemode": "tozero",
        },
        "yaxis": {"autorange": "reversed", "type": "category", "automargin": True},
        "legend": {"traceorder": "normal"}, "margin": {"l": 180, "r": 20, "t": 76, "b": 48},
    }  # fmt: skip
    return {"data": data, "layout": layout}
