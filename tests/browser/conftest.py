"""One JupyterLab server and one Chromium for all browser tests; each test gets a page, a folder and a guarantee of quiet.

After each test its page must have logged no error, and nothing outside of 127.0.0.1 may have been asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Route, sync_playwright

import workbench as wb
from tests.browser.lab import Lab

TOKEN = "browser-tests"
ROOT = Path(__file__).resolve().parents[2]

_CHROMIUM_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip

_LAB_SETTINGS = {
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension/plugin.jupyterlab-settings": {"autosave": False},
}


@dataclass(frozen=True)
class Server:
    """A running JupyterLab and the folder whose notebooks it serves, empty at the start of each test."""

    url: str
    folder: Path


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab with settings, workspaces and runtime files of its own, in a temporary folder."""
    home = tmp_path_factory.mktemp("jupyter")
    folder = tmp_path_factory.mktemp("notebooks")
    for name, value in _LAB_SETTINGS.items():
        setting = home / "settings" / name
        setting.parent.mkdir(parents=True, exist_ok=True)
        setting.write_text(json.dumps(value))
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
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
    ]  # fmt: skip
    with (home / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            if not _answers(f"{url}/api?token={TOKEN}", process, seconds=60):
                pytest.fail(f"JupyterLab did not start:\n{(home / 'log.txt').read_text()[-2000:]}", pytrace=False)
            yield Server(url, folder)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    """The one Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(_CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep a picture of what the page showed when a test failed, where ``$WORKBENCH_SHOTS`` asks for pictures."""
    report = yield
    if report.when == "call" and report.failed:
        for lab in getattr(item, "labs", []):
            lab.shot(f"failed-{item.name}")
    return report


@pytest.fixture
def open_lab(
    request: pytest.FixtureRequest, browser: Browser, lab_server: Server, tmp_path: Path
) -> Iterator[Callable[[], Lab]]:
    """Makes pages of JupyterLab: ``open_lab()`` gives a ``Lab``; a second call in one test is a second tab."""
    external: list[str] = []

    def keep_inside(route: Route) -> None:
        parts = urlsplit(route.request.url)
        if parts.hostname in (None, "127.0.0.1") or parts.scheme in ("data", "blob"):
            route.continue_()
        else:
            external.append(route.request.url)
            route.abort()

    context: BrowserContext = browser.new_context(viewport={"width": 1280, "height": 900})
    context.route("**/*", keep_inside)
    labs: list[Lab] = []
    request.node.labs = labs

    def make() -> Lab:
        lab = Lab(context.new_page(), lab_server.url, TOKEN, f"page-{len(labs)}")
        labs.append(lab)
        return lab

    yield make
    errors = [error for lab in labs for error in lab.errors]
    context.close()
    _end_kernels(lab_server)
    _empty(lab_server.folder)
    assert not external, f"the page asked for things outside: {external}"
    assert not errors, f"the page logged errors: {errors}"


@pytest.fixture
def lab(open_lab: Callable[[], Lab]) -> Lab:
    """One page of JupyterLab."""
    return open_lab()


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


def _empty(folder: Path) -> None:
    """Stop the training runs that a test left going, and remove what it wrote."""
    for run in wb.runs(folder / "runs"):
        if run.status.state in ("starting", "running", "stopping"):
            run.stop(patience=0)
            run.wait(60)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _end_kernels(server: Server) -> None:
    """End the sessions of a test, so that the next one has the machine to itself."""
    headers = {"Authorization": f"token {TOKEN}"}
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/api/sessions", headers=headers)) as answer:
        sessions = json.load(answer)
    for session in sessions:
        request = urllib.request.Request(f"{server.url}/api/sessions/{session['id']}", headers=headers, method="DELETE")
        try:
            urllib.request.urlopen(request).close()
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
