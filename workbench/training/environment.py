"""The environment of the processes that the workbench starts: what they need, and no secret.

Covers variables alone. Starting and ending processes is the part of ``runs``, ``supervisor`` and ``cost.process``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

OFFLINE: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
}  # fmt: skip
"""Nothing is fetched: all that the processes need is on this machine already."""
PATIENT: Mapping[str, str] = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Beside a busy notebook or browser, OpenMP threads that wait by spinning make a step on a CPU ten times slower (measured)."""
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|COOKIE|KEY$|(API|ACCESS|PRIVATE)_?KEY|(^|_)(PAT|PASS|PW|AUTH)(_|$)",
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
