"""The formats are data: their levels, edges and codes agree with the definitions they name."""

import itertools
from collections.abc import Iterator
from statistics import NormalDist

import bitsandbytes.functional as bnb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from workbench.quant.formats import _formats

INTEGERS = ("int4", "int4-sym", "int4-asym", "int8")
"""The integers that are compared where no format is named."""


@pytest.mark.parametrize("name", ["nf4", "fp4", "af4"])
def test_stored_codes_mean_what_bitsandbytes_says(name):
    assert np.array_equal(wb.FORMATS[name].level_of_code, bnb.get_4bit_type(name, device="cpu").numpy())


def test_nf4_is_the_quantiles_of_a_normal_distribution():
    """QLoRA, appendix E: 9 quantiles above zero, 8 below, zero itself, all divided by the largest."""
    tail = 0.9677083
    above = [NormalDist().inv_cdf(p) for p in np.linspace(tail, 0.5, 9)[:-1]]
    below = [-NormalDist().inv_cdf(p) for p in np.linspace(tail, 0.5, 8)[:-1]]
    levels = np.sort([*above, 0, *below])
    np.testing.assert_allclose(wb.FORMATS["nf4"].levels, levels / levels.max(), atol=3e-7)


def test_int4_has_all_sixteen_codes_of_a_signed_nibble():
    assert wb.FORMATS["int4"].levels.tolist() == [k / 8 for k in range(-8, 8)]


def test_symmetric_int4_has_fifteen_levels_and_no_clipping():
    form = wb.FORMATS["int4-sym"]
    np.testing.assert_array_equal(np.unique(form.levels), np.arange(-7, 8, dtype=np.float32) / np.float32(7))
    assert form.widest_error == pytest.approx(1 / 14)


@pytest.mark.parametrize("form", wb.FORMATS.values(), ids=wb.FORMATS)
def test_no_point_lies_farther_from_its_level_than_the_widest_error(form):
    low, high = (-1, 1) if form.rule == "absmax" else (form.levels[0], form.levels[-1])
    x = np.union1d(np.linspace(low, high, 2001, dtype=np.float32), form.edges[np.isfinite(form.edges)])
    nearest = form.levels[np.searchsorted(form.edges, x)]
    assert np.abs(x - nearest).max() == pytest.approx(form.widest_error, rel=1e-5)
    np.testing.assert_allclose(np.abs(x - nearest), np.abs(x[:, None] - form.levels).min(axis=1), atol=1e-7 * high)


def test_levels_cannot_be_overwritten():
    with pytest.raises(ValueError, match="read-only"):
        wb.FORMATS["nf4"].levels[0] = 0


def test_an_unknown_format_is_told_with_the_names_there_are():
    with pytest.raises(wb.FormatError, match=r"no format 'nf5'.*nf4, fp4, af4, int4"):
        wb.QuantSpec("nf5")


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_size": 48},
        {"block_size": "64"},
        {"block_size": False},
        {"nested_block_size": 0},
        {"scale_dtype": "int3"},
        {"scale_dtype": "float8_e4m3fn"},
        {"scale_dtype": "float16", "double_quant": True},
        {"format": "mxfp4", "block_size": 64},
        {"format": "mxfp4", "scale_dtype": "float32"},
        {"format": "int4-asym", "double_quant": True},
        {"format": "nvfp4", "double_quant": True},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(wb.FormatError) as told:
        wb.QuantSpec(**wrong)
    assert told.value.remedy


@pytest.mark.parametrize(
    ("spec", "bits"),
    [
        (wb.QuantSpec("nf4"), 4.5),
        (wb.QuantSpec("nf4", double_quant=True), 4.127),
        (wb.QuantSpec("int4-sym", scale_dtype="float16"), 4.25),
        (wb.QuantSpec("int4-asym", 128), 4.156),
        (wb.QuantSpec("int4-asym"), 4.3125),
        (wb.QuantSpec("int4-asym", 32), 4.625),
        (wb.QuantSpec("int8"), 8.5),
        (wb.QuantSpec("int2-sym"), 2.5),
        (wb.QuantSpec("int3-sym", 128, double_quant=True), 3 + 8 / 128 + 32 / (128 * 256)),
        (wb.QuantSpec("int7-sym", 32, "float16"), 7.5),
        (wb.QuantSpec("int3-asym"), 3 + (16 + 3) / 64),
        (wb.QuantSpec("int8-asym", 128), 8 + (16 + 8) / 128),
        (wb.QuantSpec("e2m1"), 4.5),
        (wb.QuantSpec("mxfp4"), 4.25),
        (wb.QuantSpec("nvfp4"), 4.5),
        (wb.QuantSpec("iq4_nl"), 4.5),
    ],
    ids=lambda value: getattr(value, "title", ""),
)
def test_bits_per_weight_count_scales_and_zero_points(spec, bits):
    assert spec.bits_per_weight == pytest.approx(bits, abs=5e-4)
    numel = 64 * 4096 * 256
    assert 8 * spec.nbytes(numel) / numel == pytest.approx(spec.bits_per_weight, rel=1e-6)


def test_integers_of_other_widths_are_compared_where_they_are_named_alone():
    usual = {spec.format for spec in wb.configurations()}
    assert usual == set(wb.FORMATS) - {name for name in wb.FORMATS if name.startswith("int") and name not in INTEGERS}
    assert {spec.format for spec in wb.configurations(wb.FORMATS)} == set(wb.FORMATS)
    ladder = [wb.QuantSpec(f"int{bits}-sym").bits_per_weight for bits in range(2, 9)]
    assert ladder == [bits + 0.5 for bits in range(2, 9)], "int8 answers to the name that its narrower kin have"
    assert wb.QuantSpec("INT8 symmetric") == wb.QuantSpec("int8")


def test_more_bits_err_less():
    x = np.random.default_rng(0).standard_normal(64_000, np.float32)
    for kind in ("sym", "asym"):
        errors = [e.relative_rmse for e in wb.measure(x, [f"int{bits}-{kind}" for bits in range(2, 9)])]
        assert all(more > 1.9 * less for more, less in itertools.pairwise(errors[1:])), "a bit halves the step"
        assert errors == sorted(errors, reverse=True)


@given(bits=st.integers(2, 8), numel=st.integers(1, 200))
def test_codes_of_any_width_are_packed_without_a_gap_first_bit_first(bits, numel):
    q = wb.quantize(np.random.default_rng(numel).standard_normal(numel, np.float32), f"int{bits}-asym")
    text = "".join(f"{byte:08b}" for byte in q.packed[:, 0])
    assert [int(text[i * bits : (i + 1) * bits], 2) for i in range(numel)] == q.codes.tolist()
    assert q.packed.size == q.spec.storage(numel)["codes"] == -(-numel * bits // 8)


def test_a_specification_names_what_it_left_open_and_reads_its_own_json():
    spec = wb.QuantSpec("mxfp4")
    assert (spec.block_size, spec.scale_dtype) == (32, "float8_e8m0fnu")
    assert wb.QuantSpec(**spec.to_dict()) == spec
    assert wb.QuantSpec("nf4") == wb.QuantSpec("nf4", 64, "float32")
    titles = [wb.QuantSpec(name).title for name in wb.FORMATS]
    assert len(set(titles)) == len(titles)
    assert wb.QuantSpec("int4-sym", 128, "float16").title == "INT4 symmetric, blocks of 128, float16 scales"
    assert wb.QuantSpec(double_quant=True, nested_block_size=64).title == "NF4, blocks of 64, double quantized in blocks of 64"


class TestRegisteredFormat:
    """One's own levels work wherever a format's name does."""

    @pytest.fixture
    def cubic(self) -> Iterator[wb.Format]:
        yield wb.register_format("cubic", [(k / 7.5) ** 3 for k in np.arange(-7.5, 8)], title="Cubic")
        del _formats["cubic"]

    def test_it_quantizes_to_its_levels(self, cubic):
        x = np.random.default_rng(0).standard_normal(6400, np.float32)
        q, e = wb.quantize(x, wb.QuantSpec("cubic", 128, double_quant=True)), wb.measure(x, wb.QuantSpec("cubic", 128))
        plain = wb.quantize(x, wb.QuantSpec("cubic", 128))
        assert set(np.round(plain.dequantize() / np.repeat(plain.absmax, 128), 5)) <= set(np.round(cubic.levels, 5).tolist())
        assert e.rmse == pytest.approx(np.sqrt(((x - plain.dequantize()) ** 2).mean()), rel=1e-5)
        assert q.nested is not None
        assert wb.FORMATS["cubic"].title == "Cubic"

    def test_a_name_can_be_given_new_levels_but_not_taken_from_the_workbench(self, cubic):
        assert wb.register_format("cubic", np.linspace(-1, 1, 16)) is not cubic
        with pytest.raises(wb.FormatError, match="own"):
            wb.register_format("nf4", np.linspace(-1, 1, 16))

    @pytest.mark.parametrize(
        "levels", [range(15), np.linspace(-2, 2, 16), np.linspace(1, -1, 16), ["x"] * 16, None, [np.nan] * 16], ids=str
    )
    def test_what_are_no_sixteen_levels_is_refused(self, levels):
        with pytest.raises(wb.FormatError):
            wb.register_format("mine", levels)
        assert "mine" not in wb.FORMATS

    @pytest.mark.parametrize("name", ["", " ", "a\nb", None, 4])
    def test_what_is_no_name_is_refused(self, name):
        with pytest.raises(wb.FormatError, match="name"):
            wb.register_format(name, np.linspace(-1, 1, 16))
