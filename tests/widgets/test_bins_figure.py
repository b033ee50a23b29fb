"""The figure of the formats' bins without a browser: one x axis, bins as wide as they are, and what each tells."""

from __future__ import annotations

import itertools

import numpy as np
import plotly.graph_objects as go
import pytest

import workbench as wb
from widgets.figures import bins
from workbench.quant.inspect import bin_errors
from workbench.quant.measure import ErrorStats

X = (np.random.default_rng(0).standard_normal((256, 256)) * 0.02).astype(np.float32)
FOUR_BITS = [name for name, form in wb.FORMATS.items() if form.bits == 4]


def figure(*formats: str, log: bool = False) -> tuple[list[ErrorStats], dict]:
    """Each format's measurement, and the figure of all of them."""
    stats = [wb.measure(X, wb.QuantSpec(name)) for name in formats]
    return stats, bins.distribution(wb.histogram(X), stats, log, [bin_errors(X, e) for e in stats])


def occupancies(drawn: dict) -> list[dict]:
    """The traces of bins, without the histogram."""
    return [trace for trace in drawn["data"] if "meta" in trace and trace["name"] != "histogram"]


@pytest.mark.parametrize("name", FOUR_BITS)
def test_each_bin_is_as_wide_as_it_is_and_as_high_as_its_share_of_the_weights(name: str) -> None:
    [e], drawn = figure(name)
    [bars] = occupancies(drawn)
    levels, lower, upper = bins.bins(e)
    np.testing.assert_allclose(bars["x"] - bars["width"] / 2, lower, atol=1e-12)
    np.testing.assert_allclose(bars["x"] + bars["width"] / 2, upper, atol=1e-12)
    np.testing.assert_array_equal(lower[1:], upper[:-1])
    assert np.all((lower <= levels) & (levels <= upper))
    assert bars["y"].sum() == pytest.approx(100)
    go.Figure(drawn)


def test_all_parts_stand_one_below_the_other_on_one_x_axis() -> None:
    _, drawn = figure("nf4", "int8", "fp4")
    assert all("xaxis" not in trace for trace in drawn["data"]), "the first x axis is that of every trace"
    domains = [drawn["layout"][f"yaxis{i}"]["domain"] for i in ("", 2, 3, 4)]
    assert all(upper[0] > lower[1] for upper, lower in itertools.pairwise(domains))
    assert domains[0][1] == 1
    assert domains[-1][0] == 0
    assert drawn["layout"]["xaxis"]["anchor"] == "y4", "its numbers stand at the bottom"


def test_hundreds_of_bins_are_steps_through_the_levels() -> None:
    [e], drawn = figure("int8")
    [steps] = occupancies(drawn)
    assert (steps["type"], steps["line"]["shape"]) == ("scatter", "hvh"), "their edges lie half way, as those of the bins do"
    np.testing.assert_array_equal(steps["x"], bins.bins(e)[0])
    assert steps["y"].sum() == pytest.approx(100)


@pytest.mark.parametrize(("name", "equal"), [("nf4", 100 / 16), ("fp4", 100 / 15), ("int8", 100 / 256)])
def test_the_equal_share_is_that_of_the_format_s_own_bins(name: str, equal: float) -> None:
    _, drawn = figure(name)
    [line] = drawn["layout"]["shapes"]
    assert line["y0"] == line["y1"] == drawn["layout"]["yaxis2"]["tickvals"][0] == pytest.approx(equal, rel=0.01)


def test_the_histogram_holds_all_weights_and_its_outline_has_no_zero_on_an_axis_of_logarithms() -> None:
    assert figure("nf4")[1]["data"][0]["y"].sum() == pytest.approx(100)
    _, drawn = figure("nf4", log=True)
    assert drawn["data"][0]["y"].min() > 0
    assert drawn["layout"]["yaxis"]["type"] == "log"


def test_a_bin_tells_its_level_edges_share_weights_and_error() -> None:
    [e], drawn = figure("int4")
    [bars] = occupancies(drawn)
    assert bars["meta"] == bins.READ
    told = [text.split("\t") for text in bars["customdata"]]
    assert all(len(cells) == len(bins.READ) for cells in told)
    count = e.occupancy.tolist()
    assert [int(cells[4].replace(",", "")) for cells in told] == count
    assert told[0][:3] == ["−1.0000", "−1.0000", "−0.9375"]
    assert told[5][3] == f"{100 * count[5] / e.numel:.2f} %"
    assert told[5][5] == f"{bin_errors(X, e).rmse[5]:.3e}"
    histogram = drawn["data"][0]
    assert all(len(text.split("\t")) == len(bins.READ) for text in histogram["customdata"])


def test_a_sampled_error_says_so() -> None:
    e = wb.measure(X, wb.QuantSpec())
    drawn = bins.distribution(wb.histogram(X), [e], errors=[bin_errors(X, e, most=X.size // 8)])
    assert occupancies(drawn)[0]["meta"][-1] == "RMSE (sample 12 %)"


def test_levels_that_differ_from_block_to_block_are_said_to_be_of_one_block_and_draw_no_lines() -> None:
    _, drawn = figure("int4-asym")
    assert "median block" in drawn["layout"]["annotations"][0]["text"]
    assert [trace["name"] for trace in drawn["data"]] == ["histogram", "INT4 asymmetric"]
