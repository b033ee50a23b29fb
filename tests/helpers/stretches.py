"""Step times of two ways of training, taken in alternating stretches, and the ratio between them."""

from __future__ import annotations

import numpy as np


def ratio_of(on: list[list[float]], off: list[list[float]], draws: int = 2000) -> tuple[float, float, float]:
    """Median of the ratios of paired stretches' mean step times, and its 95 % bootstrap interval over the pairs."""
    ratios = np.array([np.mean(a) / np.mean(b) for a, b in zip(on, off, strict=True)])
    picks = np.random.default_rng(0).integers(0, len(ratios), (draws, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)
