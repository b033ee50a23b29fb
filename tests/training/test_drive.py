"""A run whose folder is on a drive that has no links, no locks and no fsync of folders, as Google Drive mounted on Colab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.stub_libraries import compile_stub
from tests.helpers.tiny_model import write_tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stand-in for the drive is loaded as Linux does"),
]

RUN = """
import errno, os, sys
from pathlib import Path
import workbench as wb

model, folder = sys.argv[1:]
target = Path(folder, "probe")
target.touch()
for refused in (lambda: os.link(target, f"{target}-hard"), lambda: os.symlink(target, f"{target}-soft")):
    try:
        refused()
    except OSError as error:
        assert error.errno == errno.ENOTSUP
    else:
        raise AssertionError("the stand-in for the drive was not loaded")

small = dict(max_length=32, per_device_train_batch_size=1, save_steps=2, max_eval_rows=2, sample_prompts=())
run = wb.launch(wb.TrainConfig(model, max_steps=4, **small), Path(folder, "run"))
status = run.wait(240)
assert status.state == "finished", (status, run.log.read_text())
assert wb.attach(run.dir).adapter_dir is not None
print(sorted(path.name for path in run.dir.iterdir()))
"""


def test_a_run_does_without_links_locks_and_fsync_of_a_folder(tmp_path: Path) -> None:
    model, drive = write_tiny_model(tmp_path / "model"), tmp_path / "drive"
    drive.mkdir()
    stub = compile_stub("drive", tmp_path / "drive.so")
    environ = os.environ | {"LD_PRELOAD": str(stub), "DRIVE": str(drive)}
    command = [sys.executable, "-c", RUN, str(model), str(drive)]
    done = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'adapter'" in done.stdout
