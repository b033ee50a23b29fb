"""Launching a training run: what can be known beforehand is checked, then its folder is made and its process started.

Covers ``launch``. What a run is afterwards: ``runs``. Does not train, and imports no torch.
"""

from __future__ import annotations

import os
from dataclasses import replace

from workbench.errors import RunError
from workbench.sources import open_model
from workbench.training import beginnings, data, fingerprints, model_files, origins
from workbench.training.config import TrainConfig, as_config
from workbench.training.disk import check_disk, disk_budget
from workbench.training.folder import RunFolder, write_json
from workbench.training.mirrored import check_mirror
from workbench.training.model_checks import check_model, float16_warning, in_float16
from workbench.training.paths import absolute, default_dir, is_free, path_of
from workbench.training.preflight import check_extras, check_kernels
from workbench.training.results.pushing import check_push
from workbench.training.rows.shapes import settled, shape_of
from workbench.training.runs import Run, live_runs
from workbench.training.spawning import spawn, token_for


def launch(
    config: TrainConfig, run_dir: str | os.PathLike[str] | None = None, *, folder: str | os.PathLike[str] = "runs"
) -> Run:
    """Starts a run in processes of its own and returns at once; a dataset on the Hub is fetched first.

    A model on the Hub that is not on this machine is fetched by the run itself, at the commit that its revision is now; its
    headers are enough for all checks but those of the tokenizer's own files. The model's files and the dataset's columns are
    checked first, so that faults are raised here, not in the run.

    Where another run in the folder around this one is going on, both are slower and share the memory: the new one's events say
    so in a warning. ``live_runs`` asks beforehand.

    Args:
        config: What is trained, and how.
        run_dir: The run's own folder; by default ``<time>-<model>`` in ``folder``.
        folder: The folder of runs.

    Returns:
        The run, which goes on by itself.

    Raises:
        ModelError: For faults of the model's files.
        DataError: For faults of the dataset.
        ConfigError: For what this model cannot do, all of it together; for 4-bit kernels that are wrong on this CPU; for a push
            without a token.
        RunError: Where ``config`` is no configuration; if the run does not fit the disk, ``run_dir`` or its mirror already
            holds something, or ``init_adapter`` is no run that it can go on from; as ``Changed`` where that run's base is no
            longer what it was.

    >>> run = wb.launch(wb.TrainConfig(max_steps=10))  # doctest: +SKIP
    >>> run.wait().state  # doctest: +SKIP
    'finished'
    """
    files = data.check(as_config(config, "launch"))
    config = settled(config, shape_of(config, files))
    source = open_model(config.model, config.model_revision)
    model_files.check(source)
    check_extras(config)
    begun = beginnings.begin(config, source)
    config = begun.config if begun else config
    check_model(config, source)
    check_kernels(config, source)
    to_fetch = model_files.to_fetch(source)
    token = token_for(config, bool(to_fetch))
    begun_with = origins.take(config, source, files, fetched=not to_fetch)
    root = path_of(run_dir, "run_dir") if run_dir is not None else default_dir(config, source.path, folder=folder)
    if not is_free(root):
        raise RunError("the folder is not empty.", where=str(root), remedy="Choose another run_dir, or attach to its run.")
    check_push(config, token, root.name)
    check_disk(disk_budget(config, root, source=source), str(root))
    config = replace(absolute(config), dataset_revision=files.revision, model_revision=begun_with.commit)
    check_mirror(config, root)
    made, others = RunFolder(root), [other.dir.name for other in live_runs(root.parent)]
    try:
        (root / "control").mkdir(parents=True)
        write_json(made.config, config.to_dict())
        fingerprints.write(root, begun_with)
        if begun:
            begun.keep(made)
        if to_fetch:
            write_json(made.to_fetch, to_fetch)
    except (OSError, ValueError) as error:  # also a name that no file system takes
        what = f"the folder cannot be written ({getattr(error, 'strerror', error)})."
        raise RunError(what, where=str(root), remedy="Choose another run_dir.") from error
    warnings = [begun.warning if begun else "", float16_warning(source.config) if in_float16(config) else ""]
    return Run(made, spawn(made, 1, others, token, warnings))
