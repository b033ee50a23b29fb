"""The environment of the processes that the workbench starts: what they need, and no secret.

Covers variables alone. Starting and ending processes is the part of ``runs``, ``supervisor`` and ``cost.process``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

OFFLINE: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
}  # fmt: skip
"""Nothing is fetched: all that the processes need is on this machine already."""
PATIENT: Mapping[str, str] = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Beside a busy notebook or browser, OpenMP threads that wait by spinning make a step on a CPU ten times slower (measured)."""
SEGMENTS = "expandable_segments:True"
"""torch's allocator lets its segments grow, which leaves less of them unused [not measured on a GPU here]."""
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The variable that the allocator reads, and its name before torch 2.10."""
WEBHOOK = "WORKBENCH_WEBHOOK"
"""The variable with the address to which a supervisor posts stalls and ends."""
_SECRET_NAME = re.compile(
    r"WEBHOOK|TOKEN(?!IZER)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|COOKIE|KEY$|(API|ACCESS|PRIVATE)_?KEY|(^|_)(PAT|PASS|PW|AUTH)(_|$)",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"://[^/\s@]*:[^/\s@]*@|\b(hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abp]-|AKIA|Bearer )[\w-]{12}"
)  # a user and password in an address; the shapes of well-known tokens


def without_secrets() -> dict[str, str]:
    """This process's variables for a child that needs no token: no file that it writes can come to hold one.

    The child imports this same workbench, wherever it lies.
    """
    kept = {k: v for k, v in os.environ.items() if not (_SECRET_NAME.search(k) or _SECRET_VALUE.search(v))}
    home = str(Path(__file__).parents[2])
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [home, kept.get("PYTHONPATH", "")]))
    return kept


def for_supervisor() -> dict[str, str]:
    """The same for a run's supervisor, which alone has the webhook's address, and takes it out before it starts others."""
    return without_secrets() | {name: value for name, value in os.environ.items() if name == WEBHOOK}


def for_worker(environ: Mapping[str, str], processes: int, gpus: int, torch: str | None = None) -> dict[str, str]:
    """The variables of a worker in so many ``processes``, on a machine with so many ``gpus``; ``torch`` is its version.

    One process sees one GPU, the first that this one sees: transformers would share out each batch over several, and train on
    more rows than were asked for. What the user has set of the allocator stays.
    """
    own = dict(PATIENT)
    if grows_segments(environ):
        new = tuple(int(part) for part in re.findall(r"\d+", torch or version("torch"))[:2]) >= (2, 10)
        own[ALLOCATOR[0 if new else 1]] = SEGMENTS
    seen = one_gpu(environ, processes, gpus)
    return {**own, **environ, **OFFLINE, **({"CUDA_VISIBLE_DEVICES": seen} if seen is not None else {})}


def grows_segments(environ: Mapping[str, str]) -> bool:
    """Whether a worker's allocator grows its segments: the user has said nothing else of it."""
    return not any(name in environ for name in ALLOCATOR)


def one_gpu(environ: Mapping[str, str], processes: int, gpus: int) -> str | None:
    """What a worker's CUDA_VISIBLE_DEVICES is set to; None where it stays as it is."""
    named = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    visible = named if "CUDA_VISIBLE_DEVICES" in environ else [str(i) for i in range(gpus)]
    return visible[0] if processes == 1 and len(visible) > 1 else None
