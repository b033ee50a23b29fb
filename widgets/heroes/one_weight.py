"""``OneWeight``: a matrix as a map of its blocks' error, the weights of one block, and the arithmetic of one weight."""

from __future__ import annotations

from numpy.typing import ArrayLike

import workbench as wb
from widgets.heroes.hero import Hero, among, checked, hero_script, packed
from workbench.errors import FormatError

SIZES = (32, 64, 128, 256)
NESTED = 256


class OneWeight(Hero):
    """The RMSE of each block of a matrix in NF4; choose a block, then one of its weights, and read how it is stored.

    The map takes the mouse and the arrow keys, as does the row of weights. The slider changes the block size, a button
    quantizes the scales to 8 bits. It begins at the largest error of the worst block.

    Args:
        weights: The matrix, (rows, columns), whose columns are a multiple of the largest block size.
        size: Weights of a block, at first.
        double: Whether the scales are quantized to 8 bits, at first.

    Raises:
        FormatError: For what holds no weights, too few or too many of them, some that are not finite, another shape, or a size
            that it does not have.

    >>> weights = wb.open_model("builtin").read("model.layers.2.self_attn.k_proj.weight")
    >>> widgets.OneWeight(weights)
    OneWeight(size=64, double=False, weight=20687)
    """

    _esm = hero_script("one_weight", "drawing/drawing.js", "drawing/blockmap_canvas.js")

    def __init__(self, weights: ArrayLike, size: int = 64, double: bool = False) -> None:
        array = checked(weights, least=SIZES[-1])
        if array.ndim != 2 or array.shape[1] % SIZES[-1]:
            raise FormatError(
                f"A matrix {array.shape} has no rows of whole blocks of {SIZES[-1]}.", where="weights",
                remedy=f"Give one whose columns are a multiple of {SIZES[-1]}.",
            )  # fmt: skip
        among(size, SIZES, "block size")
        stats = wb.measure(array, wb.QuantSpec("nf4", size, double_quant=bool(double)))
        block = int(stats.block_rmse.argmax())
        weight = block * size + wb.inspect_block(array, stats, block).worst
        data = {
            "weights": packed(array), "columns": array.shape[1], "levels": wb.FORMATS["nf4"].levels.tolist(),
            "dynamic": packed(wb.dynamic_levels()), "sizes": list(SIZES), "nested": NESTED,
        }  # fmt: skip
        super().__init__(data, {"size": size, "double": bool(double), "weight": weight})
