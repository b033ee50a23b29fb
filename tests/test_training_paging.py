"""Paging: records as libcupti writes them, every source under its own name, and reasons where nothing pages."""

from __future__ import annotations

import ctypes
import importlib.metadata
import struct
from pathlib import Path

import pytest

from workbench import TrainConfig
from workbench.training.paging import (
    Cupti,
    CuptiError,
    HostFaults,
    loaded_cupti,
    open_cupti,
    page_events,
    paged_state,
    parse_record,
)

H2D, D2H, CPU_FAULT = 1, 2, 3
PREFETCH, EVICTION = 3, 4
RECORD_BYTES = 104  # CUpti_ActivityUnifiedMemoryCounter3


def record(counter: int, value: int, start: int, end: int, flags: int = 0, kind: int = 25) -> bytes:
    """One record, by the layout in CUPTI's header."""
    return struct.pack("<iiQQQQIIIIII", kind, counter, value, start, end, 0x7F00_0000_0000, 0, 0, 0, 4242, flags, 0).ljust(
        RECORD_BYTES, b"\0"
    )


def test_a_record_tells_direction_bytes_and_cause() -> None:
    moved = parse_record(record(D2H, 65536, 10, 20, EVICTION))
    assert moved is not None
    assert (moved.direction, moved.value, moved.cause, moved.start, moved.end) == ("d2h", 65536, "eviction", 10, 20)
    assert parse_record(record(D2H, 1, 1, 2, kind=3)) is None


def test_moves_add_up_by_direction_and_cause_and_faults_are_counted_never_summed() -> None:
    raw = [
        record(H2D, 4096, 100, 200, PREFETCH),
        record(H2D, 8192, 300, 400, PREFETCH),
        record(D2H, 4096, 300, 500, EVICTION),
        record(CPU_FAULT, 0x7FFF_DEAD_BEEF, 350, 350),  # the value of a fault is a program counter
        record(H2D, 1, 100_000_100, 100_000_200, PREFETCH),  # a window later
    ]
    told = page_events([m for r in raw if (m := parse_record(r))], shift=1000)
    assert all(e["source"] == "cupti" for e in told)
    assert [(e["direction"], e["bytes"], e["count"], e["cause"]) for e in told] == [
        ("cpu fault", None, 1, ""),
        ("d2h", 4096, 1, "eviction"),
        ("h2d", 12288, 2, "prefetch"),
        ("h2d", 1, 1, "prefetch"),
    ]
    assert (told[2]["start"], told[2]["end"]) == (1100, 1400)


def libcupti() -> str | None:
    """The real library, from its PyPI package, where that is installed."""
    for name in ("nvidia-cuda-cupti-cu12", "nvidia-cuda-cupti"):
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name.startswith("libcupti.so"):
                return str(file.locate())
    return None


@pytest.mark.skipif(libcupti() is None, reason="needs the real libcupti: pip install nvidia-cuda-cupti-cu12")
def test_the_real_libcupti_walks_a_buffer_and_says_why_it_cannot_collect() -> None:
    collector = Cupti(libcupti() or "")
    raw = record(H2D, 4096, 1, 2, PREFETCH) + record(D2H, 8192, 3, 4, EVICTION)
    buffer = (ctypes.c_uint64 * (len(raw) // 8)).from_buffer_copy(raw)
    assert [m.value for m in collector.walk(ctypes.addressof(buffer), len(raw))] == [4096, 8192]
    with pytest.raises(CuptiError, match="cuptiActivityConfigureUnifiedMemoryCounter answered CUPTI_ERROR_NOT_INITIALIZED"):
        collector.start()
    collector.close()


def test_libcupti_is_found_among_the_loaded_libraries(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r-xp 00000000 08:01 12  /usr/lib/libc.so.6\n7f02-7f03 r-xp 00000000 08:01 13  /a b/libcupti.so.12\n", "utf-8"
    )
    assert loaded_cupti(maps) == "/a b/libcupti.so.12"
    assert loaded_cupti(tmp_path / "none") is None


def test_without_a_gpu_the_reason_is_told() -> None:
    collector, capability = open_cupti(cuda=False)
    assert collector is None
    assert capability.to_dict() == {"works": False, "why": "no CUDA device"}


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
