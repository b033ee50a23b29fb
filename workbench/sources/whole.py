"""Whole files of a repository, taken into Hugging Face's cache: for a server that gives no parts, and only when asked to.

huggingface_hub does the work. Does not choose what is taken.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.utils import tqdm

from workbench.sources.crew import Crew
from workbench.sources.faults import HTTP_ERROR, told


def take(repo: str, file: str, commit: str, token: str | None, team: Crew) -> Path:
    """The file in Hugging Face's cache, downloaded if it is not there yet; ModelError where that fails."""
    arrived = 0

    class Bar(tqdm):
        """Not drawn: hands on what arrives, and ends the download where it is no longer wanted."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            if team.stop.is_set():
                raise InterruptedError("The download was cancelled.")
            nonlocal arrived
            arrived += int(n or 0)
            team.got(int(n or 0))
            return None

    # huggingface_hub 1.0 has no tqdm_class here: it shows a bar of its own, and ends only with the file.
    ours = {"tqdm_class": Bar} if "tqdm_class" in inspect.signature(hf_hub_download).parameters else {}
    download: Any = hf_hub_download
    try:
        path = Path(download(repo, file, revision=commit, token=token, **ours))
    except InterruptedError:
        raise
    except (OSError, ValueError, HTTP_ERROR) as error:
        raise told(error, repo, f"{repo}/{file}") from error
    team.got(path.stat().st_size - arrived)
    return path
