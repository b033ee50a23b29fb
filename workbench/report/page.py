"""The report's page: sections, style, figures, plotly.js and the script that draws, in one file.

Covers what keeps it safe and apart from the network: all text is escaped where it is made (``text.py``), JSON cannot end its
script element, and a content security policy allows two scripts by their hash and no request at all. Does not cover the words
(``sections.py``) nor the plots (``figures.py``).
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from workbench.cost.evaluation import Evaluation
from workbench.errors import WorkbenchError
from workbench.quant.formats import FORMATS
from workbench.report import sections
from workbench.report.contents import Contents
from workbench.report.costs import costs
from workbench.report.sections import Section
from workbench.report.text import escaped
from workbench.text import amount, bracketed, count, counted, jsonable, listed, memory_size, percent

_HERE = Path(__file__).parent


def page(c: Contents, evaluation: Evaluation | None = None) -> str:
    """The whole page as HTML; what an evaluation has measured stands first."""
    parts = [] if evaluation is None else [costs(evaluation)]
    parts += [
        build(c)
        for build in (
            sections.errors, sections.duel, sections.double_quantization, sections.memory, sections.tails, sections.method,
        )
    ]  # fmt: skip
    library = _plotly_js()
    script = (_HERE / "page.js").read_text("utf-8")
    figures = {name: figure for part in parts for name, figure in part.figures.items()}
    policy = (
        f"default-src 'none'; script-src {_hash(script.encode())} {_hash(library)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    name = escaped(c.source.name)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="QLoRA Workbench {escaped(c.versions["qlora-workbench"])}">
<title>{name}: quantization report</title>
<style>
{(_HERE / "page.css").read_text("utf-8")}</style>
</head>
<body>
<header>
<p class="kind">Quantization report</p>
<h1>{name}</h1>
<p class="lead">{_lead(c)}</p>
<dl class="cards">
{_cards(c)}
</dl>
<nav aria-label="Sections"><ul>{"".join(map(_link, parts))}</ul></nav>
</header>
<main>
{"".join(map(_section, parts))}</main>
<noscript><p class="notice">The plots need JavaScript; the tables hold the same numbers.</p></noscript>
<script type="application/json" id="figures">{embedded(figures)}</script>
<script type="text/plain" id="plotly">{base64.b64encode(gzip.compress(library, 9, mtime=0)).decode()}</script>
<script>{script}</script>
</body>
</html>
"""


def _link(part: Section) -> str:
    return f'<li><a href="#{part.name}">{escaped(part.title)}</a></li>'


def _section(part: Section) -> str:
    heading = f'<h2 id="{part.name}-title">{escaped(part.title)}</h2>'
    return f'<section id="{part.name}" aria-labelledby="{part.name}-title">\n{heading}\n{part.html}</section>\n'


def _lead(c: Contents) -> str:
    rows, titles = c.measured.rows, [escaped(bracketed(spec.title)) for spec in c.specs]
    infos = set(c.source.tensors())
    total = sum(info.numel for info in infos)
    # A weight that the checkpoint holds packed has its own shape here, which cannot be set against what is stored.
    packed = any(row.tensor not in infos for row in rows)
    share = "" if packed else f", {percent(c.weights / total, 0)} of the model's"
    failed = f" {counted(len(c.measured.failed), 'tensor')} could not be read." if c.measured.failed else ""
    what = f"{counted(len(rows), 'tensor')} with {count(c.weights)} weights{share}"
    return f"{what}, measured whole under {listed(titles)}.{failed}"


def _cards(c: Contents) -> str:
    best = min((c.measured.score(spec) for spec in c.specs), key=lambda score: score.order)
    winners = c.duel.winners()
    won = next((score for score in c.duel.contenders if score.spec.format in winners), None)
    cards = [(percent(best.relative_rmse), "relative RMSE", best.spec.title)]
    if won is not None:
        label = listed([FORMATS[name].title for name in winners])
        cards.append((label, f"least error at {c.duel.bits:g} bits", f"{percent(won.relative_rmse)}, {won.spec.title}"))
    if c.savings.weights:
        cards.append((amount(c.savings.saved), "saved by double quantization", "NF4, blocks of 64"))
    if c.ledgers:
        least = min(c.ledgers, key=lambda ledger: ledger.total)
        cards.append(
            (memory_size(least.total), "memory to fine-tune, forecast", f"least of {len(c.ledgers)} methods: {least.title}")
        )
    return "\n".join(
        f"<div><dt>{escaped(what)}</dt><dd><strong>{escaped(figure)}</strong><span>{escaped(which)}</span></dd></div>"
        for figure, what, which in cards
    )


def embedded(value: Any) -> str:
    """JSON for a script element: what could end it is escaped, and numbers that JSON has not are null."""
    text = json.dumps(jsonable(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"


def _plotly_js() -> bytes:
    """plotly.js as the installed plotly package carries it; the package itself is not imported."""
    spec = importlib.util.find_spec("plotly")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder) / "package_data" / "plotly.min.js"
        if file.is_file():
            return file.read_bytes()
    raise WorkbenchError("plotly.js is not installed.", where="plotly", remedy="Install it: pip install 'plotly>=5.24'.")
