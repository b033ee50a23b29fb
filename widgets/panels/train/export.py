"""A run's adapter merged into its base and written as one model: first what that changes, weight by weight, then the export.

Covers the controls, progress and Cancel, and errors in their own place. ``wb.merge_errors`` measures and ``wb.export`` writes,
both in this process, into which they load PyTorch and peft.
"""

from __future__ import annotations

from concurrent.futures import Executor

import ipywidgets

from widgets import code
from widgets.background.tasks import guard
from widgets.background.work import Work
from widgets.controls.copy_code import CopyCode
from widgets.controls.message import Message
from widgets.controls.progress import ProgressRow
from widgets.controls.style import column, fields, fold, heading, note, row, set_note
from widgets.drawing.plot import Plot
from widgets.figures import merge
from workbench.errors import RunError
from workbench.text import amount, percent
from workbench.training.results.export import Exported, export
from workbench.training.results.merging import MergeErrors, merge_errors
from workbench.training.runs import Run

_BASES = {"dequantized": "the 4-bit base, dequantized: what was trained", "original": "the original 16-bit base"}


class RunExport:
    """``widget`` shows when ``toggle`` asks for it and the run that ``follow`` has set has left an adapter."""

    def __init__(self, executor: Executor | None = None) -> None:
        self._run: Run | None = None
        self._shown: tuple[Run, str] | None = None
        self.message = Message()
        self._measuring = Work(executor, self._measured, self.message.error)
        self._writing = Work(executor, self._written, self.message.error)
        self.base = ipywidgets.Dropdown(description="Merge into", options=[(title, name) for name, title in _BASES.items()])
        self.dtype = ipywidgets.Dropdown(description="Dtype", options=["bfloat16", "float16"])
        self.folder = ipywidgets.Text(description="Folder of the merged model", continuous_update=False)
        for control in (self.base, self.folder):
            control.add_class("wb-span")
        self.show = ipywidgets.Button(description="Show what merging changes")
        self.write = ipywidgets.Button(description="Export", button_style="primary", disabled=True)
        self.show.on_click(guard(self.message)(lambda _: self._measure()))
        self.write.on_click(guard(self.message)(lambda _: self._export()))
        self.summary, self.table, self.copy = note(), ipywidgets.HTML(), CopyCode()
        self.plot = Plot({}, summary="Nothing measured yet.", height=320)
        self._drawn = column(self.plot, fold("Weight by weight", self.table))
        self._drawn.layout.display = "none"
        self.widget = column(
            heading("Export: the adapter merged into its base"),
            note(
                "One model without an adapter, in 16 bits, which transformers loads by itself. Merging changes what was "
                "trained: see how much before anything is written. Both load PyTorch and peft into this kernel; the weights "
                "are read one at a time."
            ),
            fields(self.base, self.dtype, self.folder, width=170),
            row(self.show, self.write),
            ProgressRow(self._measuring),
            ProgressRow(self._writing),
            self.message,
            self.summary,
            self._drawn,
            self.copy,
        )
        self.widget.layout.display = "none"
        for control in (self.base, self.dtype, self.folder):
            control.observe(lambda _: self._ready(), "value")

    def follow(self, run: Run) -> None:
        """Another run: nothing is known of it yet."""
        self._measuring.cancel()
        self._writing.cancel()
        self._run, self._shown = run, None
        self.message.clear()
        set_note(self.summary, "")
        self._drawn.layout.display = self.widget.layout.display = "none"
        bases = _BASES if run.config.method == "qlora" else {"original": _BASES["original"]}
        self.base.options = [(title, name) for name, title in bases.items()]
        self.folder.value = f"{run.dir}-merged"
        self._ready()

    def toggle(self) -> None:
        """Show it, or hide it again."""
        there = self.widget.layout.display == "none" and self._run is not None and self._run.adapter_dir is not None
        self.widget.layout.display = "" if there else "none"

    def close(self) -> None:
        """End the threads."""
        self._measuring.close()
        self._writing.close()

    def _ready(self) -> None:
        """Export waits until its errors were shown, for the dtype that is chosen."""
        run = self._run
        if run is None:
            return
        self.write.disabled = self._shown != (run, self.dtype.value)
        self.copy.code = code.export(run.dir, self.folder.value.strip(), self.base.value, self.dtype.value)

    def _measure(self) -> None:
        run, dtype = self._going()
        self._measuring.submit(
            "Measuring what merging changes",
            "weights",
            lambda progress, cancelled: (run, merge_errors(run, dtype, progress=progress, cancelled=cancelled)),
        )

    def _measured(self, found: tuple[Run, MergeErrors]) -> None:
        run, errors = found
        self._shown = (run, errors.dtype)
        figure, summary = merge.merge_figure(errors)
        self._drawn.layout.display = ""
        self.plot.show(figure, summary=summary)
        self.table.value = merge.merge_table(errors)
        set_note(self.summary, f"Measured. {summary}")
        self._ready()

    def _export(self) -> None:
        run, dtype = self._going()
        folder, base = self.folder.value.strip(), self.base.value
        if not folder:
            raise RunError(
                "no folder is named.", where="Folder of the merged model", remedy="Enter a folder that is new or empty."
            )
        self._writing.submit(
            "Writing the merged model",
            "weights",
            lambda progress, cancelled: export(run, folder, base=base, dtype=dtype, progress=progress, cancelled=cancelled),
        )

    def _written(self, done: Exported) -> None:
        worst = max(done.errors.values())
        self.message.note(
            f"Written: {amount(done.nbytes)} of weights in {done.dtype} to {done.folder}. No adapted weight differs from what "
            f"was trained by more than {percent(worst)}. AutoModelForCausalLM.from_pretrained({str(done.folder)!r}) loads it."
        )

    def _going(self) -> tuple[Run, str]:
        assert self._run is not None  # the controls are hidden until there is one
        return self._run, self.dtype.value
