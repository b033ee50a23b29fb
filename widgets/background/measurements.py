"""The measurements of one tensor, each made once and kept: going back to a block size or format is then instant.

Covers keeping and forgetting. ``workbench`` measures, on the whole tensor unless a result says that it was sampled.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from workbench.progress import Cancelled
from workbench.quant.histogram import histogram
from workbench.quant.inspect import BinErrors, bin_errors
from workbench.quant.measure import ErrorStats, measure
from workbench.quant.normality import Quantiles, quantiles
from workbench.quant.outliers import Outliers, outliers_of
from workbench.quant.scales import is_plain
from workbench.quant.spec import QuantSpec

_BY_BLOCK = 16  # bytes that a specification's statistics take for each block, where the block's absmax is its scale

_T = TypeVar("_T")


class Measurements:
    """The measurements of a ``tensor``; keeps at most ``most`` bytes of them, by default what ``room`` allows.

    Safe to call from several threads; where two ask for the same thing at once, it is measured twice.
    """

    def __init__(self, tensor: NDArray[Any], most: int | None = None) -> None:
        self.tensor = tensor
        self.weights = tensor.reshape(-1)
        self._most = room(tensor.nbytes) if most is None else most
        self._kept: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def stats(self, specs: Sequence[QuantSpec], cancelled: Cancelled | None = None) -> list[ErrorStats]:
        """``measure`` under each specification; those that are new share a pass."""
        found = {spec: self._find(("stats", spec)) for spec in dict.fromkeys(specs)}
        new = [spec for spec, stats in found.items() if stats is None]
        if new:
            found |= dict(zip(new, measure(self.tensor, new, cancelled=cancelled), strict=True))
        for spec in new:
            self._keep(("stats", spec), found[spec], _bytes_of(found[spec]))
        return [found[spec] for spec in specs]

    def histogram(self, block_size: int, cancelled: Cancelled | None = None) -> NDArray[np.int64]:
        """``histogram``: int64 (256,)."""
        return self._once(("histogram", block_size), lambda: histogram(self.weights, block_size, cancelled=cancelled))

    def bin_errors(self, stats: ErrorStats) -> BinErrors:
        """``bin_errors``."""
        _ = stats.levels  # where they differ from block to block it takes a while to find the median block's
        return self._once(("bins", stats.spec), lambda: bin_errors(self.weights, stats))

    def quantiles(self, block_size: int | None) -> Quantiles:
        """``quantiles``."""
        return self._once(("quantiles", block_size), lambda: quantiles(self.weights, block_size))

    def outliers(self, stats: ErrorStats, cancelled: Cancelled | None = None) -> Outliers:
        """``outliers`` under the specification of ``stats``."""
        from workbench.kernels.moments import moments  # numba loads here

        found = self._once(("moments",), lambda: moments(self.weights))
        return self._once(("outliers", stats.spec), lambda: outliers_of(self.tensor, stats, found, cancelled=cancelled))

    def look_ahead(self, choices: Iterable[tuple[int, Sequence[QuantSpec]]], cancelled: Cancelled) -> None:
        """Measures what will be asked for if the reader makes one of these choices: a block size, and the specifications in it.

        The likeliest come first; those that would no longer fit are left out.
        """
        left, counted = self._most, set[QuantSpec]()
        for block_size, specs in choices:
            size = sum(self._size(spec) for spec in set(specs) - counted)
            if size > left:
                continue
            left -= size
            counted.update(specs)
            for stats in self.stats(specs, cancelled):
                self.bin_errors(stats)
            self.histogram(block_size, cancelled)

    def _size(self, spec: QuantSpec) -> int:
        """Bytes that the statistics under a specification will take."""
        scales = 0 if is_plain(spec) else 8 if spec.definition.zero_point_bits else 4
        return (_BY_BLOCK + scales) * -(-self.weights.size // spec.block_size)

    def _once(self, key: tuple[Any, ...], make: Callable[[], _T]) -> _T:
        found: _T | None = self._find(key)
        if found is None:
            found = make()
            self._keep(key, found, 0)
        return found

    def _find(self, key: tuple[Any, ...]) -> Any:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key, (None, 0))[0]

    def _keep(self, key: tuple[Any, ...], value: Any, size: int) -> None:
        with self._lock:
            _, before = self._kept.pop(key, (None, 0))
            self._kept[key] = (value, size)
            self._bytes += size - before
            while self._bytes > self._most and len(self._kept) > 1:
                _, (_, gone) = self._kept.popitem(last=False)
                self._bytes -= gone


def room(nbytes: int) -> int:
    """Bytes of measurements to keep of a tensor of ``nbytes``: four times as many up to half a GiB, and at least ``nbytes``.

    In 16 bits, all formats at one block size and two of them at every other take three times the weights.
    """
    return max(nbytes, min(4 * nbytes, 512 << 20))


def _bytes_of(stats: ErrorStats) -> int:
    """Bytes of the arrays of values by block: a shared one counts once, a broadcast one not at all."""
    arrays = {id(a): a for a in vars(stats).values() if isinstance(a, np.ndarray) and 0 not in a.strides}
    return sum(a.nbytes for a in arrays.values())
