"""``LevelsEditor``: sixteen levels to drag over real weights, with the error they make, and what NF4, INT4 and Lloyd's make."""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import ArrayLike

import workbench as wb
from widgets.heroes.hero import Hero, checked, hero_script, packed
from workbench.errors import FormatError

PRESETS = ("nf4", "int4")


class LevelsEditor(Hero):
    """The levels of a 4-bit format, each a handle over the histogram of weights / absmax of their block.

    Error hangs below the axis where it arises, and stands above as ``wb.measure`` has it, on all of the weights. The mouse
    drags a level; Tab goes from level to level and the arrow keys move it. Lloyd's algorithm puts each level at the mean of its
    weights, weighted by their block's absmax², until nothing moves.

    Args:
        weights: The weights.
        block_size: Weights of a block.
        levels: 16 levels, ascending, in units of absmax; NF4's unless given.

    Raises:
        FormatError: For what holds no weights, too few or too many of them, some that are not finite, or no whole blocks; and
            for other than 16 ascending levels from −1 to 1.

    >>> weights = wb.open_model("builtin").read("model.layers.3.self_attn.q_proj.weight")
    >>> editor = widgets.LevelsEditor(weights)
    >>> editor.levels[0], editor.levels[7], len(editor.levels)
    (-1.0, 0.0, 16)
    """

    _esm = hero_script("levels_editor")

    def __init__(self, weights: ArrayLike, block_size: int = 64, levels: Sequence[float] | None = None) -> None:
        array = checked(weights, least=16 * block_size)
        wb.QuantSpec("nf4", block_size)  # raises where there are no such blocks
        if array.size % block_size:
            raise FormatError(f"{array.size:,} weights are no whole blocks of {block_size}.", remedy="Give whole rows.")
        presets = [
            {"key": name, "title": wb.FORMATS[name].title, "levels": wb.FORMATS[name].levels.tolist()} for name in PRESETS
        ]
        start = presets[0]["levels"] if levels is None else [float(level) for level in levels]
        if len(start) != 16 or start != sorted(start) or not -1 <= start[0] <= start[-1] <= 1:
            raise FormatError("A format needs 16 levels between −1 and 1, ascending.", where="levels")
        data = {"weights": packed(array), "size": block_size, "presets": presets}
        super().__init__(data, {"levels": start})

    @property
    def levels(self) -> tuple[float, ...]:
        """The sixteen levels as they are now, ascending, in units of absmax: ``wb.register_format`` takes them."""
        return tuple(self.state["levels"])
