"""Names of models for what a reader has typed so far: on the Hub by its search, and folders on this machine.

Covers models with safetensors, the most downloaded first, and folders that hold a model or lead to one. Opens none of them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from workbench.sources.files import INDEX, SINGLE

LEAST = 2
"""Characters from which on the Hub is asked."""
_LONGEST = 120
_SECONDS = 5.0
_NAME = re.compile(r"[\w-][\w.-]{0,95}(?:/[\w-][\w.-]{0,95})?", re.ASCII)
_ENTRIES = 2_000
"""Entries of a folder that are looked at."""


@dataclass(frozen=True)
class HubModel:
    """A model that the Hub's search found."""

    name: str
    """Its id."""
    downloads: int
    """In the last month, as the Hub counts."""
    gated: bool
    """Whether its owner asks readers to accept terms first."""


@dataclass(frozen=True)
class Folder:
    """A folder that may be meant."""

    path: str
    """As the reader began to write it; with a slash at the end where it holds no model itself."""
    holds_model: bool


def search_hub(text: str, limit: int = 8) -> list[HubModel]:
    """Models on the Hub whose names contain ``text``; ModelError where the Hub cannot be asked or does not answer.

    One request that is not repeated and waits five seconds at most: whoever types has typed on by then.
    """
    text = text.strip()
    if not LEAST <= len(text) <= _LONGEST or not text.isprintable():
        return []
    from huggingface_hub import constants, get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers

    from workbench.sources.faults import HTTP_ERROR, as_model_error, no_hub

    asked = {"search": text, "filter": "safetensors", "sort": "downloads", "limit": str(limit)}
    try:
        answer = get_session().get(
            f"{constants.ENDPOINT}/api/models", params=asked, headers=build_hf_headers(), timeout=_SECONDS
        )
        hf_raise_for_status(answer)
        models = [
            HubModel(model["id"], int(model.get("downloads") or 0), bool(model.get("gated")))
            for model in answer.json()
            if isinstance(model["id"], str) and _NAME.fullmatch(model["id"])
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise no_hub(error, text) from error
    except (OSError, ValueError, HTTP_ERROR) as error:
        raise as_model_error(error, text) from error
    return models[:limit]


def search_folders(text: str, limit: int = 8) -> list[Folder]:
    """Folders whose path begins with ``text``: those that hold a model first, then those that others may be in."""
    head, slash, start = text.rpartition("/")
    if not text or "\0" in text or start in (".", ".."):
        return []
    try:
        parent = Path(head + slash or ".").expanduser()
        with os.scandir(parent) as entries:
            names = [
                entry.name
                for entry in islice(entries, _ENTRIES)
                if entry.name.lower().startswith(start.lower())
                and entry.name.isprintable()
                and (start or not entry.name.startswith("."))
                and entry.is_dir()
            ]
    except (OSError, RuntimeError):  # RuntimeError: a home that cannot be told
        return []

    def holds_model(name: str) -> bool:
        return any((parent / name / file).exists() for file in (SINGLE, INDEX))

    found = sorted((not holds_model(name), name.lower(), name) for name in names)[:limit]
    return [Folder(f"{head}{slash}{name}{'/' if empty else ''}", not empty) for empty, _, name in found]
