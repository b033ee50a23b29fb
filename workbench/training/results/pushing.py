"""What a run trained, pushed to the Hub: the adapter or the model, its card, and the run's events.

Covers the repository, which is made where there is none, and one commit. Endpoint, token and upload are huggingface_hub's.
Nothing that is pushed names a path of this machine: configuration, checkpoints and logs stay here, as do the events that hold
others' texts, and the adapter names its base without its folder. Imports no torch.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.errors import ConfigError, RunError, WorkbenchError
from workbench.training.checks import NAMED, is_repository
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import on_hub
from workbench.training.folder import RunFolder
from workbench.training.results.card import card_of, step_notes
from workbench.training.runs import Run, attach

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_NOT_PUSHED = ("trainer_state.json", "complete", "README.md")
_PICKLES = (".pt", ".pth", ".bin")  # optimizer, schedule, scaler, random states, arguments
"""What a checkpoint holds beside what was trained; the card is written anew."""
_TEXTS = ("log", "error")
"""Kinds of event with words of libraries and of the system in them, tracebacks among them: they name files."""
_LOG_IN = "Log in ('hf auth login', or huggingface_hub.login() in a notebook), with a token that may write."


def push(
    run: Run | str | os.PathLike[str], hub_model_id: str | None = None, *, private: bool | None = None, token: str | None = None
) -> str:
    """Pushes a run's adapter (or model), its card, and its events under ``events/``, without log, errors and collectors.

    Of a run that goes on, it is the newest checkpoint's. Nothing of it names a path of this machine.

    Args:
        run: A run or its folder.
        hub_model_id: ``name`` or ``owner/name``; the configuration's unless given.
        private: Decides only where the repository is made; the configuration's unless given.
        token: Else the one that huggingface_hub knows.

    Returns:
        The repository's address.

    Raises:
        RunError: Where there is no run, nothing is trained yet, no repository can be called so, or the account may not write
            there.
        ModelError: Where the Hub cannot be reached.

    >>> wb.push("runs/20260314-142200-builtin", "owner/name")  # doctest: +SKIP
    'https://huggingface.co/owner/name'
    """
    from huggingface_hub import HfApi

    from workbench.sources.faults import HTTP_ERROR

    found = attach(run)
    config, trained = found.config, found.adapter_dir or found.model_dir
    if trained is None:
        remedy = "Wait for a checkpoint, or choose a run that has trained."
        raise RunError("nothing is trained yet that could be pushed.", where=str(found.dir), remedy=remedy)
    name = hub_model_id or config.hub_model_id or found.dir.name
    if not is_repository(name):
        raise RunError(f"no repository can be called {name!r}; {NAMED}", where=str(found.dir), remedy="Give a hub_model_id.")
    hidden = config.hub_private_repo if private is None else private
    api = HfApi(token=token)
    try:
        repo = api.create_repo(name, private=hidden, exist_ok=True).repo_id
        operations = _files(found, config, trained)
        api.create_commit(repo, operations, commit_message=f"Push run {found.dir.name} of QLoRA Workbench")
    except FileNotFoundError as error:
        what = f"{error.filename} is no longer there: the run has written a newer one."
        raise RunError(what, where=str(found.dir), remedy="Push it again.") from error
    except (OSError, ValueError, HTTP_ERROR) as error:
        raise _refused(error, name) from error
    return f"{api.endpoint}/{repo}"


def _refused(error: Exception, name: str) -> WorkbenchError:
    """What to raise where the Hub refuses to be written to."""
    from workbench.sources.faults import as_model_error, host, status

    if (code := status(error)) in (401, 403, 404):
        what = f"{host()} does not let this account write there ({code})."
        return RunError(what, where=name, remedy=f"{_LOG_IN} Or choose another hub_model_id.")
    return as_model_error(error, name)


def _files(run: Run, config: TrainConfig, trained: Path) -> list[CommitOperationAdd]:
    from huggingface_hub import CommitOperationAdd

    what = "model" if config.method == "full" else "adapter"
    kept = [path for path in sorted(trained.iterdir()) if path.is_file() and path.name not in _NOT_PUSHED]
    notes = step_notes(RunFolder(run.dir), config, trained)
    found = [CommitOperationAdd("README.md", card_of(run.dir, what, notes).encode())]
    for path in (path for path in kept if path.suffix not in _PICKLES):
        found.append(CommitOperationAdd(path.name, _adapter(path, config) if path.name == "adapter_config.json" else path))
    events = sorted(run.dir.glob("events-*.jsonl"))
    return [*found, *(CommitOperationAdd(f"events/{path.name}", _events(path)) for path in events)]


def _adapter(path: Path, config: TrainConfig) -> bytes:
    """The adapter's configuration, with its base by name, where the run's own names the folder that it was loaded from."""
    base = config.model if on_hub(config.model) else Path(config.model).name
    return json.dumps(json.loads(path.read_text("utf-8")) | {"base_model_name_or_path": base}, indent=2).encode()


def _events(path: Path) -> bytes:
    """A writer's events without those of ``_TEXTS``, and without which collectors work and why others do not."""
    lines = []
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # cut short: the run goes on, or was killed
            continue
        if event["k"] not in _TEXTS:
            event.pop("capabilities", None)
            lines.append(json.dumps(event, separators=(",", ":")) + "\n")
    return "".join(lines).encode()


def check_push(config: TrainConfig, token: str | None, run: str) -> None:
    """Raises ``ConfigError`` or ``ModelError`` where a push at the end of the run so called cannot succeed.

    No token, one that may not write, or a name that no repository can have.
    """
    from huggingface_hub import HfApi

    from workbench.sources.faults import HTTP_ERROR, as_model_error, status

    if not config.push_to_hub:
        return
    if token is None:
        raise ConfigError(["push_to_hub is set, and no account is logged in to the Hub."], where="push_to_hub", remedy=_LOG_IN)
    if config.hub_model_id is None and not is_repository(run):
        what = f"push_to_hub would make a repository by the run's name, and no repository can be called {run!r}."
        raise ConfigError([what], where="hub_model_id", remedy="Set hub_model_id.")
    try:
        account = HfApi().whoami(token)
    except (OSError, ValueError, HTTP_ERROR) as error:
        if status(error) == 401:
            raise ConfigError(["the Hub does not accept the token."], where="push_to_hub", remedy=_LOG_IN) from error
        raise as_model_error(error, "push_to_hub") from error
    if ((account.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        what = f"push_to_hub is set, and the token of {account.get('name')} may only read."
        raise ConfigError([what], where="push_to_hub", remedy=_LOG_IN)
