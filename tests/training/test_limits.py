"""What can run out or go away while a run goes: disk, memory, data, model, numbers. Each ends it by name, with what to do.

Limits are real ones, set on the live process; the disk is a small one of its own where this process may mount it, too.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.live_runs import complete, ended, files_of, first, is_step, of
from tests.helpers.preloaded import ENDLESS, Forks
from tests.helpers.texts import missing
from tests.helpers.tiny_model import ROWS, write_tiny_model
from workbench.training.folder import RunFolder
from workbench.training.host import oom_kills
from workbench.training.watch.outside import Outside

MIB = 1 << 20
_CAP_SYS_ADMIN = 21


def may_mount() -> bool:
    status = Path("/proc/self/status").read_text("ascii").splitlines()
    mask = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return bool(mask >> _CAP_SYS_ADMIN & 1)


WAYS = ["file size limit", *(["small disk"] if may_mount() else [])]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def config(model: Path) -> wb.TrainConfig:
    return in_process.config_of(model, max_steps=ENDLESS, save_steps=2, save_total_limit=3, max_eval_rows=0)


@contextlib.contextmanager
def disk(folder: Path, way: str) -> Iterator[Path]:
    """A folder, on a disk of 4 MiB where that is the way."""
    folder.mkdir()
    if way == "small disk":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        if way == "small disk":
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def leave_no_space(run: wb.Run, folder: Path, way: str) -> None:
    if way == "file size limit":
        pid = run.status.worker_pid
        assert pid is not None
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
    else:
        fill_up(folder)


def fill_up(folder: Path) -> None:
    """Writes until there is no space left."""
    with (folder / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(folder).free == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_full_disk_leaves_earlier_checkpoints_and_a_run_that_goes_on_once_there_is_space(
    forks: Forks, config: wb.TrainConfig, tmp_path: Path, way: str
) -> None:
    with disk(tmp_path / "disk", way) as folder:
        with forks.ready():
            run = wb.launch(config, folder / "run")
        first(run, lambda e: e["k"] == "checkpoint" and e["n"] >= 4)
        leave_no_space(run, folder, way)
        status = ended(run, "failed")
        assert status.kind == "disk_full"
        assert status.message.startswith("The disk is full")
        assert "Free some space" in status.remedy
        whole = RunFolder(run.dir).complete_checkpoints()
        before = [files_of(path) for path in whole]
        assert len(whole) >= 2
        assert len({tuple(files) for files in before}) == 1  # each has all its files

        if way == "small disk":
            fill_up(folder)
            with pytest.raises(wb.RunError, match=r"cannot be written \(No space left on device\)"):
                run.resume()
            assert wb.attach(run.dir).status == status  # nothing was lost by trying
            (folder / "filler").unlink()
        assert [files_of(path) for path in whole] == before
        with forks.ready():
            run.resume()
        step = first(run, is_step(1, attempt=2))
        assert step["n"] == int(whole[-1].name.removeprefix("checkpoint-")) + 1
        run.stop()
        ended(run, "stopped")


@pytest.mark.slow
def test_memory_of_this_machine_that_runs_out_is_told_with_step_and_batch(
    forks: Forks, config: wb.TrainConfig, tmp_path: Path
) -> None:
    """80 rows at a time: their logits are too large for what the allocator keeps, and are asked for anew."""
    large = replace(config, per_device_train_batch_size=80, max_length=256, save_steps=1, gradient_checkpointing=False)
    with forks.ready():
        run = wb.launch(large, tmp_path / "run")
    first(run, lambda e: e["k"] == "checkpoint")
    pid = run.status.worker_pid
    assert pid is not None
    resource.prlimit(pid, resource.RLIMIT_AS, (64 * MIB, resource.RLIM_INFINITY))
    status = ended(run, "failed")
    assert status.kind == "out_of_memory"
    assert not missing(status.message, "This machine", "at step", "longest row")
    assert status.remedy
    (error,) = of(run, "error")
    assert (error["kind"], error["message"], error["remedy"]) == (status.kind, status.message, status.remedy)
    kept = complete(run)
    assert kept
    with forks.ready():
        run.resume()
    assert first(run, is_step(1, attempt=2))["n"] == int(kept[-1].removeprefix("checkpoint-")) + 1
    run.stop()
    ended(run, "stopped")


def test_a_kill_for_want_of_memory_is_told_from_any_other(tmp_path: Path) -> None:
    """By the kernel's own count, in the seconds before the worker's end."""
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 5\noom_kill 3\n", "ascii")
    assert oom_kills(vmstat) == 3
    outside = Outside(os.getpid(), vmstat)
    assert outside.last_words() == ""
    sample = outside.sample()
    assert (sample["rss"] or 0) > MIB
    assert (sample["available"] or 0) > MIB
    assert not outside.killed_for_memory()
    vmstat.write_text("nr_free_pages 5\noom_kill 4\n", "ascii")
    outside.sample()  # it takes a while to die
    assert outside.killed_for_memory()
    for _ in range(35):
        outside.sample()
    assert not outside.killed_for_memory()  # that was somebody else
    assert oom_kills(tmp_path / "none") is None
    assert not Outside(os.getpid(), tmp_path / "none").killed_for_memory()


def test_a_dataset_that_is_gone_is_told_by_the_run_and_by_resume(forks: Forks, config: wb.TrainConfig, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(ROWS.read_bytes())
    columns = {"prompt_column": "prompt", "completion_column": "completion"}
    with forks.ready(phase="import", remove=str(rows)):
        run = wb.launch(replace(config, max_steps=2, dataset=str(rows), **columns), tmp_path / "run")
    status = ended(run, "failed")
    assert (status.kind, "rows.jsonl.gone" in status.remedy) == ("data", True)
    assert not missing(status.message, str(rows), "no such file")
    with pytest.raises(wb.DataError, match="no such file"):
        run.resume()
    assert run.status == status
    rows.with_name("rows.jsonl.gone").rename(rows)
    with forks.ready():
        ended(run.resume(), "finished")


def test_a_model_that_is_gone_is_told_by_the_run_and_by_resume(forks: Forks, config: wb.TrainConfig, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    with forks.ready(phase="import", remove=str(folder)):
        run = wb.launch(replace(config, model=str(folder)), tmp_path / "run")
    status = ended(run, "failed")
    assert status.kind == "model"
    assert str(folder) in status.message
    assert status.remedy
    with pytest.raises(wb.ModelError, match=str(folder)):
        run.resume()


def test_a_loss_that_is_no_number_ends_the_run_by_name(forks: Forks, config: wb.TrainConfig, tmp_path: Path) -> None:
    diverging = replace(
        config, learning_rate=1e30, quant_type="fp4", block_size=32, double_quant=False, optim="paged_adamw_8bit", save_steps=1
    )
    with forks.ready():
        run = wb.launch(diverging, tmp_path / "run")
    status = ended(run, "failed")
    assert status.kind == "nan_loss"
    assert "no longer a number" in status.message
    assert "learning_rate" in status.remedy
    (error,) = of(run, "error")
    assert (error["kind"], error["message"]) == (status.kind, status.message)
    *_, last = of(run, "step")
    assert last["loss"] is None
    assert complete(run) == [f"checkpoint-{n}" for n in range(1, last["n"])][-3:]  # from before
