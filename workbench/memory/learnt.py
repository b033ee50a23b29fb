"""What runs on a GPU of this machine have measured for the forecasts after them: the context, and the allocator's slack.

Kept by the GPU's name among the caches, so that a forecast on the same GPU goes by what was seen there. Does not measure.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from workbench import caches
from workbench.atomic import replacing


@dataclass(frozen=True)
class Learnt:
    """What the last run measured on a GPU."""

    context: int
    """Bytes of the CUDA context."""
    slack: float | None
    """What the allocator had reserved beyond its peak, as a share of that."""
    run: str
    """The name of the run's folder, and its day."""


def path() -> Path:
    """The file."""
    return caches.user_folder() / "gpus.json"


def learnt(gpu: str) -> Learnt | None:
    """What is known of a GPU, by the name that its driver gives; None where no run measured anything, or it cannot be read."""
    try:
        return Learnt(**json.loads(path().read_text("utf-8"))[gpu])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def learn(gpu: str, what: Learnt) -> None:
    """Keeps what a run measured, in place of what one before it did. Raises OSError where nothing can be written."""
    try:
        known = dict(json.loads(path().read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    path().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with replacing(path()) as draft:
        draft.write_text(json.dumps(known | {gpu: asdict(what)}), "utf-8")
