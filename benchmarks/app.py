"""The app in JupyterLab and Chromium against its budgets, beside a FigureWidget version: ``python benchmarks/app.py``.

Measured on the page: from an action there (the Run command, a key on the slider) to the last drawing that follows. What is one
choice away is measured ahead while the reader looks; rows marked otherwise follow a kernel that has forgotten all of it. The
second column shows the Distribution view alone, the third the same view with each plot a plotly FigureWidget, in the same run.
Times drift with what else the machine does; ratios between the columns are what to quote. First comes a training cell that
picks up a run in a fresh kernel and a fresh page.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from playwright.sync_api import Browser

import workbench as wb
from tests.browser.lab import Lab, write_notebook
from tests.browser.server import TOKEN, Server, everything
from workbench.quant.formats import FORMATS

COLUMNS = 11008
WARM_UP = 5  # times that the app is opened and closed before memory is read: the first ones load libraries and compile
APP = "from widgets import Workbench\nview = Workbench({model!r})\nview"
VIEW = "from widgets import DistributionView\nview = DistributionView({model!r})\nview"
ATTACH = """
import time
began = time.monotonic()
from widgets import TrainingCell
cell = TrainingCell(run={run!r})
seconds = time.monotonic() - began
cell
"""
# The same view on FigureWidgets: what it asks of a Plot, with plotly's own means.
FIGURE_WIDGETS = """
import plotly.graph_objects as go
import widgets.panels.distribution as panel

class FigurePlot(go.FigureWidget):
    def __init__(self, height=320, waiting=""):
        super().__init__(layout={{"height": height, "template": "plotly_white"}})

    def show(self, figure, summary=None):
        with self.batch_update():
            if [t.type for t in self.data] != [t.get("type", "scatter") for t in figure["data"]]:
                self.data = []
                self.add_traces(figure["data"])
            for trace, new in zip(self.data, figure["data"]):
                trace.update(new, overwrite=False)
            self.layout.update(figure["layout"])

panel.Plot = FigurePlot
view = panel.DistributionView({model!r})
view
"""

# Notes when a drawing on screen was last finished; ``drawn`` counts them. Asks for no frames: they cost the page time.
_WATCH = """() => {
    window.last = performance.now(), window.drawn = 0;
    const seen = new Map();
    const note = (figure) => figure.checkVisibility() && (window.last = performance.now(), window.drawn += 1);
    const ours = (figure) => {
        const { revision, map, samples } = figure.dataset;
        if (revision === seen.get(figure) || !(map || Number(samples) || figure.data?.length)) return;
        seen.set(figure, revision);
        note(figure);
    };
    const theirs = (plot) => {
        if (seen.has(plot) || !plot.on) return;
        seen.set(plot, '');
        const look = () => plot.data?.length && note(plot);
        look();
        plot.on('plotly_afterplot', look);
    };
    const look = ({ target }) => {
        if (target.matches('.workbench-drawing [role=figure]')) ours(target);
        else if (target.matches('.js-plotly-plot')) theirs(target);
    };
    new MutationObserver((changes) => changes.forEach(look))
        .observe(document.body, { attributes: true, subtree: true, attributeFilter: ['data-revision', 'class'] });
}"""
_QUIET = "(ms) => window.drawn > 0 && performance.now() - window.last > ms"
_RUN = """() => {
    window.drawn = 0, window.began = performance.now();
    globalThis.jupyterapp.commands.execute('notebook:run-all-cells');
}"""
_FIRST = "() => window.drawn > 0 && { seconds: (window.last - window.began) / 1000 }"
_KEYS = """([keys, gap]) => new Promise((resolve) => {
    const field = document.querySelector('[role=combobox][aria-label="Block size"]');
    window.drawn = 0;
    const press = (i) => {
        window.began = performance.now();
        field.dispatchEvent(new KeyboardEvent('keydown', { key: keys[i], bubbles: true, cancelable: true }));
        if (i + 1 < keys.length) setTimeout(press, gap, i + 1);
        else resolve();
    };
    press(0);
})"""
_CHOOSE = """([label, title]) => {
    document.querySelector(`[role=combobox][aria-label="${label}"]`).click();
    const options = [...document.querySelectorAll(`[role=listbox][aria-label="${label}"] [role=option]`)];
    window.drawn = 0, window.began = performance.now();
    options.find((option) => option.firstChild.textContent === title).click();
}"""
# What the page does after a call of the kernel is no part of the change that follows.
_AT_REST = "() => new Promise((resolve) => setTimeout(() => requestIdleCallback(resolve), 100))"
_MEMORY = """
import ctypes, gc, psutil, sys, threading, ipywidgets
from widgets.drawing.drawing import Drawing
from widgets.session import Session
from widgets.controls.style import Panel
gc.collect()
if sys.platform == "linux":
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later is not in use
held = sum(isinstance(o, (Session, Panel, Drawing)) for o in gc.get_objects())
print(psutil.Process().memory_info().rss / 1e6, len(ipywidgets.Widget.get_manager_state()["state"]),
      sum(t.name.startswith("workbench") for t in threading.enumerate()), held)
"""


@dataclass(frozen=True)
class Figures:
    """The measurements of one version of a view."""

    opened_mb: float
    first_plot: float
    step_ms: tuple[float, float]
    """Median and 95th percentile."""
    jump_ms: tuple[float, float]
    format_ms: tuple[float, float]
    new_format_ms: tuple[float, float]
    change_kb: float
    burst_ms: float


def write_model(folder: Path, rows: int) -> Path:
    """A checkpoint with one matrix of ``rows`` × 11008 bfloat16 weights."""
    weights = (np.random.default_rng(0).standard_normal((rows, COLUMNS), np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    name = "model.layers.0.mlp.down_proj.weight"
    header = json.dumps({name: {"dtype": "BF16", "shape": weights.shape, "data_offsets": [0, weights.nbytes]}}).encode()
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "hidden_size": rows, "intermediate_size": COLUMNS, "num_hidden_layers": 1,
                    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32, "torch_dtype": "bfloat16"})
    )  # fmt: skip
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(weights.tobytes())
    return folder


@contextmanager
def opened(browser: Browser, server: Server, code: str) -> Iterator[Lab]:
    """A page on a notebook with one cell, its kernel ready, not run yet."""
    write_notebook(server.folder / "bench.ipynb", code)
    page = browser.new_page(viewport={"width": 1400, "height": 2000})
    lab = Lab(page, server.url, TOKEN, "bench")
    lab.open("bench.ipynb")
    page.evaluate(_WATCH)
    try:
        yield lab
    finally:
        page.close()
        server.end_kernels()


def open_view(lab: Lab) -> tuple[float, float]:
    """Megabytes over the websocket and seconds to the first plot, counted from the Run command."""
    before = lab.received
    lab.page.evaluate(_RUN)
    seconds = wait(lab, _FIRST)["seconds"]
    wait(lab, _QUIET, 1500)
    return (lab.received - before) / 1e6, seconds


def wait(lab: Lab, condition: str, argument: Any = None) -> Any:
    """The value of a condition on the page once it holds; polled now and then, not in every frame."""
    return lab.page.wait_for_function(condition, arg=argument, timeout=120_000, polling=20).json_value()


def change(lab: Lab, *keys: str, gap: int = 0) -> float:
    """Milliseconds from the last of some keys on the block size to the last drawing after it."""
    lab.page.evaluate(_KEYS, [keys, gap])
    return drawn(lab)


def forget(lab: Lab) -> None:
    """Make the kernel forget all it has measured of the matrix, but not the weights."""
    lab.kernel("measured = view.session.analysis.measured; measured.__init__(measured.tensor)")
    lab.page.evaluate(_AT_REST)


def look_ahead(lab: Lab) -> None:
    """Waits until everything that is one choice away has been measured."""
    lab.kernel("from concurrent.futures import wait; assert not wait(view.session._ahead._futures, 60).not_done")
    lab.page.evaluate(_AT_REST)


def choose(lab: Lab, format: str) -> float:
    """Milliseconds from the choice of a second format to the last drawing after it."""
    lab.page.evaluate(_CHOOSE, ["Compare with", FORMATS[format].title])
    return drawn(lab)


def drawn(lab: Lab) -> float:
    """Milliseconds from the action to the last drawing after it, once there is no more."""
    wait(lab, _QUIET, 600)
    return float(lab.page.evaluate("window.last - window.began"))


def caught_up(lab: Lab, block_size: int) -> float:
    """Milliseconds from the last of many keys to the last drawing, when the kernel has got to what the last key chose."""
    states = "print(view.session.store.value.block_size, view.session.analysis.state.block_size)"
    for _ in range(60):
        if lab.kernel(states).split() == [str(block_size)] * 2:
            return drawn(lab)
        lab.page.wait_for_timeout(500)
    raise AssertionError(f"the last change is not on screen: {lab.kernel(states)}")


def measure(browser: Browser, server: Server, code: str, model: str, changes: int) -> Figures:
    """Opens the embedded model for the first two figures, then the large matrix for the others."""
    with opened(browser, server, code.format(model="builtin")) as lab:
        megabytes, first = open_view(lab)
    with opened(browser, server, code.format(model=model)) as lab:
        open_view(lab)
        for key in ("ArrowRight", "ArrowLeft"):
            change(lab, key)
        before = lab.received
        steps = [change(lab, ("ArrowRight", "ArrowLeft")[i % 2]) for i in range(changes)]
        kilobytes = (lab.received - before) / changes / 1e3
        jumps = []
        for i in range(changes):
            forget(lab)
            jumps.append(change(lab, ("End", "Home")[i % 2]))
        change(lab, "ArrowRight")  # to 64 again
        formats: dict[bool, list[float]] = {True: [], False: []}  # by whether it was measured ahead
        for ahead, times in formats.items():
            for name in [*FORMATS, *FORMATS]:
                if name not in ("nf4", "int4"):
                    (look_ahead if ahead else forget)(lab)
                    times.append(choose(lab, name))
        change(lab, *["ArrowRight", "ArrowLeft"] * 24, "ArrowRight", "ArrowRight", gap=20)
        burst = caught_up(lab, 256)
    return Figures(megabytes, first, *map(summary, (steps, jumps, *formats.values())), kilobytes, burst)


def error_steps(browser: Browser, server: Server, model: str, changes: int) -> tuple[float, float]:
    """Milliseconds for the next block size on the Error tab, whose map, block and weight all change."""
    with opened(browser, server, APP.format(model=model).replace(")", ", state={'tab': 'Error'})", 1)) as lab:
        open_view(lab)
        for key in ("ArrowRight", "ArrowLeft"):
            change(lab, key)
        return summary([change(lab, ("ArrowRight", "ArrowLeft")[i % 2]) for i in range(changes)])


def summary(times: list[float]) -> tuple[float, float]:
    """Median and 95th percentile."""
    return statistics.median(times), sorted(times)[round(0.95 * (len(times) - 1))]


def cycles(browser: Browser, server: Server, count: int) -> tuple[float, list[int]]:
    """Megabytes that the kernel grows by when the app is opened and closed, and what is left of it (see ``_MEMORY``)."""
    code = APP.format(model="builtin").removesuffix("view") + "display(view)"  # not the cell's value, which Out would keep
    with opened(browser, server, code) as lab:
        readings = []
        for i in range(WARM_UP + count):
            lab.page.evaluate(_RUN)
            wait(lab, _QUIET, 200)
            lab.kernel("view.close(); view = None")
            lab.until("() => !document.querySelector('.js-plotly-plot')")
            if i + 1 in (WARM_UP, WARM_UP + count):
                memory, *left = (float(part) for part in lab.kernel(_MEMORY).split())
                readings.append((memory, left))
    (before, some), (after, more) = readings
    return after - before, [int(b - a) for a, b in zip(some, more, strict=True)]


def write_run(folder: Path, steps: int) -> Path:
    """The folder of a finished run of some steps: a short one whose events are repeated."""
    run = wb.launch(wb.TrainConfig(max_steps=8, max_length=64, max_eval_rows=8, sample_prompts=()), folder)
    if run.wait().state != "finished":
        raise RuntimeError(run.status)
    for path in folder.glob("events-*.jsonl"):
        events = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        length = events[-1]["t"] - events[0]["t"]
        repeated = [e for e in events if e["k"] in ("sample", "step", "page", "prefetch_req")]
        for i in range(1, steps // 8):
            for event in repeated:
                later = {name: event[name] + i * length for name in ("t", "start", "end") if name in event}
                events.append(event | later | ({"n": event["n"] + 8 * i} if event["k"] == "step" else {}))
        path.write_text("".join(json.dumps(event) + "\n" for event in events), "utf-8")
    return folder


def attach(browser: Browser, server: Server, run: Path) -> tuple[float, float]:
    """Seconds that a fresh kernel takes for a training cell with all of a run's history, and until the page has drawn it."""
    with opened(browser, server, ATTACH.format(run=str(run))) as lab:
        lab.page.evaluate(_RUN)
        wait(lab, "() => document.querySelector('.wbc-stage')?.dataset.steps > 0")
        wait(lab, _QUIET, 1000)
        return float(lab.kernel("print(seconds)")), float(lab.page.evaluate("window.last - window.began")) / 1000


def report(app: Figures, view: Figures, other: Figures | None) -> None:
    """The table."""
    rows = [
        ("opens with, MB over the websocket", "≤ 2", lambda f: f"{f.opened_mb:.2f}"),
        ("Run to the first plot, s", "≤ 2.5", lambda f: f"{f.first_plot:.2f}"),
        ("next block size, all redrawn, median ms", "≤ 100", lambda f: f"{f.step_ms[0]:.0f}"),
        ("… 95th percentile ms", "≤ 200", lambda f: f"{f.step_ms[1]:.0f}"),
        ("… KB over the websocket", "≤ 300", lambda f: f"{f.change_kb:.0f}"),
        ("a block size not measured ahead, median ms", "≤ 120", lambda f: f"{f.jump_ms[0]:.0f}"),
        ("… 95th percentile ms", "≤ 200", lambda f: f"{f.jump_ms[1]:.0f}"),
        ("another second format, median ms", "≤ 120", lambda f: f"{f.format_ms[0]:.0f}"),
        ("… 95th percentile ms", "≤ 200", lambda f: f"{f.format_ms[1]:.0f}"),
        ("a format not measured ahead, median ms", "≤ 120", lambda f: f"{f.new_format_ms[0]:.0f}"),
        ("… 95th percentile ms", "≤ 200", lambda f: f"{f.new_format_ms[1]:.0f}"),
        ("fifty changes in a second: last state after, ms", "≤ 500", lambda f: f"{f.burst_ms:.0f}"),
    ]
    print(f"{'':50}{'budget':>8}{'app':>10}{'view':>10}{'FigureWidget':>14}")
    for title, budget, value in rows:
        print(f"{title:50}{budget:>8}{value(app):>10}{value(view):>10}{value(other) if other else '–':>14}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096, help="rows of the large matrix")
    parser.add_argument("--changes", type=int, default=12)
    parser.add_argument("--cycles", type=int, default=50, help="times the app is opened and closed")
    parser.add_argument("--steps", type=int, default=1000, help="of the run that a fresh kernel picks up")
    args = parser.parse_args()
    args.changes += args.changes % 2  # there and back
    with everything() as (browser, server, temporary):
        model = str(write_model(temporary / "large", args.rows))
        if args.steps:
            kernel, page = attach(browser, server, write_run(temporary / "run", args.steps))
            print(f"a run of {args.steps} steps picked up in a fresh kernel: {kernel:.2f} s with imports (budget 2),")
            print(f"and drawn on a fresh page {page:.2f} s after Run")
        print(f"{platform.machine()}; {args.rows} × {COLUMNS} bfloat16; {args.changes} changes; Chromium {browser.version}")
        app, view = (measure(browser, server, code, model, args.changes) for code in (APP, VIEW))
        try:
            other = measure(browser, server, FIGURE_WIDGETS, model, args.changes)
        except Exception as error:
            other = None
            print(f"FigureWidget could not be measured here: {str(error).splitlines()[0]}")
        report(app, view, other)
        median, most = error_steps(browser, server, model, args.changes)
        print(f"next block size on the Error tab: median {median:.0f} ms (budget 100), 95th percentile {most:.0f} ms")
        if args.cycles:
            grown, (models, threads, objects) = cycles(browser, server, args.cycles)
            times = f"{args.cycles} times, after {WARM_UP} before"
            print(f"opened and closed {times}: the kernel grows by {grown:.1f} MB (budget ≤ 20);")
            print(f"left: {models} widgets, {threads} threads, {objects} panels, sessions and drawings (budget 0)")


if __name__ == "__main__":
    main()
