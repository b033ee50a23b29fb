"""The formats are data: their levels, edges and codes agree with the definitions they name."""

from statistics import NormalDist

import bitsandbytes.functional as bnb
import numpy as np
import pytest

import workbench as wb


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
    x = np.union1d(np.linspace(-1, 1, 2001, dtype=np.float32), form.edges)
    nearest = form.levels[np.searchsorted(form.edges, x)]
    assert np.abs(x - nearest).max() == pytest.approx(form.widest_error, abs=1e-6)
    np.testing.assert_allclose(np.abs(x - nearest), np.abs(x[:, None] - form.levels).min(axis=1), atol=1e-7)


def test_levels_cannot_be_overwritten():
    with pytest.raises(ValueError, match="read-only"):
        wb.FORMATS["nf4"].levels[0] = 0


def test_an_unknown_format_is_told_with_the_names_there_are():
    with pytest.raises(wb.FormatError, match=r"no format 'nf5'.*nf4, fp4, af4, int4"):
        wb.QuantSpec("nf5")


@pytest.mark.parametrize("wrong", [{"block_size": 48}, {"block_size": "64"}, {"nested_block_size": 0}, {"scale_dtype": "int3"}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(wb.FormatError):
        wb.QuantSpec("nf4", **wrong)
