"""One file of rows: which files are read, and their rows one after another, each value as it stands in the file.

Covers JSON (a list, or objects one after another), CSV, text by line, Parquet and Arrow, the first three compressed too. No
type is inferred: text stays text, and a number in a text file is what is written there. Reads a piece at a time, so that memory
stays bounded. Which files make a dataset, and what a value may be, is ``dataset_files``' part.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import itertools
import json
import lzma
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np

KINDS = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".txt": "text", ".parquet": "parquet",
    ".arrow": "arrow",
}  # fmt: skip
"""Endings that are read, and the loader of ``datasets`` for each."""
_COMPRESSED: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_PIECE = 1 << 20
"""Characters of JSON that are read at a time, at least."""
_LONGEST = 1 << 26
"""Characters from which on a JSON object or a CSV value is taken to be one that does not end."""
_TOGETHER = 64
"""Rows of a columnar file that are decoded at a time."""
_SPACE = re.compile(r"[ \t\r\n]*")


class Written(float):
    """A number with a point or an exponent; ``str`` gives it as the file has it."""

    def __init__(self, written: str) -> None:
        self._written = written

    def __str__(self) -> str:
        return self._written


def ending(path: PurePath) -> str:
    """A file's ending, without that of its compression: ``.jsonl`` of ``rows.jsonl.gz``."""
    last, inner = path.suffix.lower(), PurePath(path.stem).suffix.lower()
    return inner if last in _COMPRESSED and KINDS.get(inner) in ("json", "csv", "text") else last


def kind_of(path: PurePath) -> str | None:
    """A file's kind by its name alone, as the loader of ``datasets``; None where it is not read."""
    return KINDS.get(ending(path))


def header(path: Path) -> tuple[str, ...] | None:
    """A table's columns; None for JSON, where each row has keys of its own."""
    match kind_of(path):
        case "json":
            return None
        case "text":
            return ("text",)
        case "csv":
            with _opened(path) as handle:
                return tuple(next(filter(None, _csv_lines(path, handle)), ()))
        case kind:
            with path.open("rb") as file:
                schema, _ = _parquet(file) if kind == "parquet" else _arrow(file)
                return tuple(schema.names)


def rows(path: Path, columns: Sequence[str], nested: bool = False) -> Iterator[tuple[Any, ...]]:
    """The values of ``columns``, row by row; None where a row has none.

    JSON's numbers are text, as they are written. ``nested``: the columns hold chats, whose numbers are Python's; the nulls by
    which a columnar file fills up fields that a row does not have are left out. A ``ValueError`` names the line where it can.
    """
    match kind_of(path):
        case "json":
            yield from (tuple(row.get(column) for column in columns) for row in objects(path, nested))
        case "text":
            with _opened(path) as handle:
                yield from ((line.rstrip("\n"),) * len(columns) for line in handle)
        case "csv":
            yield from _csv_rows(path, columns)
        case kind:
            with path.open("rb") as file:
                schema, batches = _parquet(file, columns) if kind == "parquet" else _arrow(file)
                types = [schema.field(column).type for column in columns]
                for batch in batches:
                    values = [
                        [
                            _filled(value.as_py(), type_) if nested else _scalar(value.as_py(), type_)
                            for value in batch.column(name)
                        ]
                        for name, type_ in zip(columns, types, strict=True)
                    ]
                    yield from zip(*values, strict=True)


def objects(path: Path, nested: bool = False) -> Iterator[dict[str, Any]]:
    """The objects of a JSON file: its list's items, or one after another, however they are broken into lines."""
    decoder = json.JSONDecoder(parse_float=Written) if nested else json.JSONDecoder(parse_int=str, parse_float=str)
    with _opened(path) as handle:
        text = _Json(handle)
        listed = text.ahead() == "["
        if listed:
            text.skip()
        while (ahead := text.ahead()) != ("]" if listed else ""):
            if not ahead:
                raise ValueError(f"line {text.line}: the list does not end")
            if ahead != "{":
                raise ValueError(f"line {text.line}: a row is no JSON object")
            yield text.value(decoder)
            if listed and (ahead := text.ahead()) != "]":
                if ahead != ",":
                    raise ValueError(f"line {text.line}: a comma or the list's end is missing")
                text.skip()
        if listed:
            text.skip()
            if text.ahead():
                raise ValueError(f"line {text.line}: something follows the list")


def row_count(path: Path) -> int | None:
    """About how many rows a file has, without reading them as such; None where that is not known."""
    kind = kind_of(path)
    if kind == "parquet":
        with path.open("rb") as file:
            import pyarrow.parquet  # type: ignore[import-untyped]

            return int(pyarrow.parquet.ParquetFile(file).metadata.num_rows)
    if kind == "arrow" or path.suffix.lower() in _COMPRESSED or (kind == "json" and is_list(path)):
        return None
    with path.open("rb", buffering=0) as file:
        return sum(piece.count(b"\n") for piece in iter(lambda: file.read(_PIECE), b""))


def rows_in(path: Path, most: int) -> int:
    """How many rows a file has, counted up to ``most``."""
    if kind_of(path) == "parquet":
        return row_count(path) or 0
    names = (header(path) or ("",))[:1]
    return sum(1 for _ in itertools.islice(rows(path, names), most))


def is_list(path: Path) -> bool:
    """Whether a JSON file is one list, rather than objects one after another."""
    with _opened(path) as handle:
        return _Json(handle).ahead() == "["


class _Json:
    """JSON text, of which a piece at a time is held, and the line it is read to."""

    def __init__(self, handle: IO[str]) -> None:
        self._handle, self._text, self._at = handle, "", 0
        self.line = 1

    def ahead(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._pass(space.end() if space else self._at)
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Skip the next character."""
        self._at += 1

    def value(self, decoder: json.JSONDecoder) -> Any:
        """The value that begins here, however much of the file it takes."""
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at < _LONGEST and self._more():
                    continue
                line = self.line + self._text.count("\n", self._at, error.pos)
                raise ValueError(f"line {line}: {error.msg}") from error
            except RecursionError as error:
                raise ValueError(f"line {self.line}: it is nested too deeply") from error
            self._pass(end)
            return value

    def _pass(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _more(self) -> bool:
        piece = self._handle.read(max(_PIECE, len(self._text) - self._at))
        if piece:
            self._text, self._at = self._text[self._at :] + piece, 0
        return bool(piece)


def _opened(path: Path) -> IO[str]:
    """The text of a file, compressed or not, without a byte order mark."""
    newline = "" if kind_of(path) == "csv" else None  # a CSV value's own ends of lines stay as they are
    opener: Callable[..., IO[str]] = _COMPRESSED.get(path.suffix.lower(), open)
    return opener(path, "rt", encoding="utf-8-sig", newline=newline)


def _csv_lines(path: Path, handle: IO[str]) -> Any:
    csv.field_size_limit(_LONGEST)  # of the process; its default of 128 KiB refuses long texts
    return csv.reader(handle, delimiter="\t" if ending(path) == ".tsv" else ",", strict=True)


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
    """Text as it stands: "NA" and "007" are themselves."""
    with _opened(path) as handle:
        lines = _csv_lines(path, handle)
        try:
            names = next(filter(None, lines), columns)  # the first line that is not blank; an empty file has none
            places = [names.index(column) for column in columns]
            for row in lines:
                if len(row) > len(names):
                    raise ValueError(f"it has {len(row)} values, and the header {len(names)} names")
                if row:
                    yield tuple(row[place] if place < len(row) else None for place in places)
        except (csv.Error, ValueError) as error:
            raise ValueError(f"line {lines.line_num}: {error}") from error


def _parquet(file: Any, columns: Sequence[str] = ()) -> tuple[Any, Iterator[Any]]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    return table.schema_arrow, table.iter_batches(_TOGETHER, columns=list(columns))


def _arrow(file: Any) -> tuple[Any, Iterator[Any]]:
    """Of a stream, as ``datasets`` writes it, or of a file with an index at its end."""
    import pyarrow as pa

    try:
        stream = pa.ipc.open_stream(file)
        return stream.schema, stream
    except pa.ArrowInvalid:
        indexed = pa.ipc.open_file(file)
        return indexed.schema, (indexed.get_batch(i) for i in range(indexed.num_record_batches))


def _scalar(value: Any, type_: Any) -> Any:
    """A number in the precision that it has in the file: 0.1 of 32 bits is not 0.10000000149011612."""
    short = {"float": np.float32, "halffloat": np.float16}.get(str(type_))
    return Written(str(short(value))) if short and value is not None else value


def _filled(value: Any, type_: Any) -> Any:
    """A nested value as JSON would have it, without the fields that its row did not have."""
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_struct(type_):
        fields = {field.name: _filled(value[field.name], field.type) for field in type_}
        return {name: inner for name, inner in fields.items() if inner is not None}
    if pa.types.is_map(type_):
        return {name: _filled(inner, type_.item_type) for name, inner in value}
    if pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_):
        return [_filled(inner, type_.value_type) for inner in value]
    if getattr(type_, "extension_name", None) == "arrow.json":
        return json.loads(value)
    return _scalar(value, type_)
