"""A run's adapter written for what will run it: merged for transformers, once what that changes was shown; or as GGUF.

Covers the controls, progress and Cancel, and errors in their own place. ``wb.merge_errors`` measures and ``wb.export`` writes,
both in this process, into which they load PyTorch and peft. What the adapter loses on other bases is ``on_bases.py``'s part.
"""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

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
from widgets.panels.train.on_bases import OnBases
from workbench.errors import RunError
from workbench.text import amount, percent
from workbench.training.recorded import note_of
from workbench.training.results import gguf_adapter, gguf_model
from workbench.training.results.export import Exported, export
from workbench.training.results.merging import MergeErrors, merge_errors
from workbench.training.runs import Run

_FORMATS = {
    "transformers: one model, merged": "transformers",
    "llama.cpp and Ollama: one model, merged, as GGUF": "gguf",
    "llama.cpp: the adapter alone, as GGUF": "gguf-adapter",
}
_DTYPES = {
    "transformers": ("bfloat16", "float16"), "gguf": tuple(gguf_model.KINDS), "gguf-adapter": tuple(gguf_adapter.KINDS),
}  # fmt: skip
"""The first is what ``wb.export`` takes by default."""
_ENDINGS = {"transformers": "merged", "gguf": "gguf", "gguf-adapter": "gguf-adapter"}
_BASES = {"dequantized": "the 4-bit base, dequantized: what was trained", "original": "the original 16-bit base"}


class RunExport:
    """``widget`` shows when ``toggle`` asks for it and the run that ``follow`` has set has left an adapter."""

    def __init__(self, executor: Executor | None = None) -> None:
        self._run: Run | None = None
        self._shown: tuple[Run, str] | None = None
        self.message = Message()
        self._measuring = Work(executor, self._measured, self.message.error)
        self._writing = Work(executor, self._written, self.message.error)
        self.form = ipywidgets.Dropdown(description="For", options=list(_FORMATS.items()))
        self.base = ipywidgets.Dropdown(description="Merge into", options=[(title, name) for name, title in _BASES.items()])
        self.dtype = ipywidgets.Dropdown(description="Dtype", options=_DTYPES["transformers"])
        self.folder = ipywidgets.Text(description="Folder to write", continuous_update=False)
        self.base_gguf = ipywidgets.Text(
            description="GGUF of the base, to copy its tokenizer (optional)", continuous_update=False
        )
        for control in (self.form, self.base, self.base_gguf, self.folder):
            control.add_class("wb-span")
        self.show = ipywidgets.Button(description="Show what merging changes")
        self.write = ipywidgets.Button(description="Export", button_style="primary", disabled=True)
        self.show.on_click(guard(self.message)(lambda _: self._measure()))
        self.write.on_click(guard(self.message)(lambda _: self._export()))
        self.summary, self.table, self.copy = note(), ipywidgets.HTML(), CopyCode()
        self.plot = Plot({}, summary="Nothing measured yet.", height=320)
        self._drawn = column(self.plot, fold("Weight by weight", self.table))
        self._drawn.layout.display = "none"
        self.on_bases = OnBases(executor)
        self.widget = column(
            heading("Export: for transformers, llama.cpp or Ollama"),
            note(
                "Merged, the adapter becomes a part of one model, which runs by itself. Merging changes what was trained: for "
                "transformers see how much before anything is written. This loads PyTorch and peft into this kernel; the "
                "weights are read one at a time."
            ),
            fields(self.form, self.base, self.dtype, self.base_gguf, self.folder, width=170),
            row(self.show, self.write),
            ProgressRow(self._measuring),
            ProgressRow(self._writing),
            self.message,
            self.summary,
            self._drawn,
            self.copy,
            self.on_bases.widget,
        )
        self.widget.layout.display = "none"
        self.form.observe(lambda _: self._formed(), "value")
        for control in (self.base, self.dtype, self.folder, self.base_gguf):
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
        self.on_bases.follow(run)
        self._formed()

    def toggle(self) -> None:
        """Show it, or hide it again."""
        there = self.widget.layout.display == "none" and self._run is not None and self._run.adapter_dir is not None
        self.widget.layout.display = "" if there else "none"

    def close(self) -> None:
        """End the threads."""
        self._measuring.close()
        self._writing.close()
        self.on_bases.close()

    def _formed(self) -> None:
        """Another format: the controls that it has, and a folder of its own."""
        if self._run is None:
            return
        form = self.form.value
        self.dtype.options = _DTYPES[form]
        self.base.layout.display = "none" if form == "gguf-adapter" else ""
        self.base_gguf.layout.display = "" if form == "gguf" else "none"
        self.show.layout.display = "" if form == "transformers" else "none"
        # Nothing is written beside the run that comes with the workbench, which lies in its installation.
        beside = Path("runs", self._run.dir.name) if note_of(self._run) else self._run.dir
        self.folder.value = f"{beside}-{_ENDINGS[form]}"
        self._ready()

    def _ready(self) -> None:
        """For transformers Export waits until its errors were shown, for the dtype that is chosen."""
        run = self._run
        if run is None or self.dtype.value is None:
            return
        self.write.disabled = self.form.value == "transformers" and self._shown != (run, self.dtype.value)
        self.copy.code = code.export(
            run.dir, self.folder.value.strip(), self.base.value, self.dtype.value, self.form.value, self.base_gguf.value.strip()
        )

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
        folder, form = self.folder.value.strip(), self.form.value
        base = None if form == "gguf-adapter" else self.base.value
        base_gguf = (self.base_gguf.value.strip() or None) if form == "gguf" else None
        if not folder:
            raise RunError("no folder is named.", where="Folder to write", remedy="Enter a folder that is new or empty.")
        self._writing.submit(
            "Writing the adapter" if base is None else "Writing the merged model",
            "weights",
            lambda progress, cancelled: export(
                run, folder, format=form, base=base, dtype=dtype, base_gguf=base_gguf, progress=progress, cancelled=cancelled
            ),
        )

    def _written(self, done: Exported) -> None:
        self.message.note(written(done))

    def _going(self) -> tuple[Run, str]:
        assert self._run is not None  # the controls are hidden until there is one
        return self._run, self.dtype.value


def written(done: Exported) -> str:
    """What was written, how far it is from what was trained, and the line that loads it."""
    said = f"Written: {amount(done.nbytes)} of weights in {done.dtype} to {done.folder}. "
    if done.errors:
        said += f"No adapted weight differs from what was trained by more than {percent(max(done.errors.values()))}. "
    if done.format == "transformers":
        return f"{said}AutoModelForCausalLM.from_pretrained({str(done.folder)!r}) loads it."
    return f"{said}README.md there has the lines that run it, in llama.cpp{' and Ollama' if done.format == 'gguf' else ''}."
