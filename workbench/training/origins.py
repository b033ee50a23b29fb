"""What a run is begun with, file by file, and the refusal to go on with anything else.

Covers finding the files of base, tokenizer, chat template and rows, their fingerprints at launch, and comparing them before a
resume, a merge or an export; a change is refused, or accepted and written down. How files are compared is ``fingerprints``'
part. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.errors import ModelError, RunError
from workbench.progress import Cancelled, Progress
from workbench.sources import Source, open_model
from workbench.sources.files import CONFIG
from workbench.text import counted
from workbench.training import data, fingerprints
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import Files, on_hub
from workbench.training.fingerprints import Changed, Content, FileChange, Fingerprints
from workbench.training.model_files import OF_TOKENIZER
from workbench.training.vocabulary import chat_templates, json_object

BASE, TOKENIZER, TEMPLATE, ROWS, HELD_OUT = "base model", "tokenizer", "chat template", "rows", "held-out rows"
OF_MODEL = (BASE, TOKENIZER, TEMPLATE)
_NOTES = ("transformers_version", "_name_or_path", "name_or_path")
"""Keys of a configuration that only say where it comes from."""
_TOKENIZER_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template"
_SHOWN = 3
Found = list[tuple[str, Content]]


def take(config: TrainConfig, source: Source, files: Files, *, fetched: bool = True) -> Fingerprints:
    """The fingerprints of what a run is begun with now. ``RunError`` where a file cannot be read.

    ``fetched`` False: the model's files are still to come; ``add_model`` takes theirs.
    """
    of_model = _of_model(source) if fetched else {}
    return fingerprints.take(of_model | _of_rows(config, files), commit_of(config, source))


def add_model(run: Path, source: Source) -> None:
    """Takes the fingerprints of the model's files once they are here, where the run has none of them yet. OSError as usual."""
    known = fingerprints.read(run)
    if known is not None and BASE not in known.parts:
        of_model = fingerprints.take(_of_model(source)).parts
        fingerprints.write(run, dataclasses.replace(known, parts=of_model | known.parts))


def pinned(run: Path, config: TrainConfig) -> str | None:
    """The commit of a base from the Hub that the run was begun with; the revision asked for where none is recorded."""
    if not on_hub(config.model):
        return None
    known = fingerprints.read(run)
    return (known.commit if known else None) or config.model_revision


def check_before_resume(run: Path, config: TrainConfig, source: Source, files: Files, accept: bool, attempt: int) -> None:
    """Raises ``Changed`` if the run would go on with something else, as far as can be known at once.

    ``accept``: takes what there is now for what the run was begun with, from this attempt on, and writes down what had changed.
    """
    known = fingerprints.read(run)
    if known is None:
        return
    here = source.path is not None  # else its files are fetched, at the same commit
    of_model = _of_model(source) if here else {}
    found = fingerprints.changes(known, of_model | _of_rows(config, files), whole=accept)
    if found and not accept:
        raise _refused(found, run, config, known)
    if found:
        accepted = (*known.accepted, *(f"before attempt {attempt}, {change}" for change in found))
        now = take(config, source, files, fetched=here)
        try:
            fingerprints.write(
                run, dataclasses.replace(now, parts=(known.parts if not here else {}) | now.parts, accepted=accepted)
            )
        except OSError as error:
            what = f"the run's folder cannot be written ({error.strerror})."
            raise RunError(what, where=str(run), remedy="Make it writable, or free some space on its disk.") from error


def check_resumed(run: Path, config: TrainConfig) -> None:
    """The same in the process that trains, before it loads anything, and whole: files that were touched are read again."""
    known = fingerprints.read(run)
    if known is None:
        return
    source = open_model(data.model_folder(config.model, pinned(run, config)))
    if found := fingerprints.changes(known, _of_model(source) | _of_rows(config, data.training_files(config))):
        raise _refused(found, run, config, known)


def check_base(
    run: Path,
    config: TrainConfig,
    source: Source,
    parts: Sequence[str],
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> None:
    """Raises ``Changed`` if ``changes_of_base`` finds any."""
    known = fingerprints.read(run)
    if known and (found := changes_of_base(known, source, parts, progress, cancelled)):
        raise _refused(found, run, config, known)


def changes_of_base(
    known: Fingerprints,
    source: Source,
    parts: Sequence[str],
    progress: Progress | None = None,
    cancelled: Cancelled | None = None,
) -> tuple[FileChange, ...]:
    """What of these parts of the base that is opened as ``source`` is not what the run was begun with.

    Large files that were touched since are read whole: ``progress`` and ``cancelled`` as in ``fingerprints.changes``. Of a base
    that is read from the Hub piece by piece the commit is compared.
    """
    if source.path is None:
        return (FileChange(BASE, source.name, "commit"),) if getattr(source, "revision", None) != known.commit else ()
    now = {part: files for part, files in _of_model(source).items() if part in parts}
    return fingerprints.changes(known, now, progress=progress, cancelled=cancelled)


def _refused(found: Sequence[FileChange], run: Path, config: TrainConfig, known: Fingerprints) -> Changed:
    more = f"; and {counted(len(found) - _SHOWN, 'more change')}" if len(found) > _SHOWN else ""
    again = f" (hf download {config.model} --revision {known.commit} --force-download)" if known.commit else ""
    error = Changed(
        f"what the run was begun with has changed. {'; '.join(map(str, found[:_SHOWN]))}{more}.",
        where=str(run),
        remedy=f"Put back what there was{again}, or go on all the same with changed_ok=True (workbench export: --changed-ok).",
    )
    error.changes = tuple(found)
    return error


def commit_of(config: TrainConfig, source: Source) -> str | None:
    """The commit of a base from the Hub; None of any other."""
    if not on_hub(config.model):
        return None
    path = source.path
    if path is None:
        return getattr(source, "revision", None)
    return path.name if path.parent.name == "snapshots" else None


def _of_model(source: Source) -> dict[str, Found]:
    """The parts of a model's folder that decide what is learnt; JSON by its values."""
    folder = source.path
    if folder is None:
        raise ModelError("the model is not on this machine.", where=source.name, remedy="Download it first.")
    weights = sorted({file for file, _ in source.entries().values()})
    tokenizer = json_object(folder / _TOKENIZER_CONFIG)
    template = tokenizer.pop(_TEMPLATE, None)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {
        BASE: [(CONFIG, _values(source.config)), *((file, folder / file) for file in weights)],
        TOKENIZER: [
            (_TOKENIZER_CONFIG, _values(tokenizer)),
            *((path.name, path) for path in files if any(fnmatch.fnmatch(path.name, pattern) for pattern in OF_TOKENIZER)),
        ],
        TEMPLATE: [(name, text.encode("utf-8", "replace")) for name, text in sorted(chat_templates(folder, template).items())],
    }


def _of_rows(config: TrainConfig, files: Files) -> dict[str, Found]:
    held_out = data.held_out_files(config) if config.max_eval_rows else None
    return {part: _named(of.paths) for part, of in ((ROWS, files), (HELD_OUT, held_out)) if of}


def _named(paths: Sequence[Path]) -> Found:
    """By their names inside the folder that holds them all."""
    root = os.path.commonpath([path.parent for path in paths])
    return [(path.relative_to(root).as_posix(), path) for path in paths]


def _values(config: dict[str, Any]) -> bytes:
    return json.dumps({key: value for key, value in config.items() if key not in _NOTES}, sort_keys=True).encode()
