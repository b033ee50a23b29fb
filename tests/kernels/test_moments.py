"""Moments equal those of the plain definition in longer floats, however the weights come."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.kernels import pool
from workbench.kernels.moments import Moments, moments


def plain(array: np.ndarray) -> tuple[float, float, float]:
    """Mean, standard deviation and kurtosis of the finite weights, in float128 where there is one."""
    x = array.astype(np.longdouble).reshape(-1)
    x = x[np.isfinite(x)]
    d = x - x.mean()
    return float(x.mean()), float(np.sqrt((d**2).mean())), float((d**4).mean() / (d**2).mean() ** 2)


def draw(name: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(1_300_001).astype(np.float32)
    match name:
        case "far from zero":
            return normal + np.float32(1000)
        case "drifting":
            return normal + np.linspace(0, 1e4, normal.size, dtype=np.float32)
        case "a first chunk that is nothing like the rest":
            return np.concatenate([np.full(4096, 1e4, np.float32), normal])
        case "huge":
            return np.clip(normal, -3, 3) * np.float32(1e38)
        case "tiny":
            return normal * np.float32(1e-38)
        case "not finite here and there":
            normal[[0, 5_000, 600_000, 1_300_000]] = [np.nan, np.inf, -np.inf, np.nan]
            return normal
        case "few":
            return normal[:3]
        case _:
            return normal.astype(name)


@pytest.mark.parametrize(
    "name",
    [
        "float32", "float16", "bfloat16", "far from zero", "drifting", "a first chunk that is nothing like the rest", "huge",
        "tiny", "not finite here and there", "few",
    ],
)  # fmt: skip
def test_moments_are_those_of_the_plain_definition(name: str) -> None:
    x = draw(name)
    found, (mean, std, kurtosis) = moments(x), plain(x)
    assert found.count == np.isfinite(x).sum()
    assert found.mean == pytest.approx(mean, rel=1e-9, abs=1e-12 * std)
    assert found.std == pytest.approx(std, rel=1e-11)
    assert found.kurtosis == pytest.approx(kurtosis, rel=1e-10)


def test_the_number_of_threads_and_the_cut_into_chunks_change_nothing() -> None:
    x = draw("drifting")
    whole = moments(x)
    for count in (1, 2, 3):
        pool.set_threads(count)
        assert moments(x) == whole
    pool.set_threads(0)
    in_parts = Moments()
    for start in range(0, x.size, pool.SPAN):
        in_parts = moments(x[start : start + pool.SPAN], in_parts)
    assert in_parts == whole


@given(st.lists(st.integers(-50, 50), max_size=30), st.lists(st.integers(-50, 50), max_size=30))
def test_moments_of_two_sets_add_up_to_those_of_both(a: list[int], b: list[int]) -> None:
    first, second, both = (moments(np.array(values, np.float32)) for values in (a, b, a + b))
    found = first + second
    assert found.count == both.count
    for name in ("mean", "m2", "m3", "m4"):
        assert getattr(found, name) == pytest.approx(getattr(both, name), rel=1e-9, abs=1e-6)


def test_weights_without_spread_have_no_kurtosis() -> None:
    for x in (np.full(9000, 3, ml_dtypes.bfloat16), np.full(5, np.nan, np.float16), np.zeros(0, np.float32)):
        assert math.isnan(moments(x).kurtosis)
    assert moments(np.full(9000, 3, ml_dtypes.bfloat16)).std == 0
    assert math.isnan(Moments().std)
