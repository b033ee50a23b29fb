"""Finds a Chromium for the browser tests: ``python -m tests.helpers.chromium`` tries to get one where there is none.

Covers: ``$CHROMIUM``, the browsers on PATH, and playwright's own download. Does not cover starting it (``tests/browser``).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
MAC = ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", "/Applications/Chromium.app/Contents/MacOS/Chromium")
REMEDY = "install Chromium (Debian and Ubuntu: apt-get install chromium) or set CHROMIUM to the path of one"


def find() -> str | None:
    """The path of a Chromium or Chrome, or None."""
    if named := os.environ.get("CHROMIUM"):
        return named if os.access(named, os.X_OK) else None
    for name in NAMES:
        if path := shutil.which(name):
            return path
    return next((path for path in (*MAC, _playwrights()) if path and os.access(path, os.X_OK)), None)


def _playwrights() -> str | None:
    """Where playwright keeps the Chromium that it downloads, whether it is there or not."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        return playwright.chromium.executable_path


def get(seconds: float = 300) -> str | None:
    """``find``, and where there is none one attempt at ``playwright install chromium``, quiet and bounded."""
    if path := find():
        return path
    try:
        subprocess.run(
            [sys.executable, "-m", "playwright", "install", "chromium"],
            timeout=seconds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return find()


if __name__ == "__main__":
    found = get()
    print(f"Browser tests: {Path(found).name} ({found})" if found else f"Browser tests will be skipped: no Chromium; {REMEDY}.")
