"""Outliers equal their plain definition in NumPy, and a planted one spoils its own block and no other."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

import workbench as wb
from tests.helpers.surveys import weights
from workbench.kernels import pool

SPECS = [
    wb.QuantSpec("nf4"),
    wb.QuantSpec("nf4", double_quant=True),
    wb.QuantSpec("int4-asym", 128),
    wb.QuantSpec("nvfp4"),
    wb.QuantSpec("iq4_nl"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.title)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_outliers_are_those_of_the_definition(spec, dtype):
    x = weights((96, 1000), dtype)
    flat = x.reshape(-1).astype(np.float64)
    mean, std = flat.mean(), flat.std()
    found = wb.outliers(x, spec, sigmas=(6, 3))
    assert (found.numel, found.shape, found.nonfinite) == (x.size, x.shape, 0)
    assert found.mean == pytest.approx(mean, rel=1e-9)
    assert found.std == pytest.approx(std, rel=1e-9)
    assert found.kurtosis == pytest.approx(((flat - mean) ** 4).mean() / std**4, rel=1e-9)
    assert found.farthest == pytest.approx(np.abs(flat - mean).max() / std, rel=1e-9)
    assert [line.sigmas for line in found.beyond] == [3, 6]

    def errors(values: np.ndarray) -> np.ndarray:
        """The error of every weight."""
        return values.reshape(-1).astype(np.float64) - wb.quantize(values, spec).dequantize().reshape(-1)

    before = errors(x)
    assert found.rmse == pytest.approx(np.sqrt((before**2).mean()), rel=1e-5)
    for line in found.beyond:
        beyond = np.abs(flat - mean) > line.sigmas * std
        block = np.arange(x.size) // spec.block_size
        spoilt = np.isin(block, block[beyond])
        after = errors(np.where(beyond, 0, x.reshape(-1)).astype(dtype))
        assert line.weights == beyond.sum()
        assert line.share == pytest.approx(beyond.mean())
        assert line.blocks == np.unique(block[beyond]).size
        assert line.block_share == pytest.approx(line.blocks / (block[-1] + 1))
        assert line.rmse == pytest.approx(np.sqrt((before[spoilt] ** 2).mean()), rel=1e-4)
        assert line.rmse_apart == pytest.approx(np.sqrt((after[spoilt] ** 2).mean()), rel=1e-4)
        assert line.rmse_others == pytest.approx(np.sqrt((before[~spoilt] ** 2).mean()), rel=1e-4)
        assert line.tensor_rmse_apart == pytest.approx(np.sqrt((after**2).mean()), rel=1e-4)
        assert line.extra_bits == pytest.approx(beyond.mean() * (8 * x.itemsize + 16))


def test_a_planted_outlier_spoils_its_own_block():
    x = np.random.default_rng(0).standard_normal((64, 640)).astype(np.float32)
    x = np.clip(x, -3, 3)
    x[5, 70] = 100
    found = wb.outliers(x, sigmas=(20,))
    (line,) = found.beyond
    assert (line.weights, line.blocks) == (1, 1)
    assert line.rmse > 4 * line.rmse_apart
    assert line.rmse_apart == pytest.approx(line.rmse_others, rel=0.3)
    assert found.farthest == pytest.approx(100 / x.std(), rel=1e-3)


@pytest.mark.parametrize("double_quant", [False, True])
def test_an_outlier_in_a_last_block_that_is_not_full_spoils_that_block(double_quant):
    spec = wb.QuantSpec("nf4", double_quant=double_quant)
    x = np.random.default_rng(0).standard_normal(10 * 64 + 7).astype(np.float32)
    x[[70, -1]] = 100
    (line,) = wb.outliers(x, spec, sigmas=(10,)).beyond
    assert (line.weights, line.blocks) == (2, 2)
    apart = wb.measure(np.where(x == 100, np.float32(0), x), spec).block_rmse.astype(np.float64)
    assert line.rmse_apart == pytest.approx(np.sqrt((64 * apart[1] ** 2 + 7 * apart[-1] ** 2) / 71), rel=1e-6)


def test_a_normal_distribution_has_the_normal_shares():
    found = wb.outliers(np.random.default_rng(0).standard_normal((1024, 1024), np.float32))
    assert found.kurtosis == pytest.approx(3, abs=0.03)
    for line in found.beyond:
        expected = found.numel * line.normal_share
        assert abs(line.weights - expected) <= 4 * math.sqrt(expected) + 1
    assert [line.normal_share for line in found.beyond] == pytest.approx([2.6998e-3, 6.3342e-5, 1.9732e-9], rel=1e-4)


def test_outliers_are_counted_from_the_mean_and_not_from_zero():
    x = (1 + 0.02 * np.random.default_rng(0).standard_normal((64, 640))).astype(np.float32)
    found = wb.outliers(x)
    assert found.mean == pytest.approx(1, abs=1e-3)
    assert found.beyond[0].share == pytest.approx(0.0027, abs=1e-3)


def test_weights_that_are_not_finite_are_no_outliers():
    x = weights((64, 640), np.float32)
    clean = wb.outliers(x)
    x[0, :64] = [np.nan] + [np.inf] * 31 + [-np.inf] * 32
    found = wb.outliers(x)
    assert found.nonfinite == 64
    assert found.farthest < 100
    assert found.rmse == pytest.approx(clean.rmse, rel=0.05)
    assert all(math.isfinite(line.rmse) for line in found.beyond if line.blocks)


@pytest.mark.parametrize("value", [0.0, 0.3, -7.0])
def test_equal_weights_have_no_outliers(value):
    found = wb.outliers(np.full((8, 640), value, np.float32))
    assert math.isnan(found.kurtosis)
    assert math.isnan(found.farthest)
    assert [(line.weights, line.blocks) for line in found.beyond] == [(0, 0)] * 3
    assert all(math.isnan(line.rmse) for line in found.beyond)


def test_the_array_stays_as_it_is_and_threads_change_nothing():
    x = weights((1500, 1024))
    copy = x.copy()
    pool.set_threads(1)
    try:
        alone = wb.outliers(x)
    finally:
        pool.set_threads(0)
    assert wb.outliers(x) == alone
    assert x.tobytes() == copy.tobytes()


def test_a_table_has_a_line_for_each_distance():
    frame = wb.outliers(weights((64, 640)), sigmas=(3, 4, 5, 6)).to_frame()
    assert frame["sigmas"].tolist() == [3, 4, 5, 6]
    assert frame["weights"].is_monotonic_decreasing


@pytest.mark.parametrize("sigmas", [(), (0,), (-1,), (float("nan"),), (float("inf"),)])
def test_distances_that_are_none(sigmas):
    with pytest.raises(wb.FormatError, match="above 0"):
        wb.outliers(weights((8, 64)), sigmas=sigmas)


def test_looking_for_outliers_can_be_cancelled():
    with pytest.raises(InterruptedError):
        wb.outliers(weights((1500, 1024)), cancelled=lambda: True)
