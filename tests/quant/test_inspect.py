"""One block weight by weight, the arithmetic of one weight, the error of a bin, and quantiles against the normal."""

import re

import numpy as np
import pytest

import workbench as wb
from workbench.quant.inspect import bin_errors, inspect_block
from workbench.quant.normality import quantiles

SPECS = [wb.QuantSpec(name) for name in wb.FORMATS] + [
    wb.QuantSpec("nf4", 64, double_quant=True),
    wb.QuantSpec("int8", 128, double_quant=True, nested_block_size=64),
    wb.QuantSpec("int4-sym", 128, "float16"),
]


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return (0.02 * np.random.default_rng(3).standard_normal((48, 512))).astype(np.float16)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.title)
def test_every_block_is_that_of_the_quantized_tensor(x, spec):
    stats, whole = wb.measure(x, spec), wb.quantize(x, spec)
    for index in (0, stats.block_rmse.size // 2, stats.block_rmse.size - 1):
        block = inspect_block(x, stats, index)
        inside = slice(index * spec.block_size, (index + 1) * spec.block_size)
        np.testing.assert_array_equal(block.restored, whole.dequantize().reshape(-1)[inside])
        np.testing.assert_array_equal(block.codes, whole.codes[inside])
        assert block.errors.std() > 0
        assert np.sqrt(np.mean(block.errors**2)) == pytest.approx(stats.block_rmse[index], rel=1e-4)
        assert np.abs(block.errors).max() == np.abs(block.errors[block.worst])
        if block.nested is not None:
            assert block.nested.code == whole.nested.codes[index]
            assert block.nested.value == whole.nested.dequantize()[index]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.title)
def test_the_arithmetic_is_true_step_by_step(x, spec):
    """Every sum that is written out in numbers comes to what stands behind its equals sign."""
    block = inspect_block(x, wb.measure(x, spec), 9)
    for weight in (0, 7, block.worst):
        steps = block.arithmetic(weight)
        checked = 0
        for step in steps:
            terms = [part.split(",")[0].translate(str.maketrans("−·", "-*")).replace("^", "**") for part in step.split(" = ")]
            values = [eval(part) for part in terms if re.fullmatch(r"[-\d.e()+*/ ]+", part)]
            assert all(value == pytest.approx(values[-1], rel=5e-4, abs=1e-7) for value in values), step
            checked += len(values) > 1
        assert checked >= 3, steps
        assert steps[-1].endswith(f"{block.errors[weight]:.6g}".replace("-", "−"))


def test_each_rule_says_how_its_scale_comes_about(x):
    def told(spec):
        return " ".join(inspect_block(x, wb.measure(x, spec), 2).arithmetic(0))

    assert "zero point = ⌊" in told(wb.QuantSpec("int4-asym"))
    assert "stored as the exponent 1" in told(wb.QuantSpec("mxfp4"))
    assert "rounded to E4M3" in told(wb.QuantSpec("nvfp4"))
    assert "d = Σx²·q·x / Σx²·q²" in told(wb.QuantSpec("iq4_nl"))
    assert "is itself stored in 8 bits" in told(wb.QuantSpec("nf4", double_quant=True))
    assert "stored as float16" in told(wb.QuantSpec("int4-sym", 64, "float16"))


@pytest.mark.parametrize("name", wb.FORMATS)
def test_blocks_of_zeros_and_blocks_without_a_scale_are_told_too(name):
    x = np.zeros(128, np.float32)
    x[64:] = np.nan
    stats = wb.measure(x, wb.QuantSpec(name))
    size = stats.spec.block_size
    zeros, broken = inspect_block(x, stats, 0), inspect_block(x, stats, 127 // size)
    assert zeros.finite
    assert zeros.arithmetic(3)[-1].endswith("= 0")
    assert not broken.finite
    assert "NaN or infinite" in broken.arithmetic(0)[0]


def test_what_there_is_not_is_refused(x):
    stats = wb.measure(x, wb.QuantSpec())
    with pytest.raises(wb.FormatError, match="no block"):
        inspect_block(x, stats, stats.block_rmse.size)
    with pytest.raises(wb.FormatError, match="no weight 64"):
        inspect_block(x, stats, 0).arithmetic(64)
    with pytest.raises(wb.FormatError, match="whole array"):
        inspect_block(np.tile(x, (4, 1)), wb.measure(np.tile(x, (4, 1)), wb.QuantSpec(), sample=0.25), 0)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.title)
def test_the_errors_of_the_bins_add_up_to_the_tensor_s(x, spec):
    stats = wb.measure(x, spec)
    found = bin_errors(x, stats)
    assert found.sampled is None
    assert found.counts.sum() == x.size
    total = np.nansum(found.rmse.astype(float) ** 2 * found.counts) / x.size
    assert np.sqrt(total) == pytest.approx(stats.rmse, rel=1e-4)


def test_a_large_tensor_s_bins_are_looked_at_in_a_sample_that_is_said(x):
    stats = wb.measure(x, wb.QuantSpec())
    found = bin_errors(x, stats, most=4096)
    assert found.counts.sum() == pytest.approx(found.sampled * x.size, abs=64)
    assert 0.1 < found.sampled < 0.3
    assert np.nansum(found.rmse * found.counts) / found.counts.sum() == pytest.approx(stats.mae, rel=0.3)


def test_normal_weights_lie_on_the_diagonal_and_heavy_tails_leave_it():
    rng = np.random.default_rng(0)
    normal, heavy = quantiles(rng.standard_normal(100_000)), quantiles(rng.standard_t(3, 100_000))
    inner = np.abs(normal.normal) < 2.5
    np.testing.assert_allclose(normal.observed[inner], normal.normal[inner], atol=0.06)
    assert normal.correlation > 0.999
    assert heavy.correlation < 0.98
    assert heavy.observed[-1] > 2 * normal.observed[-1]


def test_weights_divided_by_their_block_s_absmax_end_at_one():
    x = np.random.default_rng(0).standard_normal(64 * 100).astype(np.float32)
    found = quantiles(x, 64)
    assert found.observed[-1] * found.std + found.mean == pytest.approx(1)
    assert found.observed[0] * found.std + found.mean == pytest.approx(-1)
    assert found.sampled is None


def test_quantiles_of_a_sample_of_equal_weights_and_of_none():
    x = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)
    assert quantiles(x, most=1 << 14).sampled == pytest.approx(0.25)
    assert np.isnan(quantiles(np.ones(64, np.float32)).observed).all()
    with pytest.raises(wb.FormatError, match="finite"):
        quantiles(np.full(64, np.nan, np.float32))
