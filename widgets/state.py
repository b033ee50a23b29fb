"""What the app shows, as one small value: printable, JSON, and replayable in plain Python.

Covers the value and the store that tells views of its changes. Holds no view code and no arrays.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import ConfigError
from workbench.formats import BLOCK_SIZES, find_format
from workbench.quantization import QuantSpec

ERROR_FIELDS = {"block_rmse": "RMSE", "block_max": "Largest error", "block_mae": "Mean error", "block_absmax": "absmax"}
"""What the block map may show: a field of ``ErrorStats`` and its name on screen."""

Observer = Callable[["State", frozenset[str]], None]


@dataclass(frozen=True)
class State:
    """Everything that decides what is on screen. ``wb.measure(x, state.specs)`` gives the numbers that the views show."""

    model: str = "builtin"
    """What ``wb.open_model`` takes."""
    tensor: str = ""
    """A tensor's name; empty: the model's first quantizable one."""
    formats: tuple[str, ...] = ("nf4", "int4")
    """One to three formats, the first in the lead."""
    block_size: int = 64
    """Weights that share a scale."""
    double_quant: bool = False
    """Whether errors include those of the scales' own quantization."""
    nested_block_size: int = 256
    """Scales that share a second-level scale."""
    error_field: str = "block_rmse"
    """What the block map shows: a key of ``ERROR_FIELDS``."""
    block: int | None = None
    """The block under the inspector, None for the worst."""
    log_counts: bool = False
    """Whether counts are on a logarithmic axis."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "formats", tuple(self.formats))
        faults = []
        if not 1 <= len(self.formats) <= 3 or len(set(self.formats)) != len(self.formats):
            faults.append(f"formats is {self.formats!r}; it must be one to three different names.")
        if self.error_field not in ERROR_FIELDS:
            faults.append(f"error_field is {self.error_field!r}; it must be one of {', '.join(ERROR_FIELDS)}.")
        if faults:
            raise ConfigError(faults, where="state", remedy="Change these fields and try again.")
        _ = self.specs  # refuses unknown formats and block sizes

    @property
    def specs(self) -> tuple[QuantSpec, ...]:
        """One ``QuantSpec`` a format."""
        return tuple(self.spec(name, self.double_quant) for name in self.formats)

    def spec(self, name: str, double_quant: bool = False) -> QuantSpec:
        """A format at the state's block size, double quantized or not: as far as the format's definition allows either."""
        form = find_format(name)
        size = self.block_size if self.block_size in form.block_sizes or self.block_size not in BLOCK_SIZES else 0
        if not (double_quant and form.double_quantizable):
            return QuantSpec(name, size)
        return QuantSpec(name, size, double_quant=True, nested_block_size=self.nested_block_size)

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return dataclasses.asdict(self) | {"formats": list(self.formats)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> State:
        """Reads ``to_dict``'s result; raises ConfigError on fields that there are not."""
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(
                [f"There is no field {name!r}." for name in unknown],
                where="state",
                remedy=f"Fields: {', '.join(sorted(known))}.",
            )
        return cls(**values)


class Store:
    """The one place that holds the current ``State``; observers are told what changed, after it has."""

    def __init__(self, state: State | None = None) -> None:
        self.value = state or State()
        self._observers: list[Observer] = []
        self._lock = threading.RLock()

    def update(self, **changes: Any) -> None:
        """Replaces fields; another model, tensor or block size forgets the block. An impossible state is refused."""
        with self._lock:
            if {"model", "tensor", "block_size"} & set(changes):
                changes = {"block": None} | changes
            after = dataclasses.replace(self.value, **changes)
            changed = frozenset(name for name in changes if getattr(after, name) != getattr(self.value, name))
            if not changed:
                return
            self.value = after
            for observer in tuple(self._observers):
                observer(after, changed)

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Has ``observer(state, changed field names)`` called after every change; returns what ends that."""
        self._observers.append(observer)

        def end() -> None:
            if observer in self._observers:
                self._observers.remove(observer)

        return end
