"""More steps for a run that is finished: what is written into its folder before it goes on from its last checkpoint.

Covers the new number of steps and the note of it for the card. Starting the run's processes again is ``Run.extend``'s part.
"""

from __future__ import annotations

import dataclasses
import math

from workbench.errors import RunError
from workbench.given import is_whole
from workbench.training import lineage
from workbench.training.config import TrainConfig
from workbench.training.folder import RunFolder, steps_of, write_json
from workbench.training.lineage import Extension


def extended(folder: RunFolder, config: TrainConfig, steps: int) -> TrainConfig:
    """The configuration with so many steps more, from the last checkpoint on. RunError where there is none to go on from."""
    where = str(folder.root)
    if not is_whole(steps, 1):
        raise RunError(f"steps is {steps!r}.", where=where, remedy="Give the steps to take besides, 1 or more.")
    done = steps_of(folder.model if config.method == "full" else folder.adapter)
    last = max(map(steps_of, folder.complete_checkpoints()), default=None)
    if last is None or (last < done < math.inf):
        remedy = "Launch a new run with init_adapter=run, which begins from its adapter with a fresh optimizer."
        raise RunError("there is no checkpoint of the run's last step to go on from.", where=where, remedy=remedy)
    before = config.max_steps if config.max_steps > 0 else int(last)
    warmup = dataclasses.replace(config, max_steps=before, num_train_epochs=None).warmup
    return dataclasses.replace(config, max_steps=int(last) + int(steps), num_train_epochs=None, warmup_steps=warmup)


def write(folder: RunFolder, config: TrainConfig) -> None:
    """Puts the longer configuration in the run's folder, and notes it for the card. RunError where that cannot be written."""
    known = lineage.read(folder.root)
    after = int(max(map(steps_of, folder.complete_checkpoints())))
    try:
        noted = (*known.extended, Extension(after, config.max_steps))
        dataclasses.replace(known, extended=noted).write(folder.root)
        write_json(folder.config, config.to_dict())
    except OSError as error:
        what = f"the run's folder cannot be written ({error.strerror})."
        raise RunError(what, where=str(folder.root), remedy="Make it writable, or free some space on its disk.") from error
