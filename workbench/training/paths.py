"""Paths as a run needs them: whole, whatever the current directory is, and a new folder's name.

Does not make folders.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from pathlib import Path

from workbench.errors import RunError
from workbench.given import described, expanded
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import on_hub


def path_of(given: str | os.PathLike[str], where: str) -> Path:
    """A path as it is whatever the current directory is; RunError on what is none."""
    if not isinstance(given, str | os.PathLike) or not os.fspath(given):
        raise RunError(f"{described(given)} is no path.", where=where, remedy="Give the path of a folder.")
    return expanded(given).absolute()


def is_free(path: Path) -> bool:
    """Whether a new folder can have this place: nothing is there, or a folder with nothing in it.

    One that cannot be looked into is not free; a name that no file system takes is, and fails where the folder is made.

    >>> from pathlib import Path
    >>> from workbench.training.paths import is_free
    >>> is_free(Path("nowhere/yet")), is_free(Path("/"))
    (True, False)
    """
    try:
        return not os.path.exists(path) or (path.is_dir() and not any(path.iterdir()))
    except OSError:
        return False


def absolute(config: TrainConfig) -> TrainConfig:
    """Paths that hold whatever the current directory is."""

    def fixed(name: str) -> str:
        return name if name == "builtin" or on_hub(name) else str(expanded(name).absolute())

    held_out = config.eval_dataset and fixed(config.eval_dataset)
    mirror = config.mirror_dir and str(expanded(config.mirror_dir).absolute())
    paths = replace(config, model=fixed(config.model), dataset=fixed(config.dataset), eval_dataset=held_out)
    return replace(paths, mirror_dir=mirror)


def default_dir(config: TrainConfig, model: Path | None, ending: str = "", folder: str | os.PathLike[str] = "runs") -> Path:
    """A folder inside ``folder`` that is not there yet, named by the time and the model; ``model``: where it is, if it is."""
    own = model is not None and config.model != "builtin" and not on_hub(config.model)
    name = model.name if own and model else Path(config.model).name
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[:40]}{ending}"
    root = path_of(folder, "folder")
    return next(p for n in range(1000) if not (p := root / (stem if n == 0 else f"{stem}-{n + 1}")).exists())
