"""What a run's adapter loses on the base that it will run on: ``deployed(run, bases)``.

A QLoRA run trains its adapter on one base, in 4 bits, and it is often run on another: the original in 16 bits, or a GGUF of
llama.cpp or Ollama. Covers the adapter on each of these against what was trained, on held-out rows: KL divergence from the
trained model's predictions, the share of tokens whose most likely successor is another one, and the change of the loss, each
with an interval over rows. The models are run by torch, with weights dequantized; llama.cpp also rounds activations, which
this leaves out. ``deploying`` is the process that measures. Imports no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.cost.process import Folder, Measuring, failure_in
from workbench.cost.row_costs import RowCosts
from workbench.errors import RunError, WorkbenchError
from workbench.given import is_whole
from workbench.progress import Progress, reporting
from workbench.show import Shown, View
from workbench.surveys.resumable import Unfolding
from workbench.text import number
from workbench.training.events import EventReader
from workbench.training.paths import path_of
from workbench.training.results.gguf_files import Read, library
from workbench.training.results.merging import Merge
from workbench.training.results.on_bases import FOLDER, OnBase, adapter_digest, keep
from workbench.training.runs import Run, attach

if TYPE_CHECKING:
    import pandas as pd

ROWS = 64
"""Held-out rows that are measured on by default."""
TITLES = {"original": "original, 16 bits", "nf4": "NF4", "q8_0": "Q8_0", "q4_0": "Q4_0"}
BASES = tuple(TITLES)
_OF_GGUF = ("q8_0", "q4_0")


def deployed(
    run: Run | str | os.PathLike[str],
    bases: Sequence[str | os.PathLike[str]] = BASES,
    *,
    max_rows: int = ROWS,
    folder: str | Path | None = None,
    changed_ok: bool = False,
    progress: bool | Progress = False,
    cancelled: Callable[[], bool] | None = None,
) -> Deployed:
    """What a run's adapter loses on other bases than the one that it was trained on.

    The work is done by a process of its own, which holds the model in 16 bits and multiplies in float32 [not yet run on a GPU].

    Args:
        run: A run or its folder.
        bases: ``"original"``, the checkpoint's own weights; ``"nf4"``, in bitsandbytes' NF4, in the run's own blocks where it
            has them; ``"q8_0"`` and ``"q4_0"``, GGUF's types, in Q4_0 with embeddings and head in Q8_0; or the path of a GGUF
            of the base, whose weights are dequantized, of any type: Q4_K_M is measured in this way.
        max_rows: Held-out rows that are measured on; of a run without any, the first that it learnt from.
        folder: Where what was measured is kept, so that nothing is measured twice; None: one in the run's folder.
        changed_ok: Go on where the base is no longer what the run was begun with.
        progress: True for a bar, or a function of the passes done and their total.
        cancelled: Once it says yes, the work is cancelled, within a second.

    Returns:
        An iterable of ``OnBase``, a base each.

    Raises:
        RunError: Where there is no run or adapter, no such base, or no package ``gguf`` for one that needs it; as ``Changed``
            for what ``changed_ok`` allows; and while iterating where the process fails.
        ModelError: As ``open_model`` does, and for a GGUF that is not of the run's base.
        InterruptedError: At once, where it is cancelled while the base is compared.

    >>> for base in wb.deployed("runs/20260314-142200-builtin", ["nf4", "q8_0"]):  # doctest: +SKIP
    ...     print(base.said())
    """
    run = attach(run)
    if not is_whole(max_rows, 1):
        raise RunError(f"max_rows is {max_rows!r}.", where="deployed", remedy="Give 1 or more.")
    if isinstance(bases, str | os.PathLike):
        bases = [bases]
    merge = Merge(run, changed_ok=changed_ok, cancelled=cancelled)
    if merge.packed:
        what = "the checkpoint itself holds 4 bits: there is no original to put into other types."
        raise RunError(what, where=run.config.model, remedy="Choose a run on a model that is not quantized yet.")
    if merge.source.path is None:
        raise RunError("the base model is no longer on this machine.", where=merge.source.name, remedy="Download it again.")
    titles = dict(_titled(base) for base in bases)
    return Deployed(run, merge, titles, max_rows, folder, progress, cancelled)


def _titled(base: str | os.PathLike[str]) -> tuple[str, str]:
    """The base's name, absolute where it is a file, and what it is called."""
    if isinstance(base, str) and base in TITLES:
        if base in _OF_GGUF:
            library()
        return base, TITLES[base]
    path = path_of(base, "bases")
    if path.suffix != ".gguf":
        named = ", ".join(f'"{name}"' for name in BASES)
        raise RunError(f"{os.fspath(base)!r} is no base.", where="deployed", remedy=f"Use {named}, or the path of a .gguf.")
    kinds = Read(path).kinds
    largest = sorted((kind for kind in kinds if kind != "F32"), key=lambda kind: -kinds[kind]) or ["F32"]
    return str(path), f"{path.name} ({', '.join(largest[:3])})"


class Deployed(Shown, Unfolding[OnBase]):
    """The rows as they come, a base each, and a table of them."""

    _run_dir = Path()
    _trained: RowCosts | None = None

    def __init__(
        self, run: Run, merge: Merge, titles: dict[str, str], max_rows: int, folder: str | Path | None,
        progress: bool | Progress, cancelled: Callable[[], bool] | None,
    ) -> None:  # fmt: skip
        super().__init__(len(titles), cancelled)
        self.bases = tuple(titles)
        """Names of bases, and absolute paths."""
        self._titles, self._progress, self._run_dir = titles, progress, run.dir
        self._max_rows, self._adapter = max_rows, adapter_digest(merge.folder)
        folder = folder or run.dir / FOLDER / f"{self._adapter[:12]}-{max_rows}"
        self._folder = Folder(folder, {"run": str(run.dir), "number of rows": max_rows, "adapter": self._adapter}, {})
        self._needed = 2 * sum(t.numel for t in merge.tensors)
        self._found: dict[str, OnBase] = {}
        self._at = (0, 1)
        self._reader = EventReader(self._folder.root)
        self._poll()

    @property
    def trained_loss(self) -> float:
        """The loss of the model as it was trained, on the same rows; NaN before it is measured."""
        return math.nan if self._trained is None else self._trained.loss

    def to_frame(self) -> pd.DataFrame:
        """A line a base, with the fields of ``OnBase``; intervals in two columns each."""
        import pandas as pd

        self._begin_once()
        lines = []
        for row in self.rows:
            line = asdict(row)
            for name in ("kl_interval", "flipped_interval", "loss_change_interval"):
                low, high = line.pop(name)
                line |= {name.replace("interval", "low"): low, name.replace("interval", "high"): high}
            lines.append(line)
        return pd.DataFrame(lines)

    def _show_(self) -> View:
        title = f"What the adapter of {self._run_dir.name} loses on other bases: {self._so_far('bases')}"
        note = (
            f"Measured against the model as trained (loss {number(self.trained_loss, '.4f')}), with dequantized weights; "
            "intervals over held-out rows. llama.cpp also rounds activations."
        )
        return View(title, lines=self.rows, note=note)

    def _start(self) -> Generator[OnBase, None, None]:
        process = Measuring(self._folder.root, "workbench.cost.deploying", self._request, self._poll, self._needed)
        with reporting(self._progress, "Deployed", "pass") as report:
            try:
                for key in map(self._key, self.bases[len(self._rows) :]):
                    if not process.until(lambda at=key: at in self._found, self._stopped, lambda: report(*self._at)):  # type: ignore[misc]
                        return
                    keep(self._run_dir, self._adapter, self._max_rows, [self._found[key]])
                    yield self._found[key]
            finally:
                process.close()

    def _key(self, base: str) -> str:
        """What a measurement is known by: of a file also its size and time."""
        if base in TITLES:
            return base
        status = Path(base).stat()
        return f"{base} {status.st_size} {status.st_mtime_ns}"

    def _request(self) -> dict[str, object]:
        left = {key: base for base in self.bases if (key := self._key(base)) not in self._found}
        return {"run": str(self._run_dir), "max_rows": self._max_rows, "bases": left}

    def _poll(self) -> WorkbenchError | None:
        events = self._reader.poll()
        for event in events:
            if event["k"] == "progress":
                self._at = event["done"], event["total"]
            elif event["k"] == "trained":
                self._trained = RowCosts.from_event(event)
            elif event["k"] == "base":
                self._found[event["key"]] = self._row(event["base"], RowCosts.from_event(event))
        return failure_in(events)

    def _row(self, base: str, found: RowCosts) -> OnBase:
        assert self._trained is not None
        change, interval = found.above(self._trained)
        return OnBase(
            base, self._titles.get(base, base), sum(found.tokens), found.kl, found.kl_interval, found.flips,
            found.flips_interval, found.loss, change, interval,
        )  # fmt: skip
