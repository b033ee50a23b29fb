"""Paging: every source under its own name, and reasons where nothing pages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.stub_libraries import compile_stub
from workbench import TrainConfig
from workbench.training.events import EventWriter, read_events
from workbench.training.paging import HostFaults, paged_state
from workbench.training.worker.telemetry import Sampler


def test_host_faults_are_deltas_and_never_called_gpu_paging() -> None:
    counters = iter([{"minflt": 100, "majflt": 1}, {"minflt": 130, "majflt": 1}, {"minflt": 130, "majflt": 1}])
    faults = HostFaults(lambda: dict(next(counters)))
    (event,) = faults.drain()
    assert (event["source"], event["direction"], event["bytes"], event["count"]) == ("host faults", "fault", None, 30)
    assert faults.drain() == []
    assert "not GPU paging" in faults.capability.why


@pytest.mark.parametrize(
    ("fields", "cuda", "matrices", "works", "told"),
    [
        ({}, True, [65_536, 262_144], True, "1 of 2 adapter matrices"),
        ({}, True, [65_536], False, "largest adapter matrix has 65,536 elements; the smallest lora_r that would page is 25"),
        ({"page_min_numel": 1000}, True, [65_536], True, "by the 1,000-element rule"),
        ({}, False, [65_536], False, "no CUDA device"),
        ({"optim": "adamw_8bit"}, True, [262_144], False, "adamw_8bit pages nothing"),
    ],
)
def test_whether_optimizer_state_pages(
    fields: dict[str, object], cuda: bool, matrices: list[int], works: bool, told: str
) -> None:
    capability = paged_state(TrainConfig(**fields), cuda, matrices)  # type: ignore[arg-type]
    assert capability.works is works
    assert told in capability.why


class Collected:
    """A source with something to tell whenever it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def drain(self) -> list[dict[str, object]]:
        self.asked += 1
        return [{"k": "page", "number": self.asked}]


def test_what_a_collector_still_has_when_sampling_ends_is_not_lost(tmp_path: Path) -> None:
    source = Collected()
    writer = EventWriter(tmp_path / "events-rank0.jsonl", 1)
    sampler = Sampler(writer, lambda: None)
    sampler.collectors = (source,)
    sampler.start()
    sampler.close()
    sampler.close()
    writer.close()
    told = [e["number"] for e in read_events(tmp_path) if e["k"] == "page"]
    assert told == list(range(1, source.asked + 1))
    assert told


NVML_CODES = [*range(1, 30), 999]
ASK_NVML = """
import ctypes, json, sys
from workbench.training.worker.telemetry import Nvml
stub = ctypes.CDLL("libnvidia-ml.so.1")
told = {}
for call in range(3):
    told[call] = []
    for code in json.loads(sys.argv[1]):
        stub.stub_answers(*(code if i == call else 0 for i in range(3)))
        nvml = Nvml("0123")
        told[call].append((nvml.memory(), nvml.why))
stub.stub_answers(0, 0, 0)
nvml = Nvml("GPU-0123")
whole = nvml.memory()
stub.stub_answers(0, 0, 15)
lost = nvml.memory()
stub.stub_answers(0, 0, 0)
print(json.dumps({"told": told, "whole": whole, "lost": (lost, nvml.memory(), nvml.why), "other": Nvml("9").why}))
"""


def test_whatever_nvml_answers_is_told_and_ends_nothing(tmp_path: Path) -> None:
    compile_stub("nvml", tmp_path / "libnvidia-ml.so.1")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ASK_NVML, json.dumps(NVML_CODES)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    for call in "012":
        assert len(answer["told"][call]) == len(NVML_CODES)
        for memory, why in answer["told"][call]:
            assert memory is None
            assert why.startswith("NVML does not")
            assert why.endswith(")")
    assert answer["whole"] == [1_000_000_000, 16_000_000_000]
    assert answer["lost"][:2] == [None, None]
    assert "memory" in answer["lost"][2]
    assert "NVML does not answer" in answer["other"]


def test_without_nvml_the_reason_is_told() -> None:
    script = "from workbench.training.worker.telemetry import Nvml; print(Nvml('GPU-0123').why)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("NVML does not answer (")
