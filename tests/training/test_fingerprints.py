"""Fingerprints: content alone counts, little is read however large the files are, and whole hashes catch what samples miss."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import workbench as wb
from workbench.training import fingerprints
from workbench.training.fingerprints import AT_ONCE, LEAST, PIECE, PIECES, Contents, FileChange

MIB = 1 << 20
_IO = Path("/proc/thread-self/io")
counted = pytest.mark.skipif(not _IO.exists(), reason="only Linux counts the bytes that a thread reads")


def never() -> bool:
    return False


def shard(path: Path, seed: int = 0) -> Path:
    values = np.random.default_rng(seed).standard_normal((64, 32)).astype(np.float32)
    save_file({"a.weight": values, "b.weight": values[:8]}, path)
    return path


def sparse(path: Path, size: int, head: bytes = b"") -> Path:
    """A file of so many bytes that takes no room on the disk."""
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("rb+") as file:
        file.seek(at)
        file.write(data)


def bytes_read(work: Callable[[], object]) -> int:
    """What the kernel counted as read by this thread while it worked."""

    def count() -> int:
        return int(_IO.read_text("ascii").split()[1])

    before = count()
    own = count() - before  # asking is reading, too
    before = count()
    work()
    return count() - before - own


def what(changes: tuple[FileChange, ...]) -> list[tuple[str, str]]:
    return [(change.name, change.what) for change in changes]


def test_of_a_small_file_it_is_the_sha256_of_its_bytes(tmp_path: Path) -> None:
    path = shard(tmp_path / "model.safetensors")
    (taken,) = fingerprints.take({"base": [("model.safetensors", path)]}).parts["base"]
    data = path.read_bytes()
    assert taken.sha256 == hashlib.sha256(data).hexdigest()
    assert taken.header == hashlib.sha256(data[: 8 + int.from_bytes(data[:8], "little")]).hexdigest()
    assert (taken.size, taken.pieces, taken.sampled) == (len(data), 0, "")


def test_a_file_that_is_touched_copied_renamed_or_a_link_is_the_same(tmp_path: Path) -> None:
    path = shard(tmp_path / "model.safetensors")
    known = fingerprints.take({"base": [("model.safetensors", path)]})
    os.utime(path, (1, 1))
    assert fingerprints.changes(known, {"base": [("model.safetensors", path)]}) == ()
    elsewhere = Path(shutil.copy(path, tmp_path / "other.safetensors"))
    path.unlink()
    assert fingerprints.changes(known, {"base": [("other.safetensors", elsewhere)]}) == ()
    path.symlink_to(elsewhere)
    assert fingerprints.changes(known, {"base": [("model.safetensors", path)]}) == ()


def test_it_is_told_what_of_which_file_has_changed(tmp_path: Path) -> None:
    paths = [shard(tmp_path / f"{name}.safetensors") for name in "abc"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one"}\n')

    def now() -> Contents:
        shards = [(path.name, path) for path in paths if path.exists()]
        return {"base": shards, "rows": [(rows.name, rows)], "config": [("config.json", b"{}")]}

    known = fingerprints.take(now())
    assert fingerprints.changes(known, now()) == ()
    overwrite(paths[0], paths[0].stat().st_size - 4, b"\1\2\3\4")
    shard(paths[1], seed=1)  # the same names and shapes
    save_file({"a.weight": np.zeros((32, 64), np.float32), "b.weight": np.zeros((8, 32), np.float32)}, paths[2])
    assert what(fingerprints.changes(known, now())) == [
        ("a.safetensors", "content"), ("b.safetensors", "content"), ("c.safetensors", "header"),
    ]  # fmt: skip
    for path in paths:
        shard(path)
    paths[1].unlink()
    assert what(fingerprints.changes(known, now())) == [("b.safetensors", "missing")]
    shard(paths[1])
    paths.append(shard(tmp_path / "d.safetensors"))
    assert what(fingerprints.changes(known, now())) == [("d.safetensors", "new")]
    paths.pop()
    before = rows.read_text()
    rows.write_text(before + '{"text": "two"}\n')
    (change,) = fingerprints.changes(known, now())
    assert (change.part, change.what, change.sizes) == ("rows", "appended", (len(before), rows.stat().st_size))
    rows.write_text('{"text": "1"}\n')
    assert what(fingerprints.changes(known, now())) == [("rows.jsonl", "content")]
    rows.write_text(before)
    changed = {**now(), "config": [("config.json", b"[]")]}
    assert what(fingerprints.changes(known, changed)) == [("config.json", "content")]
    assert fingerprints.changes(known, {"rows": now()["rows"]}) == (), "only what is asked for is compared"


@counted
@pytest.mark.parametrize(
    ("files", "size", "most"),
    [(1, 64 << 30, 64 * PIECE), (8, 5 << 30, PIECES * PIECE), (200, MIB, 200 * LEAST * PIECE), (4, AT_ONCE // 4, AT_ONCE)],
)
def test_how_much_is_read_does_not_grow_with_the_files(tmp_path: Path, files: int, size: int, most: int) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [size - 108], "data_offsets": [0, size - 108]}}).encode().ljust(100)
    head = len(header).to_bytes(8, "little") + header
    found = [(f"{n}.safetensors", sparse(tmp_path / f"{n}.safetensors", size, head)) for n in range(files)]
    headers = files * (8 + len(head))
    known = fingerprints.take({"base": found})
    assert bytes_read(lambda: fingerprints.take({"base": found})) <= most + headers
    assert bytes_read(lambda: fingerprints.changes(known, {"base": found})) <= most + headers


@counted
def test_a_file_that_has_become_huge_is_compared_as_far_as_it_went(tmp_path: Path) -> None:
    path = sparse(tmp_path / "rows.jsonl", 1_000)
    known = fingerprints.take({"rows": [("rows.jsonl", path)]})
    sparse(path, 64 << 30)
    assert what(fingerprints.changes(known, {"rows": [("rows.jsonl", path)]})) == [("rows.jsonl", "appended")]
    assert bytes_read(lambda: fingerprints.changes(known, {"rows": [("rows.jsonl", path)]})) <= 1_000


class Large:
    """A file that is only sampled at launch, in a run's folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.path = sparse(folder / "large.bin", AT_ONCE + 8 * MIB)
        self.run = folder / "run"
        self.run.mkdir()
        fingerprints.write(self.run, fingerprints.take(self.now))

    @property
    def now(self) -> Contents:
        return {"base": [("large.bin", self.path)]}

    @property
    def known(self) -> fingerprints.Fingerprints:
        known = fingerprints.read(self.run)
        assert known is not None
        return known

    @property
    def sha256(self) -> str:
        return self.known.parts["base"][0].sha256

    def change_between_samples(self) -> None:
        overwrite(self.path, 2 * PIECE, b"noise")


@pytest.fixture
def large(tmp_path: Path) -> Large:
    return Large(tmp_path)


def test_samples_catch_another_large_file_of_the_same_size(large: Large) -> None:
    assert large.sha256 == ""
    overwrite(large.path, large.path.stat().st_size // 2, bytes(range(256)) * 8 * 1024)
    assert what(fingerprints.changes(large.known, large.now)) == [("large.bin", "content")]


def test_the_whole_hash_catches_what_lies_between_samples(large: Large) -> None:
    fingerprints.hash_whole(large.run, never)
    with large.path.open("rb") as file:
        assert large.sha256 == hashlib.file_digest(file, "sha256").hexdigest()
    large.change_between_samples()
    assert what(fingerprints.changes(large.known, large.now)) == [("large.bin", "content")]
    assert fingerprints.changes(large.known, large.now, whole=False) == (), "which is the quick look"


def test_a_large_file_that_was_only_touched_is_read_again_and_is_the_same(large: Large) -> None:
    fingerprints.hash_whole(large.run, never)
    seen: list[tuple[int, int]] = []
    assert fingerprints.changes(large.known, large.now, progress=lambda *at: seen.append(at)) == ()
    assert seen == [], "its times say that nothing was written"
    os.utime(large.path, (1, 1))
    assert fingerprints.changes(large.known, large.now, progress=lambda *at: seen.append(at)) == ()
    size = large.path.stat().st_size
    assert seen[-1] == (size, size)
    assert len(seen) > 10
    with pytest.raises(InterruptedError):
        fingerprints.changes(large.known, large.now, cancelled=lambda: True)


def test_what_is_another_file_by_now_gets_no_whole_hash(large: Large) -> None:
    """It would vouch for bytes that the run may not have begun with."""
    large.change_between_samples()
    fingerprints.hash_whole(large.run, never)
    assert large.sha256 == ""
    large.path.unlink()
    fingerprints.hash_whole(large.run, never)
    assert large.sha256 == ""


def test_hashing_that_is_cancelled_or_whose_run_is_removed_leaves_nothing_half_done(large: Large) -> None:
    before = large.known
    fingerprints.hash_whole(large.run, lambda: True)
    assert large.known == before

    def removed() -> bool:
        shutil.rmtree(large.run, ignore_errors=True)
        return False

    fingerprints.hash_whole(large.run, removed)
    assert not large.run.exists(), "nobody wanted it back"


NO_SIZE = '{"commit": null, "accepted": [], "parts": {"base": [{"name": "a", "size": "many", "state": []}]}}'


@pytest.mark.parametrize("text", ["{", "[]", '{"parts": {"base": [{"sha256": 1}]}}', '{"parts": {"base": 3}}', NO_SIZE])
def test_fingerprints_that_cannot_be_read_are_an_error_with_a_remedy(tmp_path: Path, text: str) -> None:
    assert fingerprints.read(tmp_path) is None
    (tmp_path / "fingerprints.json").write_text(text)
    with pytest.raises(wb.RunError) as caught:
        fingerprints.read(tmp_path)
    assert caught.value.remedy


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(wb.RunError) as caught:
        fingerprints.take({"rows": [("rows.jsonl", tmp_path / "rows.jsonl")]})
    assert caught.value.where == str(tmp_path / "rows.jsonl")
