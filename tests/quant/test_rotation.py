"""A Hadamard rotation before quantizing is orthogonal, undone after, and measured alike in one piece, in chunks and sampled."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests.helpers.surveys import checkpoint
from workbench.kernels.bits import as_bits
from workbench.quant.measure import Tally
from workbench.quant.rotation import restored, rotated, stretch_of

ROTATED = wb.QuantSpec("nf4", rotate="hadamard")


def weights(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(4, shape) * 0.02).astype(np.float32)


def matrix(p: int) -> np.ndarray:
    """The orthogonal matrix that is meant, in double precision: Sylvester's construction, and the signs that p weights get."""
    sylvester = np.ones((1, 1))
    while len(sylvester) < p:
        sylvester = np.block([[sylvester, sylvester], [sylvester, -sylvester]])
    signs = np.sign(rotated(as_bits(np.eye(p, dtype=np.float32).reshape(-1)), p).reshape(p, p)[:, 0])
    return sylvester * signs / np.sqrt(p)


@pytest.mark.parametrize("p", [2, 4, 8, 64, 1024])
def test_the_fast_transform_is_the_product_with_an_orthogonal_matrix(p):
    x, q = weights((3, p)), matrix(p)
    np.testing.assert_allclose(q @ q.T, np.eye(p), atol=1e-12)
    np.testing.assert_allclose(rotated(as_bits(x), p).reshape(3, p), x @ q.T, atol=1e-6 * np.abs(x).max())
    assert 0.3 < (np.sign(q[0]) < 0).mean() < 0.7 or p < 64, "the signs are drawn"


@given(st.integers(1, 12), st.integers(1, 5), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_it_is_undone_to_the_rounding_of_float32(power, rows, dtype):
    x = weights((rows, 2**power)).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    back = restored(rotated(as_bits(x), 2**power), 2**power)
    np.testing.assert_allclose(back, x.astype(np.float32).reshape(-1), atol=4e-7 * float(np.abs(x).max()) * power)


def test_the_input_side_is_rotated_by_the_largest_power_of_two_that_divides_it():
    assert [stretch_of((7, width)) for width in (64, 576, 1536, 11008)] == [64, 64, 512, 256]
    assert stretch_of((1 << 21,)) == 1 << 19, "a span of the kernels"
    with pytest.raises(wb.FormatError, match="input width of 63 cannot be rotated"):
        wb.measure(weights((64, 63)), ROTATED)
    with pytest.raises(wb.FormatError, match="no rotation 'fourier'"):
        wb.QuantSpec(rotate="fourier")


@pytest.mark.parametrize("name", ["nf4", "int3-asym", "nvfp4"])
def test_quantizing_is_that_of_the_rotated_weights_and_dequantizing_rotates_back(name):
    x = weights((40, 192))
    spec, q = wb.QuantSpec(name, rotate="hadamard"), matrix(64)
    plain = wb.quantize(rotated(as_bits(x), 64).reshape(40, 192), name)
    found = wb.quantize(x, spec)
    np.testing.assert_array_equal(found.codes, plain.codes)
    back = (plain.dequantize().astype(np.float64).reshape(-1, 64) @ q).reshape(40, 192)
    np.testing.assert_allclose(found.dequantize(), back, atol=1e-6 * np.abs(x).max())
    assert (found.shape, found.nbytes) == ((40, 192), plain.nbytes)


@pytest.mark.parametrize("spec", [ROTATED, wb.QuantSpec("nf4", 128, double_quant=True, rotate="hadamard")], ids=str)
def test_the_error_that_is_measured_is_that_of_the_weights_rotated_back(spec):
    x = weights((64, 512))
    e = wb.measure(x, spec)
    assert e.rmse == pytest.approx(np.sqrt(((x - wb.quantize(x, spec).dequantize()) ** 2).mean()), rel=1e-4)
    assert e.rms == pytest.approx(np.sqrt((x.astype(np.float64) ** 2).mean()), rel=1e-6), "a rotation keeps it"
    both = wb.measure(x, ["nf4", spec])
    assert both[0].rmse == wb.measure(x, "nf4").rmse, "what is not rotated is measured as before"
    assert both[1].rmse == e.rmse


def test_a_tensor_in_chunks_and_a_sample_are_measured_as_the_whole():
    shape = (1100, 2048)
    x, specs = weights(shape), [ROTATED, wb.QuantSpec("nvfp4", rotate="hadamard"), wb.QuantSpec("nf4")]
    tally, whole = Tally(specs, shape), wb.measure(x, specs)
    chunks = [x.reshape(-1)[start : start + Tally.STEP] for start in range(0, x.size, Tally.STEP)]
    assert len(chunks) > 1
    for step, chunk in itertools.product((tally.look, tally.feed), chunks):
        step(chunk)
    for found, expected in zip(tally.totals(), whole, strict=True):
        assert found.rmse == pytest.approx(expected.rmse, rel=1e-12)
        np.testing.assert_array_equal(found.occupancy, expected.occupancy)
    sampled = wb.measure(x, ROTATED, 0.25)
    assert sampled.sampled == pytest.approx(0.25, rel=0.05)
    assert sampled.rmse == pytest.approx(whole[0].rmse, rel=0.02)


def test_a_survey_rotates_each_tensor_by_its_own_width(tmp_path):
    arrays = {"model.layers.0.mlp.up_proj.weight": weights((64, 96)), "model.layers.0.mlp.odd.weight": weights((96, 33))}
    rows = {row.tensor.name: row for row in wb.survey(checkpoint(tmp_path, arrays), ["nf4", ROTATED], progress=False)}
    first = rows["model.layers.0.mlp.up_proj.weight"]
    assert first.totals[1].rmse == wb.measure(arrays[first.tensor.name], ROTATED).rmse
    assert "cannot be rotated" in rows["model.layers.0.mlp.odd.weight"].error


def test_what_is_not_finite_is_counted_once_and_spoils_what_it_is_rotated_with():
    x = weights((8, 256))
    x[2, 5], x[3, 9] = np.nan, np.inf
    e = wb.measure(x, ROTATED)
    assert (e.nans, e.infinities, e.bad_blocks) == (1, 1, 2 * 256 // 64)
    assert e.rmse == pytest.approx(wb.measure(np.delete(x, [2, 3], axis=0), ROTATED).rmse, rel=1e-5)


def test_outliers_cost_less_after_a_rotation_and_normal_weights_gain_nothing():
    """A rotation makes what is far from normal more normal: it can only help where outliers stretch their blocks."""
    normal = np.random.default_rng(0).standard_normal((256, 512), np.float32)
    tailed = normal.copy()
    tailed[::7, ::63] *= 30
    plain, turned = ([e.relative_rmse for e in wb.measure(x, ["nf4", ROTATED])] for x in (normal, tailed))
    assert plain[1] == pytest.approx(plain[0], rel=0.01)
    assert turned[1] < 0.8 * turned[0]


def test_a_rotation_is_part_of_a_specification_s_title_code_and_json():
    spec = wb.QuantSpec("int4", 128, double_quant=True, rotate="hadamard")
    assert spec.title == "INT4, blocks of 128, double quantized, Hadamard rotated"
    assert wb.measure(weights((2, 128)), spec.title).spec == spec
    assert eval(spec.as_code()) == wb.QuantSpec(**spec.to_dict()) == spec
    assert "rotate" not in wb.QuantSpec("int4").to_dict(), "as it was kept before there were rotations"
    assert spec.bits_per_weight == wb.QuantSpec("int4", 128, double_quant=True).bits_per_weight, "the signs are not stored"
    assert len(wb.configurations("mxfp4", rotate=(None, "hadamard"))) == 2
    assert all(spec.rotate is None for spec in wb.configurations())


def test_what_needs_the_weights_of_a_block_refuses_rotated_ones():
    x = weights((4, 128))
    with pytest.raises(wb.FormatError, match="does not hold weights in NF4, blocks of 64, Hadamard rotated"):
        wb.quantize(x, ROTATED).to_bnb()
    stats = wb.measure(x, ROTATED)
    for refused in (lambda: wb.inspect_block(x, stats, 0), lambda: wb.bin_errors(x, stats), lambda: wb.outliers(x, ROTATED)):
        with pytest.raises(wb.FormatError, match="rotat"):
            refused()
