"""Writes docs/explore.html: ``python -m scripts.explore.page``, after ``--measure`` also measuring KL divergence anew.

Covers the page that shows what four bits do to a real matrix without a kernel and without a network: the widgets' own scripts
and styles, the matrix, and what the model says and loses at each number of bits, as it was measured (measured.json). Its text
is in page.html. Does not compute what the pictures show: their scripts do, on the reader's page.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import sys
from pathlib import Path
from typing import Any

import workbench as wb
from widgets.heroes.bits_dial import dial_data
from widgets.heroes.block_scales import BlockScales
from widgets.heroes.hero import STYLE, Hero, hero_script
from widgets.heroes.levels_editor import LevelsEditor
from widgets.heroes.one_weight import OneWeight
from widgets.heroes.outlier_channel import OutlierChannel
from widgets.heroes.scale_bytes import ScaleBytes
from workbench.cost.ladder import BITS, ROWS, Rungs
from workbench.text import nats, percent

HERE = Path(__file__).parent
TARGET = HERE.parents[1] / "docs" / "explore.html"
MEASURED = HERE / "measured.json"
TENSOR = "model.layers.2.self_attn.k_proj.weight"
PROMPT = "to run, v."
LISTED = (
    wb.QuantSpec("int8", 64), wb.QuantSpec("nf4", 32), wb.QuantSpec("nf4", 64), wb.QuantSpec("nf4", 64, double_quant=True),
    wb.QuantSpec("nf4", 4096), wb.QuantSpec("int4-sym", 64), wb.QuantSpec("int3-sym", 64), wb.QuantSpec("int2-sym", 64),
)  # fmt: skip
"""The points of ``wb.kl_curve`` that stand in the page's table."""


def measured() -> dict[str, Any]:
    """What the embedded model says at each number of bits and what that costs, and the lines of the table; needs torch."""
    rungs, texts, costs = Rungs(), {}, {}
    for bits in BITS:
        rungs.set(bits)
        texts[str(bits)], costs[str(bits)] = rungs.says(PROMPT, lambda: None), rungs.costs(bits)
    lines = [
        {
            "name": cost.name, "bits": cost.bits_per_weight, "kl": cost.kl, "interval": list(cost.kl_interval),
            "flips": cost.flips,
        }
        for cost in wb.kl_curve("builtin", LISTED, max_rows=ROWS)
        if cost.spec is not None
    ]  # fmt: skip
    return {"texts": texts, "costs": costs, "lines": lines}


def figures(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The pictures by the names of their places in page.html: script, data and state."""
    matrix = wb.open_model("builtin").read(TENSOR)
    heroes: dict[str, Hero] = {
        "outlier": BlockScales(matrix[0]), "levels": LevelsEditor(matrix), "weight": OneWeight(matrix),
        "channel": OutlierChannel(matrix), "scales": ScaleBytes(matrix),
    }  # fmt: skip
    made = {name: {"script": hero._esm, "data": hero.data, "state": hero.state} for name, hero in heroes.items()}
    for hero in heroes.values():
        hero.close()
    said = {
        "prompt": PROMPT, "texts": found["texts"], "costs": found["costs"], "phase": "answering", "problem": "", "done": PROMPT,
    }  # fmt: skip
    dial = {"script": hero_script("bits_dial"), "data": dial_data(said), "state": {"bits": 4, "prompt": PROMPT}}
    return {**made, "bits": dial}


def page() -> str:
    """The page as HTML. A policy in it forbids every request."""
    found = json.loads(MEASURED.read_text("utf-8"))
    made = figures(found)
    matrix = made["levels"]["data"]["weights"]  # the same in most pictures: it travels once
    for figure in made.values():
        figure["data"] = {key: "matrix" if part == matrix else part for key, part in figure["data"].items()}
    contents = json.dumps({"matrix": matrix, "figures": made}, ensure_ascii=False).replace("<", "\\u003c")
    script = (HERE / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    weights = sum(tensor.numel for tensor in wb.open_model("builtin").tensors())
    parts = {
        "POLICY": f"default-src 'none'; script-src 'sha256-{digest}' blob:; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'",
        "STYLE": f"{STYLE}\n{(HERE / 'page.css').read_text('utf-8')}",
        "TENSOR": TENSOR, "WEIGHTS": f"{weights:,}", "ROWS": str(ROWS), "LINES": _lines(found["lines"]), "CONTENTS": contents,
        "SCRIPT": script,
    }  # fmt: skip
    text = (HERE / "page.html").read_text("utf-8")
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


def _lines(lines: list[dict[str, Any]]) -> str:
    cells = [
        (
            line["name"],
            f"{line['bits']:.3f}",
            nats(line["kl"]),
            " to ".join(map(nats, line["interval"])),
            percent(line["flips"]),
        )
        for line in sorted(lines, key=lambda line: float(line["kl"]))
    ]
    return "\n".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in cells)


def main() -> None:
    """Write the page, and say how large it is."""
    if "--measure" in sys.argv[1:]:
        MEASURED.write_text(json.dumps(measured(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    TARGET.write_text(page(), "utf-8")
    print(f"{TARGET.name}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
