"""Where a model's weights come from: the embedded model, a local folder, or the Hugging Face Hub.

``open_model`` gives a ``Source``: names, configuration, a list of tensors, and one tensor's bytes at a time. It opens
safetensors and nothing else: no pickle is ever loaded and no model's code is run.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

from workbench.errors import ModelError, NotListed, Unreachable
from workbench.given import described, expanded, is_a
from workbench.progress import Cancelled, Progress
from workbench.sources.base import Source
from workbench.sources.header import shown
from workbench.sources.local import LocalSource
from workbench.sources.packed_names import refuse
from workbench.sources.tensor_info import TensorInfo

__all__ = ["BUILTIN", "Source", "TensorInfo", "open_model"]

BUILTIN = Path(__file__).parent.parent / "builtin" / "model"
"""The embedded model's folder."""

_HUB_ID = re.compile(r"(?:[\w-][\w.-]{0,95}/)?[\w-][\w.-]{0,95}")


def open_model(
    model: Source | str | os.PathLike[str],
    revision: str | None = None,
    token: str | None = None,
    *,
    download: bool = False,
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> Source:
    """Open the embedded model, a folder with safetensors, or a model on the Hugging Face Hub.

    Only headers are read: milliseconds for a folder, whatever its size, and seconds for the Hub.

    Args:
        model: ``"builtin"``, a folder, or ``owner/name`` on the Hub. A source is returned as it is.
        revision: On the Hub, a branch, tag or commit; what is read later is of the commit that the revision is now.
        token: For the Hub; else the one that huggingface_hub knows.
        download: Allow taking whole files into Hugging Face's cache where a server gives no parts of them; without it that is
            an error which says how large they are.
        progress: A function of the headers, or bytes of whole files, that are done and their total.
        cancelled: Asked meanwhile; a yes ends the call.

    Returns:
        The source: its tensors by name with dtype and shape, its configuration, and their weights when they are read.

    Raises:
        ModelError: Says what is wrong with the model.
        InterruptedError: Once cancelled.

    >>> src = wb.open_model("builtin")
    >>> src.name, len(src.tensors())
    ('builtin', 56)
    """
    if isinstance(model, Source):
        return model
    text = os.fspath(model) if isinstance(model, str | os.PathLike) else model
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        what = "A model is named by 'builtin', by the path of a folder, or by its owner/name on the Hub."
        raise ModelError(
            what,
            where=f"model={shown(text) if isinstance(text, str) else described(text)}",
            remedy="Pass one of these, or a Source.",
        )
    if revision is not None and not is_a(revision, str):
        remedy = "Give the name of a branch or tag, or a commit."
        raise ModelError(f"{described(revision)} is no revision.", where="revision", remedy=remedy)
    local = text == "builtin" or os.path.lexists(expanded(text))
    if local and revision is not None:
        raise ModelError("A local model has no revisions.", where=f"revision={shown(revision)}", remedy="Leave revision out.")
    if text == "builtin":
        if not BUILTIN.is_dir():
            remedy = "Reinstall the package, or open a folder."
            raise ModelError("The embedded model is not in this installation.", where=str(BUILTIN), remedy=remedy)
        return LocalSource(BUILTIN, name="builtin", licence="Apache-2.0")
    folder = expanded(text)
    if not local:
        near = _near(folder)
        if not _HUB_ID.fullmatch(text) or (near and "/" not in text):
            raise _not_found(text, near)
        how = {"download": download, "progress": progress, "cancelled": cancelled}
        return _decodable(_on_the_hub(text, near, revision, token, **how))
    if not folder.is_dir():
        remedy = f"Pass its folder: {shown(str(folder.parent))}."
        raise ModelError("It is a file; a model is opened by its folder.", where=str(folder), remedy=remedy)
    return _decodable(LocalSource(folder, adapter=False))


def _decodable(source: Source) -> Source:
    """The source; ModelError where its weights are quantized in a way that is named and not decoded (GPTQ, AWQ …)."""
    entries = {name: entry for name, (_, entry) in source.entries().items()}
    refuse(entries, source.config, str(source.path or source.name))
    return source


def _on_the_hub(text: str, near: list[str], revision: str | None, token: str | None, **how: Any) -> Source:
    from workbench.sources.hub import open_hub

    try:
        return open_hub(text, revision, token, **how)
    except (NotListed, Unreachable) as error:
        if near:
            error.remedy += f" On this machine there is {', '.join(near)}."
        raise


def _near(folder: Path) -> list[str]:
    """What there is on this machine that is spelt much like it."""
    parent = folder.parent
    try:
        beside = [entry.name for entry in os.scandir(parent) if entry.is_dir()] if parent.is_dir() else []
    except OSError:
        beside = []
    names = [*beside, *(["builtin"] if parent == Path() else [])]
    near = difflib.get_close_matches(folder.name, names, n=3)
    return [name if name == "builtin" else str(parent / name) for name in near]


def _not_found(text: str, near: list[str]) -> ModelError:
    remedy = f"Near it: {', '.join(near)}." if near else "Check the path; 'builtin' is the embedded model."
    return ModelError("There is no such folder.", where=shown(text, 300), remedy=remedy)
