"""The GPUs that forecasts are judged against: those known by name, and this machine's by a stub of the driver's library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import workbench as wb
from tests.helpers.stub_libraries import compile_stub
from workbench.memory.gpus import GPUS, THIS_MACHINE, find, known

ASK = """
import ctypes, json, sys
stub = ctypes.CDLL("libnvidia-ml.so.1")
stub.stub_answers(*json.loads(sys.argv[1]))
from widgets.state import State
from workbench.memory.gpus import known
from workbench.memory.forecast import fit
import workbench as wb
own = next(iter(known().items()))
verdict = fit(wb.forecast(wb.open_model("builtin"), wb.TrainConfig()), State().gpu)
print(json.dumps([own[0], own[1].name, own[1].usable, State().gpu, verdict.gpu.name]))
"""


def ask(folder: Path, *answers: int) -> list[object]:
    """The first known GPU and the app's, where the driver's calls give these codes."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(answers)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_this_machine_s_gpu_comes_first_and_is_the_app_s(tmp_path: Path) -> None:
    compile_stub("nvml", tmp_path / "libnvidia-ml.so.1")
    name = "Stub 16, in this machine"
    assert ask(tmp_path, 0, 0, 0) == [THIS_MACHINE, name, 15_600_000_000, THIS_MACHINE, name]
    for broken in ((9, 0, 0), (0, 15, 0), (0, 0, 3)):
        assert ask(tmp_path, *broken)[:4] == ["RTX 3060 12 GB", "RTX 3060 12 GB", GPUS["RTX 3060 12 GB"].usable, "T4 16 GB"]


LATER = """
import ctypes
ctypes.CDLL("libnvidia-ml.so.1")
from workbench.memory.gpus import present
from workbench.memory.learnt import Learnt, learn
before = present()
learn("Stub 16", Learnt(7, 0.5, "a run"))
print(before.slack, before.context == 7, present().slack, present().context, present().how)
"""


def test_what_a_run_measures_counts_at_once(tmp_path: Path) -> None:
    compile_stub("nvml", tmp_path / "libnvidia-ml.so.1")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "WORKBENCH_CACHE": str(tmp_path / "caches")}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "caches")
    done = subprocess.run([sys.executable, "-c", LATER], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None False 0.5 7 measured here by the run a run\n"


@pytest.mark.skipif(THIS_MACHINE in known(), reason="there is a GPU in this machine")
def test_a_gpu_that_is_not_there_is_told_with_those_that_are_known() -> None:
    with pytest.raises(wb.ConfigError, match="no NVIDIA GPU that answers") as caught:
        find(THIS_MACHINE)
    assert "T4 16 GB" in caught.value.remedy
    with pytest.raises(wb.ConfigError, match="'RTX 9000' is no GPU known here"):
        find("RTX 9000")
