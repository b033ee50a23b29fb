"""The files of a model that training needs: whether they are there, and which of them are still to be fetched from the Hub.

Covers their names, the same for a folder and for a repository, and the tokenizer alone, for who only looks at rows. Weights are
the safetensors that ``open_model`` reads: no pickles, no GGUF or ONNX, no second copy. Fetching is ``sources.fetching``'s part.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Collection
from pathlib import Path

from workbench.errors import ModelError
from workbench.progress import Cancelled, Progress, reporting
from workbench.sources import open_model
from workbench.sources.base import Source
from workbench.sources.fetching import fetch
from workbench.sources.files import CONFIG, INDEX, MODELOPT
from workbench.sources.header import check_pointer
from workbench.sources.hub import HubSource

OF_TOKENIZER = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model")
"""Patterns of the files that a tokenizer is made of, beside its configuration."""
_FOR_TOKENIZER = (CONFIG, *OF_TOKENIZER, "tokenizer_config.json", "chat_template.*", "additional_chat_templates/*.jinja")
_BESIDE = (INDEX, MODELOPT, "generation_config.json", "README.md")
"""Small files besides; the card names the licence, which the adapter's card repeats."""
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_POINTERS = 1_024
"""Bytes; a pointer of Git LFS has less than 200."""


def check(source: Source) -> None:
    """Raises ``ModelError`` if a file that training needs is not in the model's folder, or repository, or is damaged."""
    where = str(source.path or source.name)
    if not source.config:
        raise ModelError("the model has no config.json.", where=where, remedy="Training needs one to build the model.")
    names: set[str] = set(source.files if isinstance(source, HubSource) else ())
    if source.path is not None:
        names |= set(os.listdir(source.path))
    if names.isdisjoint(_VOCABULARIES):
        what = "the model folder has no tokenizer." if source.path else "the model has no tokenizer."
        raise ModelError(what, where=where, remedy="Save its tokenizer there." if source.path else "Choose a model with one.")
    for file in sorted(source.path.iterdir()) if source.path is not None else ():
        if file.suffix in (".json", ".model", ".txt", ".jinja") and file.is_file() and file.stat().st_size < _POINTERS:
            check_pointer(file.read_bytes(), str(file))


def is_whole(source: Source) -> bool:
    """Whether weights, configuration and tokenizer are on this machine."""
    return source.path is not None and not set(os.listdir(source.path)).isdisjoint(_VOCABULARIES)


def to_fetch(source: Source) -> dict[str, int]:
    """Files that training needs and that are not on this machine, with the bytes to fetch; {} where all are here."""
    if not isinstance(source, HubSource):
        return {}
    weights = sorted({file for file, _ in source.entries().values()})
    beside = _matching(source.files, (*_FOR_TOKENIZER, *_BESIDE))
    return source.missing([*beside, *weights])  # the small ones first: what they show to be wrong is known early


def whole(source: Source, progress: bool | Progress = False, cancelled: Cancelled | None = None) -> Source:
    """The model, whole in a folder of this machine: what training needs and is not here is fetched, at the source's commit.

    ``progress`` counts bytes. Raises ``ModelError`` as ``check`` and ``fetch`` do, and InterruptedError once cancelled.
    """
    check(source)
    if not isinstance(source, HubSource) or not (files := to_fetch(source)):
        return source
    with reporting(progress, "Fetching the model", "B", total=sum(files.values())) as report:
        fetch(source, files, report, cancelled)
    return open_model(source.name, source.revision)


def tokenizer_folder(name: str, revision: str | None, check_wanted: Callable[[], object] = lambda: None) -> Path:
    """The folder with a model's tokenizer, whose files are fetched where they are not here; the weights are not.

    ``check_wanted()`` is called meanwhile, and may raise InterruptedError.
    """

    def cancelled() -> bool:
        check_wanted()
        return False

    source = open_model(name, revision)
    check(source)
    if isinstance(source, HubSource):
        return fetch(source, source.missing(_matching(source.files, _FOR_TOKENIZER)), cancelled=cancelled)
    assert source.path is not None
    return source.path.absolute()


def _matching(names: Collection[str], patterns: Collection[str]) -> list[str]:
    """Of the names, those of a pattern; a pattern without a folder means the top alone."""
    return sorted(
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, each) and name.count("/") == each.count("/") for each in patterns)
    )
