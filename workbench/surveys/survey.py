"""A whole model under any number of specifications: ``survey``, which streams it, and ``Survey``, its rows and tables.

Covers which tensors are measured, where (here, or on any ``concurrent.futures.Executor``), progress, stopping, and going on.
Does not cover how a tensor is streamed (``surveys/stream.py``) nor the tables themselves (``surveys/rows.py``).
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from workbench.errors import ModelError, WorkbenchError
from workbench.given import described, is_whole, nearest, several
from workbench.progress import Cancelled, Progress, reporting
from workbench.quant.measure import Tally
from workbench.quant.spec import QuantSpec, SpecLike, as_specs
from workbench.show import Shown, View
from workbench.sources import Source, TensorInfo, open_model
from workbench.sources.header import DTYPES, shown
from workbench.sources.weight_chunks import packings_of
from workbench.surveys.resumable import Unfolding
from workbench.surveys.rows import Row, frame, grouped, worst

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pandas as pd

__all__ = ["Row", "Survey", "survey"]


def survey(
    src: Source | str | os.PathLike[str],
    specs: SpecLike | Sequence[SpecLike],
    tensors: Sequence[str | TensorInfo] | str | None = None,
    executor: Executor | None = None,
    progress: bool | Progress = True,
    *,
    worker_threads: int = 1,
    cancelled: Cancelled | None = None,
) -> Survey:
    """Measures a model's tensors, streamed through two small buffers: memory does not grow with the model.

    Nothing is read before the survey is iterated, run, or asked for a table. A tensor is measured as bitsandbytes sees it:
    transposed where ``TensorInfo.layout`` says so, and dequantized where the checkpoint holds it packed.

    Args:
        src: A source, or what ``open_model`` takes.
        specs: Specifications; a format's name stands for one, as in ``measure``.
        tensors: None for those that QLoRA would quantize; ``"all"`` for every floating-point one, weights that the checkpoint
            holds packed included; or one or several names.
        executor: Any ``concurrent.futures.Executor``, ``dask.distributed.Client(...).get_executor()`` among them. Tensors are
            then measured by its workers, and come in the order in which they finish. A worker in another process opens the
            model again by its path, or by its id and revision on the Hub with the login that it finds there. The numbers are
            the same wherever they are computed.
        progress: True shows a bar of the bytes done, in a terminal or notebook; a function is called with the bytes done and
            their total, on the thread that iterates.
        worker_threads: Threads on which a worker in another process runs its kernels.
        cancelled: Asked on the thread that iterates, ten times a second even where nothing comes; once it says yes the survey
            is cancelled.

    Returns:
        An iterable of rows, with tables of them. What goes wrong with one tensor later becomes the ``error`` of its row.

    Raises:
        ModelError: For an unknown model or tensor.
        FormatError: Without a specification, and for one that cannot be measured in a stream.
        WorkbenchError: For an executor or a number of threads that is none.

    >>> found = wb.survey("builtin", ["nf4", "int4"], progress=False)
    >>> len(found), found.worst(1)["tensor"].item()
    (42, 'model.layers.5.mlp.down_proj.weight')
    """
    source = open_model(src)
    wanted = as_specs(specs)
    Tally(wanted)  # refuses what cannot be measured in a stream
    if executor is not None and not hasattr(executor, "submit"):
        remedy = "Give one such as concurrent.futures.ProcessPoolExecutor(4), or leave executor out."
        raise WorkbenchError(f"{described(executor)} is no executor.", where="executor", remedy=remedy)
    if not is_whole(worker_threads, 1):
        raise WorkbenchError(f"{worker_threads} threads cannot work.", where="worker_threads", remedy="Give 1 or more.")
    return Survey(source, wanted, _choose(source, tensors), executor, progress, worker_threads, cancelled)


class Survey(Shown, Unfolding[Row]):
    """A survey's rows as they finish, and tables of them.

    Iterating does the work, one row after the other. Leaving the loop stops it; iterating again gives the finished rows and
    goes on with the rest. The tables show what has finished; where nothing has been begun they run the survey first.
    """

    def __init__(
        self,
        source: Source,
        specs: tuple[QuantSpec, ...],
        infos: Sequence[TensorInfo],
        executor: Executor | None,
        progress: bool | Progress,
        worker_threads: int,
        cancelled: Cancelled | None = None,
    ) -> None:
        super().__init__(len(infos), cancelled)
        self.source, self.specs, self.infos = source, specs, tuple(infos)
        self._executor, self._progress, self._worker_threads = executor, progress, worker_threads

    @property
    def done(self) -> bool:
        """Whether every tensor has its row."""
        return self.complete

    @property
    def errors(self) -> tuple[Row, ...]:
        """The rows of tensors that could not be measured."""
        return tuple(row for row in self.rows if row.error is not None)

    @property
    def seconds_reading(self) -> float:
        """Seconds that reading took, summed over the finished rows; reading and computing overlap."""
        return sum(row.seconds_reading for row in self.rows)

    @property
    def seconds_computing(self) -> float:
        """Seconds that computing took, summed over the finished rows."""
        return sum(row.seconds_computing for row in self.rows)

    def to_frame(self) -> pd.DataFrame:
        """One line for each tensor and specification: name, layer, kind, shape, storage, errors, kurtosis, what went wrong."""
        self._begin_once()
        return frame(self.rows, self.specs)

    def worst(self, k: int = 10, by: str = "relative_rmse") -> pd.DataFrame:
        """The lines of ``to_frame()`` that are worst by a column.

        Args:
            k: How many lines.
            by: The column: the largest values are the worst, but of SQNR and entropy the smallest.

        Returns:
            The lines, the worst first.
        """
        return worst(self.to_frame(), k, by)

    def by_layer(self) -> pd.DataFrame:
        """One line for each layer and specification, pooled over the layer's tensors; those outside the layers come last."""
        self._begin_once()
        return grouped(self.rows, self.specs, "layer")

    def by_kind(self) -> pd.DataFrame:
        """One line for each kind (``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down`` …) and specification, pooled."""
        self._begin_once()
        return grouped(self.rows, self.specs, "kind")

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes ``to_frame()`` as CSV, UTF-8."""
        self.to_frame().to_csv(path, index=False)

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Writes ``to_frame()`` as Parquet; shapes become lists."""
        self.to_frame().to_parquet(path, engine="pyarrow", index=False)

    def _show_(self) -> View:
        from workbench.surveys.scores import MeasuredTensors

        title = f"Survey of {self.source.name}: {self._state()}"
        good = tuple(row for row in self.rows if row.error is None)
        if not good:
            return View(title, lines=[{"format": spec.title, "bits": f"{spec.bits_per_weight:.4f}"} for spec in self.specs])
        found = MeasuredTensors(self.source.name, good, self.specs)
        note = "Measured whole. worst(), by_layer(), by_kind() and to_frame() are tables of it."
        return View(title, lines=[found.score(spec) for spec in self.specs[:20]], note=note)

    def _state(self) -> str:
        failed = f", {len(self.errors)} could not be measured" if self.errors else ""
        return self._so_far("tensors") + failed

    def _start(self) -> Generator[Row, None, None]:
        from workbench.surveys.stream import measured
        from workbench.surveys.workers import dispatched

        sizes = {info.name: info.nbytes for info in self.infos}
        finished = {row.tensor.name for row in self._rows}
        left = [info for info in self.infos if info.name not in finished]
        at, total, stopped = sum(map(sizes.__getitem__, finished)), sum(sizes.values()), self._stopped
        with reporting(self._progress, "Survey", "B", at, total) as report:

            def seen(info: TensorInfo, share: float) -> None:
                report(at + int(share * info.nbytes), total)

            rows: Generator[Row, None, None]
            if self._executor is None:
                rows = measured(self.source, left, self.specs, stopped, seen)
            else:
                rows = dispatched(self._executor, self.source, left, self.specs, self._worker_threads, stopped)
            with closing(rows):
                for row in rows:
                    at += sizes[row.tensor.name]
                    report(at, total)
                    yield row


def _choose(source: Source, tensors: Sequence[str | TensorInfo] | str | None) -> list[TensorInfo]:
    infos = source.tensors()
    if tensors is None:
        chosen = [info for info in infos if info.quantizable]
    elif tensors == "all":
        packings = packings_of(source)
        parts = {part for packing in packings.values() for part in packing.parts.values()}
        chosen = [info for info in infos if info.name in packings or (_is_float(info) and info.name not in parts)]
    else:
        known = {info.name: info for info in infos}
        names = [one.name if isinstance(one, TensorInfo) else str(one) for one in several(tensors)]
        missing = [name for name in names if name not in known]
        if missing:
            what = f"There is no tensor {', '.join(map(shown, missing[:3]))}{' …' if missing[3:] else ''}."
            remedy = f"Give 'all' or names, which tensors() lists. {nearest(missing[0], known)}".strip()
            raise ModelError(what, where=source.name, remedy=remedy)
        chosen = [known[name] for name in dict.fromkeys(names)]
    if not chosen:
        what = "It has no such tensors to measure: none that QLoRA would quantize, or none was named."
        raise ModelError(what, where=source.name, remedy="Pass tensors='all' or names; tensors() says what each is.")
    return chosen


def _is_float(info: TensorInfo) -> bool:
    """Whether it holds weights that can be measured; F8_E8M0 holds scales, and has no sign and no zero."""
    kind = DTYPES[info.dtype]
    return info.numel > 0 and kind.floating and kind.numpy is not None and kind.name != "F8_E8M0"
