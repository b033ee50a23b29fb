"""Codes, absmax, packed bytes and double-quantization state are those of bitsandbytes on a CPU, bit for bit."""

import bitsandbytes.functional as bnb
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import workbench as wb
from workbench.quant.double_quant import double_quantize, dynamic_levels
from workbench.quant.formats import BLOCK_SIZES

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def to_torch(x: np.ndarray) -> torch.Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def assert_equal_to_bitsandbytes(x: np.ndarray, spec: wb.QuantSpec) -> None:
    q = wb.quantize(x, spec)
    packed, state = bnb.quantize_4bit(to_torch(x), blocksize=spec.block_size, quant_type=spec.format)
    np.testing.assert_array_equal(q.packed, packed.numpy())
    np.testing.assert_array_equal(q.absmax, state.absmax.numpy())


def weights(shape, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_t(4, shape) * 0.02
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_block_size_and_dtype(name, block_size, dtype):
    for numel in (1, block_size - 1, block_size, 3 * block_size + 17, 40_961, 600_000):
        assert_equal_to_bitsandbytes(weights(numel, dtype, numel), wb.QuantSpec(name, block_size))


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_ties_and_their_neighbours_at_every_threshold(name):
    edges = wb.FORMATS[name].edges
    for absmax in (1.0, 0.37, 3e-5):
        near = np.concatenate([edges, np.nextafter(edges, -2), np.nextafter(edges, 2)]) * np.float32(absmax)
        block = np.zeros(64, np.float32)
        block[: near.size] = near
        block[-1] = absmax
        assert_equal_to_bitsandbytes(block, wb.QuantSpec(name))
        assert_equal_to_bitsandbytes(block[: near.size], wb.QuantSpec(name))  # the same as a tail block


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize(
    "special",
    [
        [0.0],
        [-0.0, 0.0],
        [1e-45, -3e-42],
        [1e-38, 5e-39],
        [1e38, -2e38],
        [np.nan],
        [np.inf],
        [-np.inf, np.inf],
        [np.nan, np.inf],
    ],
    ids=str,
)
def test_special_values_in_whole_and_tail_blocks(name, special):
    for fill in (0.0, 0.25):
        block = np.full(64 + 7, fill, np.float32)
        block[3 : 3 + len(special)] = special
        block[66 : 66 + len(special)] = special
        assert_equal_to_bitsandbytes(block, wb.QuantSpec(name))


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@given(
    x=hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    block_size=st.sampled_from([32, 64, 128]),
)
def test_any_array(name, x, block_size):
    assert_equal_to_bitsandbytes(x, wb.QuantSpec(name, block_size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_double_quantization_state(dtype):
    x = weights((300, 1024), dtype)
    packed, state = bnb.quantize_4bit(to_torch(x), blocksize=64, quant_type="nf4", compress_statistics=True)
    q = wb.quantize(x, wb.QuantSpec("nf4", double_quant=True))
    np.testing.assert_array_equal(q.packed, packed.numpy())
    # bitsandbytes' mean of the absmax values depends on torch's threads in its last bits: start from its own
    nested = double_quantize(q.absmax, 256, np.float32(state.offset.item()))
    np.testing.assert_array_equal(nested.codes, state.absmax.numpy())
    np.testing.assert_array_equal(nested.absmax, state.state2.absmax.numpy())
    state.state2.code = torch.tensor(dynamic_levels())  # torch's own differ in the last bits on some processors: below
    restored = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    np.testing.assert_array_equal(nested.dequantize(), restored.numpy())
    assert float(q.nested.offset) == pytest.approx(state.offset.item(), rel=1e-6)
    assert np.abs(q.nested.codes.astype(int) - state.absmax.numpy()).max() <= 1


def test_dynamic_levels_are_those_of_bitsandbytes():
    """To the bit where torch computes by vectors, of AVX2 or AVX-512; elsewhere its linspace rounds otherwise."""
    last_bits = 0 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 2
    np.testing.assert_array_max_ulp(dynamic_levels(), bnb.create_dynamic_map().numpy(), maxulp=last_bits)


@pytest.mark.parametrize("blocks", [1, 2, 255, 256, 257, 4096])
def test_double_quantization_of_short_and_odd_lengths(blocks):
    absmax = np.abs(weights(blocks)) + np.float32(0.01)
    offset = np.float32(absmax.mean())
    codes, state = bnb.quantize_blockwise(torch.from_numpy(absmax - offset), blocksize=256)
    nested = double_quantize(absmax, 256, offset)
    np.testing.assert_array_equal(nested.codes, codes.numpy())
    np.testing.assert_array_equal(nested.absmax, state.absmax.numpy())


def test_equal_scales_are_doubly_quantized_without_error():
    x = np.tile(np.linspace(-1, 1, 64, dtype=np.float32), 10)
    q = wb.quantize(x, wb.QuantSpec("nf4", double_quant=True))
    np.testing.assert_array_equal(q.scales, q.absmax)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantized_values_are_those_of_bitsandbytes(name, dtype):
    """At block 64 on rows of 128, where its AVX-512 dequantize reads the right scales."""
    x = weights((40, 128), dtype)
    packed, state = bnb.quantize_4bit(to_torch(x), blocksize=64, quant_type=name)
    theirs = bnb.dequantize_4bit(packed, state)
    ours = wb.quantize(x, wb.QuantSpec(name)).dequantize(x.dtype)
    np.testing.assert_array_equal(to_torch(ours).float().numpy(), theirs.float().numpy())


@pytest.mark.parametrize(("name", "steps", "lowest"), [("int4", 8, -8), ("int4-sym", 7, -7)])
def test_integer_formats_are_their_definition_in_double_precision(name, steps, lowest):
    x = weights((64, 256)).astype(np.float64)
    blocks = x.reshape(-1, 64)
    step = np.abs(blocks).max(axis=1, keepdims=True) / steps
    codes = np.clip(np.ceil(blocks / step - 0.5), lowest, 7)  # a tie goes to the lower level
    q = wb.quantize(x.astype(np.float32), wb.QuantSpec(name))
    np.testing.assert_array_equal(q.codes.reshape(-1, 64).astype(int) + lowest, codes)
    np.testing.assert_allclose(q.dequantize().reshape(-1, 64), codes * step, rtol=1e-6)


def test_the_paper_s_bits_per_weight():
    assert wb.QuantSpec("nf4").bits_per_weight == 4.5
    assert wb.QuantSpec("nf4", double_quant=True).bits_per_weight == pytest.approx(4.127, abs=5e-4)


@given(numel=st.integers(1, 10**7), block_size=st.sampled_from(BLOCK_SIZES), double_quant=st.booleans())
def test_storage_is_whole_blocks(numel, block_size, double_quant):
    spec = wb.QuantSpec("nf4", block_size, double_quant=double_quant)
    blocks = -(-numel // block_size)
    assert spec.storage(numel)["codes"] == (numel + 1) // 2
    assert spec.nbytes(numel) == (numel + 1) // 2 + (blocks + 4 * -(-blocks // 256) + 4 if double_quant else 4 * blocks)


@pytest.mark.parametrize(("double_quant", "numel"), [(False, 1000), (True, 1000), (True, 64 * 256 * 3 + 1)])
def test_storage_is_what_bitsandbytes_holds(double_quant, numel):
    packed, state = bnb.quantize_4bit(torch.randn(numel), blocksize=64, quant_type="nf4", compress_statistics=double_quant)
    parts = [packed, state.absmax] + ([state.state2.absmax, state.offset] if double_quant else [])
    assert wb.QuantSpec("nf4", double_quant=double_quant).nbytes(numel) == sum(t.numel() * t.element_size() for t in parts)


@given(
    x=hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e4, 1e4, width=32)),
    name=st.sampled_from([name for name, form in wb.FORMATS.items() if form.rule == "absmax"]),
)
def test_no_weight_moves_farther_than_the_widest_error(x, name):
    q = wb.quantize(x, wb.QuantSpec(name))
    bound = np.repeat(q.absmax, 64)[: x.size] * np.float32(q.spec.definition.widest_error)
    assert (np.abs(x - q.dequantize()) <= bound * np.float32(1.00001) + np.float32(1e-37)).all()


@given(
    x=hnp.arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e4, 1e4, width=32)),
    spec=st.sampled_from(
        [*map(wb.QuantSpec, wb.FORMATS), wb.QuantSpec("nf4", scale_dtype="float16"), wb.QuantSpec("int4-asym", 32, "bfloat16")]
    ).filter(lambda spec: spec.format != "iq4_nl"),  # whose scale is fitted after its codes are chosen
)
def test_no_other_level_of_its_block_is_nearer(x, spec):
    q = wb.quantize(x, spec)
    block = np.arange(x.size) // spec.block_size
    zeros = 0 if q.zero_points is None else q.zero_points.astype(np.float64)[block]
    choices = (spec.definition.levels.astype(np.float64)[:, None] - zeros) * q.scales.astype(np.float64)[block]
    moved, least = np.abs(x - q.dequantize()), np.abs(x - choices).min(axis=0)
    assert (moved <= least + 1e-6 * np.abs(choices).max(axis=0) + 1e-37).all()


def test_packed_bytes_hold_the_codes_first_weight_high():
    q = wb.quantize(weights(101), wb.QuantSpec("fp4"))
    pairs = np.stack([q.packed[:, 0] >> 4, q.packed[:, 0] & 15], axis=1).reshape(-1)
    np.testing.assert_array_equal(pairs[:101], q.codes)
    assert q.spec.definition.level_of_code[pairs[101]] == 0


def test_a_torch_tensor_is_read_like_its_array():
    x = weights((8, 128), "bfloat16")
    assert np.array_equal(wb.quantize(to_torch(x), wb.QuantSpec()).codes, wb.quantize(x, wb.QuantSpec()).codes)
    assert np.array_equal(wb.quantize(to_torch(x).float(), wb.QuantSpec()).codes, wb.quantize(x, wb.QuantSpec()).codes)


@pytest.mark.parametrize("wrong", [np.arange(64), np.zeros(0, np.float32), np.array(["a"]), np.zeros(4, complex)])
def test_what_is_no_tensor_of_weights_is_refused(wrong):
    with pytest.raises(wb.FormatError, match="array of"):
        wb.quantize(wrong, wb.QuantSpec())
