"""One model and tensor under analysis, shared by linked views: opened, read and measured off the kernel's thread.

Covers what the views have in common, so that one pass over the weights feeds all of them, and the progress of opening and
reading. Computes nothing itself: the numbers are ``workbench``'s. Draws nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from widgets.background import recents
from widgets.background.listeners import Listeners
from widgets.background.measurements import Measurements
from widgets.background.pace import Pace, Step
from widgets.background.surveying import ModelSurvey
from widgets.background.tasks import Latest
from widgets.state import State, Store
from workbench.errors import ModelError
from workbench.quant.double_quant import NestedScales, double_quantize
from workbench.quant.formats import BLOCK_SIZES, find_format, usual_formats
from workbench.quant.histogram import histogram
from workbench.quant.inspect import BinErrors
from workbench.quant.measure import ErrorStats, measure
from workbench.quant.quantize import as_weights, quantize
from workbench.quant.spec import QuantSpec
from workbench.sources import Source, TensorInfo, open_model
from workbench.sources.packed import weights as weights_of
from workbench.sources.weight_chunks import packings_of

_MEASURED_BY = {"model", "tensor", "formats", "block_size", "double_quant", "nested_block_size"}


@dataclass(frozen=True)
class Rescaled:
    """The leading format, or NF4 where that has no scales that could be double quantized, without and with it."""

    plain: ErrorStats
    doubled: ErrorStats
    nested: NestedScales
    """The double-quantized scales."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What the views show of one tensor."""

    state: State
    """The state it was made for."""
    source: Source
    tensor: TensorInfo
    measured: Measurements
    """What is known of its weights; gives more when asked."""
    stats: tuple[ErrorStats, ...]
    """One for each of the state's formats."""
    scales: Rescaled | None
    """None unless a view of the scales is on screen: it takes two more formats to measure."""
    packed: str
    """What the checkpoint holds the weight quantized in, empty where it does not."""

    @property
    def weights(self) -> NDArray[Any]:
        """The tensor, flat, in the dtype it is measured in."""
        return self.measured.weights

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape as bitsandbytes sees it: dequantized and transposed where the checkpoint holds it otherwise."""
        return self.measured.tensor.shape

    @property
    def histogram(self) -> NDArray[np.int64]:
        """int64 (256,): weights by x / absmax over [−1, 1]."""
        return self.measured.histogram(self.state.block_size)

    @property
    def bin_errors(self) -> list[BinErrors]:
        """The error in each bin, for each of the state's formats."""
        return [self.measured.bin_errors(stats) for stats in self.stats]


def choosable(source: Source) -> list[TensorInfo]:
    """The tensors that views are of: those that QLoRA would quantize, and those that the checkpoint holds quantized.

    Of a model in which there are none of these (Falcon's linear layers are of a class of its own), its matrices.
    """
    packings, tensors = packings_of(source), source.tensors()
    chosen = [t for t in tensors if t.quantizable or t.name in packings]
    return chosen or [t for t in tensors if len(t.shape) == 2 and t.numel and t.dtype.startswith(("F", "BF"))]


class Session:
    """Follows a ``Store``: whenever what is measured changes, measures anew and hands the ``Analysis`` to the views.

    ``executor`` is for tests; without it the work has a thread of its own. All callbacks run under
    ``widgets.background.tasks.UI``.
    """

    def __init__(self, state: State | None = None, executor: Executor | None = None) -> None:
        self.store = Store(state)
        self.analysis: Analysis | None = None
        self.executor = executor
        self.survey = ModelSurvey(executor)
        self._listeners, self._failed, self._busy, self._progress = (Listeners() for _ in range(4))
        self._wanted: frozenset[str] = frozenset()
        self._refused: Callable[[Exception], None] | None = None
        self._source: Source | None = None
        self._held: tuple[Source, str, Measurements] | None = None
        self._reads, self._opens = (Pace(self._progress) for _ in range(2))
        self._work = Latest(
            executor,
            apply=self._apply,
            failed=self._failed,
            busy=self._worked,
        )
        self._opening = Latest(
            executor,
            apply=self._opened,
            failed=lambda error: (self._refused or self._failed)(error),
            busy=lambda busy: None if busy else self._progress(None),
        )
        self._ahead = Latest(executor or _spare_time(), apply=lambda _: None)
        self._forget = self.store.observe(self._changed)
        if executor is None:
            _warm_up()

    def begin(self, model: str | Source | None) -> None:
        """Opens ``model`` if it is another one than the state names, and measures; None: what the state names."""
        if model is None or model == self.store.value.model:
            self.start()
        elif isinstance(model, str):
            self.load(model)
        else:
            self.open(model)

    def start(self) -> None:
        """Measures what the state names."""
        self._work.submit(self._analyse, self.store.value)

    def load(self, model: str, *, download: bool = False, failed: Callable[[Exception], None] | None = None) -> None:
        """``open`` in the background, for a model that may be far away; an error goes to ``failed`` or to ``on_failure``.

        ``download``: as ``open_model`` has it. A model that is being loaded is given up for a newer one.
        """
        self._refused = failed
        self._opening.submit(self._load, model, download)

    def _load(self, model: str, download: bool) -> tuple[Source, str]:
        pace = self._opens
        pace.begin(f"Opening {model}", "bytes" if download else "headers", self._opening.staleness())
        source = open_model(model, download=download, progress=pace.moved, cancelled=pace.look)
        recents.remember(model)
        return source, model

    def _opened(self, opened: tuple[Source, str]) -> None:
        self.open(*opened)

    def cancel(self) -> None:
        """Gives up the model that is being loaded and the tensor that is being read or measured."""
        self._opening.cancel()
        self._work.cancel()

    def open(self, model: str | Source, name: str = "") -> Source:
        """Opens a model (anew, if it is the present one) and points the state at it; ModelError leaves everything as it was.

        ``name``: what the state calls the model that is handed over open.
        """
        source = open_model(model)
        first = next((t.name for t in choosable(source)), None)
        if first is None:
            raise ModelError("It holds no matrix that could be quantized.", where=source.name, remedy="Choose another model.")
        self._source = source
        name = name or (model if isinstance(model, str) else str(model.path or model.name))
        before = self.store.value
        self.store.update(model=name, tensor=first)
        if self.store.value is before:
            self.start()
        return source

    @property
    def source(self) -> Source:
        """The open model; opens the one that the state names if there is none."""
        if self._source is None:
            self._source = open_model(self.store.value.model)
        return self._source

    def want(self, parts: frozenset[str], wanted: bool) -> None:
        """Whether analyses are to have these from now on: ``scales``, or ``bins``, the histogram and the errors by bin.

        Where the present one has no scales it is made anew; bins are found when they are asked for, but off this thread if
        they are wanted before.
        """
        self._wanted = self._wanted | parts if wanted else self._wanted - parts
        if wanted and "scales" in parts and self.analysis is not None and self.analysis.scales is None:
            self.start()

    def on_analysis(self, listener: Callable[[Analysis], None]) -> Callable[[], None]:
        """Calls ``listener(analysis)`` after each measurement; returns a function that ends that."""
        return self._listeners.add(listener)

    def on_failure(self, listener: Callable[[Exception], None]) -> Callable[[], None]:
        """Calls ``listener(error)`` when a tensor cannot be read or measured."""
        return self._failed.add(listener)

    def on_busy(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        """Calls ``listener(True)`` and ``listener(False)`` around a measurement."""
        return self._busy.add(listener)

    def on_progress(self, listener: Callable[[Step | None], None]) -> Callable[[], None]:
        """Calls ``listener(step)`` while a model or tensor takes more than half a second to come, and with None at its end."""
        return self._progress.add(listener)

    def close(self) -> None:
        """Ends the thread and forgets every listener; closing twice is harmless."""
        self._forget()
        self.survey.close()
        self._opening.close()
        self._ahead.close()
        self._work.close()
        for listeners in (self._listeners, self._failed, self._busy, self._progress):
            listeners.clear()
        self._held = None

    def _changed(self, state: State, changed: frozenset[str]) -> None:
        if changed & _MEASURED_BY:
            self._ahead.cancel()
            self._work.submit(self._analyse, state)

    def _worked(self, busy: bool) -> None:
        if not busy:
            self._progress(None)
        self._busy(busy)

    def _analyse(self, state: State) -> Analysis:
        stale = self._work.staleness()
        if self._source is None:
            self._reads.begin(f"Opening {self.store.value.model}", "headers", stale)
            self._source = open_model(self.store.value.model, progress=self._reads.moved, cancelled=self._reads.look)
        source = self._source
        tensors = source.tensors()
        wanted = state.tensor or next((t.name for t in choosable(source)), "")
        tensor = next((t for t in tensors if t.name == wanted), None)
        if tensor is None:
            raise ModelError(f"There is no tensor {wanted!r}.", where=source.name, remedy="Choose one from the list.")
        held = self._held
        if held is None or held[0] is not source or held[1] != tensor.name:
            self._reads.begin(f"Reading {tensor.name}", "bytes", stale)
            moved, look = self._reads.moved, self._reads.look
            read = weights_of(source, tensor.name, tensor.layout, progress=moved, cancelled=look)
            held = self._held = (source, tensor.name, Measurements(as_weights(read)))
        measured = held[2]
        formats, pair = len(state.formats), self._pair(state)
        self._reads.begin(f"Measuring {tensor.name}", "", stale)
        found = measured.stats([*state.specs, *pair], self._reads.look)
        scales = None
        if pair:
            plain, doubled = found[formats:]
            scales = Rescaled(plain, doubled, double_quantize(plain.block_absmax, doubled.spec.nested_block_size))
        packing = packings_of(source).get(tensor.name)
        analysis = Analysis(
            state=state, source=source, tensor=tensor, measured=measured, stats=tuple(found[:formats]), scales=scales,
            packed=packing.title if packing else "",
        )  # fmt: skip
        if "bins" in self._wanted:
            measured.histogram(state.block_size, self._reads.look)
            _ = analysis.bin_errors
        return analysis

    def _pair(self, state: State) -> list[QuantSpec]:
        """What the scales are measured under, where they are wanted: without and with double quantization."""
        lead = state.formats[0] if find_format(state.formats[0]).double_quantizable else "nf4"
        return [state.spec(lead), state.spec(lead, double_quant=True)] if "scales" in self._wanted else []

    def _apply(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self._listeners(analysis)
        if self.executor is None:
            self._ahead.submit(self._look_ahead, analysis)

    def _look_ahead(self, analysis: Analysis) -> None:
        """Measures what is one choice away, so that wherever the reader goes it is there at once.

        That is the other block sizes, the nearest first, double quantization, and the other formats.
        """
        if not self._ahead.rest(0.3):  # the page may be drawing on the same cores
            return
        state, at = analysis.state, BLOCK_SIZES.index(analysis.state.block_size)
        nearest = sorted(BLOCK_SIZES, key=lambda size: abs(BLOCK_SIZES.index(size) - at))
        states = [dataclasses.replace(state, block_size=size) for size in nearest]
        states.append(dataclasses.replace(state, double_quant=not state.double_quant))
        choices = [(s.block_size, [*s.specs, *self._pair(s)]) for s in states]
        choices += [(state.block_size, [state.spec(name, state.double_quant)]) for name in usual_formats()]
        analysis.measured.look_ahead(choices, self._ahead.staleness())


@functools.cache
def _spare_time() -> Executor:
    """The thread on which all sessions look ahead.

    It is never ended: each new thread takes another arena of the C library's allocator, up to eight a core, and each arena
    would keep the most that a session ever measured ahead.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="workbench-ahead")


@functools.cache
def _warm_up() -> None:
    """Compiles or loads the kernels on a thread of its own, once, while the page is still opening."""

    def compile_kernels() -> None:
        nothing = np.zeros(64, ml_dtypes.bfloat16)
        measure(nothing, QuantSpec())
        histogram(nothing)
        quantize(nothing, QuantSpec())

    threading.Thread(target=compile_kernels, name="workbench-warm-up", daemon=True).start()
