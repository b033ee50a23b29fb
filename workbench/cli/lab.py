"""The command ``qlora-workbench``: the notebooks in a folder of the user's, and JupyterLab on the first of them.

Covers copying them from the package, or from a checkout, without touching one that was changed, and starting JupyterLab in the
environment that the command is installed in. Does not cover what is in them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from workbench._version import __version__
from workbench.atomic import replacing
from workbench.text import printable

_FRONT = "00_workbench.ipynb"
_COPIED = ".copied.json"
"""In the user's folder: the digest of each notebook as it was copied. One that has another digest now is the user's."""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True, "max_content_width": 100},
    epilog="Whatever else is given goes to JupyterLab: --port=8889, --no-browser.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
    help="Where the notebooks are, or are copied to.  [default: qlora-workbench in your home]",
)  # fmt: skip
@click.option("--copy-only", is_flag=True, help="Copy the notebooks and open nothing.")
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.argument("jupyter", nargs=-1, type=click.UNPROCESSED)
def main(folder: Path | None, copy_only: bool, jupyter: tuple[str, ...]) -> None:
    """Open the workbench's first notebook in JupyterLab.

    The notebooks are copied to a folder of yours first; one that you have changed stays as it is.
    """
    home = folder or Path(os.path.expanduser("~"), "qlora-workbench")
    try:
        kept = copy_notebooks(shipped(), home)
    except OSError as error:
        what = f"The notebooks cannot be copied to {printable(str(home))}: {error.strerror or error}."
        raise click.ClickException(f"{what} Name another folder: --folder.") from error
    click.echo(f"The notebooks are in {printable(str(home))}.")
    if kept:
        click.echo(f"Yours, and left as they are, though this version brings others: {', '.join(kept)}.")
    if copy_only:
        return
    if find_spec("jupyterlab") is None:
        what = 'JupyterLab is not installed here: pip install "qlora-workbench[lab]".'
        raise click.ClickException(f"{what} Another front end can open the notebooks, too.")
    as_root = ["--allow-root"] if hasattr(os, "getuid") and os.getuid() == 0 else []
    os.chdir(home)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *as_root, *jupyter, _FRONT])


def shipped() -> Path:
    """The folder of the notebooks that belong to this version: in the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return next((path for path in (package / "notebooks", package.parent / "notebooks") if (path / _FRONT).is_file()), package)


def copy_notebooks(source: Path, target: Path) -> list[str]:
    """Copies what is new and what was not changed since it was copied; gives the names of the others that differ.

    Raises OSError where the target cannot be written.
    """
    target.mkdir(parents=True, exist_ok=True)
    record = target / _COPIED
    try:
        copied = dict(json.loads(record.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        copied = {}
    kept = []
    for notebook in sorted(source.glob("*.ipynb")):
        own, new = target / notebook.name, _digest(notebook)
        there = _digest(own) if own.exists() else ""
        if there == new:
            copied[own.name] = new
        elif not there or there == copied.get(own.name):
            with replacing(own) as draft:
                shutil.copyfile(notebook, draft)
            copied[own.name] = new
        else:
            kept.append(own.name)
    with replacing(record) as draft:
        draft.write_text(json.dumps(copied, indent=1) + "\n", "utf-8")
    return kept


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
