"""``OutlierChannel``: a matrix with one row of large weights, and how far its harm reaches as blocks grow."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

import workbench as wb
from widgets.heroes.hero import Hero, among, checked, hero_script, packed
from workbench.errors import FormatError

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
TIMES = (1, 2, 4, 8, 16)
"""How much larger than it is the row can be made."""


class OutlierChannel(Hero):
    """The error of each block of a matrix, and of each row in units of that row's own size, for block sizes to drag.

    Every number is NF4's on the whole matrix.

    Args:
        weights: The matrix, (rows, columns).
        row: The row whose weights can be made 2 to 16 times as large; that of largest root mean square unless given.
        size: Weights of a block, at first.

    Raises:
        FormatError: For what holds no weights, too few or too many of them, some that are not finite, another shape, or a row
            or size that it does not have.

    >>> view = widgets.OutlierChannel(wb.open_model("builtin").read("model.layers.2.self_attn.k_proj.weight"))
    >>> view.row, view
    (80, OutlierChannel(size=64, times=1))
    """

    _esm = hero_script("outlier_channel")

    def __init__(self, weights: ArrayLike, row: int | None = None, size: int = 64) -> None:
        array = checked(weights, least=SIZES[-1])
        if array.ndim != 2 or array.size % SIZES[-1] or SIZES[-1] % array.shape[1]:
            raise FormatError(
                f"A matrix {array.shape} is no whole blocks of {SIZES[-1]:,}, each of whole rows.", where="weights",
                remedy="Give one with 32 to 4,096 columns, a power of two.",
            )  # fmt: skip
        among(size, SIZES, "block size")
        sizes = np.sqrt(np.mean(array.astype(np.float64) ** 2, axis=1))
        self.row = int(sizes.argmax()) if row is None else int(row)
        """Which row is marked, and can be made larger."""
        if not 0 <= self.row < len(array):
            raise FormatError(f"There is no row {row!r}.", where="row", remedy=f"Give one from 0 to {len(array) - 1}.")
        data = {
            "weights": packed(array), "columns": array.shape[1], "row": self.row, "sizes": list(SIZES), "times": list(TIMES),
            "larger": float(sizes[self.row] / np.median(sizes)), "levels": wb.FORMATS["nf4"].levels.tolist(),
        }  # fmt: skip
        super().__init__(data, {"size": size, "times": 1})
