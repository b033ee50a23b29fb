"""Page-migration records: as libcupti writes them, as it hands them over, and whatever it answers instead."""

from __future__ import annotations

import ctypes
import importlib.metadata
import itertools
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.stub_libraries import compile_stub
from workbench.training.worker import cupti
from workbench.training.worker.cupti import Cupti, CuptiError, loaded_cupti, open_cupti, page_events, parse_record

H2D, D2H, CPU_FAULT, GPU_FAULT = 1, 2, 3, 4
USER, PREFETCH, EVICTION = 1, 3, 4
UNIFIED_MEMORY = 25
RECORD_BYTES = 104  # CUpti_ActivityUnifiedMemoryCounter3
END_OF_BUFFER = 12
ALL_CODES = [*range(1, 46), 999]


def record(counter: int, value: int, start: int, end: int, flags: int = 0, kind: int = UNIFIED_MEMORY) -> bytes:
    """One record, by the layout in CUPTI's header."""
    return struct.pack("<iiQQQQIIIIII", kind, counter, value, start, end, 0x7F00_0000_0000, 0, 0, 0, 4242, flags, 0).ljust(
        RECORD_BYTES, b"\0"
    )


def test_a_record_tells_direction_bytes_and_cause() -> None:
    moved = parse_record(record(D2H, 65536, 10, 20, EVICTION))
    assert moved is not None
    assert (moved.direction, moved.value, moved.cause, moved.start, moved.end) == ("d2h", 65536, "eviction", 10, 20)
    assert parse_record(record(D2H, 1, 1, 2, kind=3)) is None


def test_what_cupti_leaves_undefined_is_not_read() -> None:
    fault = parse_record(record(CPU_FAULT, 0x7FFF_DEAD_BEEF, 350, 2**63))
    assert fault is not None
    assert (fault.start, fault.end, fault.cause) == (350, 350, "")


def test_moves_add_up_by_direction_and_cause_and_faults_are_counted_never_summed() -> None:
    raw = [
        record(H2D, 4096, 100, 200, USER),
        record(H2D, 8192, 300, 400, USER),
        record(D2H, 4096, 300, 500, EVICTION),
        record(CPU_FAULT, 0x7FFF_DEAD_BEEF, 350, 350),  # the value of a fault is a program counter
        record(H2D, 1, 100_000_100, 100_000_200, PREFETCH),  # a window later
    ]
    told = page_events([m for r in raw if (m := parse_record(r))], shift=1000)
    assert all(e["source"] == "cupti" for e in told)
    assert [(e["direction"], e["bytes"], e["count"], e["cause"]) for e in told] == [
        ("cpu fault", None, 1, ""),
        ("d2h", 4096, 1, "eviction"),
        ("h2d", 12288, 2, "user"),
        ("h2d", 1, 1, "prefetch"),
    ]
    assert (told[2]["start"], told[2]["end"]) == (1100, 1400)


# The real library, without a driver.


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


needs_libcupti = pytest.mark.skipif(libcupti() is None, reason="needs the real libcupti: pip install nvidia-cuda-cupti-cu12")


@needs_libcupti
def test_the_real_libcupti_walks_a_buffer_and_says_why_it_cannot_collect() -> None:
    collector = Cupti(libcupti() or "")
    raw = record(H2D, 4096, 1, 2, PREFETCH) + record(D2H, 8192, 3, 4, EVICTION)
    buffer = (ctypes.c_uint64 * (len(raw) // 8)).from_buffer_copy(raw)
    assert [m.value for m in collector.walk(ctypes.addressof(buffer), len(raw))] == [4096, 8192]
    assert collector.drain() == []
    with pytest.raises(CuptiError, match=r"answered CUPTI_ERROR_NOT_INITIALIZED \(CUPTI found no CUDA driver\)"):
        collector.start()
    collector.close()


@needs_libcupti
@pytest.mark.parametrize(
    ("code", "name"),
    [
        (15, "NOT_INITIALIZED"),
        (28, "UM_PROFILING_NOT_SUPPORTED"),
        (29, "UM_PROFILING_NOT_SUPPORTED_ON_DEVICE"),
        (30, "UM_PROFILING_NOT_SUPPORTED_ON_NON_P2P_DEVICES"),
        (31, "UM_PROFILING_NOT_SUPPORTED_WITH_MPS"),
        (33, "VIRTUALIZED_DEVICE_NOT_SUPPORTED"),
        (35, "INSUFFICIENT_PRIVILEGES"),
        (39, "MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED"),
        (40, "VIRTUALIZED_DEVICE_INSUFFICIENT_PRIVILEGES"),
        (43, "MIG_DEVICE_NOT_SUPPORTED"),
        (45, "WSL_DEVICE_NOT_SUPPORTED"),
    ],
)
def test_the_reasons_stand_with_the_codes_that_the_real_library_names(code: int, name: str) -> None:
    assert Cupti(libcupti() or "")._named(code) == f"CUPTI_ERROR_{name} ({cupti._REASONS[code]})"


# A stub of the library, with a driver's answers and records.


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_stub("cupti", tmp_path_factory.mktemp("stubs") / "libcupti.so")


@pytest.fixture
def stub(compiled: Path, tmp_path: Path) -> Callable[[], tuple[str, Any]]:
    """Gives a library that nobody has used yet, and the test's handle on it: a copy is a library of its own to the linker."""
    numbers = itertools.count()

    def fresh() -> tuple[str, Any]:
        path = shutil.copy(compiled, tmp_path / f"libcupti.so.{next(numbers)}")
        library = ctypes.CDLL(path)
        library.stub_complaint.restype = ctypes.c_char_p
        library.stub_record.argtypes = [ctypes.c_int, ctypes.c_int, *[ctypes.c_uint64] * 3, ctypes.c_uint32]
        return str(path), library

    return fresh


Stub = Callable[[], tuple[str, Any]]


@pytest.mark.parametrize(
    "call",
    [
        "cuptiGetTimestamp",
        "cuptiActivityRegisterCallbacks",
        "cuptiActivityConfigureUnifiedMemoryCounter",
        "cuptiActivityEnable",
        "cuptiActivityFlushPeriod",
    ],
)
def test_whatever_a_call_answers_is_told_and_nothing_stays_on(stub: Stub, call: str) -> None:
    path, library = stub()
    for code in ALL_CODES:
        library.stub_answer(call.encode(), code)
        collector, capability = open_cupti(True, path)
        assert collector is None
        assert not capability.works
        reason = f" ({cupti._REASONS[code]})" if code in cupti._REASONS else ""
        assert capability.why == f"{call} answered CUPTI_ERROR_{code}{reason}"
        assert library.stub_enabled() == 0
    assert library.stub_complaint() == b""


def test_an_answer_without_a_name_is_told_by_its_number(stub: Stub) -> None:
    path, library = stub()
    library.stub_answer(b"cuptiActivityEnable", 999)
    library.stub_answer(b"cuptiGetResultString", 1)
    assert open_cupti(True, path)[1].why == "cuptiActivityEnable answered code 999"


@pytest.mark.parametrize(("newest", "counters"), [(8, 8), (7, 4), (4, 4), (3, 2), (2, 2)])
def test_an_older_library_gives_the_counters_it_knows(stub: Stub, newest: int, counters: int) -> None:
    path, library = stub()
    library.stub_knows_kinds_to(newest)
    collector, capability = open_cupti(True, path)
    assert collector is not None
    assert capability.works
    assert capability.why.startswith("CUPTI unified-memory counters: h2d, d2h")
    assert len(collector.counters) == counters
    collector.close()


def test_a_stream_of_records_arrives_whole_from_another_thread(stub: Stub) -> None:
    path, library = stub()
    collector, _ = open_cupti(True, path)
    assert collector is not None
    pages = 30_000  # three buffers
    for i in range(pages):
        start = 1_000_000 + i * 1_000
        if i % 3 == 0:
            library.stub_record(UNIFIED_MEMORY, H2D, 65_536, start, start + 10, USER)
        elif i % 3 == 1:
            library.stub_record(UNIFIED_MEMORY, D2H, 2_097_152, start, start + 10, EVICTION)
        else:
            library.stub_record(UNIFIED_MEMORY, GPU_FAULT, 7, start, start + 10, 1)
    library.stub_record(3, H2D, 1, 0, 0, 0)  # an activity of another kind
    library.stub_deliver()
    events = collector.drain()
    assert collector.drain() == []
    sums: dict[tuple[str, str], list[int]] = {}
    for e in events:
        moved, count = sums.setdefault((e["direction"], e["cause"]), [0, 0])
        sums[e["direction"], e["cause"]] = [moved + (e["bytes"] or 0), count + e["count"]]
    assert sums == {
        ("h2d", "user"): [10_000 * 65_536, 10_000],
        ("d2h", "eviction"): [10_000 * 2_097_152, 10_000],
        ("gpu fault", ""): [0, 10_000],
    }
    assert all(e["end"] - e["start"] < 100_000_000 for e in events)
    assert collector._buffers == {}  # every buffer that was handed out came back
    collector.close()
    assert library.stub_complaint() == b""


def test_closing_flushes_and_what_was_flushed_is_drained_after(stub: Stub) -> None:
    path, library = stub()
    collector, _ = open_cupti(True, path)
    assert collector is not None
    assert collector.clock() == 1_000_000
    library.stub_record(UNIFIED_MEMORY, D2H, 4096, 10, 20, EVICTION)
    collector.close()
    collector.close()
    assert [e["bytes"] for e in collector.drain()] == [4096]
    assert library.stub_enabled() == 0
    assert library.stub_complaint() == b""


def test_lost_records_and_unreadable_ones_are_told(stub: Stub) -> None:
    path, library = stub()
    collector, _ = open_cupti(True, path)
    assert collector is not None
    library.stub_drop(1234)
    library.stub_answer(b"cuptiActivityGetNextRecord", 21)
    for _ in range(2):
        library.stub_record(UNIFIED_MEMORY, D2H, 4096, 10, 20, EVICTION)
    library.stub_deliver()
    library.stub_answer(b"cuptiActivityFlushAll", 999)
    library.stub_answer(b"cuptiActivityDisable", 1)
    collector.close()
    page, *logs = collector.drain()
    assert page["bytes"] == 4096
    told = [log["text"] for log in logs]
    assert [log["level"] for log in logs] == ["warning"] * 4
    assert "cuptiActivityGetNextRecord answered CUPTI_ERROR_21" in told[0]
    assert "CUPTI dropped 1,234 records" in told[1]
    assert "cuptiActivityFlushAll answered CUPTI_ERROR_999: the last paging records may be missing." in told[2]
    assert "cuptiActivityDisable answered CUPTI_ERROR_1" in told[3]


def test_the_end_of_a_buffer_is_the_only_code_that_is_no_fault(stub: Stub) -> None:
    for code in ALL_CODES:
        path, library = stub()
        collector = Cupti(path)
        raw = record(H2D, 4096, 1, 2, USER) * 2
        buffer = (ctypes.c_uint64 * (len(raw) // 8)).from_buffer_copy(raw)
        library.stub_answer(b"cuptiActivityGetNextRecord", code)
        assert len(collector.walk(ctypes.addressof(buffer), len(raw))) == 1
        assert bool(collector.drain()) == (code != END_OF_BUFFER)


# Where there is no library, or another one.


def test_libcupti_is_found_among_the_loaded_libraries(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r-xp 00000000 08:01 12  /usr/lib/libc.so.6\n7f02-7f03 r-xp 00000000 08:01 13  /a b/libcupti.so.12\n", "utf-8"
    )
    assert loaded_cupti(maps) == "/a b/libcupti.so.12"
    assert loaded_cupti(tmp_path / "none") is None


def test_without_a_gpu_or_a_library_the_reason_is_told(tmp_path: Path) -> None:
    assert open_cupti(cuda=False)[1].to_dict() == {"works": False, "why": "no CUDA device"}
    for path, told in ((tmp_path / "libcupti.so.9", "libcupti.so.9"), (compile_stub("nvml", tmp_path / "x.so"), "cuptiGet")):
        collector, capability = open_cupti(True, str(path))
        assert collector is None
        assert told in capability.why
