"""Opening a model and reading its tensors: one file or shards, any dtype, whole or in chunks, and only the bytes asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import workbench as wb
from tests.helpers import tiny
from workbench.sources.header import DTYPES
from workbench.sources.local import LocalSource


def write(folder: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], file: str = "model.safetensors") -> Path:
    """A safetensors file from literal bytes: name → (dtype, shape, data)."""
    folder.mkdir(exist_ok=True)
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    (folder / file).write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("models") / "tiny-llama", "llama", tiny.LLAMA)


def test_a_folder_opens_with_its_name_configuration_and_tensors(folder: Path) -> None:
    source = wb.open_model(folder)
    assert (source.name, source.path, source.config["model_type"]) == ("tiny-llama", folder.resolve(), "llama")
    infos = {t.name: t for t in source.tensors()}
    down = infos["model.layers.1.mlp.down_proj.weight"]
    assert (down.shape, down.dtype, down.numel, down.nbytes) == ((64, 128), "BF16", 8192, 16384)
    assert (down.quantizable, down.reason, down.layout) == (True, "a linear layer's weight", "as stored")


def test_every_tensor_reads_as_safetensors_reads_it(folder: Path) -> None:
    source = wb.open_model(folder)
    reference = safetensors.numpy.load_file(folder / "model.safetensors")
    assert {t.name for t in source.tensors()} == set(reference)
    for name, array in reference.items():
        read = source.read(name)
        assert read.dtype == np.dtype(ml_dtypes.bfloat16)
        assert read.shape == array.shape
        assert read.tobytes() == array.tobytes()


def test_shards_read_like_one_file(folder: Path, tmp_path: Path) -> None:
    shards = tiny.save(tmp_path / "sharded", "llama", tiny.LLAMA, max_shard_size="60KB")
    assert len(list(shards.glob("*.safetensors"))) > 2
    whole, sharded = wb.open_model(folder), wb.open_model(shards)
    assert {t.name for t in sharded.tensors()} == {t.name for t in whole.tensors()}
    for info in whole.tensors():
        assert sharded.read(info.name).tobytes() == whole.read(info.name).tobytes()


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d.numpy is not None], ids=lambda d: d.name)
def test_every_dtype_reads_as_its_numpy_dtype(tmp_path: Path, dtype: Any) -> None:
    raw = bytes(range(1, 1 + 6 * dtype.bits // 8)) if dtype.name != "BOOL" else b"\1\0\1\0\1\1"
    source = wb.open_model(
        write(tmp_path / "m", {"x": (dtype.name, (2, 3), raw), "y": (dtype.name, (), raw[: dtype.bits // 8])})
    )
    array = source.read("x")
    assert (array.dtype, array.shape, array.tobytes()) == (dtype.numpy, (2, 3), raw)
    assert source.read("y").shape == ()
    assert [t.quantizable for t in source.tensors()] == [False, False]  # named "x": no linear layer's weight


@pytest.mark.parametrize(("dtype", "raw"), [("F4", b"\x12\x34"), ("F6_E2M3", b"\1\2\3"), ("F6_E3M2", b"\1\2\3")])
def test_dtypes_below_a_byte_are_listed_and_not_read(tmp_path: Path, dtype: str, raw: bytes) -> None:
    source = wb.open_model(write(tmp_path / "m", {"x": (dtype, (4,), raw)}))
    assert (source.tensors()[0].numel, source.tensors()[0].nbytes) == (4, len(raw))
    with pytest.raises(wb.ModelError, match="packed below a byte"):
        source.read("x")


def test_integers_say_why_they_are_not_measured(tmp_path: Path) -> None:
    source = wb.open_model(write(tmp_path / "m", {"a.weight": ("U8", (2, 2), b"abcd")}))
    assert "stored as U8" in source.tensors()[0].reason


def test_empty_tensors_and_an_empty_file(tmp_path: Path) -> None:
    source = wb.open_model(write(tmp_path / "m", {"none": ("F32", (0, 5), b""), "one": ("F32", (1,), b"abcd")}))
    assert source.read("none").shape == (0, 5)
    assert list(source.chunks("none", 4)) == []
    assert wb.open_model(write(tmp_path / "e", {})).tensors() == []


def test_chunks_stream_a_tensor_through_one_buffer(folder: Path) -> None:
    source, name = wb.open_model(folder), "model.layers.0.mlp.up_proj.weight"
    whole, buffer = source.read(name).reshape(-1), np.empty(2 * 3_000, np.uint8)
    seen = []
    for chunk in source.chunks(name, 3_000, buffer):
        assert np.shares_memory(chunk, buffer)
        seen.append(chunk.copy())
    assert [c.size for c in seen] == [3_000, 3_000, 2_192]
    assert np.concatenate(seen).tobytes() == whole.tobytes()
    assert np.concatenate([c.copy() for c in source.chunks(name, 10**9)]).tobytes() == whole.tobytes()


def test_chunks_take_several_buffers_in_turn(folder: Path) -> None:
    source, name = wb.open_model(folder), "model.layers.0.mlp.up_proj.weight"
    two = [np.empty(2 * 3_000, np.uint8) for _ in range(2)]
    whole, chunks = source.read(name).reshape(-1), source.chunks(name, 3_000, cycle(two))
    first, second = next(chunks), next(chunks)
    assert [np.shares_memory(chunk, held) for chunk in (first, second) for held in two] == [True, False, False, True]
    assert np.concatenate([first, second]).tobytes() == whole[:6_000].tobytes(), "the first is still there"
    for count, buffer in ((0, None), (3_000, two[0][:5_999]), (3_000, np.empty(6_000, np.int8))):
        with pytest.raises(wb.ModelError, match="needs a uint8 buffer"):
            list(source.chunks(name, count, buffer))


def test_read_into_takes_a_part_from_anywhere(folder: Path) -> None:
    source, name = wb.open_model(folder), "lm_head.weight"
    part = np.empty((3, 64), ml_dtypes.bfloat16)
    source.read_into(name, part, start=5 * 64)
    assert part.tobytes() == source.read(name)[5:8].tobytes()
    for wrong, start in ((np.empty(4, np.float32), 0), (part[:, ::2], 0), (part, 128 * 64 - 1), (part, -1)):
        with pytest.raises(wb.ModelError):
            source.read_into(name, wrong, start)


def test_only_the_bytes_of_the_tensor_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = wb.open_model(folder)
    counted: list[int] = []
    really = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, into, at: counted.append(really(fd, into, at)) or counted[-1])
    source.read("model.norm.weight")
    assert sum(counted) == 64 * 2
    counted.clear()
    wb.open_model(folder)
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert sum(counted) == 8 + header


def test_a_file_above_four_gigabytes(tmp_path: Path) -> None:
    """Sparse on disk: only the last tensor has bytes."""
    rows = 2**20 + 1
    header = json.dumps(
        {
            "big": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]},
            "end": {"dtype": "F32", "shape": [2], "data_offsets": [rows * 4096, rows * 4096 + 8]},
        }
    ).encode()
    (tmp_path / "m").mkdir()
    with (tmp_path / "m" / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(rows * 4096, os.SEEK_CUR)
        file.write(np.array([1, 2], "<f4").tobytes())
    source = wb.open_model(tmp_path / "m")
    assert source.read("end").tolist() == [1, 2]
    last = np.ones(4, np.float32)
    source.read_into("big", last, start=rows * 1024 - 4)
    assert last.tolist() == [0, 0, 0, 0]


def test_progress_tells_the_bytes_and_cancelling_stops_the_reading(folder: Path) -> None:
    source, name = wb.open_model(folder), "model.layers.0.mlp.up_proj.weight"
    seen: list[tuple[int, int]] = []
    source.read(name, progress=lambda done, total: seen.append((done, total)), cancelled=lambda: False)
    assert seen == [(16_384, 16_384)]
    with pytest.raises(InterruptedError):
        source.read(name, cancelled=lambda: True)
    asked = iter([False, True])
    with pytest.raises(InterruptedError):
        list(source.chunks(name, 3_000, cancelled=lambda: next(asked)))


@pytest.mark.parametrize(
    ("file", "text", "licence"),
    [
        ("README.md", "---\nlanguage: en\nlicense: apache-2.0  # as is\n---\n# A model", "apache-2.0"),
        ("README.md", "---\nlicense: other\nlicense_name: 'own-terms'\n---\n", "own-terms"),
        ("README.md", "license: mit\n", ""),
        ("LICENSE", "\n                    Apache License\n   Version 2.0\n", "Apache License"),
        ("LICENSE", "\x1b" + "long " * 100, "long " * 100),
        ("COPYING", "", ""),
    ],
)
def test_the_licence_is_what_the_card_or_the_licence_file_names(tmp_path: Path, file: str, text: str, licence: str) -> None:
    model = write(tmp_path / "m", {"x": ("F32", (1,), b"abcd")})
    (model / file).write_text(text)
    told = wb.open_model(model).licence
    assert told == (licence if len(licence) <= 80 else f"{licence[:80]}…")


def test_a_licence_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret")
    model = write(tmp_path / "m", {"x": ("F32", (1,), b"abcd")})
    (model / "LICENSE").symlink_to("../secret")
    assert wb.open_model(model).licence == ""


def test_a_misspelt_tensor_is_told_what_is_near(folder: Path) -> None:
    with pytest.raises(wb.ModelError, match=r"Near it: .*model\.norm\.weight") as caught:
        wb.open_model(folder).read("model.norm.wieght")
    assert caught.value.where == "tiny-llama"


PACKAGE = Path(wb.__file__).parent
OPEN_BUILTIN = """
import workbench as wb
try:
    wb.open_model("builtin")
except wb.ModelError as error:
    print(error.where, error.remedy)
"""


def test_the_embedded_model_is_a_folder_like_any_other() -> None:
    source, folder = wb.open_model("builtin"), PACKAGE / "builtin" / "model"
    assert (source.name, source.path) == ("builtin", folder.resolve())
    assert source.tensors() == wb.open_model(folder).tensors()


def test_an_installation_without_the_embedded_model_says_so(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "workbench", ignore=shutil.ignore_patterns("builtin", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", OPEN_BUILTIN], cwd=tmp_path, env={}, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "workbench"))
    assert "Reinstall" in done.stdout


def test_a_missing_folder_is_told_what_is_near(folder: Path) -> None:
    with pytest.raises(wb.ModelError, match=r"There is no such folder\. Near it: .*tiny-llama") as caught:
        wb.open_model(folder.parent / "tiny-lama")
    assert "tiny-lama" in caught.value.where
    with pytest.raises(wb.ModelError, match="Near it: builtin"):
        wb.open_model("buildin")


@pytest.mark.parametrize("name", ["", "   ", "a\0b"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(wb.ModelError, match="named by 'builtin', by the path"):
        wb.open_model(name)


def test_a_local_model_has_no_revisions(folder: Path) -> None:
    with pytest.raises(wb.ModelError, match="has no revisions"):
        wb.open_model(folder, revision="main")


def test_a_file_in_place_of_its_folder(folder: Path) -> None:
    with pytest.raises(wb.ModelError, match=r"opened by its folder.*tiny-llama"):
        wb.open_model(folder / "model.safetensors")


def test_no_configuration_is_an_empty_one_and_one_loose_file_opens(tmp_path: Path) -> None:
    source = wb.open_model(write(tmp_path / "m", {"x": ("F32", (1,), b"abcd")}, file="weights.safetensors"))
    assert (source.config, source.read("x").size) == ({}, 1)


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "x.pth", "y.ckpt"])
def test_pickles_are_refused_with_the_reason_and_the_remedy(tmp_path: Path, pickle: str) -> None:
    (tmp_path / pickle).write_bytes(b"\x80\x04.")
    with pytest.raises(wb.ModelError, match=r"can run any code.*save_pretrained"):
        wb.open_model(tmp_path)


def test_an_empty_folder_and_loose_shards(tmp_path: Path) -> None:
    with pytest.raises(wb.ModelError, match=r"holds no model\.safetensors"):
        wb.open_model(tmp_path)
    for name in "ab":
        write(tmp_path, {"x": ("U8", (1,), b"x")}, file=f"{name}.safetensors")
    with pytest.raises(wb.ModelError, match="2 safetensors files and no model"):
        wb.open_model(tmp_path)


def test_a_snapshot_of_the_hub_cache_opens_through_its_links(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (blobs / f"blob-of-{name}").write_bytes((folder / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/blob-of-{name}")
    assert len(wb.open_model(snapshot).tensors()) == 21


def test_a_snapshot_opens_whose_blobs_are_shared_by_repositories(folder: Path, tmp_path: Path) -> None:
    shared, repo = tmp_path / "blobs" / "ab", tmp_path / "models--a--b"
    for made in (shared, repo / "blobs", repo / "snapshots" / "0123abc"):
        made.mkdir(parents=True)
    (shared / "abcd").write_bytes((folder / "model.safetensors").read_bytes())
    (repo / "blobs" / "1234").symlink_to("../../blobs/ab/abcd")
    (repo / "snapshots" / "0123abc" / "model.safetensors").symlink_to("../../blobs/1234")
    assert len(wb.open_model(repo / "snapshots" / "0123abc").tensors()) == 21


def test_a_file_that_changes_after_opening_is_an_error_not_a_crash(tmp_path: Path) -> None:
    source = wb.open_model(write(tmp_path / "m", {"x": ("U8", (100,), bytes(100))}))
    assert isinstance(source, LocalSource)
    chunks = source.chunks("x", 50)
    next(chunks)
    os.truncate(tmp_path / "m" / "model.safetensors", 90)
    with pytest.raises(wb.ModelError, match="Truncated while it was being read"):
        list(chunks)
    with pytest.raises(wb.ModelError, match="Changed since it was opened"):
        source.read("x")
