"""Where the rows of a dataset are: the embedded one, a file, a folder of files, or a dataset on the Hub; and reading them.

Covers choosing the files of a split, fetching them from the Hub, a file's columns, and the rows one after another through
``datasets``. No code of a dataset is ever run, and its card decides nothing: only .jsonl, .json, .csv, .parquet and .txt files
are taken, by their names. Does not tokenize (``data``).
"""

from __future__ import annotations

import contextlib
import csv
import glob
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.errors import DataError, ModelError, Unreachable

BUILTIN = Path(__file__).parent.parent / "builtin"
LOADERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
"""Endings that are read, and the loader of ``datasets`` for each."""
LARGEST = 20 * 2**30
"""Bytes that are fetched from the Hub at most, without being asked twice."""
_HUB_ID = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")
_SPLITS = {
    "train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}  # fmt: skip
_CHOOSE = "Use .jsonl, .json, .csv, .parquet or .txt."


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
        return LOADERS[self.paths[0].suffix.lower()]


def on_hub(name: str) -> bool:
    """Whether a name is that of a repository on the Hub (``owner/name``, and nothing of that name here)."""
    there = Path(name).expanduser().exists()
    return not there and _HUB_ID.fullmatch(name) is not None and Path(name).suffix.lower() not in LOADERS


def locate(name: str, split: str = "train", config: str | None = None, revision: str | None = None) -> Files:
    """The files behind a dataset's name, fetched from the Hub where they are not here; ``DataError`` says what is wrong."""
    if name == "builtin":
        return Files((BUILTIN / "data" / f"{split}.jsonl",), name)
    if on_hub(name):
        folder = fetch(name, revision)
        return Files(_of_split(folder, name, split, config), name, folder.name)
    path = Path(name).expanduser().absolute()
    if path.is_dir():
        return Files(_of_split(path, name, split, config), name)
    kind = path.suffix.lower()
    if kind not in LOADERS:
        what = f"files of the kind {kind or '(no ending)'!r} are not read."
        raise DataError(what, where=name, remedy=_CHOOSE)
    if not path.is_file():
        raise DataError("there is no such file.", where=str(path), remedy="Check the path of the dataset.")
    if split != "train" or config is not None:
        raise DataError(
            "a single file has no splits and no configurations.", where=name, remedy="Name a folder, or leave them."
        )
    return Files((path,), str(path))


def _of_split(folder: Path, name: str, split: str, config: str | None) -> tuple[Path, ...]:
    """The files of a split: those whose path inside the dataset names it, as a word; all for ``train`` if none names any."""
    base = folder if config is None else folder / config
    if not base.is_dir() or not base.resolve().is_relative_to(folder.resolve()):
        there = ", ".join(sorted(p.name for p in folder.iterdir() if p.is_dir())) or "none"
        raise DataError(f"it has no configuration {config!r}; its folders: {there}.", where=name, remedy="Set dataset_config.")
    found = {p: _split_of(p.relative_to(base)) for p in base.rglob("*") if p.suffix.lower() in LOADERS and p.is_file()}
    if not found:
        raise DataError("there are no data files in it.", where=name, remedy=f"Choose another dataset. {_CHOOSE}")
    if split == "train" and not any(found.values()):
        chosen = sorted(found)
    else:
        words = set(_SPLITS.get(split, (split.lower(),)))
        chosen = sorted(p for p in found if words & _words(p.relative_to(base)) and found[p] in (None, split))
    if not chosen:
        known = ", ".join(sorted({s for s in found.values() if s})) or "'train' (no file names a split)"
        raise DataError(f"it has no split {split!r}; it has {known}.", where=name, remedy="Set dataset_split or eval_split.")
    kinds = sorted({p.suffix.lower() for p in chosen})
    if len(kinds) > 1:
        what = f"its files are of several kinds ({', '.join(kinds)})."
        raise DataError(what, where=name, remedy="Name one file, or a folder with files of one kind (dataset_config).")
    return tuple(chosen)


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", path.as_posix().lower()))


def _split_of(path: Path) -> str | None:
    words = _words(path)
    return next((split for split, names in _SPLITS.items() if words & set(names)), None)


def fetch(name: str, revision: str | None = None) -> Path:
    """The folder of a Hub dataset's data files in Hugging Face's cache; asks the Hub for those that are not there.

    Token, endpoint, cache and offline mode are huggingface_hub's. Refuses more than ``LARGEST`` bytes.
    """
    from huggingface_hub import HfApi, snapshot_download

    try:
        try:
            info = HfApi().dataset_info(name, revision=revision, files_metadata=True)
        except Exception as error:
            if not isinstance(_told(error, name), Unreachable):
                raise
            with contextlib.suppress(Exception):  # whatever is the matter with the cache, the Hub's silence is the news
                return Path(snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True))
            raise
        files = [file for file in info.siblings or () if Path(file.rfilename).suffix.lower() in LOADERS]
        if (size := sum(file.size or 0 for file in files)) > LARGEST:
            remedy = "Download the part that you need and name its folder."
            raise DataError(f"its files take {size / 1e9:,.0f} GB.", where=name, remedy=remedy)
        if not files:
            raise DataError("there are no data files in it.", where=name, remedy=f"Choose another dataset. {_CHOOSE}")
        folders = {_taken(name, file.rfilename, revision or "main") for file in files}
        if {folder.name for folder in folders} != {info.sha}:
            raise DataError("it changed while it was fetched.", where=name, remedy="Try again.")
        return folders.pop()
    except DataError:
        raise
    except Exception as error:
        refusal = _told(error, name)
        what, remedy = (text.replace("model", "dataset") for text in (refusal.what, refusal.remedy))
        raise DataError(what, where=name, remedy=remedy) from error


def _taken(name: str, file: str, revision: str) -> Path:
    """The folder of the commit that the file is in, once it is here."""
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(name, file, repo_type="dataset", revision=revision)
    return Path(path).parents[file.count("/")]


def _told(error: Exception, name: str) -> ModelError:
    from workbench.sources.faults import told

    return told(error, name)


def columns_of(files: Files) -> tuple[str, ...]:
    """The columns of a dataset, read from its first file's first row or header only."""
    path = files.paths[0]
    try:
        if files.loader == "text":
            return ("text",)
        if files.loader == "parquet":
            import pyarrow.parquet  # type: ignore[import-untyped]

            return tuple(pyarrow.parquet.read_schema(path).names)
        with path.open(encoding="utf-8-sig", newline="") as handle:
            if files.loader == "csv":
                return tuple(next(csv.reader(handle), ()))
            return tuple(_first_object(handle.read(1 << 20)))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"the first row cannot be read ({error}).",
            where=str(path),
            remedy=f"Check that it is a {path.suffix} file in UTF-8 and that every row has the same columns.",
        ) from error


def _first_object(text: str) -> dict[str, Any]:
    text = text.lstrip().removeprefix("[").lstrip()
    if not text:
        return {}
    first, _ = json.JSONDecoder().raw_decode(text)
    if not isinstance(first, dict):
        raise ValueError("a row is no JSON object")
    return first


def read(files: Files, columns: Sequence[str], limit: int | None = None) -> Iterator[tuple[Any, ...]]:
    """The values of ``columns`` row by row, of the first ``limit`` rows or all; only what is asked for is read from the disk.

    CSV values are text as they stand: "NA" and "007" are themselves.
    """
    import datasets

    exactly = {"keep_default_na": False, "converters": dict.fromkeys(columns, str)} if files.loader == "csv" else {}
    paths = [glob.escape(str(path)) for path in files.paths]  # datasets takes them for patterns
    try:
        rows = datasets.load_dataset(files.loader, data_files=paths, split="train", streaming=True, **exactly)
        for row in rows if limit is None else rows.take(limit):
            yield tuple(row.get(column) for column in columns)
    except Exception as error:
        raise DataError(
            f"the dataset cannot be read ({error.__cause__ or error}).",
            where=files.where,
            remedy=f"Check that every row is valid {files.paths[0].suffix} with the columns {', '.join(map(repr, columns))}.",
        ) from error
