"""``BlockScales``: a row of real weights as dots, an outlier to drag among them, and blocks that contain what it does."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

import workbench as wb
from widgets.heroes.hero import Hero, among, checked, hero_script, packed
from workbench.errors import FormatError

SIZES = (32, 64, 128, 256)
NUMEL = 256
PLACE = 150
"""Which of the weights is the outlier."""
FARTHEST = 100.0
"""Standard deviations to which the outlier can be dragged."""


class BlockScales(Hero):
    """256 weights, what each becomes in a 4-bit format, one of them an outlier to drag, and a slider for the block size.

    A dot is a weight as it is stored, a ring what it was. The outlier is negative, so that INT4 keeps it exactly. The mouse
    drags it, as do the arrow keys.

    Args:
        weights: 256 weights.
        format: The 4-bit format.
        outlier: The outlier's distance from zero at first, in standard deviations of the others.
        size: Weights of a block, at first.

    Raises:
        FormatError: For other than 256 finite weights, and for a size that it does not have.

    >>> weights = wb.open_model("builtin").read("model.layers.3.self_attn.q_proj.weight")
    >>> widgets.BlockScales(weights[0])
    BlockScales(outlier=4.0, size=256)
    """

    _esm = hero_script("block_scales")

    def __init__(self, weights: ArrayLike, format: str = "int4", outlier: float = 4.0, size: int = 256) -> None:
        array = checked(weights, least=NUMEL).reshape(-1).astype(np.float32)
        if array.size != NUMEL:
            raise FormatError(f"{array.size:,} weights were given.", where="weights", remedy=f"Give a row of {NUMEL}.")
        among(size, SIZES, "block size")
        self._weights = array
        form = wb.FORMATS[format]
        sigma = float(np.delete(array, PLACE).astype(np.float64).std())
        data = {
            "weights": packed(array), "levels": form.levels.tolist(), "title": form.title, "sizes": list(SIZES), "place": PLACE,
            "sigma": sigma, "farthest": FARTHEST,
        }  # fmt: skip
        super().__init__(data, {"outlier": float(min(max(outlier, 0.0), FARTHEST)), "size": size})

    @property
    def weights(self) -> NDArray[np.float32]:
        """float32 (256,): the weights with the outlier where it is now."""
        weights = self._weights.copy()
        weights[PLACE] = np.float32(-self.state["outlier"] * self.data["sigma"])
        return weights
