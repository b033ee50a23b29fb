"""Whatever ends a run has a name, says where it happened, and what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.shapes import llama
from tests.helpers.texts import changes, missing
from workbench import DataError
from workbench.memory.footprint import Plan
from workbench.memory.forecast import forecast
from workbench.text import memory_size
from workbench.training.events import read_events
from workbench.training.folder import write_json
from workbench.training.watch.endings import FAILED, Diverged, code_of, ending_of, ending_of_code
from workbench.training.watch.shortage import headroom, shortage


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


NO_GPU_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (MemoryError(), "out_of_memory", "at step 7, "),
        (NO_GPU_MEMORY, "out_of_memory", "The GPU"),
        (RuntimeError("std::bad_alloc"), "out_of_memory", "This machine"),
        (FULL, "disk_full", f"The disk is full ({FULL.strerror})."),
        (Exception("Error while serializing: I/O error: File too large (os error 27)"), "disk_full", "(File too large)"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "disk_full", "to its end"),
        (caused_by(DataError("it cannot be read.", where="rows.csv"), FULL), "disk_full", "The disk is full"),
        (DataError("there is no such file.", where="rows.csv"), "data", "rows.csv: there is no such file."),
        (Diverged("The loss is no longer a number."), "nan_loss", "no longer a number"),
        (KeyError("x"), "error", "KeyError: 'x'"),
    ],
)
def test_endings(error: Exception, kind: str, told: str) -> None:
    ending = ending_of(error, {"step": 7, "longest": 480})
    assert ending.kind == kind
    assert told in ending.message
    assert ending.remedy or isinstance(error, DataError | Diverged)  # those bring their own


def test_an_exit_code_alone_tells_of_what_may_leave_no_room_for_words() -> None:
    for error in (MemoryError(), FULL):
        ending = ending_of(error, {"step": 7})
        told = ending_of_code(code_of(ending))
        assert told is not None
        assert (told.kind, told.remedy) == (ending.kind, ending.remedy)
    assert code_of(ending_of(KeyError("x"), {})) == FAILED
    assert ending_of_code(FAILED) is None


# --- out of memory ------------------------------------------------------------------------------------------------------------

STEP = {"phase": "train", "step": 7, "rows": 4, "longest": 480}
CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 15.77 GiB of which 1.20 GiB is free. "
    "Including non-PyTorch memory, this process has 14.56 GiB memory in use. Of the allocated memory 13.00 GiB is allocated by "
    "PyTorch, and 1.10 GiB is reserved by PyTorch but unallocated."
)
"""As torch writes it."""


def of_torch() -> RuntimeError:
    """What torch really raises on a CPU: an exbibyte is more than any address space holds."""
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


def of_numpy() -> MemoryError:
    import numpy as np

    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 50)
    return caught.value


def of_cuda() -> RuntimeError:
    import torch

    return torch.cuda.OutOfMemoryError(CUDA_TEXT)


@pytest.mark.parametrize(
    ("error", "who", "asked"),
    [
        (of_torch, "This machine ran", 1 << 60),
        (of_numpy, "This machine ran", 1 << 53),
        (of_cuda, "The GPU ran", 5 << 29),
        (MemoryError, "This machine ran", None),
    ],
)
def test_out_of_memory_says_which_step_which_batch_and_what_was_asked_for(
    error: Callable[[], BaseException], who: str, asked: int | None
) -> None:
    wanted: list[tuple[Mapping[str, Any], int | None]] = []
    ending = ending_of(error(), STEP, lambda where, size: wanted.append((where, size)))
    assert ending.kind == "out_of_memory"
    assert not missing(ending.message, who, "at step 7", "480 tokens", "4 rows", "" if asked is None else memory_size(asked))
    assert ("asked for" in ending.message) == (asked is not None)
    assert wanted == [(STEP, asked)]
    assert "per_device_train_batch_size" in ending.remedy  # in general, where nothing is found


def test_memory_that_runs_out_beside_the_steps_blames_no_batch() -> None:
    for where in ({"phase": "load"}, {**STEP, "phase": "evaluate"}):
        message = ending_of(of_cuda(), where).message
        assert not missing(message, "The GPU", f"in the phase {where['phase']}", "2.50 GiB")
        assert "batch" not in message


def test_an_ending_is_told_even_if_no_change_can_be_looked_for() -> None:
    def fails(where: Mapping[str, Any], asked: int | None) -> None:
        raise MemoryError

    assert ending_of(of_cuda(), STEP, fails).message == ending_of(of_cuda(), STEP).message


PLAN = Plan(gradient_checkpointing=False, per_device_train_batch_size=8, max_length=1024, double_quant=False)
LLAMA = llama("llama-7b", 4096, 11_008, 32, 32_000)


def test_the_cheapest_change_that_would_have_fitted_is_named_with_its_value() -> None:
    found = shortage(LLAMA, PLAN, STEP, 5 << 29, 15 << 30)
    batch = replace(PLAN, per_device_train_batch_size=4, max_length=480)
    assert found.forecast == forecast(LLAMA, batch).total > 15 << 30
    ending = ending_of(of_cuda(), STEP, lambda where, asked: found)
    assert not missing(ending.message, memory_size(found.forecast), "15.00 GiB")
    assert changes(ending.remedy)[0] == "gradient_checkpointing=True"
    assert forecast(LLAMA, replace(batch, gradient_checkpointing=True)).total < 0.9 * (15 << 30)


def test_fewer_rows_come_with_more_accumulation() -> None:
    plan = replace(PLAN, gradient_checkpointing=True, double_quant=True, optim="paged_adamw_8bit")
    total = forecast(LLAMA, plan).total
    found = shortage(LLAMA, plan, {}, None, int(0.9 * total), accumulate=3)
    assert "full batch" in found.summary
    assert changes(found.remedy)[:2] == ["per_device_train_batch_size=4", "gradient_accumulation_steps=6"]


def test_a_forecast_that_was_too_low_asks_for_a_tenth_less_and_what_was_asked_for() -> None:
    plan = replace(PLAN, per_device_train_batch_size=4, max_length=480)
    total = forecast(LLAMA, plan).total
    for asked in (1, total // 2):
        found = shortage(LLAMA, PLAN, STEP, asked, 4 * total)
        assert found.changes is not None
        saved = sum(change.saved for change in found.changes)
        assert saved >= max(asked, total // 10)


def test_where_nothing_would_have_fitted_that_is_said() -> None:
    found = shortage(LLAMA, PLAN, STEP, 1 << 20, 1 << 30)
    assert found.changes is None
    assert not missing(found.remedy, "smaller model", "more memory")


def test_the_room_left_is_the_least_of_the_machine_the_container_and_the_address_space(tmp_path: Path) -> None:
    free = headroom(tmp_path)
    assert 0 < free <= psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("3000000\n", "ascii")
    (tmp_path / "memory.current").write_text("1000000\n", "ascii")
    assert headroom(tmp_path) == 2_000_000
    (tmp_path / "memory.max").write_text("max\n", "ascii")
    assert headroom(tmp_path) > 2_000_000


@pytest.mark.slow
def test_an_address_space_limit_on_a_real_run_is_told_with_the_change_that_helps(tmp_path: Path) -> None:
    """The worker's code under a limit that holds the model and not the batch."""
    config = in_process.config_of(
        Path("builtin"), max_steps=1, max_eval_rows=0, per_device_train_batch_size=96, max_length=256,
        gradient_checkpointing=False,
    )  # fmt: skip
    write_json(tmp_path / "config.json", config.to_dict())
    (tmp_path / "control").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 20, done.stderr
    (error,) = (event for event in read_events(tmp_path) if event["k"] == "error")
    assert not missing(error["message"], "This machine", "at step 1, ", "tokens", "asked for", "forecast")
    assert changes(error["remedy"])
    receipt = wb.receipt(tmp_path)
    assert receipt["4-bit weights"].measured == receipt["4-bit weights"].forecast
    assert receipt.step is None


LIMITED = """
import os, resource, sys
from pathlib import Path
import psutil
import workbench.training.worker.accounting, workbench.training.worker.trainer, workbench.training.worker.model
from workbench.training.folder import RunFolder
from workbench.training.worker.worker import Worker

worker = Worker(RunFolder(Path(sys.argv[1])), 1, os.getppid())
limit = psutil.Process().memory_info().vms + 700_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
code = worker.run()
worker.writer.close()
os._exit(code)
"""
