"""A run of 10,000 steps and 100,000 samples in the cockpit, in JupyterLab and Chromium: ``python benchmarks/long_run.py``.

The events are invented and fed to a run's folder, much faster than a GPU would write them: the first nine tenths are there when
the cell is run, the rest arrives within ``SECONDS``. Frames are the page's own, all that JupyterLab does included.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser

import workbench as wb
from tests.browser.lab import Lab, write_notebook
from tests.browser.server import TOKEN, Server, everything
from workbench.training.folder import RunStatus, write_json
from workbench.training.host import create_time

STEPS, SAMPLES = 10_000, 100_000
SECONDS = 25
PIECES = 100
CELL = """
from widgets import TrainingCell
cell = TrainingCell(run={run!r})
cell
"""
_STAGE = "document.querySelector('.wbc-stage')"
# Times between the page's frames, and what the cockpit's own drawing took, from now on.
_WATCH = f"""() => {{
    window.frames_ = [], window.drawings = [];
    let last = performance.now();
    const frame = () => {{
        const now = performance.now();
        window.frames_.push(now - last);
        last = now;
        window.frameRequest = requestAnimationFrame(frame);
    }};
    requestAnimationFrame(frame);
    new MutationObserver(() => window.drawings.push(Number({_STAGE}.dataset.milliseconds)))
        .observe({_STAGE}, {{ attributes: true, attributeFilter: ['data-revision'] }});
}}"""


def events() -> Iterator[dict[str, Any]]:
    """A run on a GPU, ten samples a step, with a page now and then."""
    second, count = 10**9, 0

    def at(t: float, k: str, **fields: Any) -> dict[str, Any]:
        nonlocal count
        count += 1
        return {"k": k, "t": int(t * second), "seq": count, "attempt": 1, **fields}

    can = {"works": True, "why": ""}
    paged = can | {"facts": {"cuda": 1, "eligible": 1, "eligible_bytes": 10**9, "largest": 10**6, "parameters": 1}}
    yield at(0, "hello", device="An invented GPU", capabilities={"cupti": can, "paged optimizer state": paged})
    yield at(0, "phase", name="train", edge="begin")
    yield at(0, "memory", moment="attach", held={"4-bit weights": 4 * 10**9, "adapters": 10**8, "gradients": 10**8})
    for i in range(SAMPLES):
        t = 0.5 + i / 8
        live = (i * 7919) % 3001 * 10**6
        gpu = {"allocated": 5 * 10**9 + live, "reserved": 9 * 10**9, "nvml_used": 11 * 10**9, "nvml_total": 16 * 10**9}
        yield at(t, "sample", source="worker", rss=3 * 10**9, managed=10**9, **gpu)
        if i % 10 == 9:
            n = i // 10 + 1
            size = {"bytes": 10**8, "count": 50, "start": int((t - 0.2) * second), "end": int((t - 0.1) * second)}
            if n % 3 == 0:
                yield at(t, "page", source="cupti", direction="d2h", cause="eviction", **size)
                yield at(t, "page", source="cupti", direction="h2d", cause="prefetch", **size)
            yield at(t, "prefetch_req", name="optimizer", bytes=10**9, count=100)
            tokens = {"tokens": 900 + n % 100, "longest": 128, "padded": 100}
            yield at(t, "step", n=n, loss=2 + 3 / n + (n % 17) / 50, lr=1e-4, grad_norm=0.5, seconds=1.25, **tokens)


def write_begun(folder: Path) -> list[str]:
    """The folder of a run that goes on (this process is its supervisor), with nine tenths of its events; the other lines."""
    folder.mkdir()
    write_json(folder / "config.json", wb.TrainConfig(max_steps=STEPS + 1).to_dict())
    pid = os.getpid()
    write_json(folder / "status.json", dataclasses.asdict(RunStatus("running", pid=pid, create_time=create_time(pid))))
    lines = [json.dumps(event) + "\n" for event in events()]
    begun = len(lines) * 9 // 10
    (folder / "events-rank0.jsonl").write_text("".join(lines[:begun]))
    return lines[begun:]


def rows(browser: Browser, server: Server, temporary: Path) -> Iterator[str]:
    """The measurements, a line each."""
    run = temporary / "long"
    left = write_begun(run)
    write_notebook(server.folder / "long.ipynb", CELL.format(run=str(run)))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    lab = Lab(page, server.url, TOKEN, "long")
    lab.open("long.ipynb")
    lab.run_all(120)
    lab.until(f"() => {_STAGE}?.dataset.samples > 0")
    page.evaluate(_WATCH)
    before = lab.received
    feeder = threading.Thread(target=_feed, args=(run / "events-rank0.jsonl", left), daemon=True)
    feeder.start()
    lab.until(f"() => {_STAGE}.dataset.steps >= {STEPS - 1}", SECONDS * 8)
    feeder.join()
    frames, drawings = page.evaluate("[window.frames_, window.drawings]")
    yield f"a run of {STEPS:,} steps and {SAMPLES:,} samples while its last tenth comes, {sum(frames) / 1000:.0f} s:"
    yield f"  a frame {_spread(frames)} (budget 16), {len(drawings)} drawings of {_spread(drawings)}"
    yield f"  over the websocket {(lab.received - before) / sum(frames):.0f} KB/s (budget 300)"
    lab.menu("File", "Save Notebook")
    page.wait_for_selector(".lm-TabBar-tab.jp-mod-dirty", state="detached")
    page.reload()
    page.wait_for_selector(".jp-CodeCell", state="attached")
    begun = page.evaluate("performance.now()")
    lab.until(f"() => {_STAGE}?.dataset.steps >= {STEPS - 1}")
    seconds = (page.evaluate("performance.now()") - begun) / 1000
    yield f"  whole again after a reload, from the notebook's first cell on the page: {seconds:.2f} s (budget 2)"
    page.close()
    server.end_kernels()


def _feed(path: Path, lines: list[str]) -> None:
    """Append the lines in pieces, evenly over ``SECONDS``."""
    pause = threading.Event()
    size = -(-len(lines) // PIECES)
    for first in range(0, len(lines), size):
        with path.open("a") as file:
            file.writelines(lines[first : first + size])
        pause.wait(SECONDS / PIECES)


def _spread(times: list[float]) -> str:
    """Median, 95th percentile and largest, in milliseconds."""
    ordered = sorted(times)
    last = ordered[round(0.95 * (len(ordered) - 1))]
    return f"{statistics.median(ordered):.1f} ms in the median, {last:.1f} at the 95th percentile, {ordered[-1]:.0f} at most"


def main() -> None:
    with everything() as (browser, server, temporary):
        for row in rows(browser, server, temporary):
            print(row)


if __name__ == "__main__":
    main()
