"""What is measured of a tensor is measured once, and forgotten when it takes too much room."""

import dataclasses
import threading

import numpy as np
import pytest

import workbench as wb
from widgets.background import measurements
from widgets.background.measurements import Measurements
from widgets.session import Session
from workbench.quant.formats import usual_formats
from workbench.quant.histogram import histogram
from workbench.quant.inspect import bin_errors

NF4, INT4 = wb.QuantSpec("nf4"), wb.QuantSpec("int4")


@pytest.fixture
def tensor():
    return np.random.default_rng(0).standard_normal((64, 256), np.float32)


@pytest.fixture
def passes(monkeypatch):
    """The specifications of each pass over the weights."""
    made = []

    def counting(array, specs, *args, **kwargs):
        made.append(list(specs))
        return wb.measure(array, specs, *args, **kwargs)

    monkeypatch.setattr(measurements, "measure", counting)
    return made


def test_only_what_is_new_is_measured(tensor, passes):
    known = Measurements(tensor)
    first = known.stats([NF4, INT4])
    assert [e.rmse for e in first] == [e.rmse for e in wb.measure(tensor, [NF4, INT4])]
    fp4 = wb.QuantSpec("fp4")
    assert known.stats([fp4, NF4])[1] is first[0]
    assert known.stats([INT4, NF4, INT4]) == [first[1], first[0], first[1]]
    assert passes == [[NF4, INT4], [fp4]]
    assert known.histogram(64) is known.histogram(64)
    np.testing.assert_array_equal(known.histogram(64), histogram(tensor))
    assert known.bin_errors(first[0]) is known.bin_errors(first[0])
    np.testing.assert_array_equal(known.bin_errors(first[0]).rmse, bin_errors(tensor, first[0]).rmse)


def test_what_was_asked_for_longest_ago_is_forgotten_first(tensor, passes):
    known = Measurements(tensor, most=tensor.nbytes)
    sizes = [wb.QuantSpec("nf4", size) for size in (32, 64, 128, 256, 512)]
    for spec in sizes:
        known.stats([spec])
        known.stats(sizes[:1])
    kept = sum(e.block_rmse.nbytes * 4 for e in known.stats(sizes[:1]))
    assert kept < tensor.nbytes
    del passes[:]
    known.stats(sizes[:1])
    assert passes == []
    many = [wb.QuantSpec("nf4", 32, scale_dtype=dtype) for dtype in ("float16", "bfloat16")]
    many += [wb.QuantSpec(name, 32) for name in ("fp4", "af4", "int4", "int4-sym", "e2m1", "int4-asym", "int8", "mxfp4")]
    for spec in many:
        known.stats([spec])
    del passes[:]
    known.stats([many[-1]])
    known.stats(sizes[:1])
    assert passes == [sizes[:1]]


def test_outliers_are_counted_once_for_each_specification(tensor, passes):
    known = Measurements(tensor)
    nf4, int4 = known.stats([NF4, INT4])
    assert known.outliers(nf4) == wb.outliers(tensor, NF4)
    assert known.outliers(int4) == wb.outliers(tensor, INT4)
    assert known.outliers(nf4) is known.outliers(nf4)
    assert passes == [[NF4, INT4]], "what is measured already is not measured again"


def test_cancelled_nothing_is_kept(tensor):
    known = Measurements(tensor)
    with pytest.raises(InterruptedError):
        known.stats([NF4], lambda: True)
    assert known.stats([NF4])[0].rmse == wb.measure(tensor, NF4).rmse


def test_what_would_not_be_kept_is_not_measured_ahead(tensor, passes):
    known = Measurements(tensor, most=tensor.nbytes)
    five = ("nf4", "fp4", "af4", "int4", "e2m1")
    choices = [(size, [wb.QuantSpec(name, size) for name in five]) for size in (32, 64, 128, 256)]
    known.look_ahead(choices, lambda: False)
    assert passes == [specs for _, specs in choices[:2]], "5 · (512 + 256) blocks of 16 bytes; 128 more would be above 64 KiB"
    known.look_ahead(choices, lambda: False)
    assert len(passes) == 2, "what there was room for is still there"


def test_what_is_one_choice_away_is_measured_ahead(passes, monkeypatch):
    ready = threading.Event()

    def watching(weights, stats):
        if stats.spec.format == usual_formats()[-1]:
            ready.set()
        return bin_errors(weights, stats)

    monkeypatch.setattr(measurements, "bin_errors", watching)
    session = Session()
    session.start()
    assert ready.wait(60)
    session.close()
    sizes = [{spec.block_size for spec in specs} for specs in passes]
    assert sizes[:8] == [{64}, {32}, {128}, {256}, {512}, {1024}, {2048}, {4096}], "the nearest come first"
    state, known = session.store.value, session.analysis.measured
    del passes[:]
    known.stats([dataclasses.replace(state, block_size=1024).spec(name) for name in state.formats])
    known.stats([state.spec(name, double_quant=True) for name in state.formats])
    known.stats([state.spec(name) for name in usual_formats()])
    assert passes == []


def test_all_sessions_look_ahead_on_one_thread():
    def lookers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("workbench-ahead")]

    for _ in range(3):
        session = Session()
        measured_once = threading.Event()
        session.on_analysis(lambda _, told=measured_once: told.set())
        session.start()
        assert measured_once.wait(60)
        session.close()
        assert len(lookers()) <= 1
