"""The workbench's own cache: bounded, whole or nothing, shared by processes, and never in the way of a read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import workbench as wb
from workbench.sources import cache
from workbench.sources.cache import Cache


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def aged(kept: Cache, key: str, seconds: int) -> None:
    """Make a piece look as if it had last been used so long ago."""
    path = kept._path(key)
    now = path.stat().st_mtime
    os.utime(path, (now - seconds, now - seconds))


def test_what_was_put_is_there_for_another_process_too(tmp_path: Path) -> None:
    Cache(tmp_path, 10_000).put("a key\nof two lines", b"some bytes")
    assert Cache(tmp_path, 10_000).get("a key\nof two lines") == b"some bytes"
    assert Cache(tmp_path, 10_000).get("another") is None
    assert not list(tmp_path.rglob("*.part"))


def test_it_stays_within_its_limit_and_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    kept = Cache(tmp_path, 10_000)
    for i in range(9):
        kept.put(str(i), bytes(1_000))
        aged(kept, str(i), 100 - i)
    for i in range(9, 50):
        kept.put(str(i), bytes(1_000))
        assert held(tmp_path) <= 10_000
    assert kept.get("1") is None
    assert kept.get("49") == bytes(1_000)


def test_one_that_was_just_used_outlives_the_others(tmp_path: Path) -> None:
    kept = Cache(tmp_path, 10_000)
    for i in range(9):
        kept.put(str(i), bytes(1_000))
        aged(kept, str(i), 100 - i)
    kept.get("0")
    kept.put("9", bytes(1_000))
    assert [kept.get(str(i)) is not None for i in range(10)] == [True, False, False, *[True] * 7]


def test_a_piece_too_large_for_the_cache_is_left_out(tmp_path: Path) -> None:
    kept = Cache(tmp_path, 10_000)
    kept.put("small", b"x")
    kept.put("large", bytes(3_000))
    assert (kept.get("small"), kept.get("large")) == (b"x", None)
    none = Cache(tmp_path / "none", 0)
    none.put("small", b"x")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", ["cut off", "overwritten", "emptied"])
def test_a_damaged_piece_is_thrown_away(tmp_path: Path, damage: str) -> None:
    kept = Cache(tmp_path, 10_000)
    kept.put("key", b"some bytes")
    path = kept._path("key")
    raw = path.read_bytes()
    path.write_bytes({"cut off": raw[:-3], "overwritten": b"X" + raw[1:], "emptied": b""}[damage])
    assert kept.get("key") is None
    assert not path.exists()


def test_what_a_dead_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    Cache(tmp_path, 10_000).put("key", b"some bytes")
    part = next(tmp_path.glob("??/*")).with_name("abandoned.part")
    part.write_bytes(bytes(100))
    os.utime(part, (0, 0))
    Cache(tmp_path, 10_000).put("other", b"x")
    assert not part.exists()


@pytest.mark.parametrize("place", ["a file is in its place", "a folder that nobody can write to"])
def test_where_nothing_can_be_written_nothing_is_kept_and_nothing_fails(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "cache" if place.startswith("a file") else Path("/dev/null/cache")
    kept = Cache(folder, 10_000)
    kept.put("key", b"some bytes")
    assert kept.get("key") is None


def test_a_disk_that_is_full_in_the_middle_of_a_piece_leaves_nothing_behind(tmp_path: Path) -> None:
    """The kernel itself refuses to write on: no file of this process may be larger than 4 kB."""
    script = f"""
import resource
from pathlib import Path
from workbench.sources.cache import Cache
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
kept = Cache(Path({str(tmp_path)!r}), 10_000_000)
kept.put("large", bytes(100_000))
print(kept.get("large"), kept.put("small", b"x"), kept.get("small"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "None None None\n"
    assert held(tmp_path) == 0


def test_a_disk_that_is_nearly_full_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_SPARE", 2**62)
    kept = Cache(tmp_path, 10_000)
    kept.put("key", b"some bytes")
    assert kept.get("key") is None


def test_processes_share_a_cache_without_seeing_half_of_anything(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from workbench.sources.cache import Cache
kept = Cache(Path({str(tmp_path)!r}), 200_000)
for turn in range(300):
    key = str(turn % 7 if turn % 2 else turn)
    kept.put(key, key.encode() * 3_000)
    for other in range(turn):
        found = kept.get(str(other))
        assert found is None or found == str(other).encode() * 3_000
"""
    running = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        _, said = process.communicate(timeout=300)
        assert (process.returncode, said) == (0, b"")
    assert 0 < held(tmp_path) <= 1.2 * 200_000, "each may be ahead of the others by a twentieth"


def test_where_it_lies_and_how_large_it_may_be_is_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("WORKBENCH_CACHE_GB", "0.5")
    assert (cache.default().folder, cache.default().limit) == (tmp_path / "mine", 500_000_000)
    assert cache.default() is cache.default()
    monkeypatch.delenv("WORKBENCH_CACHE")
    monkeypatch.delenv("WORKBENCH_CACHE_GB")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = tmp_path / "home" / "Library" / "Caches" if sys.platform == "darwin" else tmp_path
    assert (cache.default().folder, cache.default().limit) == (expected / "qlora-workbench", 10_000_000_000)


@pytest.mark.parametrize("size", ["-1", "ten", "inf", "nan"])
def test_a_size_that_is_none_is_told(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE_GB", size)
    with pytest.raises(wb.WorkbenchError, match="is not a size in gigabytes") as caught:
        cache.default()
    assert caught.value.where == "WORKBENCH_CACHE_GB"
