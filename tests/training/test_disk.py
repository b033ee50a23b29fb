"""What a run writes, forecast from a model's headers, against what real runs wrote."""

from __future__ import annotations

import re
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.tiny_model import write_tiny_model
from workbench.training import disk
from workbench.training.disk import DiskBudget, DiskUse, check_disk, checkpoints_of, disk_budget

Disk = namedtuple("Disk", "total used free")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="adamw"),
        pytest.param({"use_dora": True, "optim": "adamw_torch"}, id="dora"),
        pytest.param({"method": "full", "optim": "adamw_torch", "compute_dtype": "bfloat16"}, id="full"),
    ],
)
def test_a_run_writes_what_was_forecast(model: Path, tmp_path: Path, fields: dict[str, Any]) -> None:
    config = in_process.config_of(model, max_steps=2, save_steps=1, save_total_limit=1, max_eval_rows=0, **fields)
    run = in_process.train(config, tmp_path / "run")
    checkpoints, trained, *_ = disk_budget(config, tmp_path).uses
    (kept,) = (run.dir / "checkpoints").iterdir()
    written = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
    assert checkpoints.what == "2 checkpoints", "a new one is whole before the old one goes"
    assert written <= checkpoints.nbytes / 2 <= written + 2 * disk._BESIDE
    folder = run.adapter_dir or run.model_dir
    assert folder is not None
    (weights,) = folder.glob("*.safetensors")
    assert trained.nbytes <= weights.stat().st_size <= 1.1 * trained.nbytes


@pytest.mark.parametrize(
    ("fields", "checkpoints"),
    [
        ({"max_steps": 1_000}, 3),
        ({"max_steps": 100}, 2),
        ({"max_steps": 20}, 1),
        ({"save_steps": 0}, 1),
        ({"num_train_epochs": 2.0}, 3),
        ({"max_steps": 1_000, "save_total_limit": 5, "mirror_dir": "drive"}, 7),
    ],
)
def test_how_many_checkpoints_there_are_at_once(fields: dict[str, Any], checkpoints: int) -> None:
    assert checkpoints_of(wb.TrainConfig(**fields)) == checkpoints


def test_what_goes_to_one_disk_is_counted_together_and_an_export_only_named() -> None:
    uses = (
        DiskUse("model to fetch", 600, "/cache"), DiskUse("checkpoint", 500, "/runs"), DiskUse("adapter", 100, "/runs"),
        DiskUse("merged model (export)", 10_000, "/runs", needed=False),
    )  # fmt: skip
    apart = DiskBudget(uses, {"/cache": 1_000, "/runs": 1_000}, {"/cache": 1, "/runs": 2})
    assert (apart.needed("/cache"), apart.needed("/runs"), apart.faults) == (600, 600, ())
    together = DiskBudget(uses, {"/cache": 1_000, "/runs": 1_000}, {"/cache": 1, "/runs": 1})
    assert together.needed("/runs") == 1_200
    (fault,) = together.faults
    assert "it takes 1.20 kB on the disk of /cache (model to fetch 600 B, checkpoint 500 B and adapter 100 B)" in fault
    assert "Does not fit the disk" in together.summary
    with pytest.raises(wb.RunError, match="does not fit the disk") as caught:
        check_disk(together, "/runs")
    assert "save_total_limit" in caught.value.remedy


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            "qlora",
            r"On disk, forecast: checkpoint \S+ \w?B and adapter \S+ \w?B; besides, if asked for, merged [^.]+\.?\d* \w?B\. .+",
        ),
        ("full", r"On disk, forecast: checkpoint \S+ \w?B and trained model \S+ \w?B\. \S+ \w?B are free\."),
    ],
)
def test_the_summary_is_a_sentence_whatever_is_trained(model: Path, tmp_path: Path, method: str, said: str) -> None:
    summary = disk_budget(in_process.config_of(model, method=method), tmp_path).summary
    assert re.fullmatch(said, summary), summary


def test_launch_refuses_what_does_not_fit_before_it_makes_a_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Disk(10**9, 10**9, 1_000))
    with pytest.raises(wb.RunError, match=r"3 checkpoints .* and adapter .* and 1\.00 kB are free"):
        wb.launch(in_process.config_of(model, max_steps=100, save_steps=10), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mirror_is_counted_on_its_own_disk_and_a_full_one_is_told_at_launch(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (drive := tmp_path / "drive").mkdir()
    config = in_process.config_of(model, max_steps=100, save_steps=10, eval_steps=20, mirror_dir=str(drive))
    mirror, checkpoints, adapter, *_ = disk_budget(config, tmp_path / "run").uses
    assert (mirror.what, mirror.where, checkpoints.what) == ("mirror", str(drive), "5 checkpoints")
    one = checkpoints.nbytes // 5
    assert mirror.nbytes == 3 * one + adapter.nbytes, "the newest, the best, and one that is being written"
    used = disk.shutil.disk_usage
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Disk(9, 9, 1_000) if path == drive else used(path))
    monkeypatch.setattr(disk, "_disk", lambda path: 1 if path == drive else 2)
    with pytest.raises(wb.RunError, match=r"on the disk of .*drive \(mirror [^)]+\), and 1\.00 kB are free") as caught:
        wb.launch(config, tmp_path / "run")
    assert "mirror_dir" in caught.value.remedy
    assert not (tmp_path / "run").exists()
