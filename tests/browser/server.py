"""Starts a JupyterLab or a Voilà of its own, with a browser that asks for nothing outside of it.

Covers the processes, for the browser tests, the pictures of the committed notebooks and the benchmark of the app. Does not
cover what is done on the page (lab.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Route, sync_playwright

from tests.helpers import chromium

TOKEN = "browser-tests"
ROOT = Path(__file__).resolve().parents[2]

_CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

_LAB_FILES = {
    "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings": {
        "fetchNews": "false",
        "checkForUpdates": False,
    },
    "settings/@jupyterlab/docmanager-extension/plugin.jupyterlab-settings": {"autosave": False},
    # The debugger asks a kernel for its state whenever it connects, and logs an error where a restart overtakes the answer.
    "config/labconfig/page_config.json": {"disabledExtensions": {"@jupyterlab/debugger-extension": True}},
}
"""What JupyterLab reads at its start, in its home."""


@dataclass(frozen=True)
class Server:
    """A running JupyterLab and the folder whose notebooks it serves."""

    url: str
    folder: Path

    def end_kernels(self) -> None:
        """End all sessions, so that what comes next has the machine to itself."""
        headers = {"Authorization": f"token {TOKEN}"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/api/sessions", headers=headers)) as answer:
            sessions = json.load(answer)
        for session in sessions:
            request = urllib.request.Request(f"{self.url}/api/sessions/{session['id']}", headers=headers, method="DELETE")
            try:
                urllib.request.urlopen(request).close()
            except urllib.error.HTTPError as error:
                if error.code != 404:
                    raise


@contextlib.contextmanager
def everything() -> Iterator[tuple[Browser, Server, Path]]:
    """Chromium, JupyterLab on a folder of its own, and a folder for other files; for programs, which end without Chromium."""
    path = chromium.get()
    if path is None:
        sys.exit(f"No Chromium: {chromium.REMEDY}.")
    with tempfile.TemporaryDirectory() as temporary, chromium_at(path) as browser:
        home, folder = Path(temporary, "jupyter"), Path(temporary, "notebooks")
        home.mkdir()
        folder.mkdir()
        with jupyterlab(home, folder) as server:
            yield browser, server, Path(temporary)


@contextlib.contextmanager
def jupyterlab(home: Path, folder: Path) -> Iterator[Server]:
    """JupyterLab on ``folder``, with settings, workspaces and runtime files in ``home``."""
    for name, value in _LAB_FILES.items():
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    options = (
        "--allow-root", "--ip=127.0.0.1", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
    )  # fmt: skip
    with served(home, folder, "-m", "jupyterlab", *options, answers=f"/api?token={TOKEN}") as url:
        yield Server(url, folder)


@contextlib.contextmanager
def served(home: Path, folder: Path, *program: str, answers: str = "/") -> Iterator[str]:
    """The address of a server program of Jupyter's that Python runs in ``folder``, once it ``answers`` for that path.

    The program's files lie in ``home``, and its kernels import the project from here.
    """
    port = _free_port()
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    }
    command = [sys.executable, *program, "--no-browser", f"--port={port}"]
    with (home / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            if not _answers(f"{url}{answers}", process, seconds=60):
                raise RuntimeError(f"{' '.join(program[:2])} did not start:\n{(home / 'log.txt').read_text()[-2000:]}")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def chromium_at(path: str) -> Iterator[Browser]:
    """The Chromium at ``path``, headless."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_CHROMIUM_FLAGS))
        yield browser
        browser.close()


def keep_inside(context: BrowserContext) -> list[str]:
    """Turn away what a page asks for outside of 127.0.0.1; returns the list in which that is noted."""
    external: list[str] = []

    def decide(route: Route) -> None:
        parts = urlsplit(route.request.url)
        if parts.hostname in (None, "127.0.0.1") or parts.scheme in ("data", "blob"):
            route.continue_()
        else:
            external.append(route.request.url)
            route.abort()

    context.route("**/*", decide)
    return external


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(url: str, process: subprocess.Popen[bytes], seconds: float) -> bool:
    pause = Event()
    for _ in range(int(seconds / 0.1)):
        if process.poll() is not None:
            return False
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except OSError:
            pause.wait(0.1)
    return False
