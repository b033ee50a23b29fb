"""What a run came to, once it has ended: the held-out loss before and after, and what was trained, to copy, load and export.

Covers the card above the run's lanes. What stands to its right is given. Reading the run is ``results.outcome``'s part.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import ipywidgets

from widgets.background.work import Work
from widgets.controls.copy_button import CopyButton
from widgets.controls.style import column, row
from widgets.panels.train.export import RunExport
from widgets.panels.train.on_bases import said
from widgets.panels.train.words import from_here, loading_code
from workbench.text import amount, counted, memory_size
from workbench.training.folder import ENDED, RunFolder, RunStatus
from workbench.training.results.outcome import Outcome, outcome
from workbench.training.runs import Run
from workbench.training.watch.mirror import is_mirror


class RunResult:
    """``widget`` shows once the run on show has ended and left something: ``follow`` sets the run, ``update`` its status."""

    def __init__(
        self,
        export: RunExport,
        beside: Any,
        failed: Callable[[Exception], None],
        train_on: Callable[[], None],
        extend: Callable[[int], None],
        executor: Executor | None = None,
    ) -> None:
        """``train_on()`` is called where another run is to begin from this one's adapter, ``extend(steps)`` for more of it."""
        self._run: Run | None = None
        self._export = export
        self._read: str | None = None
        self._work = Work(executor, self._show, failed)
        self.loss, self.facts = ipywidgets.HTML(), ipywidgets.HTML()
        self.folder = CopyButton(label="Copy", what="Folder of what was trained", shown=True)
        self.loading = CopyButton(label="Copy loading code", what="Code that loads what was trained")
        self.export = ipywidgets.Button(
            description="Export…", button_style="primary", tooltip="Merge the adapter into its base, or write GGUF"
        )
        self.export.on_click(lambda _: export.toggle())
        export.on_bases.found = self._more
        self.train_on = ipywidgets.Button(
            description="Train on…",
            tooltip="Set up another run that begins from this adapter",
        )
        self.train_on.on_click(lambda _: train_on())
        self.steps = ipywidgets.BoundedIntText(description="Steps more", value=100, min=1, max=10**9)
        self.extend = ipywidgets.Button(description="Extend", tooltip="Go on by so many steps")
        self.extend.on_click(lambda _: extend(self.steps.value))
        self._more_steps = row(self.steps, self.extend)
        self.more = ipywidgets.Button(description="Extend…", tooltip="Go on with this run, from its last step")
        self.more.on_click(lambda _: self._ask_steps())
        buttons = row(self.export, self.train_on, self.more, self.loading)
        card = column(self.loss, self.folder, self.facts, buttons, self._more_steps)
        self.widget = ipywidgets.Box([card, beside])
        self.widget.add_class("wb-result")
        self.widget.layout.display = "none"

    def follow(self, run: Run) -> None:
        """Another run: nothing is known of it yet."""
        self._work.cancel()
        self._run, self._read = run, None
        self.widget.layout.display = "none"

    def update(self, status: RunStatus) -> None:
        """The run's present status: once it has ended, what it came to is read."""
        run = self._run
        if run is None:
            return
        ending = f"{status.state} {status.attempt}" if status.state in ENDED and trained(run) is not None else None
        if ending is None:
            self.widget.layout.display = "none"
        if self._read == ending:
            return
        self._read = ending
        self._work.cancel()
        self._export.follow(run)  # the run goes on, or has gone on: what is shown there is of the adapter as it was
        if ending is not None:
            self._work.submit("Reading the run", "", lambda progress, cancelled: _known(run))

    def _more(self, run: Run) -> None:
        """Something was measured of the run meanwhile: its card is read again."""
        if run is self._run and self._read is not None:
            self._work.submit("Reading the run", "", lambda progress, cancelled: _known(run))

    def _ask_steps(self) -> None:
        """Show how many steps more, or hide it again."""
        self._more_steps.layout.display = "" if self._more_steps.layout.display == "none" else "none"

    def close(self) -> None:
        """End the thread."""
        self._work.close()

    def _show(self, read: tuple[Run, Outcome, str]) -> None:
        run, came_to, on_bases = read
        if (folder := trained(run)) is None or run is not self._run:
            return
        self.loss.value = loss_html(came_to)
        self.folder.text = from_here(folder)
        self.facts.value = f'<div class="wb-note">{html.escape(facts(run, folder, came_to))} {on_bases}</div>'
        self.loading.text = loading_code(run, folder)
        for button in (self.export, self.train_on):
            button.layout.display = "" if run.adapter_dir is not None else "none"
        extends = run.status.state == "finished" and not is_mirror(run.dir) and RunFolder(run.dir).complete_checkpoints()
        self.more.layout.display = "" if extends else "none"
        self._more_steps.layout.display = "none"
        self.widget.layout.display = ""


def _known(run: Run) -> tuple[Run, Outcome, str]:
    """What the card takes from files; the adapter is read whole, so it is not for the kernel's thread."""
    return run, outcome(run), said(run)


def trained(run: Run) -> Path | None:
    """The adapter's folder, or the model's."""
    return run.adapter_dir or run.model_dir


def loss_html(came_to: Outcome) -> str:
    """The one number of the card."""
    if came_to.held_out is None:
        return '<h3 class="wb-heading">Held-out loss</h3><div class="wb-note">Not measured before and after.</div>'
    before, after = came_to.held_out
    rows = "" if came_to.held_out_rows is None else f", {counted(came_to.held_out_rows, 'row')}"
    better = "wb-better" if after < before else "wb-worse"
    best = f"lowest {came_to.best[1]:.3f}, after step {came_to.best[0]:,}" if came_to.best else ""
    difference = f"{after - before:+.3f}".replace("-", "−")
    return (
        f'<h3 class="wb-heading">Held-out loss <small>nats a token{rows}, measured</small></h3><div class="wb-before-after">'
        f'<span>{before:.3f}</span> → <b>{after:.3f}</b> <em class="{better}">{difference}</em> <small>{best}</small></div>'
    )


def facts(run: Run, folder: Path, came_to: Outcome) -> str:
    """Its size, how it loads, what memory it took, and what left the GPU meanwhile."""
    adapter = run.adapter_dir is not None
    size = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    said = [f"{amount(size)}; loads in plain {'peft' if adapter else 'transformers'}."]
    if best := run.best_dir:
        holds = run.config.load_best_model_at_end
        said.append(f"The lowest held-out loss is {'that of this folder' if holds else f'kept in {from_here(best)}'}.")
    if came_to.peak is not None:
        where = "on the GPU" if came_to.on_gpu else "resident"
        said.append(f"Peak {memory_size(came_to.peak)} {where}.")
    if came_to.evicted:
        said.append(f"{counted(came_to.evicting_steps, 'step')} evicted {memory_size(came_to.evicted)}.")
    return " ".join(said)
