"""Statistics equal their plain definitions, and do not depend on threads, neighbours or how often one asks."""

import dataclasses
import functools
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests.helpers.interrupts import printed_after_interrupt
from workbench.kernels import pool
from workbench.quant.histogram import histogram
from workbench.quant.measure import merge_equal_levels, pool_blocks


def weights(shape, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(5, shape) * 0.02).astype(ml_dtypes.bfloat16)


@pytest.fixture
def one_thread():
    pool.set_threads(1)
    yield
    pool.set_threads(0)


def every_kind_of_specification() -> list[wb.QuantSpec]:
    specs = [wb.QuantSpec(name, size) for name, form in wb.FORMATS.items() for size in form.block_sizes[::7] or (0,)]
    specs += [wb.QuantSpec(s.format, s.block_size, double_quant=True) for s in specs if s.definition.rule == "absmax"]
    return [
        *specs,
        wb.QuantSpec("int4-sym", 64, "float16"),
        wb.QuantSpec("nf4", 128, "bfloat16"),
        wb.QuantSpec("int4-asym", 32, "float32"),
    ]


@pytest.mark.parametrize("spec", every_kind_of_specification(), ids=lambda spec: spec.title)
def test_levels_are_what_a_block_may_become_in_units_of_its_absmax(spec):
    x = weights((96, 1000))
    x[:8] = 0  # blocks without a scale say nothing of the others
    e, form = wb.measure(x, spec), spec.definition
    distinct = np.unique(form.levels).astype(np.float64)
    if form.double_quantizable:
        np.testing.assert_array_equal(e.levels, distinct)
        return
    blocks = e.block_absmax > 0
    zero, ratio = np.median(e.block_zero[blocks]), np.median(e.block_scale[blocks] / e.block_absmax[blocks])
    np.testing.assert_allclose(e.levels, np.sort((distinct - zero) * ratio), rtol=1e-6)
    assert e.levels[0] < 0 < e.levels[-1]


def test_levels_of_a_tensor_without_a_finite_block_are_those_of_the_format():
    e = wb.measure(np.full(64, np.nan, np.float32), wb.QuantSpec("mxfp4", 32))
    assert np.abs(e.levels).max() == 1


@pytest.mark.parametrize("spec", every_kind_of_specification(), ids=lambda spec: spec.title)
def test_statistics_are_those_of_the_dequantized_tensor(spec):
    x = weights((96, 1001))
    block_size = spec.block_size
    q, e = wb.quantize(x, spec), wb.measure(x, spec)
    exact = x.astype(np.float64)
    error = exact - q.dequantize().astype(np.float64)
    assert e.rmse == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert e.mae == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert e.max == pytest.approx(np.abs(error).max(), rel=1e-6)
    assert e.relative_rmse == pytest.approx(e.rmse / np.sqrt((exact**2).mean()), rel=1e-5)
    assert e.sqnr_db == pytest.approx(-20 * np.log10(e.relative_rmse), rel=1e-6)
    starts = np.arange(0, x.size, block_size)
    sizes = np.diff([*starts, x.size])
    flat = error.reshape(-1)
    np.testing.assert_allclose(e.block_rmse, np.sqrt(np.add.reduceat(flat**2, starts) / sizes), rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(e.block_mae, np.add.reduceat(np.abs(flat), starts) / sizes, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(e.block_max, np.maximum.reduceat(np.abs(flat), starts), rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(e.block_absmax, q.absmax)
    np.testing.assert_array_equal(e.block_scale, q.scales)
    np.testing.assert_array_equal(e.block_zero, np.zeros_like(q.scales) if q.zero_points is None else q.zero_points)
    counts = np.bincount(q.codes, minlength=spec.definition.levels.size)
    np.testing.assert_array_equal(e.occupancy, counts[spec.definition.code_of_rank])
    share = np.bincount(np.searchsorted(np.unique(spec.definition.levels), spec.definition.level_of_code[q.codes])) / x.size
    assert e.entropy_bits == pytest.approx(-(share[share > 0] * np.log2(share[share > 0])).sum())


@pytest.mark.parametrize(
    ("name", "block_size", "mean_absolute"),
    [("nf4", 64, 0.072798), ("nf4", 256, 0.080337), ("nf4", 4096, 0.092547), ("fp4", 64, 0.096543), ("fp4", 4096, 0.129536)],
)
def test_error_on_a_normal_matrix_is_what_bitsandbytes_own_tests_expect(name, block_size, mean_absolute):
    x = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    assert wb.measure(x, wb.QuantSpec(name, block_size)).mae == pytest.approx(mean_absolute, rel=3e-3)


def test_relative_rmse_on_a_normal_matrix():
    x = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    nf4, double, int4, fp4, af4, symmetric = wb.measure(
        x, [wb.QuantSpec("nf4"), wb.QuantSpec("nf4", double_quant=True), *map(wb.QuantSpec, ("int4", "fp4", "af4", "int4-sym"))]
    )
    assert nf4.relative_rmse == pytest.approx(0.0920, abs=2e-4)
    assert double.relative_rmse == pytest.approx(0.0920, abs=2e-4)
    assert fp4.relative_rmse == pytest.approx(0.1220, abs=3e-4)
    assert 0.095 < int4.relative_rmse < 0.101
    assert af4.relative_rmse == pytest.approx(0.0957, abs=3e-4)
    assert symmetric.relative_rmse == pytest.approx(0.1077, abs=3e-4)


def assert_same(a: wb.ErrorStats, b: wb.ErrorStats) -> None:
    for field in ("occupancy", "block_rmse", "block_mae", "block_max", "block_absmax"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    assert (a.rmse, a.mae, a.max, a.rms) == (b.rmse, b.mae, b.max, b.rms)


def test_several_formats_in_one_call_are_the_formats_one_by_one():
    x = weights((64, 1000))
    specs = [
        wb.QuantSpec("nf4", 64),
        wb.QuantSpec("int4", 128),
        wb.QuantSpec("fp4", 64),
        wb.QuantSpec("nf4", 64, double_quant=True),
    ]
    for together, spec in zip(wb.measure(x, specs), specs, strict=True):
        assert_same(together, wb.measure(x, spec))


def test_the_number_of_threads_changes_nothing(one_thread):
    x = weights((1500, 1024))
    alone = wb.measure(x, wb.QuantSpec())
    for count in (2, 3):
        pool.set_threads(count)
        assert_same(wb.measure(x, wb.QuantSpec()), alone)


@given(st.integers(0, 20), st.integers(1, 20))
def test_a_block_s_statistics_do_not_depend_on_the_blocks_around_it(before, after):
    x = weights(41 * 64)
    whole, part = wb.measure(x, wb.QuantSpec()), wb.measure(x[before * 64 : (before + after) * 64], wb.QuantSpec())
    np.testing.assert_array_equal(part.block_rmse, whole.block_rmse[before : before + after])
    np.testing.assert_array_equal(part.block_max, whole.block_max[before : before + after])


def test_huge_and_tiny_weights_neither_overflow_nor_vanish():
    x = np.random.default_rng(0).standard_normal(4096, np.float32)
    plain = wb.measure(x, wb.QuantSpec()).relative_rmse
    for scale in (2.0**90, 2.0**-90):
        e = wb.measure(x * np.float32(scale), wb.QuantSpec())
        assert e.relative_rmse == pytest.approx(plain, rel=1e-6)


class TestTally:
    """Totals of a tensor that comes in chunks are those of the tensor measured whole, to the last bit."""

    SPECS: ClassVar = [
        wb.QuantSpec("nf4"),
        wb.QuantSpec("nf4", double_quant=True),
        wb.QuantSpec("int8", 4096),
        *map(wb.QuantSpec, ("int4-asym", "mxfp4", "nvfp4", "iq4_nl")),
    ]

    def assert_equal_to_measure(self, x: np.ndarray) -> None:
        tally = wb.Tally(self.SPECS)
        chunks = [x[start : start + wb.Tally.STEP] for start in range(0, x.size, wb.Tally.STEP)]
        assert tally.looks_first
        for chunk in chunks:
            tally.look(chunk)
        for chunk in chunks:
            tally.feed(chunk)
        for ours, whole in zip(tally.totals(), wb.measure(x, self.SPECS), strict=True):
            for field in dataclasses.fields(ours):
                np.testing.assert_array_equal(getattr(ours, field.name), getattr(whole, field.name), err_msg=ours.spec.title)

    def test_of_several_chunks_and_a_tail(self):
        self.assert_equal_to_measure(weights(2 * wb.Tally.STEP + 77_777))

    def test_of_one_short_chunk(self):
        self.assert_equal_to_measure(weights(1000))

    def test_with_weights_that_are_not_finite(self):
        x = weights(wb.Tally.STEP + 640)
        x[[5, wb.Tally.STEP + 3]] = np.nan, np.inf
        self.assert_equal_to_measure(x)

    def test_looks_first_only_where_scales_depend_on_the_whole_tensor(self):
        assert not wb.Tally([wb.QuantSpec("nf4"), wb.QuantSpec("mxfp4")]).looks_first
        assert wb.Tally([wb.QuantSpec("nvfp4")]).looks_first

    def test_refuses_scales_whose_blocks_would_cross_chunks(self):
        with pytest.raises(wb.FormatError, match="1000 scales"):
            wb.Tally([wb.QuantSpec("nf4", double_quant=True, nested_block_size=1000)])


def test_weights_that_are_not_finite_are_counted_and_left_out_of_the_averages():
    x = weights((8, 640)).astype(np.float32)
    clean = wb.measure(np.delete(x.reshape(-1, 64), [3, 7], axis=0), wb.QuantSpec())
    x.reshape(-1)[[3 * 64, 3 * 64 + 1, 7 * 64]] = [np.nan, np.inf, -np.inf]
    e = wb.measure(x, wb.QuantSpec())
    assert (e.nans, e.infinities, e.bad_blocks) == (1, 2, 2)
    assert np.isnan(e.block_rmse[[3, 7]]).all()
    assert np.isfinite(np.delete(e.block_rmse, [3, 7])).all()
    assert e.rmse == pytest.approx(clean.rmse, rel=1e-6)
    assert e.occupancy.sum() == x.size


def test_nothing_but_nan_is_told_as_such():
    e = wb.measure(np.full(128, np.nan, np.float32), wb.QuantSpec(double_quant=True))
    assert e.nans == 128
    assert np.isnan(e.rmse)


def test_a_tensor_of_zeros_has_no_error():
    e = wb.measure(np.zeros(128, np.float32), wb.QuantSpec())
    assert (e.rmse, e.relative_rmse, e.sqnr_db) == (0.0, 0.0, float("inf"))


def test_a_sample_says_that_it_is_one_and_is_near_the_whole():
    x = weights((1024, 1024))
    whole, part = wb.measure(x, wb.QuantSpec()), wb.measure(x, wb.QuantSpec(), sample=1 / 16)
    assert whole.sampled is None
    assert part.sampled == pytest.approx(1 / 16)
    assert part.numel == x.size // 16
    assert part.rmse == pytest.approx(whole.rmse, rel=0.02)
    assert wb.measure(x[:2], wb.QuantSpec(), sample=1 / 16).sampled is None, "a small tensor is measured whole"
    with pytest.raises(wb.FormatError, match="sample"):
        wb.measure(x, wb.QuantSpec(), sample=0)


def test_histogram_counts_normalised_weights():
    x = weights((37, 100))
    counts = histogram(x, 64, bins=32)
    flat = x.astype(np.float32).reshape(-1)
    absmax = np.repeat(wb.quantize(x, wb.QuantSpec()).absmax, 64)[: flat.size]
    expected, _ = np.histogram(flat / absmax, bins=32, range=(-1, 1))
    assert counts.sum() == flat.size
    assert np.abs(counts - expected).sum() <= 4, "x · (1/a) and x / a may fall on two sides of a border"


def test_the_two_zeros_of_fp4_are_one_bin():
    levels, counts = merge_equal_levels(wb.FORMATS["fp4"], np.arange(16))
    assert levels.size == 15
    assert counts[levels == 0] == 7 + 8


def test_pooled_map_keeps_the_largest_block_of_every_cell():
    values = np.arange(50, dtype=np.float32)
    values[13] = np.nan
    cells, covered = pool_blocks(values, per_row=7, height=4, width=3)
    assert covered == (2, 3)
    assert cells.tolist()[0] == [9, 12, 6]
    assert cells[3, 2] == 48, "the last row is short"
    cells, covered = pool_blocks(values, per_row=7, height=100, width=100)
    assert covered == (1, 1)
    assert np.isnan(cells[1, 6])


def test_a_window_of_the_pooled_map_holds_the_blocks_inside_it():
    values = np.random.default_rng(0).standard_normal(50, np.float32)
    values[[3, 20]] = np.nan, np.inf
    table = np.full((8, 7), np.nan, np.float32)
    table.reshape(-1)[:50] = np.where(np.isfinite(values), values, np.nan)
    cells, covered = pool_blocks(values, 7, height=3, width=2, rows=(2, 8), columns=(1, 6))
    assert covered == (2, 3)
    expected = [[np.nanmax(table[y : y + 2, x : min(x + 3, 6)]) for x in (1, 4)] for y in (2, 4)]
    assert cells[:2].tolist() == expected
    assert cells[2, 0] == np.nanmax(table[6, 1:4]), "only the first block of the last row is there, outside of the window"
    single, covered = pool_blocks(values, 7, height=9, width=9, rows=(0, 8))
    assert covered == (1, 1)
    np.testing.assert_array_equal(single, table)


def test_two_python_threads_may_measure_at_once():
    x = weights((1500, 1024))
    alone = wb.measure(x, wb.QuantSpec())
    with ThreadPoolExecutor(2) as two:
        for e in two.map(lambda _: wb.measure(x, wb.QuantSpec()), range(6)):
            assert_same(e, alone)


def test_cancelled_at_any_moment_nothing_half_done_comes_back():
    """Nor is it computed with: the suite turns NumPy's warnings of that into errors."""
    x, specs = weights((600, 1024)), [wb.QuantSpec(double_quant=True), wb.QuantSpec("nvfp4"), wb.QuantSpec("int4-asym")]
    for work in (wb.measure, wb.quantize):
        for spec in specs:
            asked = 0

            def cancelled(after: int) -> bool:
                nonlocal asked
                asked += 1
                return asked > after

            for after in itertools.count():
                asked = 0
                try:
                    work(x, spec, cancelled=functools.partial(cancelled, after))
                except InterruptedError:
                    continue
                break
            assert asked == after >= 4, "two spans in each of two passes at the least"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_can_measure():
    code = """
import os, numpy as np, workbench as wb
x = np.random.default_rng(0).standard_normal((1500, 1024), np.float32)
before = wb.measure(x, wb.QuantSpec()).rmse
child = os.fork()
if not child:
    os._exit(0 if wb.measure(x, wb.QuantSpec()).rmse == before else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)


def test_control_c_in_the_middle_leaves_the_engine_usable():
    code = """
import numpy as np, workbench as wb
x = np.random.default_rng(0).standard_normal((1500, 1024), np.float32)
before = wb.measure(x, wb.QuantSpec()).rmse
try:
    print("ready", flush=True)
    while True:
        wb.measure(x, wb.QuantSpec())
except KeyboardInterrupt:
    print("same" if wb.measure(x, wb.QuantSpec()).rmse == before else "other", flush=True)
"""
    assert printed_after_interrupt(code) == "same\n"


def test_a_cache_folder_that_cannot_be_written_is_survived(tmp_path):
    """Neither the package's folder nor the home folder takes files: kernels compile, and work."""
    code = "import numpy as np, workbench as wb; print(wb.measure(np.ones(64, np.float32), wb.QuantSpec()).max)"
    source = os.path.dirname(os.path.dirname(wb.__file__))
    blocked = tmp_path / "file"
    blocked.write_text("")
    environment = os.environ | {"HOME": str(blocked), "XDG_CACHE_HOME": str(blocked), "NUMBA_CACHE_DIR": str(blocked / "x")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=source, timeout=240
    )
    assert done.stdout == "0.0\n", done.stderr
