"""One model and tensor under analysis, shared by linked views: opened, read and measured off the kernel's thread.

Covers what the views have in common, so that one pass over the weights feeds all of them. Computes nothing itself: the
numbers are ``workbench``'s. Draws nothing.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from widgets.state import State, Store
from widgets.tasks import Latest
from workbench.double_quant import NestedScales, double_quantize
from workbench.errors import ModelError
from workbench.formats import find_format
from workbench.measurement import ErrorStats, histogram, measure
from workbench.quantization import QuantSpec, as_weights
from workbench.sources import Source, TensorInfo, open_model

_MEASURED_BY = {"model", "tensor", "formats", "block_size", "double_quant", "nested_block_size"}


@dataclass(frozen=True)
class Analysis:
    """What the views show of one tensor."""

    state: State
    """The state it was made for."""
    source: Source
    tensor: TensorInfo
    weights: NDArray[Any]
    """The tensor, flat, in the dtype it is measured in."""
    stats: tuple[ErrorStats, ...]
    """One for each of the state's formats."""
    histogram: NDArray[np.int64]
    """int64 (256,): weights by x / absmax over [−1, 1]."""
    plain: ErrorStats
    """The leading format without double quantization; NF4 where it has no scales that could be."""
    doubled: ErrorStats
    """And with it."""
    nested: NestedScales
    """The leading format's double-quantized scales."""


class Session:
    """Follows a ``Store``: whenever what is measured changes, measures anew and hands the ``Analysis`` to the views.

    ``executor`` is for tests; without it the work has a thread of its own. All callbacks run under ``widgets.tasks.UI``.
    """

    def __init__(self, state: State | None = None, executor: Executor | None = None) -> None:
        self.store = Store(state)
        self.analysis: Analysis | None = None
        self.executor = executor
        self._listeners: list[Callable[[Analysis], None]] = []
        self._failed: list[Callable[[Exception], None]] = []
        self._busy: list[Callable[[bool], None]] = []
        self._source: Source | None = None
        self._held: tuple[Source, str, NDArray[Any]] | None = None
        self._work = Latest(
            executor,
            apply=self._apply,
            failed=lambda error: _tell(self._failed, error),
            busy=lambda busy: _tell(self._busy, busy),
        )
        self._forget = self.store.observe(self._changed)
        if executor is None:
            _warm_up()

    def begin(self, model: str | Source | None) -> None:
        """Opens ``model`` if it is another one than the state names, and measures; None: what the state names."""
        if model is None or model == self.store.value.model:
            self.start()
        else:
            self.open(model)

    def start(self) -> None:
        """Measures what the state names."""
        self._work.submit(self._analyse, self.store.value)

    def open(self, model: str | Source) -> Source:
        """Opens a model (anew, if it is the present one) and points the state at it; ModelError leaves everything as it was."""
        source = model if isinstance(model, Source) else open_model(model)
        first = next((t.name for t in source.tensors() if t.quantizable), None)
        if first is None:
            raise ModelError("No tensor of this model would be quantized.", where=source.name, remedy="Choose another model.")
        self._source = source
        name = model if isinstance(model, str) else str(model.path or model.name)
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

    def on_analysis(self, listener: Callable[[Analysis], None]) -> Callable[[], None]:
        """Calls ``listener(analysis)`` after each measurement; returns what ends that."""
        return _subscribe(self._listeners, listener)

    def on_failure(self, listener: Callable[[Exception], None]) -> Callable[[], None]:
        """Calls ``listener(error)`` when a tensor cannot be read or measured."""
        return _subscribe(self._failed, listener)

    def on_busy(self, listener: Callable[[bool], None]) -> Callable[[], None]:
        """Calls ``listener(True)`` and ``listener(False)`` around a measurement."""
        return _subscribe(self._busy, listener)

    def close(self) -> None:
        """Ends the thread and forgets every listener; closing twice is harmless."""
        self._forget()
        self._work.close()
        for listeners in (self._listeners, self._failed, self._busy):
            listeners.clear()
        self._held = None

    def _changed(self, state: State, changed: frozenset[str]) -> None:
        if changed & _MEASURED_BY:
            self._work.submit(self._analyse, state)

    def _analyse(self, state: State) -> Analysis:
        source = self.source
        tensors = source.tensors()
        wanted = state.tensor or next((t.name for t in tensors if t.quantizable), "")
        tensor = next((t for t in tensors if t.name == wanted), None)
        if tensor is None:
            raise ModelError(f"There is no tensor {wanted!r}.", where=source.name, remedy="Choose one from the list.")
        held = self._held
        if held is None or held[0] is not source or held[1] != tensor.name:
            held = self._held = (source, tensor.name, as_weights(source.read(tensor.name)))
        weights = held[2]
        lead = state.formats[0]
        if not find_format(lead).double_quantizable:
            lead = "nf4"
        specs = [*state.specs, state.spec(lead), state.spec(lead, double_quant=True)]
        unique = list(dict.fromkeys(specs))
        found = dict(zip(unique, measure(weights, unique, cancelled=self._work.stale), strict=True))
        *stats, plain, with_nested = (found[spec] for spec in specs)
        counts = histogram(weights, state.block_size, cancelled=self._work.stale)
        nested = double_quantize(plain.block_absmax, with_nested.spec.nested_block_size)
        return Analysis(state, source, tensor, weights.reshape(-1), tuple(stats), counts, plain, with_nested, nested)

    def _apply(self, analysis: Analysis) -> None:
        self.analysis = analysis
        _tell(self._listeners, analysis)


@functools.cache
def _warm_up() -> None:
    """Compiles or loads the kernels on a thread of its own, once, while the page is still opening."""

    def compile_kernels() -> None:
        nothing = np.zeros(64, ml_dtypes.bfloat16)
        measure(nothing, QuantSpec())
        histogram(nothing)

    threading.Thread(target=compile_kernels, name="workbench-warm-up", daemon=True).start()


def _tell(listeners: list[Any], value: Any) -> None:
    for listener in tuple(listeners):
        listener(value)


def _subscribe(listeners: list[Any], listener: Any) -> Callable[[], None]:
    listeners.append(listener)

    def end() -> None:
        if listener in listeners:
            listeners.remove(listener)

    return end
