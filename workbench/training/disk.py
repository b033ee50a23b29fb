"""What a run takes on its disks, before it begins: the model to fetch, checkpoints, the adapter; and what an export would take.

Covers the forecast from a model's headers and the refusal of what does not fit. Sizes are forecast: those of the tensors that
are written, with a small allowance for what lies beside them. Measures nothing while the run goes on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants

from workbench.errors import RunError
from workbench.given import is_a
from workbench.memory.footprint import Plan, optimizer_state, trained, trained_between
from workbench.memory.gpus import devices
from workbench.show import Line, Record, Shown, View
from workbench.sources import Source, open_model
from workbench.sources.fetching import arrived
from workbench.sources.hub import HubSource
from workbench.sources.packed import as_loaded
from workbench.text import amount, listed
from workbench.training import model_files
from workbench.training.config import TrainConfig, as_config
from workbench.training.paths import path_of

_BESIDE = 1 << 18
"""Bytes in a checkpoint beside weights and optimizer state: random states, the schedule, settings."""
_MERGED_BYTES = 2
"""Bytes a weight of an exported model."""


@dataclass(frozen=True, repr=False)
class DiskUse(Record):
    """One thing that a run writes."""

    what: str
    nbytes: int
    """Bytes, forecast."""
    where: str
    """The folder that it is written to."""
    needed: bool = True
    """Whether the run itself writes it; an export is written only when it is asked for."""

    def _line_(self) -> Line:
        return {
            "what": self.what,
            "size": amount(self.nbytes),
            "where": self.where,
            "by the run": "yes" if self.needed else "no",
        }


@dataclass(frozen=True, repr=False)
class DiskBudget(Shown):
    """What a run writes, and what is free on each disk that it writes to; all forecast, but for what is free."""

    uses: tuple[DiskUse, ...]
    free: Mapping[str, int]
    """Folder → bytes free on its disk now; folders on one disk have the same."""
    disks: Mapping[str, int]
    """Folder → the number of its disk, as the system has it."""

    def needed(self, folder: str) -> int:
        """Bytes that the run writes to the disk of a folder."""
        return sum(use.nbytes for use in self.uses if use.needed and self.disks[use.where] == self.disks[folder])

    @property
    def faults(self) -> tuple[str, ...]:
        """A sentence for each disk on which the run does not fit; () where it fits."""
        found: dict[int, str] = {}
        for folder, disk in self.disks.items():
            if (needed := self.needed(folder)) > self.free[folder]:
                parts = [
                    f"{use.what} {amount(use.nbytes)}" for use in self.uses if use.needed and self.disks[use.where] == disk
                ]
                free = amount(self.free[folder])
                fault = f"it takes {amount(needed)} on the disk of {folder} ({listed(parts)}), and {free} are free."
                found.setdefault(disk, fault)
        return tuple(found.values())

    @property
    def summary(self) -> str:
        """It in a sentence or two, for a form."""
        parts = [f"{use.what} {amount(use.nbytes)}" for use in self.uses if use.needed and use.nbytes]
        later = [f"{use.what} {amount(use.nbytes)}" for use in self.uses if not use.needed]
        folder = self.uses[-1].where
        verdict = (
            " ".join(f"Does not fit the disk: {fault}" for fault in self.faults) or f"{amount(self.free[folder])} are free."
        )
        besides = f"; besides, if asked for, {listed(later)}" if later else ""
        return f"On disk, forecast: {listed(parts)}{besides}. {verdict}"

    def _show_(self) -> View:
        note = " ".join(self.faults) or "It fits."
        free = {f"free at {folder}": amount(size) for folder, size in self.free.items()}
        return View("What a run takes on disk: forecast, not measured", free, [use._line_() for use in self.uses], note)


def disk_budget(config: TrainConfig, folder: str | os.PathLike[str] = "runs", *, source: Source | None = None) -> DiskBudget:
    """What the run writes, to a folder and to Hugging Face's cache, against what is free there. Reads headers only.

    A checkpoint holds what is trained, in fp32 (of a full run in the compute dtype), and the optimizer's state. One more than
    ``save_total_limit`` is counted: a new one is whole before the oldest goes; with a mirror another, which is copied. The
    mirror itself holds the newest, the best, one that is being written, and the adapter.

    Args:
        config: The run's configuration.
        folder: Where the run writes.
        source: The model, where it is open already.

    Returns:
        The bytes that each kind of file takes, the folder that it lies in, what is free there, and what does not fit.

    Raises:
        ModelError: As ``open_model`` does, and for packed weights that cannot be read.
        RunError: Where ``config`` is no configuration, or ``folder`` no path.

    >>> budget = wb.disk_budget(wb.TrainConfig())
    >>> [use.what for use in budget.uses], budget.faults
    (['2 checkpoints', 'adapter', 'merged model (export)'], ())
    """
    source = source or open_model(as_config(config, "disk_budget").model, config.model_revision)
    runs, plan = path_of(folder, "folder"), Plan.of(config, "cuda" if devices() else "cpu")
    tensors = as_loaded(source)[0]
    parameters = trained(tensors, plan, source.config)
    between = trained_between(tensors, plan, source.config)
    numel = between[1] if between else sum(parameters.values())
    weights = numel * (plan.compute_bytes if config.method == "full" else 4)
    state = sum(piece.bytes for piece in optimizer_state(parameters, plan))
    state = state * numel // max(sum(parameters.values()), 1)
    kept = checkpoints_of(config)
    cache = str(Path(constants.HF_HUB_CACHE))
    uses = []
    if isinstance(source, HubSource) and (files := model_files.to_fetch(source)):
        uses.append(DiskUse("model to fetch", sum(files.values()) - arrived(source, files), cache))
    if config.mirror_dir is not None:
        mirrored = _at_once(config, 1) * (weights + state + _BESIDE) + weights
        uses.append(DiskUse("mirror", mirrored, str(path_of(config.mirror_dir, "mirror_dir").absolute())))
    uses += [
        DiskUse(f"{kept} checkpoints" if kept > 1 else "checkpoint", kept * (weights + state + _BESIDE), str(runs)),
        DiskUse("trained model" if config.method == "full" else "adapter", weights, str(runs)),
    ]
    if config.method != "full":
        merged = _MERGED_BYTES * sum(tensor.numel for tensor in tensors)
        uses.append(DiskUse("merged model (export)", merged, str(runs), needed=False))
    folders = dict.fromkeys(use.where for use in uses)
    there = {name: _there(Path(name)) for name in folders}
    free = {name: shutil.disk_usage(path).free for name, path in there.items()}
    return DiskBudget(tuple(uses), free, {name: _disk(path) for name, path in there.items()})


def checkpoints_of(config: TrainConfig) -> int:
    """Checkpoints on the disk at once, at most: the newest, the best, one that is being written, one being mirrored."""
    return _at_once(config, config.save_total_limit) + is_a(config.mirror_dir, str)


def _at_once(config: TrainConfig, limit: int) -> int:
    """Checkpoints of which the newest ``limit`` and the best stay, and one more is being written."""
    most = limit + 1 + config.keeps_best
    every = [steps for steps in (config.save_steps, config.eval_steps if config.keeps_best else 0) if steps]
    written = sum(config.max_steps // steps for steps in every) if config.max_steps > 0 else most
    return max(min(most, written), 1)  # a pause writes one where there are none


def check_disk(budget: DiskBudget, where: str) -> None:
    """Raises ``RunError`` where the run does not fit a disk."""
    if budget.faults:
        remedy = (
            "Free some space, lower save_total_limit, choose another run_dir or mirror_dir, or set HF_HOME to a larger disk "
            "(and restart)."
        )
        raise RunError(f"the run does not fit the disk: {' '.join(budget.faults)}", where=where, remedy=remedy)


def _disk(path: Path) -> int:
    """The number of a folder's disk."""
    return path.stat().st_dev


def _there(path: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(each for each in (path, *path.parents) if os.path.isdir(each))  # False of a name that no file system takes
