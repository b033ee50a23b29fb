"""A survey's rows are what ``measure`` says of each tensor; it tells how far it is, stops, goes on, survives faults."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import workbench as wb
from tests.helpers import tiny
from tests.helpers.interrupts import printed_after_interrupt
from tests.helpers.surveys import SPECS, assert_same, assert_same_totals, checkpoint, layers, weights
from workbench.kernels.moments import moments
from workbench.quant.quantize import as_weights
from workbench.sources import packed
from workbench.sources.base import Reader, Watch
from workbench.sources.local import LocalSource

BIG = 2_500_001  # weights: several chunks of every dtype, a tail, and blocks across rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("models") / "m", layers(6))


def assert_nothing_reads() -> None:
    for thread in threading.enumerate():
        if thread.name == "workbench-read":
            thread.join(60)
            assert not thread.is_alive()


def test_every_row_is_what_measure_says_of_the_tensor(folder: Path) -> None:
    source = wb.open_model(folder)
    rows = list(wb.survey(source, SPECS, progress=False))
    assert [row.tensor for row in rows] == source.tensors()
    for row in rows:
        assert row.error is None
        for totals, expected in zip(row.totals, wb.measure(source.read(row.tensor.name), SPECS), strict=True):
            assert_same_totals(totals, expected)
    assert [(row.layer, row.kind) for row in rows] == [(i // 2, ("q", "down")[i % 2]) for i in range(6)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_a_tensor_of_many_chunks_is_measured_as_one(dtype: type, tmp_path: Path) -> None:
    x = weights(2 * BIG if dtype is ml_dtypes.bfloat16 else BIG, dtype)
    survey = wb.survey(checkpoint(tmp_path, {"model.layers.0.x": x}), SPECS, "all", progress=False)
    (row,) = survey
    for totals, expected in zip(row.totals, wb.measure(x, SPECS), strict=True):
        assert_same_totals(totals, expected)
    assert row.kurtosis == moments(as_weights(x)).kurtosis


@pytest.mark.parametrize("shape", [(700, 4000), (2_200_000, 2), (3, 5)])
def test_a_transposed_layer_is_measured_as_bitsandbytes_sees_it(shape: tuple[int, int], tmp_path: Path) -> None:
    name = "h.0.attn.c_attn.weight"
    source = wb.open_model(checkpoint(tmp_path, {name: weights(shape, np.float32)}, model_type="gpt2"))
    (row,) = wb.survey(source, SPECS, progress=False)
    assert row.tensor.layout == "transposed"
    for totals, expected in zip(row.totals, wb.measure(source.read(name).T, SPECS), strict=True):
        assert_same_totals(totals, expected)


def test_weights_that_the_checkpoint_holds_packed_are_dequantized(tmp_path: Path) -> None:
    plain = tiny.save(tmp_path / "plain", "llama", tiny.LLAMA)
    tiny.load_4bit(plain).save_pretrained(tmp_path / "packed")
    source = wb.open_model(tmp_path / "packed")
    rows = {row.tensor.name: row for row in wb.survey(source, SPECS, "all", progress=False)}
    assert rows.keys() == {info.name for info in packed.logical(source)}, "their scales have no rows"
    for info in packed.logical(source):
        assert rows[info.name].tensor == info
        expected = wb.measure(packed.weights(source, info.name), SPECS)
        assert [t.rmse for t in rows[info.name].totals] == [e.rmse for e in expected]
    down = rows["model.layers.0.mlp.down_proj.weight"]
    assert down.totals[0].relative_rmse < 0.02, "NF4 again"
    with pytest.raises(wb.ModelError, match="tensors='all'"):
        wb.survey(source, SPECS)


def test_which_tensors(tmp_path: Path) -> None:
    extra = {
        "model.norm.weight": weights(64), "lm_head.weight": weights((8, 64)), "model.ids": np.arange(4),
        "model.none": np.zeros(0, np.float32), "model.scales": np.ones(4, ml_dtypes.float8_e8m0fnu),
    }  # fmt: skip
    source = wb.open_model(checkpoint(tmp_path, layers(2) | extra))

    def chosen(tensors: object) -> list[str]:
        return [info.name for info in wb.survey(source, wb.QuantSpec(), tensors, progress=False).infos]  # type: ignore[arg-type]

    assert chosen(None) == list(layers(2))
    assert set(chosen("all")) == {*layers(2), "model.norm.weight", "lm_head.weight"}
    assert chosen(["lm_head.weight", "model.ids", "lm_head.weight"]) == ["lm_head.weight", "model.ids"]
    assert chosen("model.ids") == chosen([t for t in source.tensors() if t.name == "model.ids"]) == ["model.ids"]
    for wrong, message in (
        (["no.such"], "no tensor 'no.such'"),
        ("lm_head", "no tensor 'lm_head'.*Give 'all' or names"),
        ([], "no such tensors"),
    ):
        with pytest.raises(wb.ModelError, match=message):
            chosen(wrong)


def test_what_is_wrong_with_the_call_is_said_at_once(folder: Path) -> None:
    for specs in ([], [5], None):
        with pytest.raises(wb.FormatError, match="QuantSpec"):
            wb.survey(folder, specs)  # type: ignore[arg-type]
    with pytest.raises(wb.FormatError, match="nested block size"):
        wb.survey(folder, wb.QuantSpec(double_quant=True, nested_block_size=100))
    with pytest.raises(wb.ModelError, match="no such folder"):
        wb.survey(folder / "other", wb.QuantSpec())
    with pytest.raises(wb.WorkbenchError, match="0 threads"):
        wb.survey(folder, wb.QuantSpec(), worker_threads=0)


def test_what_cannot_be_measured_becomes_a_row_with_its_error_and_the_rest_goes_on(tmp_path: Path) -> None:
    tensors = {"a.ids": np.arange(9), "b.none": np.zeros((0, 4), np.float32), **layers(2), "z.weight": weights((64, 64))}
    source = wb.open_model(checkpoint(tmp_path, tensors))
    survey = wb.survey(source, SPECS, list(tensors), progress=False)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate((tmp_path / "model.safetensors").stat().st_size - 1)
    errors = {row.tensor.name: row.error for row in survey}
    assert "int64 is not a tensor of weights" in str(errors["a.ids"])
    assert "has no weights" in str(errors["b.none"])
    assert "Changed since it was opened" in str(errors["z.weight"])
    assert survey.done
    assert [row.totals for row in survey.errors] == [()] * 5, "the file's other tensors are not trusted either"


def test_a_shard_that_is_gone_takes_only_its_own_tensors_along(tmp_path: Path) -> None:
    shards = tiny.save(tmp_path / "sharded", "llama", tiny.LLAMA, max_shard_size="60KB")
    source = wb.open_model(shards)
    lost = sorted(shards.glob("*.safetensors"))[1]
    lost.unlink()
    rows = wb.survey(source, SPECS, "all", progress=False).run().rows
    bad = {row.tensor.name for row in rows if row.error}
    assert bad == {name for name, (file, _) in source.entries().items() if file == lost.name}
    assert all("missing" in str(row.error) for row in rows if row.error)
    assert 0 < len(bad) < len(rows)


def test_weights_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    x = weights((8, 640), np.float32)
    x.reshape(-1)[[3, 70, 71]] = [np.nan, np.inf, -np.inf]
    (row,) = wb.survey(checkpoint(tmp_path, {"model.x": x}), wb.QuantSpec(), "all", progress=False)
    assert (row.totals[0].nans, row.totals[0].infinities, row.totals[0].bad_blocks) == (1, 2, 2)
    assert np.isfinite(row.kurtosis)


def test_progress_counts_bytes_up_to_their_total(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    tensors = {"model.a": weights(BIG, np.float32), "model.b": weights(100), "model.ids": np.arange(5)}
    wb.survey(checkpoint(tmp_path, tensors), SPECS, list(tensors), progress=lambda *at: told.append(at)).run()
    total = sum(x.nbytes for x in tensors.values())
    assert {of for _, of in told} == {total}
    done = [at for at, _ in told]
    assert done == sorted(done)
    assert done[-1] == total
    assert len({at for at in done if at < tensors["model.a"].nbytes}) > 2, "also within a tensor"


@pytest.mark.slow
def test_many_specifications_take_smaller_steps(tmp_path: Path) -> None:
    folder, steps = checkpoint(tmp_path, {"model.a": weights(4 * (1 << 20))}), []
    for specs in (SPECS[:1], SPECS[:1] * 16, SPECS[:1] * 48):
        told: list[int] = []
        wb.survey(folder, specs, "all", progress=lambda done, total, told=told: told.append(done)).run()
        steps.append(len(set(told)))
    assert steps == [1, 2, 4]


@pytest.mark.slow
def test_the_bar_shows_in_a_terminal_and_is_silent_in_a_log_file(folder: Path) -> None:
    code = f"import workbench as wb; print(len(wb.survey({str(folder)!r}, wb.QuantSpec()).run().rows))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert (done.stdout, done.stderr) == ("6\n", "")
    terminal, inside = os.openpty()
    termios.tcsetwinsize(inside, (24, 80))
    with subprocess.Popen([sys.executable, "-c", code], stderr=inside, stdout=subprocess.PIPE, text=True) as process:
        os.close(inside)
        assert process.communicate(timeout=240)[0] == "6\n"
    with os.fdopen(terminal, "rb", buffering=0) as screen:
        assert b"Survey: 100%" in screen.read(1 << 16)


def test_leaving_the_loop_stops_the_reading_and_iterating_again_goes_on(folder: Path) -> None:
    survey = wb.survey(folder, SPECS, progress=False)
    for _ in survey:
        break
    assert len(survey.rows) == 1
    assert_nothing_reads()
    assert not survey.done
    rows = list(survey)
    assert survey.done
    assert_same(rows, wb.survey(folder, SPECS, progress=False))
    assert [row.tensor for row in rows] == [row.tensor for row in survey], "the same rows again, without work"


def test_two_threads_may_iterate_one_survey(folder: Path) -> None:
    told: list[int] = []
    survey = wb.survey(folder, SPECS, progress=lambda done, total: told.append(done))
    found: list[list[object]] = [[], []]
    threads = [threading.Thread(target=lambda rows=rows: rows.extend(survey)) for rows in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found[0] == found[1] == list(survey.rows)
    assert told == sorted(told), "the work was done once"


def test_cancel_ends_the_survey_in_the_middle_of_a_tensor_and_keeps_the_rows(tmp_path: Path) -> None:
    tensors = {"model.a": weights(1000), "model.b": weights(BIG, np.float32), "model.c": weights(1000)}
    reached = tensors["model.a"].nbytes

    def progress(done: int, total: int) -> None:
        if done > reached:
            survey.cancel()

    survey = wb.survey(checkpoint(tmp_path, tensors), SPECS, "all", progress=progress)
    assert [row.tensor.name for row in survey] == ["model.a"]
    assert (survey.cancelled, survey.done, len(survey.to_frame())) == (True, False, len(SPECS))
    assert not list(survey)[1:], "for good"
    assert "cancelled" in repr(survey)


class Hanging(LocalSource):
    """Hangs in the second tensor until it is let go, as a stalled network drive does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.hangs, self.let_go = threading.Event(), threading.Event()

    @contextmanager
    def _open(self, file: str, begin: int, end: int, watch: Watch) -> Iterator[Reader]:
        with super()._open(file, begin, end, watch) as read:
            if begin and begin == list(self.entries().values())[1][1].begin:
                self.hangs.set()
                assert self.let_go.wait(60)
            yield read


def test_cancel_from_another_thread_ends_a_survey_whose_reading_hangs_within_a_second(folder: Path) -> None:
    source, first = Hanging(folder), threading.Event()
    survey = wb.survey(source, wb.QuantSpec(), progress=False)
    asked: list[float] = []

    def cancel() -> None:
        assert source.hangs.wait(60)
        assert first.wait(60)
        asked.append(time.monotonic())
        survey.cancel()

    other = threading.Thread(target=cancel)
    other.start()
    for _ in survey:
        first.set()
    seconds = time.monotonic() - asked[0]
    source.let_go.set()
    other.join(60)
    assert len(survey.rows) == 1
    assert seconds < 1
    assert_nothing_reads()


def test_a_survey_whose_reading_hangs_goes_on_asking_whether_it_is_wanted(folder: Path) -> None:
    source, asked = Hanging(folder), 0

    def cancelled() -> bool:
        nonlocal asked
        asked += source.hangs.is_set()
        return asked >= 3

    survey = wb.survey(source, SPECS, progress=False, cancelled=cancelled).run()
    source.let_go.set()
    assert survey.cancelled
    assert len(survey.rows) == 1
    with pytest.raises(InterruptedError):
        wb.duel(folder, cancelled=lambda: True)


def test_control_c_ends_the_loop_and_the_survey_goes_on_afterwards(tmp_path: Path) -> None:
    checkpoint(tmp_path, {f"model.layers.{i}.mlp.up_proj.weight": weights((100, 1000), seed=i) for i in range(3)})
    code = f"""
import threading, workbench as wb
survey = wb.survey({str(tmp_path)!r}, wb.QuantSpec(), progress=False).run()
try:
    print("ready", flush=True)
    while True:
        survey = wb.survey({str(tmp_path)!r}, wb.QuantSpec(), progress=False)
        survey.run()
except KeyboardInterrupt:
    while any(thread.name == "workbench-read" for thread in threading.enumerate()):
        threading.Event().wait(0.01)
    print(len(survey.run().rows), flush=True)
"""
    assert printed_after_interrupt(code) == "3\n"


def test_seconds_of_reading_and_computing_are_told_apart(folder: Path) -> None:
    survey = wb.survey(folder, SPECS, progress=False)
    assert (survey.seconds_reading, survey.seconds_computing) == (0, 0)
    survey.run()
    assert survey.seconds_reading == sum(row.seconds_reading for row in survey.rows) > 0
    assert survey.seconds_computing == sum(row.seconds_computing for row in survey.rows) > 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells and resets a process's peak memory")
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """The peak over what the interpreter holds once its libraries and kernels are loaded."""
    block = weights((8192, 4096))  # 64 MiB
    folder = checkpoint(tmp_path, {f"model.layers.{i}.mlp.up_proj.weight": block for i in range(4)} | {"small": weights(4096)})
    code = f"""
import workbench as wb
from tests.helpers.surveys import SPECS

def memory(of):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(of)) / 1024

wb.survey({str(folder)!r}, SPECS, ["small"], progress=False).run()
before = memory("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak is from now on
survey = wb.survey({str(folder)!r}, SPECS, progress=False).run()
assert len(survey.rows) == 4 and not survey.errors
print(memory("VmHWM") - before)
"""
    wb.survey(folder, SPECS, progress=False).run()  # here, so that no kernel is compiled there, which takes memory of its own
    root = Path(wb.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=240)
    assert float(done.stdout) < 64, done.stderr
