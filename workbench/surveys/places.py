"""A model as a map: a cell for each layer and kind of tensor, layers down and kinds across, and what of a cell is shown.

The one arrangement that the app, a report and everything else with such a map take. Does not cover what is measured
(``surveys/survey.py``) nor how a map is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from workbench.sources import TensorInfo
from workbench.sources.kinds import kind_of, layer_of, order_of

OTHER = "other"
"""The last kind, where there are more of them than a map may have."""


@dataclass(frozen=True)
class Places:
    """Where each tensor stands on the map: the columns are kinds, the rows layers, those outside the layers last.

    >>> from workbench.surveys.places import Places
    >>> places = Places.named(["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "lm_head"])
    >>> places.kinds, places.layers, places.in_cell(0, 1)
    (('up', 'lm_head'), (0, 1, None), ['model.layers.1.mlp.up_proj'])
    """

    kinds: tuple[str, ...]
    layers: tuple[int | None, ...]
    of: Mapping[str, tuple[int, int]]
    """Tensor name → (row, column). Several may share a cell: the experts of a layer."""

    @classmethod
    def arrange(cls, tensors: Iterable[TensorInfo], most_kinds: int | None = None) -> Places:
        """A cell for each layer and kind that there is.

        Args:
            tensors: The tensors.
            most_kinds: Kinds beyond so many are gathered as ``other``.

        Returns:
            The places, layers as rows and kinds as columns.
        """
        return cls.named((tensor.name for tensor in tensors), most_kinds)

    @classmethod
    def named(cls, names: Iterable[str], most_kinds: int | None = None) -> Places:
        """A cell for each layer and kind, from names.

        Args:
            names: The names of tensors or of modules.
            most_kinds: As in ``arrange``.

        Returns:
            The places, layers as rows and kinds as columns.
        """
        found = {name: (layer_of(name), kind_of(name)) for name in names}
        kinds = sorted({kind for _, kind in found.values()}, key=order_of)
        if most_kinds is not None and len(kinds) > most_kinds:
            kinds = [*kinds[: most_kinds - 1], OTHER]
        layers = sorted({layer for layer, _ in found.values()}, key=lambda layer: (layer is None, layer))
        row, column = ({key: i for i, key in enumerate(keys)} for keys in (layers, kinds))
        last = len(kinds) - 1
        places = {name: (row[layer], column.get(kind, last)) for name, (layer, kind) in found.items()}
        return cls(tuple(kinds), tuple(layers), places)

    def in_cell(self, x: float, y: float) -> list[str]:
        """The tensors of a cell.

        Args:
            x: The cell's column.
            y: The cell's row.

        Returns:
            Their names.
        """
        return [name for name, place in self.of.items() if place == (round(y), round(x))]

    def worst(self, badness: Mapping[str, float]) -> dict[tuple[int, int], str]:
        """The tensor that each cell (row, column) shows, of those that something is known of: the one with the most badness.

        NaN is less than any number. So what a map shows is a tensor's own number, which its own view shows again.
        """
        shown: dict[tuple[int, int], str] = {}
        for name, bad in badness.items():
            if (at := self.of.get(name)) is None:
                continue
            before = badness[shown[at]] if at in shown else math.nan
            if at not in shown or (math.isnan(before) and not math.isnan(bad)) or bad > before:
                shown[at] = name
        return shown
