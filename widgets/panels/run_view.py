"""The live view of one training run: curves, memory, paging, phases, samples, log.

Reads a run through ``workbench.training`` and shows what changed, at most four times a second, from a thread; so it keeps
moving while a cell is busy, where the kernel allows that. Steering the run is ``widgets.panels.train``'s part.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import ipywidgets

from widgets import run_figures
from widgets.plot import Plot
from widgets.run_history import RunHistory, page_view, why_no_gpu_paging
from widgets.style import column, grid, heading, note, set_note
from widgets.tasks import Ticker
from workbench.training.folder import ENDED, RunStatus
from workbench.training.runs import Run

INTERVAL = 0.25
LOG_BYTES, LOG_LINES = 8_000, 60

_HEIGHTS = {"loss": 300, "learning_rate": 300, "memory": 320, "paging": 320, "phases": 150}


@dataclass
class Following:
    """A run under observation, and all that was heard of it."""

    run: Run
    history: RunHistory = field(default_factory=RunHistory)
    status: RunStatus | None = None
    log: str = ""

    def __post_init__(self) -> None:
        self._reader = self.run.reader()

    def read(self) -> bool:
        """Take in what is new; whether there was anything."""
        status = self.run.status  # before the events: an ended run writes no more of them
        events = self._reader.poll()
        log = tail(self.run.log)
        if not events and status == self.status and log == self.log:
            return False
        self.history.feed(events)
        self.status, self.log = status, log
        return True


@dataclass(frozen=True)
class Glance:
    """Everything that one look at a run changes on the page, made off the page's thread."""

    status: RunStatus
    figures: dict[str, run_figures.Told]
    headline: str
    paging: str
    results: str
    log: str


class RunView:
    """``widget`` holds the view; ``follow(run)`` fills it, ``close()`` ends its thread (closing the widgets is the panel's
    part).
    """

    def __init__(self, changed: Callable[[RunStatus], None], failed: Callable[[Exception], None]) -> None:
        self._changed, self._failed = changed, failed
        self._ticker: Ticker | None = None
        self.plots = {name: Plot({}, summary="No run yet.", height=height) for name, height in _HEIGHTS.items()}
        self._headline, self._results, self._log = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self._paging_note = note()
        self.widget = column(
            self._headline,
            grid(self.plots["loss"], self.plots["learning_rate"]),
            grid(self.plots["memory"], self.plots["paging"]),
            self._paging_note,
            self.plots["phases"],
            self._results,
            heading("Log"),
            self._log,
        )
        self.widget.layout.display = "none"

    def follow(self, run: Run) -> None:
        """Show a run, what it did so far at once, and what it does from now on until it has ended."""
        self.close()
        following = Following(run)
        following.read()
        self._apply(glance(following))
        self.widget.layout.display = ""
        if following.status is None or following.status.state not in ENDED:
            self._ticker = Ticker(
                lambda: glance(following) if following.read() else None, self._apply, interval=INTERVAL, failed=self._failed
            )
            self._ticker.start()

    def close(self) -> None:
        """Stop following."""
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None

    def _apply(self, seen: Glance) -> None:
        for name, (figure, summary) in seen.figures.items():
            self.plots[name].show(figure, summary=summary)
        self._headline.value, self._results.value, self._log.value = seen.headline, seen.results, seen.log
        set_note(self._paging_note, seen.paging)
        self._changed(seen.status)
        if seen.status.state in ENDED:
            self.close()


def glance(following: Following) -> Glance:
    """What a run looks like now."""
    history, run = following.history, following.run
    status = following.status or run.status
    figures = {name: getattr(run_figures, name)(history, str(run.dir)) for name in _HEIGHTS}
    return Glance(
        status, figures, _headline(run, status, history), _paging(history), _results(run, status, history), _log(following)
    )


def tail(path: Path) -> str:
    """The last lines of a log, at most ``LOG_LINES`` and ``LOG_BYTES``; progress bars show their last state."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - LOG_BYTES, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")]
    return "\n".join(lines[-LOG_LINES:]).strip("\n")


def _headline(run: Run, status: RunStatus, history: RunHistory) -> str:
    steps = run.config.max_steps
    last = history.last_step
    done = int(last["n"]) if last else 0
    of, bound = (f" of {steps:,}", f'max="{steps}" value="{done}"') if steps > 0 else ("", "")  # a run of whole epochs
    facts = [f"step {done:,}{of}"]
    if last:
        facts.append(f"loss {last['loss']:.3f}" if last["loss"] is not None else "loss is not a number")
        if last.get("seconds"):
            facts.append(f"{last['tokens'] / last['seconds']:,.0f} tokens/s, {last['seconds']:.2f} s a step")
    going = [phase.name for phase in history.phases if phase.end is None]
    if going and status.state not in ENDED:
        facts.append(f"phase: {going[-1].replace('_', ' ')}")
    if history.device:
        facts.append("on the CPU" if history.device == "cpu" else f"on {history.device}")
    said = " · ".join(html.escape(fact) for fact in facts)
    return (
        f'<div class="wb-headline"><strong class="wb-state wb-state-{status.state}">{status.state.capitalize()}</strong> {said}'
        f'<progress {bound} aria-label="Steps done">{done}{of}</progress>'
        f'<div class="wb-note">Run folder: <code>{html.escape(str(run.dir))}</code></div></div>'
    )


def _paging(history: RunHistory) -> str:
    reasons = why_no_gpu_paging(history)
    if page_view(history) == "gpu":
        other = {lane[1]: count for lane, count in history.counts.items() if lane[0] == "cupti" and "fault" in lane[1]}
        said = " ".join(f"{name.capitalize()}s counted by CUPTI: {count:,}." for name, count in sorted(other.items()))
        return " ".join(filter(None, ["Migrations are measured by CUPTI; a prefetch is a request.", said, *reasons]))
    if not history.hello:
        return ""
    shown = "Shown are the operating system's faults on the process's own memory." if page_view(history) == "host" else ""
    return " ".join([shown, "No page moves to or from a GPU.", *reasons]).strip()


def _results(run: Run, status: RunStatus, history: RunHistory) -> str:
    parts = []
    if history.generated:
        rows = "".join(
            f'<tr><th scope="row">{html.escape(prompt)}</th>'
            + "".join(f"<td>{html.escape(texts.get(stage, '')) or '…'}</td>" for stage in ("before", "after"))
            + "</tr>"
            for prompt, texts in history.generated.items()
        )
        head = "".join(f'<th scope="col">{name}</th>' for name in ("Prompt", "Before training", "After training"))
        parts.append(
            f'<h3 class="wb-heading">Samples</h3><table class="wb-table wb-samples"><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table>"
        )
    if len(history.evals) > 1:
        first, last = min(history.evals), max(history.evals)
        before, after = history.evals[first], history.evals[last]
        parts.append(
            f"<p>Held-out loss, measured: {before:.3f} before, {after:.3f} after step {last:,} "
            f"({f'{after - before:+.3f}'.replace('-', '−')} nats a token).</p>"
        )
    adapter = run.adapter_dir if status.state in ENDED else None
    if adapter is not None:
        code = f"from peft import AutoPeftModelForCausalLM\nmodel = AutoPeftModelForCausalLM.from_pretrained({str(adapter)!r})"
        parts.append(
            f'<h3 class="wb-heading">LoRA adapter</h3><p><code class="wb-path">{html.escape(str(adapter))}</code></p>'
            f'<p class="wb-note">It loads in plain peft:</p><pre class="wb-code">{html.escape(code)}</pre>'
        )
    return f'<div class="wb-results">{"".join(parts)}</div>' if parts else ""


def _log(following: Following) -> str:
    warnings = "\n".join(f"[{level}] {text}" for level, text in following.history.log)
    text = html.escape("\n".join(filter(None, [warnings, following.log])) or "Nothing yet.")
    # The log stands on its last line because its box is filled from below: replacing the text does not scroll it back.
    return f'<div class="wb-log" role="log" aria-label="Log of the run" tabindex="0"><pre>{text}</pre></div>'
