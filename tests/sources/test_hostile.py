"""Broken and hostile model folders: each gets a ModelError that names the file and the fault, in bounded time and memory."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.sources.header import MAX_HEADER, Header, read_header

GOOD: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "model.a.weight": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [0, 16]},
    "model.b.weight": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
    "model.c": {"dtype": "U8", "shape": [], "data_offsets": [24, 25]},
}


def blob(header: Any, data: bytes = bytes(25), length: int | None = None) -> bytes:
    """A file: ``header`` is an object or the text itself, ``length`` the length that it claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def parse(raw: bytes) -> Header:
    return read_header(lambda at, count: raw[at : at + count], len(raw), "somewhere/model.safetensors")


def changed(name: str = "model.b.weight", **fields: Any) -> bytes:
    return blob({**GOOD, name: {**GOOD[name], **fields}})


def text(old: str, new: str) -> bytes:
    """The good header with a piece of its text replaced."""
    good = json.dumps(GOOD)
    assert old in good
    return blob(good.replace(old, new, 1).encode())


def test_the_good_header_is_good() -> None:
    header = parse(blob(GOOD))
    assert list(header.entries) == ["model.a.weight", "model.b.weight", "model.c"]
    assert header.metadata == {"format": "pt"}
    assert parse(blob(json.dumps(GOOD, indent=2).encode() + b"   ")).entries.keys() == header.entries.keys()


FAULTS = {
    "an empty file": (b"", "shorter than the eight bytes"),
    "a header longer than the file": (blob(GOOD, length=10_000), "does not fit its"),
    "a header longer than the format allows": (blob(GOOD, length=MAX_HEADER + 1), "claims a header of 100,000,001 bytes"),
    "a length of 2⁶⁴−1": (blob(GOOD, length=2**64 - 1), "claims a header of 18,446,744,073,709,551,615 bytes"),
    "something else's bytes": (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
    "a list": (blob([]), "not a JSON object"),
    "spaces first": (blob(b" " + json.dumps(GOOD).encode()), "not a JSON object"),
    "not UTF-8": (blob(b'{"\xff": 1}'), "not UTF-8"),
    "cut JSON": (blob(json.dumps(GOOD).encode()[:-1]), "expected at character"),
    "text after the object": (blob(json.dumps(GOOD).encode() + b"{}"), "something follows"),
    "truncated data": (blob(GOOD)[:-1], "Truncated: its header describes"),
    "data that no tensor covers": (blob(GOOD) + b"x", "1 bytes follow the last tensor"),
    "an entry that is no object": (blob({**GOOD, "model.c": [1]}), "not a short JSON object"),
    "an entry without dtype": (blob({**GOOD, "model.c": {"shape": [], "data_offsets": [24, 25]}}), "unknown dtype"),
    "an unknown dtype": (changed(dtype="F128"), "unknown dtype 'F128'"),
    "a dtype that is a list": (changed(dtype=["F32"]), "unknown dtype"),
    "an offset past the end": (changed("model.c", shape=[100], data_offsets=[24, 124]), "Truncated"),
    "offsets that run backwards": (changed(data_offsets=[24, 16]), "the first at most the second"),
    "three offsets": (changed(data_offsets=[16, 24, 24]), "not two numbers"),
    "negative offsets": (changed(data_offsets=[-8, 0]), "not two numbers"),
    "offsets that overlap": (changed("model.b.weight", data_offsets=[12, 20]), "overlaps the one before it"),
    "a gap": (changed("model.a.weight", shape=[3, 2], data_offsets=[0, 12]), "leaves a gap before it"),
    "a shape that disagrees with the offsets": (changed(shape=[3]), "has 8 bytes, but its shape [3] in F32 takes 12"),
    "a negative dimension": (changed(shape=[-2]), "not a list of at most 32 whole numbers"),
    "two negative dimensions": (changed(shape=[-1, -2]), "not a list of at most 32 whole numbers"),
    "a fractional dimension": (changed(shape=[2.0]), "not a list of at most 32 whole numbers"),
    "a dimension that is true": (changed(shape=[True, 2]), "not a list of at most 32 whole numbers"),
    "a dimension that is text": (changed(shape="2"), "not a list of at most 32 whole numbers"),
    "a dimension beyond 64 bits": (changed(shape=[2**64]), "not a list of at most 32 whole numbers"),
    "dimensions that overflow": (changed(shape=[2**32, 2**32]), "too large to address"),
    "an empty tensor of dimensions that overflow": (changed(shape=[0, 2**62], data_offsets=[16, 16]), "too large to address"),
    "thirty-three dimensions": (changed(shape=[1] * 32 + [2]), "not a list of at most 32 whole numbers"),
    "a number of 5,000 digits": (text("[2]", f"[{'9' * 4000}]"), "not a list of at most 32 whole numbers"),
    "a tensor given twice": (text('"model.b.weight"', '"model.a.weight"'), "the tensor 'model.a.weight' is given twice"),
    "a field given twice": (text('"dtype": "F32"', '"dtype": "F32", "dtype": "F32"'), "a key is given twice"),
    "metadata given twice": (text('"model.c"', '"__metadata__": {}, "model.c"'), "__metadata__ is given twice"),
    "metadata that is no text": (blob({**GOOD, "__metadata__": {"a": 1}}), "a metadata value is not a string"),
    "metadata that is nested": (blob({**GOOD, "__metadata__": {"a": {}}}), "a metadata value is not a string"),
    "brackets, a million deep": (blob(b'{"a":' + b"[" * 1_000_000), "not a short JSON object"),
    "objects, a million deep": (blob(b'{"a":' * 1_000_000), "not a short JSON object"),
    "brackets inside an entry": (text("[2]", "[" * 2_000 + "]" * 2_000), "is not a"),
    "an entry of a megabyte": (changed(note="x" * 1_000_000), "not a short JSON object"),
    "a name with HTML": (text("model.b.weight", "<img src=x>"), "'<img src=x>' has a name that no model gives"),
    "a name with a newline": (text("model.b.weight", "a\\nb"), r"'a\nb' has a name that no model gives"),
    "a name with a terminal escape": (text("model.b.weight", "\\u001b[2J"), r"'\x1b[2J' has a name that no model gives"),
    "a name with half a surrogate": (text("model.b.weight", "\\ud800"), "a tensor\'s name is not a JSON string"),
    "a name that turns the text round": (text("model.b.weight", "\\u202e"), "has a name that no model gives"),
    "a name of 100 kB": (text("model.b.weight", "n" * 100_000), "has a name that no model gives"),
    "no name": (text("model.b.weight", ""), "has a name that no model gives"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_header_names_the_file_and_the_fault(tmp_path: Path, fault: str) -> None:
    raw, told = FAULTS[fault]
    (tmp_path / "model.safetensors").write_bytes(raw)
    began = time.monotonic()
    with pytest.raises(wb.ModelError) as caught:
        wb.open_model(tmp_path)
    assert time.monotonic() - began < 2
    assert told.lower() in str(caught.value).lower()
    assert caught.value.where == str(tmp_path / "model.safetensors")
    assert caught.value.remedy
    assert len(caught.value.what) < 500
    assert caught.value.what.isprintable()


def test_a_hostile_header_costs_memory_in_proportion_to_its_length() -> None:
    """A general JSON parser makes 28 bytes out of each of these."""
    raw = blob(b'{"__metadata__":{"k":[' + b"[]," * 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(wb.ModelError):
            parse(raw)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(raw)
    finally:
        tracemalloc.stop()


def check(raw: bytes) -> None:
    """A file opens, and then the reference implementation reads the same tensors out of it, or it is a ModelError."""
    fault = None
    try:
        header = parse(raw)
    except wb.ModelError as error:
        fault = error
    if fault is not None:
        assert fault.where == "somewhere/model.safetensors"
        assert str(fault).isprintable()
        return
    reference = dict(safetensors.deserialize(raw))
    assert {n: (e.dtype.name, list(e.shape), bytes(raw[e.begin : e.end])) for n, e in header.entries.items()} == {
        n: (view["dtype"], view["shape"], bytes(view["data"])) for n, view in reference.items()
    }


NUMBERS = st.one_of(st.integers(-3, 40), st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64]), st.floats(), st.none())


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from([n for n in GOOD if n != "__metadata__"]),
    field=st.sampled_from(["dtype", "shape", "data_offsets"]),
    value=st.one_of(st.sampled_from(["F64", "F4", "F6_E2M3", "BOOL", "C64", ""]), st.lists(NUMBERS, max_size=4), NUMBERS),
    size=st.integers(0, 60),
)
def test_a_header_with_any_other_field_opens_or_is_a_model_error(name: str, field: str, value: Any, size: int) -> None:
    check(blob({**GOOD, name: {**GOOD[name], field: value}}, data=bytes(size)))


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(str.encode)), st.integers(0, len(json.dumps(GOOD))))
def test_a_header_with_anything_put_into_it_opens_or_is_a_model_error(junk: bytes, at: int) -> None:
    good = json.dumps(GOOD).encode()
    check(blob(good[:at] + junk + good[at:]))


def folder_of_shards(folder: Path, weight_map: Any) -> Path:
    folder.mkdir()
    for shard, name in (("s1.safetensors", "a"), ("s2.safetensors", "b")):
        (folder / shard).write_bytes(blob({name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"x"))
    index = weight_map if isinstance(weight_map, bytes) else json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    (folder / "model.safetensors.index.json").write_bytes(index)
    return folder


def test_the_good_index_is_good(tmp_path: Path) -> None:
    source = wb.open_model(folder_of_shards(tmp_path / "m", {"a": "s1.safetensors", "b": "s2.safetensors"}))
    assert source.read("b").tobytes() == b"x"


@pytest.mark.parametrize(
    ("weight_map", "told"),
    [
        ({"a": "../s1.safetensors"}, "not a name inside the folder"),
        ({"a": "x/../../s1.safetensors"}, "not a name inside the folder"),
        ({"a": "/etc/x.safetensors"}, "not a name inside the folder"),
        ({"a": "..\\s1.safetensors"}, "not a name inside the folder"),
        ({"a": "s\n1.safetensors"}, "not a name inside the folder"),
        ({"a": "s\0001.safetensors"}, "not a name inside the folder"),
        ({"a": "s" * 300 + ".safetensors"}, "not a name inside the folder"),
        ({"a": "model.bin"}, "names the shard 'model.bin', which is not safetensors"),
        ({"a": "s3.safetensors"}, "The file 's3.safetensors' is missing"),
        ({"a": "s2.safetensors"}, "says that 'a' is in s2.safetensors, and it is not"),
        ({"c": "s1.safetensors"}, "says that 'c' is in s1.safetensors, and it is not"),
        ({"<b>\x1b[2J": "s1.safetensors"}, r"says that '<b>\x1b[2J' is in s1.safetensors, and it is not"),
        ({"n" * 100_000: "s1.safetensors"}, r"nnn\u2026' is in s1.safetensors, and it is not"),
        ({"a": "<b>.safetensors"}, "The file '<b>.safetensors' is missing"),
        ({"a": 3}, "no weight_map"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not valid JSON"),
        (b'{"weight_map": {"a": "s1.safetensors", "a": "s2.safetensors"}}', "a key is given twice"),
        (b'{"weight_map": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "not valid JSON"),
        (b'{"weight_map": [' + b"[]," * 200_000 + b"[]]}", "larger than such a file ever is"),
    ],
)
def test_a_bad_index_names_the_file_and_the_fault(tmp_path: Path, weight_map: Any, told: str) -> None:
    with pytest.raises(wb.ModelError) as caught:
        wb.open_model(folder_of_shards(tmp_path / "m", weight_map))
    assert told in str(caught.value)
    assert caught.value.where.startswith(str(tmp_path / "m"))
    assert caught.value.what.isprintable()


def test_two_shards_with_one_tensor(tmp_path: Path) -> None:
    folder = folder_of_shards(tmp_path / "m", {"a": "s1.safetensors", "b": "s2.safetensors"})
    (folder / "s2.safetensors").write_bytes((folder / "s1.safetensors").read_bytes())
    with pytest.raises(wb.ModelError, match=r"The tensor 'a' is also in s1\.safetensors"):
        wb.open_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json"])
def test_nothing_outside_the_folder_is_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(blob(GOOD))
    folder = tmp_path / "m"
    folder.mkdir()
    if name == "config.json":
        (folder / "model.safetensors").write_bytes(blob(GOOD))
    (folder / name).symlink_to("../outside")
    with pytest.raises(wb.ModelError, match=f"The file '{name}' is a link out of the folder"):
        wb.open_model(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(name)
    with pytest.raises(wb.ModelError, match=f"The file '{name}' is missing or cannot be read"):
        wb.open_model(folder)


@pytest.mark.parametrize("link", ["s1.safetensors", "sub"])
def test_a_shard_that_is_linked_from_elsewhere_is_not_read(tmp_path: Path, link: str) -> None:
    outside = folder_of_shards(tmp_path / "outside", {"a": "s1.safetensors"})
    shard = "s1.safetensors" if link == "s1.safetensors" else "sub/s1.safetensors"
    folder = folder_of_shards(tmp_path / "m", {"a": shard, "b": "s2.safetensors"})
    (folder / "s1.safetensors").unlink()
    (folder / link).symlink_to(outside / "s1.safetensors" if link == "s1.safetensors" else outside)
    with pytest.raises(wb.ModelError, match=r"s1\.safetensors' is a link out of the folder"):
        wb.open_model(folder)


def test_a_snapshot_of_the_hub_cache_may_link_to_its_blobs_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(blob(GOOD))
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").write_bytes(blob(GOOD))
    for target in ("../../../secret", "../../refs", "../../blobs/../refs", "../../blobs/../../secret", "/etc/hostname"):
        (snapshot / "model.safetensors").symlink_to(target)
        with pytest.raises(wb.ModelError, match="is a link out of the folder"):
            wb.open_model(snapshot)
        (snapshot / "model.safetensors").unlink()


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(wb.ModelError, match="not a regular file"):
        wb.open_model(tmp_path)


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"not json", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": 1, "a": 2}', "a key is given twice"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b"[" * 90_000, "not valid JSON"),
    ],
)
def test_a_bad_configuration_names_the_file_and_the_fault(tmp_path: Path, raw: bytes, told: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(blob(GOOD))
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(wb.ModelError, match=told) as caught:
        wb.open_model(tmp_path)
    assert caught.value.where == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    "config", [{"model_type": ["x"]}, {"text_config": 3}, {"tie_word_embeddings": "yes"}, {"hidden_size": "x"}]
)
def test_a_strange_configuration_does_not_keep_the_tensors_from_being_listed(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "model.safetensors").write_bytes(blob(GOOD))
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = wb.open_model(tmp_path)
    assert len(source.tensors()) == 3
    assert wb.forecast(source, wb.TrainConfig()).total > 0
