"""Where the rows of a dataset are: the embedded one, a file, a folder of files, or a dataset on the Hub; and reading them.

Covers choosing the files of a split as ``datasets`` does, fetching them from the Hub, checking that they have the columns, and
the rows one after another. No code of a dataset is ever run, and its card decides nothing: files are taken by their names.
How one file is read is ``row_files``' part; nothing is tokenized here (``data``).
"""

from __future__ import annotations

import contextlib
import decimal
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

from workbench.errors import DataError, ModelError, Unreachable
from workbench.given import expanded, nearest
from workbench.training import row_files
from workbench.training.dataset_parts import check_one
from workbench.training.row_files import ending, header, kind_of, objects, rows

BUILTIN = Path(__file__).parent.parent / "builtin"
LARGEST = 20 * 2**30
"""Bytes that are fetched from the Hub at most, without being asked twice."""
_HUB_ID = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")
_SPLITS = {
    "train": ("train", "training"), "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}  # fmt: skip
_SHARD = re.compile(r"data/(.+)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_NO_DATA = {"README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dummy_data.zip", "dataset_dict.json"}
"""Names of files that describe a dataset, as ``datasets`` has them."""
_CHOOSE = "Use .jsonl, .json, .csv, .tsv or .txt (also with .gz, .bz2 or .xz behind), .parquet or .arrow."


@dataclass(frozen=True)
class Files:
    """The files of one split, all of one kind."""

    paths: tuple[Path, ...]
    where: str
    """What to name in an error: the file, or the dataset."""
    revision: str | None = None
    """The commit, of a dataset on the Hub."""

    @property
    def loader(self) -> str:
        """What ``datasets`` calls files of this kind."""
        return kind_of(self.paths[0]) or ""


def on_hub(name: str) -> bool:
    """Whether a name is that of a repository on the Hub (``owner/name``, and nothing of that name here)."""
    there = os.path.exists(expanded(name))
    return not there and _HUB_ID.fullmatch(name) is not None and kind_of(Path(name)) is None


def locate(name: str, split: str = "train", config: str | None = None, revision: str | None = None, rows: int = 0) -> Files:
    """The files behind a dataset's name, fetched from the Hub where they are not here; ``DataError`` says what is wrong.

    ``rows``: how many are wanted; from the Hub no more files are fetched than have so many. 0: all.
    """
    if name == "builtin":
        return Files((BUILTIN / "data" / f"{split}.jsonl",), name)
    if on_hub(name):
        return fetch(name, split, config, revision, rows)
    path = expanded(name).absolute()
    if os.path.isdir(path):
        return Files(_of_split(path, name, split, config), name)
    if not os.path.isfile(path):
        raise DataError("there is no such file or folder.", where=str(path), remedy=_remedy(path, name), field="dataset")
    if kind_of(path) is None:
        what = f"files of the kind {ending(path) or '(no ending)'!r} are not read."
        raise DataError(what, where=name, remedy=_CHOOSE, field="dataset")
    if split != "train" or config is not None:
        raise DataError(
            "a single file has no splits and no configurations.",
            where=name,
            remedy="Name a folder, or leave them.",
            field="dataset_config" if split == "train" else "dataset_split",
        )
    return Files((path,), str(path))


def _remedy(path: Path, name: str) -> str:
    """What else may be meant by a path that is not there."""
    there = [entry.name for entry in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    beside = nearest(path.name, [*there, *(["builtin"] if name == path.name else [])])
    return f"A dataset is 'builtin', a file, a folder, or OWNER/NAME on the Hub. {beside}".strip()


def _of_split(folder: Path, name: str, split: str, config: str | None) -> tuple[Path, ...]:
    """The files of a split in a folder, all of one kind."""
    base = folder if config is None else folder / config
    if not base.is_dir() or not base.resolve().is_relative_to(folder.resolve()):
        raise _without_configuration(name, str(config), {path.name for path in folder.iterdir() if path.is_dir()})
    inside = sorted(path.relative_to(base) for path in base.rglob("*") if path.is_file())
    saved = _saved(base, name)
    chosen = _chosen(inside, name, split, saved)
    if saved is None:
        check_one(chosen, name, _naming(split), config)
    return tuple(base / path for path in chosen)


def _naming(split: str) -> Callable[[Sequence[str]], bool]:
    """Whether a part of a path names a split."""
    return lambda parts: _has(parts, _SPLITS.get(split, (re.escape(split.lower()),)))


def _without_configuration(name: str, config: str, folders: Set[str]) -> DataError:
    what = f"it has no configuration {config!r}; its folders: {', '.join(sorted(folders)) or 'none'}."
    return DataError(what, where=name, remedy="Set dataset_config.", field="dataset_config")


def _chosen(inside: Sequence[Path], name: str, split: str, splits: dict[str, list[Path]] | None = None) -> list[Path]:
    """The files of a split, all of one kind, by their names; or of the ``splits`` that a description gives."""
    if splits is None:
        splits = _splits([path for path in inside if _is_data(path)], split)
    if not any(splits.values()):
        remedy = f"Choose another dataset. {_CHOOSE}"
        raise DataError("there are no data files in it.", where=name, remedy=remedy, field="dataset")
    if split not in splits:
        known = ", ".join(sorted(splits))
        known = "'train' (no file names a split)" if known == "train" else known
        what = f"it has no split {split!r}; it has {known}."
        raise DataError(what, where=name, remedy="Set dataset_split or eval_split.", field="dataset_split")
    chosen = splits[split]
    texts = [path for path in chosen if kind_of(path) == "text"]
    if 2 * len(texts) <= len(chosen):  # beside a table they are notes
        chosen = [path for path in chosen if path not in texts]
    if len({kind_of(path) for path in chosen}) > 1:
        what = f"its files are of several kinds ({', '.join(sorted({ending(path) for path in chosen}))})."
        remedy = "Name one file, or a folder with files of one kind (dataset_config)."
        raise DataError(what, where=name, remedy=remedy, field="dataset_config")
    return chosen


def _is_data(path: PurePath) -> bool:
    """Whether ``datasets`` takes a file inside a dataset: not one that is hidden, in ``__pycache__``, or describes the data."""
    hidden = any(part.startswith(".") for part in path.parts) or any(part.startswith("__") for part in path.parent.parts)
    return not hidden and path.name not in _NO_DATA and kind_of(path) is not None


def _splits(paths: list[Path], wanted: str) -> dict[str, list[Path]]:
    """The files of each split, as ``datasets`` finds them: by the names of shards, else of folders, else of files.

    All are for training where no name has a split's word. Besides, capitals count as small letters, and a split that is not one
    of the three usual ones is found by its own word.
    """
    splits: dict[str, list[Path]] = {}
    for path in paths:
        if shard := _SHARD.fullmatch(path.as_posix()):
            splits.setdefault(shard[1], []).append(path)
    if splits:
        return splits
    for part in (lambda path: path.parent.parts, lambda path: (path.name,)):
        if not splits:
            named = {split: [path for path in paths if _has(part(path), words)] for split, words in _SPLITS.items()}
            splits = {split: found for split, found in named.items() if found}
    rest = [path for path in paths if not any(path in found for found in splits.values())]
    if wanted not in _SPLITS and (found := [path for path in rest if _has(path.parts, (re.escape(wanted.lower()),))]):
        splits[wanted] = found
    return splits or {"train": paths}


def _has(parts: Sequence[str], words: Sequence[str]) -> bool:
    """Whether a part of a path has one of the words between marks or digits."""
    pattern = re.compile(rf"(.*[-._ 0-9])?({'|'.join(words)})([-._ 0-9].*)?", re.DOTALL)
    return any(pattern.fullmatch(part.lower()) for part in parts)


def _saved(folder: Path, name: str) -> dict[str, list[Path]] | None:
    """The files of each split in a folder that ``save_to_disk`` wrote (not what was cached beside them); None for any other."""
    try:
        if (folder / "dataset_dict.json").is_file():
            parts = {
                split: Path(_plain_name(split)) for split in json.loads((folder / "dataset_dict.json").read_bytes())["splits"]
            }
        elif (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
            parts = {"train": Path()}
        else:
            return None
        states = {split: json.loads((folder / part / "state.json").read_bytes()) for split, part in parts.items()}
        return {
            split: [parts[split] / _plain_name(file["filename"]) for file in state["_data_files"]]
            for split, state in states.items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"it was written by save_to_disk, and its description cannot be read ({error!r})."
        raise DataError(what, where=name, remedy="Save it again, or as .parquet.") from error


def _plain_name(name: str) -> str:
    if PurePath(name).name != name:
        raise ValueError(f"{name!r} is no name of a file in it")
    return name


def fetch(name: str, split: str, config: str | None, revision: str | None = None, rows: int = 0) -> Files:
    """The files of a split of a Hub dataset in Hugging Face's cache; asks the Hub for those that are not there.

    ``rows``: only its first files, which have so many; 0: all. Token, endpoint, cache and offline mode are huggingface_hub's.
    Refuses more than ``LARGEST`` bytes, and with
    ``rows`` a first file of more: nothing streams a part of one file.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        try:
            info = HfApi().dataset_info(name, revision=revision, files_metadata=True)
        except Exception as error:
            if not isinstance(_as_model_error(error, name), Unreachable):
                raise
            folder = None
            with contextlib.suppress(Exception):  # the error to raise is the Hub's, not the cache's
                folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
            if folder is None:
                raise
            return Files(_of_split(folder, name, split, config), name, folder.name)
        sizes = {Path(file.rfilename): file.size or 0 for file in info.siblings or ()}
        base = Path(config or "")
        there = [path.relative_to(base) for path in sorted(sizes) if path.is_relative_to(base)]
        if config is not None and not there:
            raise _without_configuration(name, config, {path.parts[0] for path in sizes if len(path.parts) > 1})
        inside = _chosen(there, name, split)
        check_one(inside, name, _naming(split), config, info.card_data.get("configs") if info.card_data else None)
        chosen = [base / path for path in inside]
        size = sum(sizes[path] for path in chosen)
        if rows and sizes[chosen[0]] > LARGEST:
            what = f"its first file takes {sizes[chosen[0]] / 1e9:,.0f} GB, and a file is fetched whole."
            remedy = "Fetch it by yourself, and name the file; or choose another dataset."
            raise DataError(what, where=name, remedy=remedy, field="dataset")
        if size > LARGEST and not rows:
            remedy = "Set max_train_rows: only the first files, which have so many, are fetched. Or name a folder with a part."
            raise DataError(f"its files take {size / 1e9:,.0f} GB.", where=name, remedy=remedy, field="max_train_rows")
        return Files(tuple(_taken(name, chosen, revision, str(info.sha), rows)), name, info.sha)
    except DataError:
        raise
    except Exception as error:
        refusal = _as_model_error(error, name)
        what, remedy = (text.replace("model", "dataset") for text in (refusal.what, refusal.remedy))
        raise DataError(what, where=name, remedy=remedy) from error


def _taken(name: str, files: Sequence[Path], revision: str | None, commit: str, rows: int) -> Iterator[Path]:
    """The files, once they are here: all, or the first that have so many rows."""
    from huggingface_hub import hf_hub_download

    found = 0
    for file in files:
        path = Path(hf_hub_download(name, file.as_posix(), repo_type="dataset", revision=revision or "main"))
        if path.parents[len(file.parts) - 1].name != commit:
            raise DataError("it changed while it was fetched.", where=name, remedy="Try again.")
        yield path
        if rows:
            with _reading(path):
                found += row_files.rows_in(path, rows - found)
            if found >= rows:
                return


def _as_model_error(error: Exception, name: str) -> ModelError:
    from workbench.sources.faults import as_model_error

    return as_model_error(error, name)


def check_columns(files: Files, wanted: Sequence[str], fields: Mapping[str, str] = MappingProxyType({})) -> None:
    """Raises ``DataError`` if there are no rows, or a column is missing: from a table, or from all rows of JSON.

    ``fields``: which field of a configuration names a column.
    """
    empty = True
    seen: dict[str, None] = {}
    for path in files.paths:
        with _reading(path):
            if (names := header(path)) is None:
                for row in objects(path):
                    empty = False
                    seen |= dict.fromkeys(row)
                    if all(column in seen for column in wanted):
                        return
            elif names and (missing := [column for column in wanted if column not in names]):
                raise _missing(missing, names, str(path), fields)
            elif names and next(rows(path, wanted), None) is not None:
                empty = False
    if empty:
        raise _without_rows(files.where)
    if files.loader == "json":
        raise _missing([column for column in wanted if column not in seen], tuple(seen), files.where, fields)


def _without_rows(where: str) -> DataError:
    return DataError("the dataset has no rows.", where=where, remedy="Choose a file with at least one row.")


def _missing(columns: Sequence[str], have: Sequence[str], where: str, fields: Mapping[str, str]) -> DataError:
    return DataError(
        f"the dataset has no column {' or '.join(map(repr, columns))}; it has {', '.join(map(repr, have))}.",
        where=where,
        remedy="Set row_shape, or the fields that name columns, to what it has.",
        field=fields.get(columns[0], "row_shape"),
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # whatever a library raises about a file that it cannot read
        raise DataError(
            f"it cannot be read ({error}).",
            where=str(path),
            remedy=f"Check that it is a {ending(path)} file in UTF-8 and that every row is whole.",
        ) from error


def first_rows(files: Files, count: int = 64) -> list[dict[str, Any]]:
    """The first rows with all their columns by name, nested values as lists and objects. ``DataError`` where there are none."""
    path = files.paths[0]
    with _reading(path):
        if (names := header(path)) is None:
            found = list(itertools.islice(objects(path, nested=True), count))
        else:
            values = itertools.islice(rows(path, names, nested=True), count)
            found = [dict(zip(names, row, strict=True)) for row in values]
    if not found:
        raise _without_rows(files.where)
    return found


def row_count(files: Files) -> int | None:
    """About how many rows there are; None where that is not known without reading them."""
    counts = [row_files.row_count(path) for path in files.paths]
    return None if None in counts else sum(count or 0 for count in counts)


def read_rows(
    files: Files, columns: Sequence[str], besides: Sequence[str] = (), limit: int | None = None, nested: bool = False
) -> Iterator[dict[str, Any]]:
    """The values of ``columns``, and of those ``besides`` that there are, row by row: of the first ``limit`` rows or all.

    None where a row has none. Numbers are text as the file has them. ``DataError`` names column and row of what is neither text
    nor a number. ``nested``: values are as they stand, lists and objects among them.
    """
    check_columns(files, columns)
    n, most = 0, math.inf if limit is None else limit
    for path in files.paths if most else ():
        with _reading(path):
            there = header(path)
            names = list(dict.fromkeys([*columns, *(name for name in besides if there is None or name in there)]))
            for values in rows(path, names, nested):
                n += 1
                row = dict.fromkeys(besides) | dict(zip(names, values, strict=True))
                yield row if nested else {name: _text(value, name, f"{files.where}, row {n}") for name, value in row.items()}
                if n >= most:
                    return


def _text(value: Any, column: str, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    name = str(value) if isinstance(value, float) else type(value).__name__.removesuffix("s") + "s"
    raise DataError(
        f"column {column!r} holds no text but {name}.",
        where=where,
        remedy="Choose a column of text or numbers, or save this one as text; a list of messages is a messages_column.",
        field="row_shape",
    )
