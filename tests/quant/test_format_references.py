"""Every format beside a definition that is not ours: ml_dtypes, bitsandbytes, or plain NumPy in double precision."""

import bitsandbytes.functional as bnb
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import workbench as wb


def heavy_tailed(numel: int, seed: int = 0) -> np.ndarray:
    """Weights with outliers, small blocks, zeros and signed zeros among them."""
    x = (np.random.default_rng(seed).standard_t(3, numel) * 0.02).astype(np.float32)
    x[: 8 * 64] *= np.repeat(10.0 ** -np.arange(8), 64).astype(np.float32)
    x[640:704] = 0
    x[704] = 3.0
    return x


floats = hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-(2.0**20), 2.0**20, width=32))


def e2m1(x: np.ndarray) -> np.ndarray:
    """The codes of ml_dtypes' float4_e2m1fn, with −0 told as 0: which of the two a zero is has no meaning here."""
    codes = x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    return np.where((codes == 8) & (x == 0), 0, codes)


def blocks_of(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, (0, -x.size % size)).reshape(-1, size)


@given(floats)
def test_mxfp4_is_the_mx_specification_in_ml_dtypes(x):
    """OCP MX 1.0: X = 2^(⌊log₂ max|x|⌋ − 2), an E8M0 number; elements are x / X in E2M1, saturated."""
    q = wb.quantize(x, wb.QuantSpec("mxfp4"))
    grid = blocks_of(x, 32).astype(np.float64)
    largest = np.abs(grid).max(axis=1)
    exponent = np.floor(np.log2(largest, where=largest > 0, out=np.full(largest.size, -125.0))) - 2
    shared = np.exp2(np.clip(exponent, -127, 127)).astype(ml_dtypes.float8_e8m0fnu)
    np.testing.assert_array_equal(q.stored_scales.view(np.uint8), shared.view(np.uint8))
    np.testing.assert_array_equal(q.scales, shared.astype(np.float32))
    scaled = (grid / shared.astype(np.float64)[:, None]).clip(-6, 6).astype(np.float32)
    np.testing.assert_array_equal(q.codes, e2m1(scaled).reshape(-1)[: x.size])
    np.testing.assert_array_equal(
        q.dequantize(), (scaled.astype(ml_dtypes.float4_e2m1fn).astype(np.float32) * q.scales[:, None]).reshape(-1)[: x.size]
    )


@given(floats)
def test_nvfp4_is_e2m1_under_e4m3_scales_in_ml_dtypes(x):
    q = wb.quantize(x, wb.QuantSpec("nvfp4"))
    grid = blocks_of(x, 16)
    tensor = np.float32(np.abs(x).max() / np.float32(6 * 448))
    assert q.tensor_scale == tensor
    if not tensor:
        assert not q.dequantize().any()
        return
    stored = np.minimum(np.abs(grid).max(axis=1) / np.float32(6) / tensor, np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(q.stored_scales.view(np.uint8), stored.view(np.uint8))
    scale = stored.astype(np.float32) * tensor
    scaled = np.divide(grid, scale[:, None], out=np.zeros_like(grid), where=scale[:, None] > 0).clip(-6, 6)
    np.testing.assert_array_equal(q.codes, e2m1(scaled).reshape(-1)[: x.size])


@given(st.integers(0, 20))
def test_e2m1_under_a_plain_absmax(seed):
    x = heavy_tailed(4096, seed)
    q = wb.quantize(x, wb.QuantSpec("e2m1"))
    exact = blocks_of(x, 64).astype(np.float64) / np.maximum(q.absmax, 1e-38)[:, None] * 6
    middles = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5])
    clear = np.abs(np.abs(exact)[..., None] - middles).min(axis=-1) > 1e-5  # elsewhere float32 decides
    theirs = e2m1(exact.astype(np.float32))
    ours = q.codes.reshape(-1, 64)
    zero = (ours % 8 == 0) & (theirs % 8 == 0)
    np.testing.assert_array_equal(ours[clear & ~zero], theirs[clear & ~zero])
    assert clear.mean() > 0.99


@pytest.mark.parametrize("block_size", [64, 256, 4096])
def test_int8_is_bitsandbytes_block_wise_quantization_to_a_linear_map(block_size):
    """bitsandbytes rounds through a table of 65,536 entries: where a value lies near a border, its code may be the next."""
    x = heavy_tailed(40_960)
    levels = wb.FORMATS["int8"].levels
    codes, state = bnb.quantize_blockwise(torch.from_numpy(x), code=torch.from_numpy(levels.copy()), blocksize=block_size)
    q = wb.quantize(x, wb.QuantSpec("int8", block_size))
    np.testing.assert_array_equal(q.absmax, state.absmax.numpy())
    ours, theirs = q.codes.view(np.int8).astype(int), codes.numpy().astype(int) - 127
    scaled = x.astype(np.float64) / np.repeat(np.maximum(q.absmax, 1e-38), block_size) * 127
    near_a_border = np.abs(scaled - np.floor(scaled) - 0.5) < 127 / 65535
    solid = np.repeat(q.absmax > 0, block_size) & ~near_a_border
    np.testing.assert_array_equal(ours[solid], theirs[solid])
    assert solid.mean() > 0.95
    restored = bnb.dequantize_blockwise(codes, state).numpy()
    np.testing.assert_allclose(q.dequantize()[solid], restored[solid], rtol=1e-6)


def test_int8_is_the_textbook_s_absmax_quantization():
    """absmax 256: 128.5 → 64 → 129.0."""
    x = np.array([256, 128.5, -256, 0], np.float32)
    q = wb.quantize(x, wb.QuantSpec("int8"))
    assert q.codes.view(np.int8).tolist() == [127, 64, -127, 0]
    np.testing.assert_allclose(q.dequantize(), [256, 64 * 256 / 127, -256, 0], rtol=1e-6)
    assert q.packed.shape == (4, 1)


@pytest.mark.parametrize("block_size", [32, 64, 128])
@given(st.integers(0, 10))
def test_asymmetric_int4_is_its_definition_in_double_precision(block_size, seed):
    x = heavy_tailed(4096, seed) + np.float32(0.004)
    q = wb.quantize(x, wb.QuantSpec("int4-asym", block_size, "float32"))
    grid = blocks_of(x, block_size).astype(np.float64)
    low, high = np.minimum(grid.min(axis=1), 0), np.maximum(grid.max(axis=1), 0)
    step = (high - low) / 15
    np.testing.assert_allclose(q.scales, step, rtol=1e-6)
    step = q.scales.astype(np.float64)  # from here on as stored, so that a tie stays one
    zero = np.clip(np.rint(-low / step), 0, 15)
    np.testing.assert_array_equal(q.zero_points, zero)
    exact = grid / step[:, None]
    clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-5
    codes = np.clip(np.rint(exact) + zero[:, None], 0, 15)
    np.testing.assert_array_equal(q.codes.reshape(codes.shape)[clear], codes[clear])
    np.testing.assert_allclose(
        q.dequantize(), ((q.codes.reshape(codes.shape) - zero[:, None]) * step[:, None]).reshape(-1), rtol=1e-6, atol=1e-12
    )


SYMMETRIC = {2: "int2-sym", 3: "int3-sym", 5: "int5-sym", 6: "int6-sym", 7: "int7-sym", 8: "int8"}


@pytest.mark.parametrize("bits", SYMMETRIC)
def test_symmetric_integers_of_any_bits_are_their_definition_to_the_bit(bits):
    """q = ⌊x · (1 / absmax) · top⌉ in float32, a tie to the even integer; x̂ = q / top · absmax; top = 2^(bits − 1) − 1."""
    x, top = heavy_tailed(6400, bits), np.float32(2 ** (bits - 1) - 1)
    q = wb.quantize(x, wb.QuantSpec(SYMMETRIC[bits]))
    grid = blocks_of(x, 64)
    absmax = np.abs(grid).max(axis=1, keepdims=True)
    factor = np.float32(1) / np.maximum(absmax, np.float32(1e-38))
    integers = np.rint(grid * factor * top)
    np.testing.assert_array_equal(q.codes.reshape(grid.shape), integers.astype(int) % 2**bits)
    np.testing.assert_array_equal(q.dequantize().reshape(grid.shape), integers / top * absmax)
    assert np.abs(integers).max() == top


@pytest.mark.parametrize("bits", range(2, 9))
def test_asymmetric_integers_of_any_bits_are_their_definition_to_the_bit(bits):
    """step = (max(high, 0) − min(low, 0)) / (2^bits − 1) and zero point ⌊−min(low, 0) / step⌉, in float32."""
    x, last = heavy_tailed(6400, bits) + np.float32(0.004), np.float32(2**bits - 1)
    q = wb.quantize(x, wb.QuantSpec(f"int{bits}-asym", scale_dtype="float32"))
    grid = blocks_of(x, 64)
    low, high = np.minimum(grid.min(axis=1), 0)[:, None], np.maximum(grid.max(axis=1), 0)[:, None]
    step = high / last - low / last
    zero = np.rint(-low / step).clip(0, last)
    codes = (np.rint(grid / step) + zero).clip(0, last)
    np.testing.assert_array_equal(q.zero_points, zero[:, 0])
    np.testing.assert_array_equal(q.codes.reshape(grid.shape), codes)
    np.testing.assert_array_equal(q.dequantize().reshape(grid.shape), (codes - zero) * step)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("asymmetric", [False, True], ids=["symmetric", "asymmetric"])
def test_integers_of_any_bits_are_torch_s_fake_quantization(bits, asymmetric):
    """torch multiplies by a rounded reciprocal of the step: where a weight lies near a border, its integer may be the next."""
    x = heavy_tailed(6400, bits) + np.float32(0.004)
    name = f"int{bits}-asym" if asymmetric else f"int{bits}-sym"
    q = wb.quantize(x, wb.QuantSpec(name, scale_dtype="float32"))
    top = 2 ** (bits - 1) - 1
    low, high = (0, 2**bits - 1) if asymmetric else (-top, top)
    steps = q.scales if asymmetric else q.scales / np.float32(top)
    zeros = q.zero_points.astype(np.int32) if asymmetric else np.zeros(q.scales.size, np.int32)
    theirs = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(blocks_of(x, 64)), torch.from_numpy(steps), torch.from_numpy(zeros), 0, low, high
    ).numpy()
    exact = blocks_of(x, 64).astype(np.float64) / steps.astype(np.float64)[:, None]
    clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-4
    ours = q.dequantize().reshape(theirs.shape)
    np.testing.assert_allclose(ours[clear], theirs[clear], rtol=1e-6, atol=0)
    assert clear.mean() > 0.95


@given(st.integers(0, 10))
def test_iq4_nl_is_the_reference_quantizer_of_llama_cpp_in_double_precision(seed):
    """Codes of x · (−127 / the weight of largest magnitude); then the scale Σx²·q·x / Σx²·q², in float16."""
    x = heavy_tailed(4096, seed)
    q = wb.quantize(x, wb.QuantSpec("iq4_nl"))
    values = wb.FORMATS["iq4_nl"].levels.astype(np.float64)
    assert values[0] == -127
    assert values[-1] == 113
    for block, codes, scale in zip(blocks_of(x, 32).astype(np.float64), q.codes.reshape(-1, 32), q.scales, strict=True):
        extreme = block[np.abs(block).argmax()]
        if not extreme:
            assert scale == 0
            continue
        distance = np.abs(block[:, None] * values[0] / extreme - values)
        two = np.partition(distance, 1, axis=1)
        clear = two[:, 1] - two[:, 0] > 1e-3
        np.testing.assert_array_equal(codes[clear], distance.argmin(axis=1)[clear])
        level = values[codes]
        assert scale == pytest.approx((block**3 * level).sum() / (block**2 * level**2).sum(), rel=1e-3, abs=6e-8)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_scales_in_sixteen_bits_are_rounded_before_the_weights_are(name):
    x = heavy_tailed(6400)
    q = wb.quantize(x, wb.QuantSpec("int4-sym", 64, name))
    kind = np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)
    np.testing.assert_array_equal(q.scales, q.absmax.astype(kind).astype(np.float32))
    assert q.stored_scales.dtype == kind
    grid = x.reshape(-1, 64).astype(np.float64)
    scale = q.scales.astype(np.float64)[:, None]
    exact = np.divide(grid, scale, out=np.zeros_like(grid), where=scale > 0) * 7
    clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-4
    np.testing.assert_array_equal(q.codes.reshape(-1, 64)[clear] - 7.0, np.rint(exact).clip(-7, 7)[clear])


def test_a_scale_beyond_float16_is_its_largest_number():
    x = np.linspace(-1e6, 1e6, 64, dtype=np.float32)
    assert wb.quantize(x, wb.QuantSpec("int4-sym", scale_dtype="float16")).scales[0] == 65504


@pytest.mark.parametrize("name", wb.FORMATS)
def test_what_is_not_finite_spoils_its_own_block_alone(name):
    x = heavy_tailed(64 * 40)
    size = wb.QuantSpec(name).block_size
    clean = wb.measure(np.delete(x.reshape(-1, size), [2, 5], axis=0), wb.QuantSpec(name))
    x[2 * size], x[5 * size] = np.nan, -np.inf
    e = wb.measure(x, wb.QuantSpec(name))
    assert (e.nans, e.infinities, e.bad_blocks) == (1, 1, 2)
    assert e.rmse == pytest.approx(clean.rmse, rel=1e-5)
    assert np.isnan(e.block_rmse[[2, 5]]).all()
    assert e.occupancy.sum() == x.size


NORMAL = {
    "nf4": 0.0920, "af4": 0.0957, "fp4": 0.1220, "e2m1": 0.1057, "int4-sym": 0.1077, "int4-asym": 0.0911, "mxfp4": 0.1150,
    "nvfp4": 0.0951,
}  # fmt: skip
STUDENT = {
    "nf4": 0.1045, "af4": 0.1059, "fp4": 0.1538, "e2m1": 0.1122, "int4-sym": 0.1455, "int4-asym": 0.1118, "mxfp4": 0.1260,
    "nvfp4": 0.0923,
}  # fmt: skip


@pytest.mark.parametrize(("table", "degrees"), [(NORMAL, None), (STUDENT, 5)], ids=["normal", "Student's t"])
def test_relative_rmse_is_what_was_computed_elsewhere(table, degrees):
    rng = np.random.default_rng(0)
    shape = (2048, 2048)
    x = rng.standard_normal(shape, np.float32) if degrees is None else rng.standard_t(degrees, shape).astype(np.float32)
    scales = {"int4-sym": "float16"}
    found = wb.measure(x, [wb.QuantSpec(name, scale_dtype=scales.get(name)) for name in table])
    tolerance = 2e-4 if degrees is None else 8e-4  # tails differ from sample to sample
    for e, expected in zip(found, table.values(), strict=True):
        assert e.relative_rmse == pytest.approx(expected, abs=tolerance), e.spec.title


@pytest.mark.parametrize(("block_size", "normal"), [(128, 0.1006), (64, 0.0911), (32, 0.0808)])
def test_asymmetric_int4_by_block_size(block_size, normal):
    x = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    assert wb.measure(x, wb.QuantSpec("int4-asym", block_size)).relative_rmse == pytest.approx(normal, abs=2e-4)
