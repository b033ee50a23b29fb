"""What the app shows, as one small value: printable, JSON, and replayable in plain Python.

Covers the value, and the store that notifies views of changes. Holds no view code and no arrays.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from widgets.background.listeners import Listeners
from widgets.views import TABS
from workbench.cost.jobs import TEXTS
from workbench.errors import ConfigError
from workbench.given import described, is_a, several, unknown_fields
from workbench.memory.gpus import GPUS, THIS_MACHINE, present
from workbench.memory.gpus import find as find_gpu
from workbench.quant.formats import BLOCK_SIZES, find_format
from workbench.quant.spec import QuantSpec
from workbench.training.config import TrainConfig
from workbench.training.settings import settings_of

ERROR_FIELDS = {"block_rmse": "RMSE", "block_max": "Largest error", "block_mae": "Mean error", "block_absmax": "absmax"}
"""What the block map may show: a field of ``ErrorStats`` and its name on screen."""

MAP_FIELDS = {"relative_rmse": "Relative RMSE", "sqnr_db": "SQNR (dB)", "kurtosis": "Kurtosis", "nbytes": "Bytes"}
"""What the model map may show: of a survey's row, and its name on screen."""

COST_FIELDS = {
    "share": "Share of the KL", "kl_only": "KL with this alone", "kl_gain": "KL saved by leaving this out",
    "output_error": "Output error", "relative_rmse": "Relative RMSE", "loss_share": "Share of the loss added",
    "saved_bytes": "Bytes saved in 4 bits",
}  # fmt: skip
"""What the map of sensitivities may show: a field of ``ModuleCost`` and its name on screen."""

COST_BITS = {"own": "each format's own", "equal": "the same for all", "curve": "2 to 8 (why four?)"}
"""The bits per weight at which formats are compared."""

COST_TEXTS = {"": "as training has it", **TEXTS}
"""The held-out rows that costs are measured on: training's, or a text that comes with the workbench."""

SCOPES = {"tensor": "the chosen tensor", "model": "the whole model"}
"""What formats are compared on."""

QUANTILES_OF = {"weights": "weights as they are", "blocks": "weights / absmax of their block"}
"""What is set against the normal distribution."""

DISTRIBUTION_FIGURES = {"numbers": "Numbers", "normal": "How normal"}
"""What stands beside the distribution."""

COST_PARTS = {
    "losses": "Formats", "sensitivity": "Sensitivity", "mix": "Mix", "methods": "Methods", "repairs": "Repairs",
}  # fmt: skip
"""The parts of the Cost tab."""

_CHOICES: Mapping[str, Collection[str]] = {
    "error_field": ERROR_FIELDS, "tab": TABS, "map_field": MAP_FIELDS, "scope": SCOPES, "quantiles_of": QUANTILES_OF,
    "gpu": (*GPUS, THIS_MACHINE), "cost_field": COST_FIELDS, "cost_bits": COST_BITS, "mix_gpu": ("", *GPUS, THIS_MACHINE),
    "distribution_figures": DISTRIBUTION_FIGURES, "cost_part": COST_PARTS, "cost_text": COST_TEXTS,
}  # fmt: skip
_FORGETS: dict[str, dict[str, Any]] = {
    "model": {"layer": None, "block": None, "weight": None, "mix_megabytes": None, "cost_folder": ""},
    "tensor": {"block": None, "weight": None}, "block_size": {"block": None, "weight": None}, "block": {"weight": None},
}  # fmt: skip
"""The fields that are reset once a field changes, and to what."""

Observer = Callable[["State", frozenset[str]], None]


@dataclass(frozen=True)
class State:
    """Everything that decides what is on screen. ``wb.measure(x, state.specs)`` gives the numbers that the views show.

    >>> import widgets
    >>> [spec.title for spec in widgets.State(formats=("nf4", "fp4"), block_size=128).specs]
    ['NF4, blocks of 128', 'FP4, blocks of 128']
    """

    model: str = TrainConfig.model
    """What ``wb.open_model`` takes."""
    tensor: str = ""
    """A tensor's name; empty: the model's first quantizable one."""
    formats: tuple[str, ...] = ("nf4", "int4")
    """One to three formats, the first in the lead."""
    block_size: int = TrainConfig.block_size
    """Weights that share a scale."""
    double_quant: bool = False
    """Whether errors include those of the scales' own quantization."""
    nested_block_size: int = 256
    """Scales that share a second-level scale."""
    error_field: str = "block_rmse"
    """What the block map shows: a key of ``ERROR_FIELDS``."""
    block: int | None = None
    """The block under the inspector, None for the worst."""
    weight: int | None = None
    """The weight of the block whose arithmetic is written out, None for the one with the largest error."""
    log_counts: bool = False
    """Whether counts are on a logarithmic axis."""
    quantiles_of: str = "weights"
    """What is set against the normal distribution: a key of ``QUANTILES_OF``."""
    distribution_figures: str = "numbers"
    """What stands beside the distribution: a key of ``DISTRIBUTION_FIGURES``."""
    tab: str = "Distribution"
    """The tab in front: one of ``views.TABS``."""
    map_field: str = "relative_rmse"
    """What the model map shows: a key of ``MAP_FIELDS``."""
    layer: int | None = None
    """The layer whose tensors are listed beside the model map, None for the worst of the whole model."""
    scope: str = "tensor"
    """What formats are compared on: a key of ``SCOPES``."""
    duel_bits: float = 4.5
    """Bits per weight that a format of the duel may take."""
    cost_part: str = "losses"
    """The part of the Cost tab in front: a key of ``COST_PARTS``."""
    cost_bits: str = "own"
    """The bits per weight at which formats are compared: a key of ``COST_BITS``."""
    cost_text: str = ""
    """The held-out rows that costs are measured on: a key of ``COST_TEXTS``."""
    cost_folder: str = ""
    """Where costs that were measured are kept; empty: a folder under ``costs``, by the model and the rows."""
    cost_field: str = "share"
    """What the map of sensitivities shows: a key of ``COST_FIELDS``."""
    mix_megabytes: float | None = None
    """What all weights of a mix may take; None: halfway between all in 4 bits and all in 16."""
    mix_gpu: str = ""
    """The GPU whose memory the mix is made for, in place of ``mix_megabytes``; empty: none."""
    runs_folder: str = "runs"
    """Where runs are looked for and launched into."""
    gpu: str = dataclasses.field(default_factory=lambda: THIS_MACHINE if present() else "T4 16 GB")
    """The GPU that the forecast is held against."""
    lora_r: int = TrainConfig.lora_r
    """This and the next five are fields of ``TrainConfig``, for the forecast and for training alike."""
    target_modules: str | tuple[str, ...] = TrainConfig.target_modules
    per_device_train_batch_size: int = TrainConfig.per_device_train_batch_size
    max_length: int = TrainConfig.max_length
    optim: str = TrainConfig.optim
    gradient_checkpointing: bool = TrainConfig.gradient_checkpointing
    train: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The other fields of ``TrainConfig``, where they differ from their defaults: also how the base is quantized, which is not
    what is looked at."""

    def __new__(cls, /, *_: Any, **given: Any) -> Self:
        """Refuses names that are no fields, with the nearest that are, or where ``TrainConfig`` has them."""
        train = settings_of(TrainConfig)
        names = {field.name: train[field.name].also.split() if field.name in train else [] for field in dataclasses.fields(cls)}
        if faults := unknown_fields(given, names):
            own = [name for name in given if name in train and name not in names]
            inside = f" A field of TrainConfig belongs into train: {', '.join(own)}." if own else ""
            raise ConfigError(faults, where="state", remedy=f"Fields: {', '.join(sorted(names))}.{inside}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())
        object.__setattr__(self, "formats", tuple(find_format(name).name for name in several(self.formats)))
        if is_a(self.target_modules, list):
            object.__setattr__(self, "target_modules", tuple(self.target_modules))
        if not is_a(self.train, Mapping):
            raise ConfigError([f"train is {described(self.train)}, and holds no fields."], where="state", remedy="Give a dict.")
        faults = [f"train has {name!r}, a field of its own." for name in self.train if name in _SHARED]
        if not 1 <= len(self.formats) <= 3 or len(set(self.formats)) != len(self.formats):
            faults.append(f"formats is {self.formats!r}; it must be one to three different names.")
        for name in ("gpu", "mix_gpu"):
            if (value := getattr(self, name)) not in _CHOICES[name]:
                object.__setattr__(self, name, find_gpu(value).name)
        for name, known in _CHOICES.items():
            if not isinstance(value := getattr(self, name), str) or value not in known:
                faults.append(f"{name} is {value!r}; it must be one of {', '.join(known)}.")
        for name in ("block", "weight", "layer"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                faults.append(f"{name} is {value!r}; it must be a whole number from 0 on, or None.")
        if not _is_number(self.duel_bits) or not 0 < self.duel_bits <= 32:
            faults.append(f"duel_bits is {self.duel_bits!r}; it must be a number of bits up to 32.")
        if self.mix_megabytes is not None and not (_is_number(self.mix_megabytes) and self.mix_megabytes > 0):
            faults.append(f"mix_megabytes is {self.mix_megabytes!r}; it must be a number above 0, or None.")
        if not is_a(folder := self.cost_folder, str):
            faults.append(f"cost_folder is {folder!r}; it must be a text.")
        if not is_a(folder := self.runs_folder, str) or not folder.strip():
            faults.append(f"runs_folder is {folder!r}; it must be the path of a folder.")
        if faults:
            raise ConfigError(faults, where="state", remedy="Change these fields and try again.")
        _ = self.specs  # refuse unknown formats and block sizes
        object.__setattr__(self, "train", _others(self.training))  # and what cannot be trained

    @property
    def specs(self) -> tuple[QuantSpec, ...]:
        """One ``QuantSpec`` a format."""
        return tuple(self.spec(name, self.double_quant) for name in self.formats)

    def spec(self, name: str, double_quant: bool = False) -> QuantSpec:
        """A format at the state's block size, as far as the format's definition allows it.

        Args:
            name: The format's name.
            double_quant: Double quantized, where the format's definition allows it.

        Returns:
            The specification.
        """
        form = find_format(name)
        size = self.block_size if self.block_size in form.block_sizes or self.block_size not in BLOCK_SIZES else 0
        if not (double_quant and form.double_quantizable):
            return QuantSpec(name, size)
        return QuantSpec(name, size, double_quant=True, nested_block_size=self.nested_block_size)

    @property
    def training(self) -> TrainConfig:
        """The fine-tune that is forecast and launched. Nothing that is only looked at (formats, block size) changes it."""
        own = {name: getattr(self, name) for name in _SHARED}
        return TrainConfig.from_dict({**own, **self.train})

    def changes_to(self, config: TrainConfig) -> dict[str, Any]:
        """The fields of the state that make ``training`` this configuration, but for the model."""
        own = {name: getattr(config, name) for name in _SHARED if name != "model"}
        return {**own, "train": _others(config)}

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        targets = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        train = {name: list(value) if isinstance(value, tuple) else value for name, value in self.train.items()}
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return own | {"formats": list(self.formats), "target_modules": targets, "train": train}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> State:
        """Reads ``to_dict``'s result.

        Raises:
            ConfigError: For fields that there are not.
        """
        return cls(**{str(name): value for name, value in values.items()})


_LOOKED_AT = {"block_size", "double_quant"}
"""Fields that both have, and that are each one's own: the state's say what is on show."""
_SHARED = [f.name for f in dataclasses.fields(State) if f.name in settings_of(TrainConfig) and f.name not in _LOOKED_AT]
"""Fields of ``TrainConfig`` that the state has too, under the same name."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _others(config: TrainConfig) -> dict[str, Any]:
    """A configuration's fields that the state has no field for, where they differ from their defaults."""
    default = TrainConfig()
    fields = (f.name for f in dataclasses.fields(config) if f.name not in _SHARED)
    return {name: value for name in fields if (value := getattr(config, name)) != getattr(default, name)}


class Store:
    """The one place that holds the current ``State``; observers are called with what changed, after it has."""

    def __init__(self, state: State | None = None) -> None:
        self.value = state or State()
        self._observers = Listeners()
        self._lock = threading.RLock()

    def update(self, **changes: Any) -> None:
        """Replaces fields; another model, tensor or block forgets what lay inside it. An impossible state is refused."""
        with self._lock:
            for name in _FORGETS.keys() & changes.keys():
                if changes[name] != getattr(self.value, name):
                    changes = _FORGETS[name] | changes
            after = dataclasses.replace(self.value, **changes)
            changed = frozenset(name for name in changes if getattr(after, name) != getattr(self.value, name))
            if not changed:
                return
            self.value = after
            self._observers(after, changed)

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Calls ``observer(state, changed field names)`` after every change; returns a function that ends that."""
        return self._observers.add(observer)
