"""Going on from a run's mirror, in another session or on another machine: ``resume_from``.

Covers the check that there is a mirror for a new run, and copying one back. How a mirror is kept is ``watch.mirror``'s part.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from workbench.atomic import new_folder
from workbench.errors import RunError
from workbench.progress import Cancelled, Progress, reporting
from workbench.sources.base import Watch
from workbench.training.config import TrainConfig
from workbench.training.folder import ENDED, RunFolder, write_json
from workbench.training.paths import is_free, path_of
from workbench.training.runs import Run, attach
from workbench.training.watch.mirror import MARK, is_mirror, mirror_of

_STEP = 1 << 20


def resume_from(
    mirror: str | os.PathLike[str],
    run_dir: str | os.PathLike[str] | None = None,
    *,
    folder: str | os.PathLike[str] = "runs",
    changed_ok: bool = False,
    progress: bool | Progress = False,
    cancelled: Cancelled | None = None,
) -> Run:
    """Goes on with a run whose machine is gone, from its mirror, to the same bits as if it had never ended.

    Model and rows are looked for as ``launch`` does: a model from the Hub is fetched, local files must be where they were. The
    mirror follows the run again.

    Args:
        mirror: The run's own folder in ``mirror_dir``.
        run_dir: Where it is copied to, and resumed from its newest checkpoint; by default by the same name in ``folder``.
        folder: The folder of runs.
        changed_ok: As in ``Run.resume``.
        progress: True for a bar, or a function of the bytes done and their total.
        cancelled: Asked meanwhile; a yes ends the call, and nothing is left.

    Returns:
        The run in its new folder, which goes on by itself.

    Raises:
        RunError: Where there is no mirror, its run is finished or still going here, the new folder is not empty, or the copy
            fails; and what ``Run.resume`` raises.
        ModelError: As ``launch`` does.
        DataError: As ``launch`` does.
        InterruptedError: Once cancelled.

    >>> run = wb.resume_from("/mnt/drive/20260314-142200-builtin")  # doctest: +SKIP
    """
    found = attach(path_of(mirror, "mirror"))
    if not is_mirror(found.dir):
        remedy = "Name a run's folder inside its mirror_dir; a run's own folder is resumed: wb.attach(folder).resume()."
        raise RunError("this is not the mirror of a run.", where=str(found.dir), remedy=remedy)
    status = found.status
    if status.state == "finished":
        raise RunError(
            "the run is finished.", where=str(found.dir), remedy="Its adapter is here: wb.attach(mirror).adapter_dir."
        )
    if status.state not in ENDED:
        raise RunError("the run is still going, on this machine.", where=str(found.dir), remedy="Stop it, or attach to it.")
    root = path_of(run_dir, "run_dir") if run_dir is not None else path_of(folder, "folder") / found.dir.name
    if not is_free(root):
        raise RunError("the folder is not empty.", where=str(root), remedy="Resume its run, or choose another run_dir.")
    try:
        _copy_back(found, root, progress, cancelled)
    except InterruptedError:
        raise
    except OSError as error:
        what = f"the mirror cannot be copied ({error.strerror or error})."
        raise RunError(what, where=str(error.filename or root), remedy="Try again, or choose another run_dir.") from error
    try:
        return attach(root).resume(changed_ok=changed_ok)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)  # a copy, which the next try makes again
        raise


def _copy_back(found: Run, root: Path, progress: bool | Progress, cancelled: Cancelled | None) -> None:
    config = replace(found.config, mirror_dir=str(found.dir.parent))
    attempt = max((event.get("attempt", 1) for event in found.events()), default=1)  # the status may be older than they are
    whole = {path for each in RunFolder(found.dir).complete_checkpoints() for path in each.rglob("*")}
    kept = RunFolder(found.dir).weights
    files = [path for path in sorted(found.dir.glob("*")) if path.is_file() and path.name != MARK and path.name[0] != "."]
    files += [path for folder in kept for path in sorted(folder.rglob("*"))] + sorted(whole)
    files = [path for path in files if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    with new_folder(root) as draft, reporting(progress, "Copying the mirror", "B", total=total) as report:
        watch = Watch(total, report, cancelled)
        for path in files:
            to = draft / path.relative_to(found.dir)
            to.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as source, to.open("wb") as out:
                while part := source.read(_STEP):
                    watch.check()
                    out.write(part)
                    watch.moved(len(part))
        write_json(draft / "config.json", config.to_dict())
        RunFolder(draft).write_status(replace(found.status, attempt=attempt))


def check_mirror(config: TrainConfig, root: Path) -> None:
    """Raises ``RunError`` where the mirror of a new run in ``root`` cannot be made, or its place is taken."""
    if config.mirror_dir is None:
        return
    target = mirror_of(config.mirror_dir, root)
    if target.resolve() == root.resolve():
        raise RunError("mirror_dir is where the run itself is.", where=str(target.parent), remedy="Choose another folder.")
    try:
        target.parent.mkdir(exist_ok=True)  # its own parents are not made: they may be a Drive that is not mounted
        taken = not is_free(target)
        if not taken and not os.access(target.parent, os.W_OK):
            raise PermissionError(13, "it may not be written to")
    except OSError as error:
        there = target.parent.parent.exists()
        why = error.strerror or error if there else f"the folder around it is not there: {target.parent.parent}"
        what = f"the mirror cannot be made ({why})."
        raise RunError(what, where=str(target.parent), remedy="Mount it, or choose another mirror_dir.") from error
    if taken:
        remedy = "Go on from it with wb.resume_from(folder), choose another run_dir or mirror_dir, or remove it."
        raise RunError("the mirror of another run is there already.", where=str(target), remedy=remedy)
