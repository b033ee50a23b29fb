"""``ScaleBytes``: what blocks' scales take beside the codes, and what is left of that once the scales are quantized too."""

from __future__ import annotations

from numpy.typing import ArrayLike

import workbench as wb
from widgets.heroes.hero import Hero, among, checked, hero_script, packed
from workbench.errors import FormatError

SIZES = (32, 64, 128, 256, 512, 1024)
NESTED = 256
PUBLISHED = "huggyllama/llama-7b"


class ScaleBytes(Hero):
    """The bits of NF4's codes and of their scales in proportion, and the error, for block sizes to drag.

    One button quantizes the scales to 8 bits, as double quantization does. Bytes are those of Llama 7B, computed from its
    published shapes.

    Args:
        weights: The weights whose error it is.
        size: Weights of a block, at first.
        double: Whether the scales are quantized to 8 bits, at first.

    Raises:
        FormatError: For what holds no weights, too few or too many of them, some that are not finite, no whole blocks, or a
            size that it does not have.

    >>> weights = wb.open_model("builtin").read("model.layers.3.self_attn.q_proj.weight")
    >>> widgets.ScaleBytes(weights, size=128)
    ScaleBytes(size=128, double=False)
    """

    _esm = hero_script("scale_bytes")

    def __init__(self, weights: ArrayLike, size: int = 64, double: bool = False) -> None:
        array = checked(weights, least=SIZES[-1])
        if array.size % SIZES[-1]:
            raise FormatError(
                f"{array.size:,} weights are no whole blocks of {SIZES[-1]:,}.", remedy="Give more or fewer rows."
            )
        among(size, SIZES, "block size")
        saved = [wb.savings_of_published(block, NESTED)[PUBLISHED] for block in SIZES]
        data = {
            "weights": packed(array), "levels": wb.FORMATS["nf4"].levels.tolist(), "dynamic": packed(wb.dynamic_levels()),
            "sizes": list(SIZES), "nested": NESTED, "model": "Llama 7B", "plain": [s.absmax for s in saved],
            "double": [s.nested for s in saved],
        }  # fmt: skip
        super().__init__(data, {"size": size, "double": bool(double)})
