"""Rows on disk: every kind of file gives what stands in it, whatever it looks like, and a folder what ``datasets`` takes."""

from __future__ import annotations

import bz2
import datetime
import decimal
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench import DataError
from workbench.training.dataset_files import check_columns, locate, read_rows

WRITTEN = [
    "2019-05-03", "2019-05-03T10:00:00+02:00", "2019-05-03 10:00:00", "10:30", "2019-05", "00:00", "NA", "null", "true", "007",
    "", "18", "18.0", "1e3", "0x10", "1_000",
]  # fmt: skip
"""Texts that a reader could take for something else."""
NUMBERS = ["18", "3.5", "18.0", "1e3", "1E-07", "0.10", "-0", "12345678901234567890123", "3.14159265358979323846264", "1e999"]
"""Numbers as JSON may write them."""
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def texts(path: Path, *columns: str, split: str = "train") -> list[tuple[str | None, ...]]:
    return [tuple(row.values()) for row in read_rows(locate(str(path), split), columns or ("text",))]


def chats_in(path: Path) -> list[Any]:
    return [row["chat"] for row in read_rows(locate(str(path)), ("chat",), nested=True)]


def column(path: Path, name: str = "text") -> list[str | None]:
    return [value for (value,) in texts(path, name)]


@pytest.mark.parametrize("packed", COMPRESSED)
@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "json", "csv", "tsv", "txt"])
def test_text_is_what_stands_in_the_file(ending: str, packed: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": range(len(WRITTEN)), "text": WRITTEN})
    content = {
        "json": lambda: json.dumps(frame.to_dict("records"), indent=1),
        "csv": lambda: frame.to_csv(index=False),
        "tsv": lambda: frame.to_csv(index=False, sep="\t"),
        "txt": lambda: "\n".join(WRITTEN),
    }.get(ending, lambda: "\n".join(map(json.dumps, frame.to_dict("records"))))()
    path = tmp_path / f"rows.{ending}{packed}"
    path.write_bytes(COMPRESSED[packed](content.encode()))
    assert column(path) == WRITTEN


@pytest.mark.parametrize("listed", [False, True])
def test_a_number_is_what_is_written_whatever_else_its_column_has(listed: bool, tmp_path: Path) -> None:
    rows = [f'{{"text": {number}}}' for number in [*NUMBERS, '"and text"', "null"]]
    path = tmp_path / "rows.json"
    path.write_text(f"[{', '.join(rows)}]" if listed else "\n".join(rows))
    assert column(path) == [*NUMBERS, "and text", None]


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_a_typed_number_is_what_its_type_can_tell(ending: str, tmp_path: Path) -> None:
    values = [0.1, 18.0, -1.5, 3.0e10, 1e-7]
    table = pa.table(
        {
            "float": pa.array(values, pa.float32()), "double": values, "whole": [18, -1, 0, 2**62, 7],
            "decimal": [decimal.Decimal(x) for x in ("18.50", "0.10", "3.00", "-1.25", "0.00")], "text": WRITTEN[:5],
        }
    )  # fmt: skip
    path = tmp_path / f"rows.{ending}"
    write_table(table, path)
    for name in ("float", "double", "whole", "decimal"):
        right = table.to_pandas()[[name]].to_csv(index=False, header=False).split()
        assert column(path, name) == right
    assert column(path) == WRITTEN[:5]


def write_table(table: Any, path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("value", ["true", "[1]", '{"a": 1}', "NaN", "-Infinity"])
def test_what_is_neither_text_nor_a_number_is_refused_by_column_and_row(value: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": "a"}}\n{{"text": {value}}}\n')
    with pytest.raises(DataError, match="column 'text'") as caught:
        texts(path)
    assert caught.value.where.endswith("rows.jsonl, row 2")


@pytest.mark.parametrize(
    "value",
    [
        datetime.date(2019, 5, 3), datetime.datetime(2019, 5, 3, 10), datetime.time(10), datetime.timedelta(1), b"a", True, [1],
        {"a": 1},
    ],
    ids=repr,
)  # fmt: skip
def test_a_typed_column_is_refused_by_column_and_row(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"other": ["a", "b"], "text": [None, value]}), path)
    with pytest.raises(DataError, match="column 'text'") as caught:
        texts(path)
    assert caught.value.where.endswith("rows.parquet, row 2")


@pytest.mark.parametrize("form", ["lines", "list", "indented"])
def test_long_rows_and_late_keys_are_read_as_json_reads_them(form: str, tmp_path: Path) -> None:
    rng = random.Random(0)
    rows: list[dict[str, Any]] = [{"other": "x" * 1_500_000}]
    rows += [{"text": "é\n\u2028\"'[]{}," * rng.randrange(40_000), "other": None} for _ in range(20)]
    rows += [{"late": "a", "text": "b"}, {}]
    dumped = [json.dumps(row, indent=1 if form == "indented" else None, ensure_ascii=bool(i % 2)) for i, row in enumerate(rows)]
    path = tmp_path / "rows.json"
    path.write_text(f"[{', '.join(dumped)}]\n" if form == "list" else "\n".join(dumped), "utf-8")
    names = ("text", "late", "other")
    assert texts(path, *names) == [tuple(row.get(name) for name in names) for row in rows]


def test_a_long_value_of_a_csv_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f'n,text\n1,"{"x" * 1_500_000}"\n2,"two\r\nlines, ""quoted"""\n3\n')
    assert column(path) == ["x" * 1_500_000, 'two\r\nlines, "quoted"', None]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b\n"}\n', "line 3"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"', "line 2"),
        ("a.jsonl", b'{"text": "a"},\n{"text": "b"}', "line 1: a row is no JSON object"),
        ("a.json", b'[{"text": "a"}\n{"text": "b"}]', "line 2: a comma"),
        ("a.json", b'[{"text": "a"},\n', "line 2: the list does not end"),
        ("a.json", b'[{"text": "a"}]\n[{"text": "b"}]', "line 2: something follows"),
        ("a.jsonl", b'{"text": "a"}\n' + b'{"text": ' + b"[" * 100_000, "line 2: it is nested too deeply"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "utf-8"),
        ("a.csv", b"text,n\na,1\nb,2,3\n", "line 3: it has 3 values, and the header 2"),
        ("a.csv", b'text,n\na,1\n"b,2\n', "unexpected end"),
        # Without the time in its header: the bytes are in the test's name, which must be the same in every process.
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 9, mtime=0)[:-9], "end-of-stream"),
        ("a.jsonl.gz", b'{"text": "a"}\n', "gzip"),
        ("a.arrow", b"ARROW1", "cannot be read"),
    ],
)
def test_what_is_broken_is_named_with_its_file_and_line(name: str, content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told) as caught:
        texts(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.csv", "a.jsonl.gz", "a.json", "a.txt"])
def test_a_file_without_rows_is_said_to_have_none(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix in (".parquet", ".arrow"):
        write_table(pa.table({"text": pa.array([], pa.string())}), path)
    else:
        path.write_bytes({"a.csv": b"text,n\n", "a.json": b"[ ]", "a.jsonl.gz": gzip.compress(b"\n")}.get(name, b""))
    with pytest.raises(DataError, match="no rows"):
        check_columns(locate(str(path)), ("text",))


def test_every_file_of_a_table_has_the_columns(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na\n")
    (tmp_path / "b.csv").write_text("txt\nb\n")
    with pytest.raises(DataError, match="no column 'text'; it has 'txt'") as caught:
        texts(tmp_path)
    assert caught.value.where == str(tmp_path / "b.csv")


def test_a_columnar_chat_is_the_chat_that_was_saved(tmp_path: Path) -> None:
    calls: list[dict[str, Any]] = [{"city": "Oslo"}, {"days": 3, "at": {"hour": 7}}, {"scale": 0.5}]
    chats: list[Any] = [
        [
            {"role": "user", "content": "one?"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": call}}]},
        ]
        for call in calls
    ]
    pq.write_table(pa.Table.from_pylist([{"chat": chat} for chat in chats]), tmp_path / "chats.parquet")
    assert chats_in(tmp_path / "chats.parquet") == chats
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps({"chat": chat}) for chat in chats))
    mixed = datasets.load_dataset(
        "json", data_files=str(tmp_path / "chats.jsonl"), split="train", cache_dir=str(tmp_path / "c")
    )
    mixed.save_to_disk(str(tmp_path / "saved"))
    assert chats_in(tmp_path / "saved") == chats


LAYOUTS = [
    ["rows.jsonl"],
    ["rows.jsonl", ".ipynb_checkpoints/rows-checkpoint.jsonl", ".hidden.jsonl", ".git/x.jsonl", "sub/.cache/y.jsonl"],
    ["a.jsonl", "b.jsonl", "sub/c.jsonl", "__pycache__/d.jsonl", "__MACOSX/e.jsonl", "__f.jsonl"],
    [
        "train.jsonl",
        "test.jsonl",
        ".ipynb_checkpoints/train-checkpoint.jsonl",
        "README.md",
        "dataset_infos.json",
        "config.json",
    ],
    ["train1.jsonl", "train2.jsonl", "test1.jsonl", "eval_set.jsonl"],
    ["my_train_file.jsonl", "my-valid.jsonl", "training.jsonl", "trainer.jsonl", "contest.jsonl"],
    ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/extra-00000-of-00001-x.jsonl", "test.jsonl"],
    ["train/a.jsonl", "train/b/c.jsonl", "validation/a.jsonl", "other/train.jsonl"],
    ["x/train-part/test_a.jsonl", "x/dev/a.jsonl"],
    ["rows.jsonl.gz", "more.jsonl.gz"],
    ["train.json", "train_more.jsonl", "train.ndjson"],
    ["rows.jsonl", "LICENSE.txt"],
    ["rows.csv", "more.csv", "notes.txt"],
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=", ".join)
def test_a_folder_is_read_as_datasets_reads_it(layout: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "it"
    for name in layout:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"text\n{name}\n" if path.suffix == ".csv" else f"{json.dumps({'text': name})}\n"
        text = "" if path.suffix == ".md" else "{}" if name in ("config.json", "dataset_infos.json") else text
        path.write_bytes(COMPRESSED[".gz" if path.suffix == ".gz" else ""](text.encode()))
    right = datasets.load_dataset(str(folder), streaming=True)
    found = {split: sorted(text for (text,) in texts(folder, split=str(split)) if text) for split in right}
    assert found == {split: sorted(row["text"] for row in rows) for split, rows in right.items()}
    for split in {"train", "validation", "test"} - set(right):
        with pytest.raises(DataError, match="no split"):
            locate(str(folder), split)


def test_capitals_in_names_do_not_mix_test_rows_into_training(tmp_path: Path) -> None:
    for name in ("Train.jsonl", "TEST.jsonl"):
        (tmp_path / name).write_text(f'{{"text": "{name}"}}')
    assert column(tmp_path) == ["Train.jsonl"]


def test_a_folder_of_save_to_disk_is_what_load_from_disk_gives(tmp_path: Path) -> None:
    kept = {split: datasets.Dataset.from_dict({"text": [f"{split} {i}" for i in range(7)]}) for split in ("train", "test")}
    datasets.DatasetDict(kept).save_to_disk(str(tmp_path / "both"), num_shards={"train": 3, "test": 1})
    kept["train"].save_to_disk(str(tmp_path / "one"))
    write_table(pa.table({"text": ["of a cache"]}), tmp_path / "one" / "cache-0123456789abcdef.arrow")
    right = datasets.load_from_disk(str(tmp_path / "both"))
    for split in ("train", "test"):
        assert [text for (text,) in texts(tmp_path / "both", split=split)] == right[split]["text"][:]
    assert column(tmp_path / "one") == datasets.load_from_disk(str(tmp_path / "one"))["text"][:]


def test_a_description_by_save_to_disk_names_nothing_outside(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path))
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "../secret.arrow"}]}')
    with pytest.raises(DataError, match="save_to_disk"):
        locate(str(tmp_path))
