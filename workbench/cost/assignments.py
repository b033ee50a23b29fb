"""An assignment, what one measurement is of: which modules of a model are quantized, and how. The others stay in 16 bits.

Covers the choice itself, its form as JSON, and the key that it is kept under. Does not measure.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.quant.spec import QuantSpec


@dataclass(frozen=True)
class Assignment:
    """A choice of modules, each named as its weight is in the checkpoint, without ``.weight``."""

    spec: QuantSpec | None = None
    """How they are quantized; None: no module is quantized."""
    only: tuple[str, ...] | None = None
    """The modules that are quantized; None: every one that a QLoRA load quantizes, but those in ``but``."""
    but: tuple[str, ...] = ()
    """Exceptions, which stay in 16 bits."""

    def assigned(self, modules: Iterable[str]) -> dict[str, QuantSpec]:
        """Of a model's quantizable ``modules`` those that are quantized here, each with its specification."""
        if self.spec is None:
            return {}
        left, only = set(self.but), None if self.only is None else set(self.only)
        return {module: self.spec for module in modules if module not in left and (only is None or module in only)}

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; ``from_dict`` reads it back."""
        return {
            "spec": self.spec and self.spec.to_dict(),
            "only": None if self.only is None else sorted(self.only),
            "but": sorted(self.but),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Assignment:
        """The assignment that ``to_dict`` wrote."""
        spec, only = fields["spec"], fields["only"]
        return cls(
            None if spec is None else QuantSpec(**spec),
            None if only is None else tuple(only),
            tuple(fields["but"]),
        )

    @property
    def key(self) -> str:
        """The name that its measurement is kept under: the same for the same choice, whatever the order of its modules."""
        return _digest([self.to_dict(), None if self.spec is None else spec_key(self.spec)])


def spec_key(spec: QuantSpec) -> str:
    """The name of a specification, with its format's levels: a registered format may change under its name."""
    return _digest([spec.to_dict(), spec.definition.steps])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
