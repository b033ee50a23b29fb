"""A run in words and HTML: its settings, what the cockpit says, what came of it, its log.

Plain functions, no widgets; every text that becomes HTML is escaped here.
"""

from __future__ import annotations

import dataclasses
import html
import os
from pathlib import Path
from typing import Any

from widgets.figures.tables import table
from workbench.memory.ledger import BASE, BY_NAME, LIVE, PAGED, SCALES, SPARE
from workbench.memory.pressure import Pressure
from workbench.text import amount, counted, memory_size
from workbench.training import base_code
from workbench.training.config import TrainConfig
from workbench.training.folder import ENDED, GONE, RunStatus
from workbench.training.results.history import RunHistory
from workbench.training.results.timeline import BELOW, LAYERS
from workbench.training.runs import Run

LOG_BYTES, LOG_LINES = 8_000, 60


def settings(config: TrainConfig) -> str:
    """What is trained, on what and how, in a line."""
    batch = f"{config.per_device_train_batch_size} × {config.max_length:,}"
    if config.gradient_accumulation_steps > 1:
        batch += f" × {config.gradient_accumulation_steps}"
    length = f"{config.max_steps:,} steps" if config.max_steps > 0 else f"{config.num_train_epochs:g} epochs"
    rank = [] if config.method == "full" else [f"r {config.lora_r}"]
    method = {"qlora": "QLoRA", "lora": "LoRA", "full": "Full fine-tuning"}[config.method]
    facts = [f"{method} on {Path(config.model).name}", length, f"batch {batch}", f"lr {rate(config.learning_rate)}", *rank]
    return " · ".join(facts)


def rate(value: float) -> str:
    """A learning rate as papers write it: 2e-4."""
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def summary(run: Run, status: RunStatus, history: RunHistory) -> str:
    """The run in a sentence, for who does not see the cockpit."""
    if fetch := fetching(status, history):
        return f"Run {run.dir.name}: {status.state}, {fetch['text']}."
    last = history.last_step
    done = "no step yet" if last is None else f"{counted(int(last['n']), 'step')}"
    loss = "" if last is None or last["loss"] is None else f", training loss {last['loss']:.3f}"
    before = f", {said}" if (said := doing(history)) else ""
    stalled = ", no step for a long time" if history.alert == "stalled" and status.state not in ENDED else ""
    return f"Run {run.dir.name}: {status.state}, {done}{loss}{before}{stalled}."


def doing(history: RunHistory) -> str:
    """How far what takes long before training is, in a few words; "" while nothing of the kind goes on."""
    if (now := history.progress) is None:
        return ""
    of = f" of about {now['total']:,}" if now["total"] else ""
    return f"{now['done']:,}{of} {now['what']}"


def fetching(status: RunStatus, history: RunHistory) -> dict[str, Any] | None:
    """How far the model is on its way here, for the cockpit's bar; None of a run that fetches nothing now."""
    if status.state != "fetching":
        return None
    known = history.fetched
    if known is None or known.get("attempt", 1) != status.attempt or not known["total"]:
        return {"done": 0, "total": 0, "left": None, "text": "the model is looked up"}
    left = (known["total"] - known["done"]) / known["speed"] if known["speed"] else None
    text = f"{amount(known['done'])} of {amount(known['total'])}, {amount(known['speed'] or 0)}/s"
    return {"done": known["done"], "total": known["total"], "left": left, "text": text}


def actions(status: RunStatus) -> tuple[str, ...]:
    """What can be done with a run now, by the names of the cockpit's buttons."""
    if status.state in ("starting", "fetching", "running"):
        return "edit", "pause", "stop"
    if status.state not in ENDED:
        return ("edit",)
    return ("new",) if status.state in ("finished", GONE) else ("resume", "new")


def layers(on_gpu: bool) -> list[list[str]]:
    """What the memory lane stacks, from the bottom: its key, its name, and what more there is to say of it."""
    below = "context, other processes" if on_gpu else "interpreter, libraries"
    said = {
        BELOW: (below, "the device's use by NVML less what PyTorch reserved and the paged state on it" if on_gpu else ""),
        BASE: (BASE, "walked tensor by tensor; while it is being loaded, all that loading took"),
        SCALES: ("scales", SCALES),
        PAGED: ("paged state (inferred)", "optimizer state on the GPU, inferred: managed − moved to the host + brought back"),
        LIVE: ("activations, rest", "what is in use and belongs to no tensor that was walked"),
        SPARE: ("reserved, unused", BY_NAME[SPARE].title),
    }
    return [[layer, *said.get(layer, (layer, ""))] for layer in LAYERS]


def simulated(pressure: Pressure) -> dict[str, Any]:
    """A simulated step as the paging lane takes it."""
    found = pressure.simulation
    budget = memory_size(found.budget)
    every = ", all optimizer state paged" if pressure.every_state else ""
    return {
        "on": f"on {budget}{every}",
        "said": f"simulated, not measured: the largest GPU on which this run would page has {budget}{every}",
        "moves": [list(move) for move in pressure.moves],
    }


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
        parts += [_loading(run, *trained) for trained in (
            ("LoRA adapter", run.adapter_dir, "peft"),
            ("Trained model", run.model_dir, "transformers"),
        )]  # fmt: skip
    said = "".join(parts)
    return f'<div class="wb-results">{said}</div>' if said else ""


def loading_code(run: Run, folder: Path) -> str:
    """The lines that load what was trained."""
    config = run.config
    if config.method == "qlora" and config.init_lora_weights == "loftq":  # its adapter makes up for these very 4 bits
        model = None if config.model == "builtin" else config.model  # so that nothing is looked for
        return base_code.loading_code(config, model=model, adapter=str(folder))
    library, loader = "transformers", "AutoModelForCausalLM"
    if run.adapter_dir is not None:
        library, loader = "peft", "AutoPeftModelForCausalLM"
    return f"from {library} import {loader}\n\nmodel = {loader}.from_pretrained({str(folder)!r})\n"


def _loading(run: Run, title: str, folder: Path | None, library: str) -> str:
    if folder is None:
        return ""
    code = loading_code(run, folder).strip().replace("\n\n", "\n")
    return (
        f'<h3 class="wb-heading">{title}</h3><p><code class="wb-path">{html.escape(str(folder))}</code></p>'
        f'<p class="wb-note">It loads in plain {library}:</p><pre class="wb-code">{html.escape(code)}</pre>'
    )


def settings_table(run: Run, config: TrainConfig, history: RunHistory) -> str:
    """Every field of the configuration, with the run's folder, device and libraries."""
    versions = history.hello.get("versions", {})
    rows = [("run folder", from_here(run.dir)), ("device", {"cpu": "the CPU", "": "–"}.get(history.device, history.device))]
    rows += [(name, str(value)) for name, value in dataclasses.asdict(config).items()]
    rows += [(str(name), str(version)) for name, version in versions.items()]
    return table(["what", "value"], rows, "Settings of the run", numbers=())


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
