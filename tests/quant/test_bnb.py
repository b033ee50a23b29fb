"""Weights go over to bitsandbytes and come back, and its CPU kernels are asked before they are trusted."""

import ctypes
import re

import bitsandbytes.functional as F
import ml_dtypes
import numpy as np
import pytest
import torch
from bitsandbytes.cextension import lib
from bitsandbytes.nn import Params4bit
from hypothesis import given
from hypothesis import strategies as st
from llvmlite.binding import get_host_cpu_features

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


BLOCK_SIZES = wb.FORMATS["nf4"].block_sizes
SHAPES = [(4, 96), (40, 128), (2, 3, 70), (5, 11008), (256, 704), (704, 256), (128, 256), (4, 100), (3, 64)]


def blocks_of(shape, block_size: int) -> np.ndarray:
    """The block that each weight is in: (rows, columns)."""
    return (np.arange(np.prod(shape)) // block_size).reshape(-1, shape[-1])


def scales_taken(shape, block_size: int) -> np.ndarray:
    """The block whose scale the AVX-512 kernel gives each weight, as its source says: (rows, columns)."""
    columns = shape[-1]
    if columns % 16:
        return blocks_of(shape, block_size)
    rows = np.arange(np.prod(shape[:-1], dtype=int))[:, None]
    return rows * (columns // block_size) + np.arange(columns) // block_size


def seen(shape, block_size: int) -> bool:
    """Whether bitsandbytes, on this machine, dequantizes such a weight to the values that were stored: the whole of it."""
    q = wb.quantize(weights(shape), wb.QuantSpec("nf4", block_size))
    packed, state = q.to_bnb()
    with torch.compiler.set_stance("force_eager"):
        return bool(np.allclose(F.dequantize_4bit(packed, state).numpy(), q.dequantize(), rtol=1e-5, atol=1e-7))


class TestCheckBackend:
    """Known shapes for which the AVX-512 kernel is wrong, and what this machine says of itself."""

    @pytest.mark.parametrize(
        ("shape", "block_size", "right"),
        [
            ((8, 11008), 512, False),
            ((4, 96), 64, False),
            ((704, 256), 512, False),  # its first two rows are right: they are in the first block
            ((8, 11008), 256, True),
            ((1, 96), 64, True),
            ((96,), 64, True),
            ((4, 97), 64, True),
            ((4, 100), 64, True),
            ((2, 256), 512, True),
            ((4, 96), 2048, True),
        ],
    )
    def test_of_an_avx_512_processor_by_rule(self, shape, block_size, right):
        found = wb.check_backend(shape, block_size, "AVX512")
        assert found.right is right
        assert "not run" in found.why
        assert bool(found.remedy) is not right
        assert wb.check_backend(shape, block_size, "AVX2").right

    @given(st.integers(1, 70), st.integers(1, 100), st.integers(0, 15), st.sampled_from(BLOCK_SIZES))
    def test_the_rule_says_whether_every_weight_gets_the_scale_of_its_block(self, rows, vectors, more, block_size):
        shape = (rows, vectors * 16 + more * (more % 3 == 0))
        same = np.array_equal(scales_taken(shape, block_size), blocks_of(shape, block_size))
        assert wb.check_backend(shape, block_size, "AVX512").right is (same or block_size >= 2048)

    def test_the_kernel_s_indices_explain_what_was_seen_on_an_intel_with_amx(self):
        """Seen, not run here: an Intel with AVX-512, bf16 and AMX, of which three rows of a ramp from −1 to 1 were asked.

        The ramp hides some errors, since its outer blocks have the same scale; whatever was wrong in it is wrong.
        """
        wrong = {64: [(4, 96)], 128: [(4, 96), (256, 704)], 512: [(5, 11008), (256, 704)], 1024: [(5, 11008), (256, 704)]}
        for block_size in (32, 64, 128, 512, 1024):
            found = []
            for shape in SHAPES:
                asked = (min(int(np.prod(shape[:-1])), 3), shape[-1])
                ramp = wb.quantize(np.linspace(-1, 1, np.prod(asked), dtype=np.float32), wb.QuantSpec("nf4", block_size))
                taken = ramp.scales[scales_taken(asked, block_size)].reshape(-1)
                values = ramp.spec.definition.level_of_code[ramp.codes] * taken
                if not np.allclose(values, ramp.dequantize(), rtol=1e-5, atol=1e-7):
                    found.append(shape)
                    assert not wb.check_backend(shape, block_size, "AVX512").right
            assert found == wrong.get(block_size, [])

    @pytest.mark.parametrize("block_size", BLOCK_SIZES)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_this_machine_says_of_itself_what_is_seen(self, shape, block_size):
        """On every processor, and whatever torch makes of it."""
        found = wb.check_backend(shape, block_size)
        assert found.right is seen(shape, block_size)
        assert "this machine" in found.why

    @pytest.mark.skipif(not get_host_cpu_features().get("avx512f"), reason="asks the kernel for processors with AVX-512")
    @pytest.mark.parametrize("block_size", BLOCK_SIZES)
    @pytest.mark.parametrize("shape", [(40, 128), (5, 704), (6, 96), (6, 100)], ids=str)
    def test_the_avx_512_kernel_itself_takes_the_scales_that_its_source_says(self, shape, block_size):
        """Its C function, which takes no notice of what torch uses."""
        rows, columns = shape
        scales = np.arange(1, rows * columns // block_size + 2, dtype=np.float32)
        ones, out = np.full(rows * columns // 2, 0xFF, np.uint8), np.empty(shape, np.float32)
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (ones, scales, out))
        lib.cdequantize_blockwise_cpu_nf4_fp32(*pointers, *map(ctypes.c_longlong, (block_size, rows, columns)))
        np.testing.assert_array_equal(out, scales[scales_taken(shape, block_size)])

    @pytest.mark.parametrize(("shape", "block_size"), [((4, 96), 64), ((40, 128), 512), ((6, 112), 128)])
    def test_the_remedy_names_the_block_sizes_that_are_right_there(self, shape, block_size):
        remedy = wb.check_backend(shape, block_size, "AVX512").remedy
        assert re.findall(r"\d+", remedy) == [str(b) for b in BLOCK_SIZES if wb.check_backend(shape, b, "AVX512").right]
        if remedy := wb.check_backend(shape, block_size).remedy:
            assert re.findall(r"\d+", remedy) == [str(b) for b in BLOCK_SIZES if seen(shape, b)]

    @pytest.mark.parametrize(("shape", "block_size"), [((), 64), ((0, 4), 64), ((4, 4), 48)])
    def test_impossible_questions_are_refused(self, shape, block_size):
        with pytest.raises(wb.FormatError, match="not possible"):
            wb.check_backend(shape, block_size)
