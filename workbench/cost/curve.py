"""KL divergence against bits per weight, from 2 bits to 8: ``kl_curve``, the configurations that it measures by default.

One picture answers why four bits: integers from 8 bits down, each bit fewer costing several times as much, and around 4 bits
what NormalFloat, the size of blocks and double quantization change. The measuring is ``evaluation``'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from workbench.cost.evaluation import Evaluation, evaluate
from workbench.progress import Progress
from workbench.quant.spec import QuantSpec, SpecLike
from workbench.sources import Source
from workbench.training.config import TrainConfig

SYMMETRIC = ("int2-sym", "int3-sym", "int4-sym", "int5-sym", "int6-sym", "int7-sym", "int8")
ASYMMETRIC = ("int2-asym", "int3-asym", "int4-asym", "int5-asym", "int6-asym", "int7-asym", "int8-asym")
"""Integers of 2 to 8 bits."""
CURVE = (
    *(QuantSpec(name, 64) for name in SYMMETRIC),
    *(QuantSpec(name, 64) for name in ASYMMETRIC),
    *(QuantSpec("nf4", size) for size in (32, 64, 256, 4096)),
    *(QuantSpec("nf4", size, double_quant=True) for size in (32, 64, 256, 4096)),
)
"""Symmetric and asymmetric integers of 2 to 8 bits in blocks of 64, and NF4 in blocks of 32 to 4096, also double quantized."""


def kl_curve(
    src: Source | str | os.PathLike[str],
    specs: SpecLike | Sequence[SpecLike] = CURVE,
    *,
    data: TrainConfig | str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    max_rows: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool | Progress = False,
    cancelled: Callable[[], bool] | None = None,
) -> Evaluation:
    """KL divergence from 16 bits against bits per weight: an evaluation of ``CURVE``, or of other specifications.

    Its rows have both (``Cost.bits_per_weight``, ``Cost.kl``), and its table too. A mix's curve lies beside them: the points of
    ``Mix.curve`` with ``Mix.bits_per_weight``.

    Args:
        src: The model, as in ``evaluate``.
        specs: Specifications, or names of formats as they usually are.
        data: The rows, as in ``evaluate``.
        max_length: Tokens of a row that are used, as in ``evaluate``.
        max_rows: Rows that are used, as in ``evaluate``.
        folder: Where what was measured is kept; it may be that of ``evaluate``.
        progress: True for a bar, or a function of the batches done and their total.
        cancelled: Once it says yes, the evaluation is cancelled, within a second.

    Returns:
        An iterable of ``Cost``, as ``evaluate`` returns it.

    Raises:
        WorkbenchError: What ``evaluate`` raises, as the same kinds: at once and while iterating.

    >>> len(wb.kl_curve("builtin", ["int3-sym", "int4-sym"]))  # 16 bits, and these; measures nothing before it is iterated
    3
    """
    how = {"data": data, "max_length": max_length, "max_rows": max_rows}
    return evaluate(src, specs, folder=folder, progress=progress, cancelled=cancelled, **how)  # type: ignore[arg-type]
