"""Where a model's weights come from: the embedded model or a local folder.

``open_model`` gives a ``Source``: names, configuration, a list of tensors, and one tensor's bytes at a time. It opens
safetensors and nothing else: no pickle is ever loaded and no model's code is run. Reading from the Hub is not covered in this
version.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from workbench.errors import ModelError
from workbench.sources.base import Source, TensorInfo
from workbench.sources.header import shown
from workbench.sources.local import LocalSource
from workbench.sources.packed_names import refuse

__all__ = ["BUILTIN", "Source", "TensorInfo", "open_model"]

BUILTIN = Path(__file__).parent.parent / "builtin" / "model"
"""The embedded model's folder."""

_HUB_ID = re.compile(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}")


def open_model(model: str | os.PathLike[str], revision: str | None = None, token: str | None = None) -> Source:
    """Open ``"builtin"`` or a folder with safetensors and config.json; ModelError says what was wrong with anything else.

    ``revision`` and ``token`` belong to models on the Hub, which this version does not read; a local model refuses a revision
    and has no use for a token. Only headers are read: the call takes milliseconds whatever the model's size.
    """
    text = os.fspath(model)
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise ModelError("A model is named by 'builtin' or by the path of a folder.", where=f"model={shown(str(text))}")
    local = text == "builtin" or os.path.lexists(os.path.expanduser(text))
    if local and revision is not None:
        raise ModelError("A local model has no revisions.", where=f"revision={shown(revision)}", remedy="Leave revision out.")
    if text == "builtin":
        if not BUILTIN.is_dir():
            remedy = "Reinstall the package, train it with 'python -m workbench.builtin.train', or open a folder."
            raise ModelError("The embedded model is not in this installation.", where=str(BUILTIN), remedy=remedy)
        return LocalSource(BUILTIN, name="builtin")
    folder = Path(text).expanduser()
    if not local:
        raise _not_found(text, folder)
    if not folder.is_dir():
        remedy = f"Pass its folder: {shown(str(folder.parent))}."
        raise ModelError("It is a file; a model is opened by its folder.", where=str(folder), remedy=remedy)
    return decodable(LocalSource(folder))


def decodable(source: Source) -> Source:
    """The source; ModelError where its weights are quantized in a way that is named and not decoded (GPTQ, AWQ …)."""
    entries = {name: entry for name, (_, entry) in source._entries().items()}
    refuse(entries, source.config, str(source.path or source.name))
    return source


def _not_found(text: str, folder: Path) -> ModelError:
    if _HUB_ID.fullmatch(text) and not folder.parent.is_dir():
        remedy = f"Download it to a folder first ('hf download {text} --local-dir FOLDER') and open that folder."
        return ModelError(
            "There is no such folder, and reading from the Hub is not available yet in this version.", where=text, remedy=remedy
        )
    parent = folder.parent
    try:
        beside = [entry.name for entry in os.scandir(parent) if entry.is_dir()] if parent.is_dir() else []
    except OSError:
        beside = []
    near = difflib.get_close_matches(folder.name, [*beside, "builtin"], n=3)
    if near:
        remedy = f"Near it: {', '.join(n if n == 'builtin' else str(parent / n) for n in near)}."
    else:
        remedy = "Check the path; 'builtin' is the embedded model."
    return ModelError("There is no such folder.", where=shown(text, 300), remedy=remedy)
