"""Whether the files of a split are of one configuration, as far as their folders and a dataset's card on the Hub show.

Two configurations are never mixed in silence: their rows may be the same in other words. The card is asked for nothing else.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from workbench.errors import DataError


def check_one(
    files: Sequence[PurePath], name: str, named: Callable[[Sequence[str]], bool], config: str | None, card: Any = None
) -> None:
    """Raises ``DataError`` where the files of a split, inside ``config``, are those of several configurations.

    Folders beside each other are configurations where each has the split by name: ``main/train.jsonl`` and
    ``socratic/train.jsonl``, but not ``train-1/`` and ``train-2/``. ``named(parts)`` says whether a part of a path names the
    split. ``card`` is what a card says under ``configs``.
    """
    inside = [path.parts for path in files]
    folders = sorted({parts[0] for parts in inside})
    if len(folders) > 1 and all(named(parts[1:]) and not named(parts[:1]) for parts in inside):
        raise _several([PurePath(config or "", folder).as_posix() for folder in folders], name, there=True)
    by_name = _patterns(card)
    if config is None and len(by_name) > 1:
        held = {each: {path for path in files if _matches(path, patterns)} for each, patterns in by_name.items()}
        several = [each for each, found in held.items() if found]
        if len(several) > 1 and not any(len(found) == len(files) for found in held.values()):
            raise _several(several, name, there=all(each in folders for each in several))


def _several(configs: Collection[str], name: str, there: bool) -> DataError:
    what = f"it has several configurations: {', '.join(configs)}."
    choices = " or ".join(f"dataset_config={config!r}" for config in configs)
    remedy = f"Set {choices}." if there else "Its files are not in folders of those names: fetch one, and name that file."
    return DataError(what, where=name, remedy=remedy, field="dataset_config" if there else "dataset")


def _patterns(card: Any) -> dict[str, list[str]]:
    """Configurations by name, with the patterns of their files; what a card says otherwise is left out."""
    found: dict[str, list[str]] = {}
    for config in card if isinstance(card, list) else ():
        if isinstance(config, Mapping) and isinstance(config.get("config_name"), str):
            folder = str(config.get("data_dir") or "").strip("./")
            files = config.get("data_files")
            several = files if isinstance(files, list) else [files]
            paths = [each.get("path") if isinstance(each, Mapping) else each for each in several]
            flat = [path for each in paths for path in (each if isinstance(each, list) else [each])]
            patterns = [str(PurePath(folder, path)) for path in flat if isinstance(path, str)]
            found[config["config_name"]] = patterns or ([f"{folder}/*"] if folder else [])
    return found


def _matches(path: PurePath, patterns: Collection[str]) -> bool:
    return any(fnmatch.fnmatchcase(path.as_posix(), pattern) for pattern in patterns)
