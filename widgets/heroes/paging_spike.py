"""``PagingSpike``: fifty batches of which one is too long for the GPU, with and without a paged optimizer."""

from __future__ import annotations

from typing import Any

import numpy as np

import workbench as wb
from widgets.heroes.hero import Hero, hero_script

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
RANK = 64
STEPS, SPIKE = 50, 31
"""How many batches there are, and which of them can be dragged."""
LENGTHS = tuple(range(256, 5121, 256))
"""Tokens that a batch may have."""
BUDGET = 10 << 30
"""Bytes of the GPU."""


class PagingSpike(Hero):
    """Bars of memory, a batch each; the longest can be dragged, and the optimizer paged.

    Simulated with ``wb.simulate_paging`` for each length, as if every batch were of it, and never measured: Llama 3.1 8B at
    rank 64, one row a batch, on a GPU of 10 GiB.

    Args:
        tokens: Tokens of the longest batch, at first.
        paged: Whether the optimizer is paged, at first.

    >>> widgets.PagingSpike(tokens=4096)
    PagingSpike(tokens=4096, paged=False)
    """

    _esm = hero_script("paging_spike")

    def __init__(self, tokens: int = 3072, paged: bool = False) -> None:
        shapes, found = wb.PublishedShapes(MODEL), []
        for length in LENGTHS:
            one: dict[str, Any] = {"lora_r": RANK, "max_length": length, "per_device_train_batch_size": 1}
            plain = wb.simulate_paging(shapes, wb.TrainConfig(**one, optim="adamw_torch"), BUDGET)
            pages = wb.simulate_paging(shapes, wb.TrainConfig(**one, optim="paged_adamw_32bit"), BUDGET)
            evicted = int(pages.per_step[-1, 1]) if len(pages.per_step) else 0  # none where memory runs out
            enough = {"needs": plain.enough, "least": plain.least, "paged_needs": pages.enough, "paged_least": pages.least}
            found.append({**enough, "evicted": evicted, "seconds": pages.bus_seconds})
        drawn = np.random.default_rng(4).choice(LENGTHS[:6], STEPS, p=[0.18, 0.26, 0.24, 0.16, 0.1, 0.06])
        data = {
            "lengths": list(LENGTHS), "found": found, "batches": drawn.tolist(), "spike": SPIKE, "budget": BUDGET,
            "model": "Llama 3.1 8B", "rank": RANK, "bus": "PCIe 3.0 x16",
        }  # fmt: skip
        nearest = min(LENGTHS, key=lambda length: abs(length - tokens))
        super().__init__(data, {"tokens": nearest, "paged": bool(paged)})
