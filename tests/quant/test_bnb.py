"""Weights go over to bitsandbytes and come back, and its CPU kernels are asked before they are trusted."""

import bitsandbytes.functional as F
import ml_dtypes
import numpy as np
import pytest
import torch
from bitsandbytes.nn import Params4bit

import workbench as wb


def weights(shape, dtype: str = "float32") -> np.ndarray:
    x = np.random.default_rng(0).standard_t(4, shape) * 0.02
    return x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


SPECS = [
    wb.QuantSpec("nf4"),
    wb.QuantSpec("fp4", 128),
    wb.QuantSpec("nf4", 32, double_quant=True),
    wb.QuantSpec("fp4", double_quant=True, nested_block_size=128),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.title)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(40, 128), (3, 1000)], ids=str)
def test_bitsandbytes_dequantizes_to_the_same_values(spec, dtype, shape):
    q = wb.quantize(weights(shape, dtype), spec)
    packed, state = q.to_bnb()
    values = q.spec.definition.level_of_code[q.codes] * np.repeat(q.scales, spec.block_size)[: q.codes.size]
    assert state.dtype == getattr(torch, dtype)
    if wb.check_backend(shape, spec.block_size).right:
        theirs = F.dequantize_4bit(packed, state)
        np.testing.assert_array_equal(theirs.float().numpy(), q.dequantize(q.dtype).astype(np.float32))
    np.testing.assert_allclose(q.dequantize().reshape(-1), values, rtol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.title)
def test_there_and_back_again(spec):
    q = wb.quantize(weights((16, 200), "bfloat16"), spec)
    back = wb.Quantized.from_bnb(*q.to_bnb())
    assert (back.spec, back.shape, back.dtype) == (q.spec, q.shape, q.dtype)
    np.testing.assert_array_equal(back.codes, q.codes)
    np.testing.assert_array_equal(back.scales, q.scales)
    np.testing.assert_array_equal(back.packed, q.packed)
    np.testing.assert_array_equal(back.dequantize(), q.dequantize())


@pytest.mark.parametrize("compress", [False, True])
def test_what_bitsandbytes_quantized_is_read(compress):
    x = torch.from_numpy(weights((64, 256)))
    layer = Params4bit(x.clone(), requires_grad=False, compress_statistics=compress, quant_type="nf4")._quantize("cpu")
    q = wb.Quantized.from_bnb(layer, layer.quant_state)
    np.testing.assert_array_equal(q.codes, wb.quantize(x, wb.QuantSpec("nf4")).codes)
    np.testing.assert_allclose(q.dequantize(), F.dequantize_4bit(layer.data, layer.quant_state).numpy(), rtol=1e-6)
    assert q.spec.double_quant is compress


@pytest.mark.parametrize("name", ["int4", "mxfp4", "int8", "af4"])
def test_formats_that_bitsandbytes_does_not_hold_are_refused(name):
    with pytest.raises(wb.FormatError, match="nf4 and fp4"):
        wb.quantize(weights(640), wb.QuantSpec(name)).to_bnb()


def test_a_state_that_is_not_a_4_bit_weight_s_is_refused():
    codes, state = F.quantize_blockwise(torch.randn(1024))
    with pytest.raises(wb.FormatError, match="not the state"):
        wb.Quantized.from_bnb(codes, state)
    packed, state = wb.quantize(weights(1024), wb.QuantSpec("nf4")).to_bnb()
    with pytest.raises(wb.FormatError, match="do not make a weight"):
        wb.Quantized.from_bnb(packed[:100], state)


class TestCheckBackend:
    """Known shapes for which the AVX-512 kernel is wrong, and what this machine says of itself."""

    @pytest.mark.parametrize(
        ("shape", "block_size", "right"),
        [
            ((8, 11008), 512, False),
            ((4, 96), 64, False),
            ((8, 11008), 256, True),
            ((1, 96), 64, True),
            ((96,), 64, True),
            ((4, 97), 64, True),
            ((4, 96), 2048, True),
        ],
    )
    def test_of_an_avx_512_processor_by_rule(self, shape, block_size, right):
        found = wb.check_backend(shape, block_size, "AVX512")
        assert found.right is right
        assert "not run" in found.why
        assert bool(found.remedy) is not right

    def test_the_remedy_names_block_sizes_that_fit(self):
        assert "(32)" in wb.check_backend((4, 96), 64, "AVX512").remedy
        assert "2048 or more" in wb.check_backend((4, 100), 64, "AVX512").remedy

    @pytest.mark.parametrize("shape", [(4, 96), (40, 128), (2, 3, 70), (5, 11008)], ids=str)
    @pytest.mark.parametrize("block_size", [64, 512])
    def test_this_machine_is_as_the_rule_says(self, shape, block_size):
        asked = wb.check_backend(shape, block_size)
        assert asked.right == wb.check_backend(shape, block_size, torch.backends.cpu.get_cpu_capability()).right
        assert "this machine" in asked.why

    @pytest.mark.parametrize(("shape", "block_size"), [((), 64), ((0, 4), 64), ((4, 4), 48)])
    def test_impossible_questions_are_refused(self, shape, block_size):
        with pytest.raises(wb.FormatError, match="not possible"):
            wb.check_backend(shape, block_size)
