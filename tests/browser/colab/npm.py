"""What Colab's widget manager is made of, from npm: three packages of its versions, packed once into ``.venv-colab/npm``.

The stand-in for the manager (site/manager.js) fetches their files by jsDelivr's addresses, and page.py answers from here.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.browser.server import ROOT

FOLDER = ROOT / ".venv-colab" / "npm"
PACKAGES = ("anywidget@0.9.21", "@jupyter-widgets/html-manager@0.21.0-alpha.3", "@jupyter-widgets/controls@4.0.0-alpha.3")
JSDELIVR = re.compile(r"https://cdn\.jsdelivr\.net/npm/((?:@[^/]+/)?[^/@]+)@[~^]?([\d.]+[^/*]*?)(?:\.\*)?/(.+)")


def missing() -> str:
    """Why the packages are not to be had, after an attempt to get them; empty where they are there."""
    if FOLDER.is_dir():
        return ""
    if not FOLDER.parent.is_dir():
        return "no environment with Colab's versions: make .venv-colab/.installed"
    if not (npm := shutil.which("npm")):
        return "no npm to get Colab's widget manager with (Debian and Ubuntu: apt-get install npm)"
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as temporary:
        packed, unpacked = Path(temporary, "packed"), Path(temporary, "unpacked")
        packed.mkdir()
        try:
            command = [npm, "pack", "--silent", "--pack-destination", str(packed), *PACKAGES]
            subprocess.run(command, cwd=temporary, check=True, capture_output=True, text=True, timeout=300)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            return f"npm could not get Colab's widget manager: {str(error.stderr).strip()[-300:]}"
        for package, archive in zip(PACKAGES, sorted(packed.iterdir(), key=_place), strict=True):
            with tarfile.open(archive) as files:
                files.extractall(unpacked / package, filter="data")
        if not FOLDER.is_dir():  # another process may have been as quick
            unpacked.rename(FOLDER)
    return ""


def _place(archive: Path) -> int:
    """Which of the packages an archive holds: npm names it without @ and /."""
    return [package.lstrip("@").replace("/", "-").replace("@", "-") for package in PACKAGES].index(
        archive.name.removesuffix(".tgz")
    )


def file_at(address: str) -> Path | None:
    """The file that jsDelivr would send; a version like ~0.9.* is the newest that fits, and here the one there is."""
    if not (found := JSDELIVR.fullmatch(address)):
        return None
    name, version, path = found.groups()
    folder = next((FOLDER / package for package in PACKAGES if package.startswith(f"{name}@{version}")), FOLDER)
    file = folder / "package" / path
    return file if file.is_file() else None
