"""A run in words and HTML: its headline, what came of it, its log. Plain functions, no widgets; every text is escaped here."""

from __future__ import annotations

import html
import os
from pathlib import Path

from workbench.training.config import TrainConfig
from workbench.training.folder import ENDED, RunStatus
from workbench.training.results.history import RunHistory, page_view, why_no_gpu_paging
from workbench.training.runs import Run

LOG_BYTES, LOG_LINES = 8_000, 60


def headline(run: Run, config: TrainConfig, status: RunStatus, history: RunHistory) -> str:
    """State, step, loss, speed, time left and phase; the bar; what is trained on what, and where the run lies."""
    steps = history.total_steps or (config.max_steps if config.max_steps > 0 else None)  # a run of whole epochs counts later
    last = history.last_step
    done = int(last["n"]) if last else 0
    of, bound = (f" of {steps:,}", f'max="{steps}" value="{done}"') if steps else ("", "")
    facts = [f"step {done:,}{of}"]
    if last:
        facts.append(f"loss {last['loss']:.3f}" if last["loss"] is not None else "loss is not a number")
        if last.get("seconds"):
            facts.append(f"{last['tokens'] / last['seconds']:,.0f} tokens/s, {last['seconds']:.2f} s a step")
    if status.state not in ENDED:
        left = history.seconds_left(steps) if steps else None
        if left is not None:
            facts.append(f"about {duration(left)} left")
        if going := [phase.name for phase in history.phases if phase.end is None]:
            facts.append(f"phase: {going[-1].replace('_', ' ')}")
    if history.device:
        facts.append("on the CPU" if history.device == "cpu" else f"on {history.device}")
    said = " · ".join(html.escape(fact) for fact in facts)
    what = f"{config.method} on {Path(config.model).name}, dataset {Path(config.dataset).name}"
    return (
        f'<div class="wb-headline"><strong class="wb-state wb-state-{status.state}">{status.state.capitalize()}</strong> {said}'
        f'<progress {bound} aria-label="Steps done">{done}{of}</progress>'
        f'<div class="wb-note">{html.escape(what)} · run folder <code>{html.escape(from_here(run.dir))}</code></div></div>'
    )


def from_here(folder: Path) -> str:
    """A folder's path, from the working folder on where it lies in that."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def duration(seconds: float) -> str:
    """Seconds as a reader wants them: 50 s, 3 min, 2 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def paging(history: RunHistory) -> str:
    """What the bars of the paging picture count, and why no page of a GPU is among them."""
    if page_view(history) == "gpu":
        other = {lane[1]: count for lane, count in history.counts.items() if lane[0] == "cupti" and "fault" in lane[1]}
        said = " ".join(f"{name.capitalize()}s counted by CUPTI: {count:,}." for name, count in sorted(other.items()))
        parts = ["Migrations are measured by CUPTI; a prefetch is a request.", said, *why_no_gpu_paging(history)]
        return " ".join(filter(None, parts))
    if not history.hello:
        return ""
    shown = "Shown are the operating system's faults on the process's own memory. " if page_view(history) == "host" else ""
    return f"{shown}No page moves to or from a GPU; the reasons are below."


def results(run: Run, status: RunStatus, history: RunHistory) -> str:
    """Samples before and after, the held-out loss, and how to load what was trained."""
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
    if status.state in ENDED:
        parts += [_loading(*trained) for trained in (
            ("LoRA adapter", run.adapter_dir, "peft", "AutoPeftModelForCausalLM"),
            ("Trained model", run.model_dir, "transformers", "AutoModelForCausalLM"),
        )]  # fmt: skip
    said = "".join(parts)
    return f'<div class="wb-results">{said}</div>' if said else ""


def _loading(title: str, folder: Path | None, library: str, loader: str) -> str:
    if folder is None:
        return ""
    code = f"from {library} import {loader}\nmodel = {loader}.from_pretrained({str(folder)!r})"
    return (
        f'<h3 class="wb-heading">{title}</h3><p><code class="wb-path">{html.escape(str(folder))}</code></p>'
        f'<p class="wb-note">It loads in plain {library}:</p><pre class="wb-code">{html.escape(code)}</pre>'
    )


def log(text: str, history: RunHistory) -> str:
    """Warnings and the log's last lines."""
    warnings = "\n".join(f"[{level}] {said}" for level, said in history.log)
    shown = html.escape("\n".join(filter(None, [warnings, text])) or "Nothing yet.")
    # The log stands on its last line because its box is filled from below: replacing the text does not scroll it back.
    return f'<div class="wb-log" role="log" aria-label="Log of the run" tabindex="0"><pre>{shown}</pre></div>'


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
