"""One JupyterLab server and one Chromium for all browser tests; each test gets a page, a folder and a guarantee of quiet.

After each test its page must have logged no error, and nothing outside of 127.0.0.1 may have been asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext

import workbench as wb
from tests.browser.alone import Alone
from tests.browser.lab import WINDOW, Lab
from tests.browser.server import ROOT, TOKEN, Server, chromium_at, jupyterlab, keep_inside
from widgets.drawing.drawing import Drawing

__all__ = ["ROOT", "Server"]

Open = Callable[..., Alone]
FAILED = pytest.StashKey[bool]()
USES = 25
"""How many tests share a page, whose memory grows."""


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab on a temporary folder, which is empty at the start of each test."""
    with jupyterlab(tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("notebooks")) as server:
        yield server


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Browser]:
    """The one Chromium."""
    with chromium_at(chromium) as browser:
        yield browser


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say what the page showed when a test failed, and keep a picture of it where ``$WORKBENCH_SHOTS`` asks for pictures."""
    report = yield
    if report.when == "call" and report.failed:
        item.stash[FAILED] = True
        for lab in getattr(item, "labs", []):
            report.sections.append(("What the page shows", lab.shown()))
            lab.shot(f"failed-{item.name}")
    return report


@pytest.fixture
def open_lab(request: pytest.FixtureRequest, browser: Browser, lab_server: Server) -> Iterator[Callable[[], Lab]]:
    """Makes new pages of JupyterLab: ``open_lab()`` gives a ``Lab``; a second call in one test is a second tab."""
    context = browser.new_context(viewport=WINDOW)
    external = keep_inside(context)
    labs: list[Lab] = []
    request.node.labs = labs

    def make() -> Lab:
        lab = Lab(context.new_page(), lab_server.url, TOKEN, f"page-{len(labs)}")
        labs.append(lab)
        return lab

    yield make
    errors = [error for lab in labs for error in lab.errors]
    context.close()
    leave(lab_server, external, errors)


class SharedPage:
    """The page of JupyterLab that tests have one after another, as loading it takes longer than most of them."""

    def __init__(self, browser: Browser, server: Server) -> None:
        self._browser, self._server = browser, server
        self._context: BrowserContext | None = None
        self.external: list[str] = []
        self.uses = 0

    def lab(self) -> Lab:
        """The page, with nothing open; a new one at first, after ``close``, and after many tests."""
        if self._context is None:
            self._context = self._browser.new_context(viewport=WINDOW)
            self.external, self.uses = keep_inside(self._context), 0
            self._lab = Lab(self._context.new_page(), self._server.url, TOKEN, "shared")
        self.uses += 1
        self._lab.forget()
        return self._lab

    def close(self) -> None:
        """The next test gets a new one."""
        if self._context is not None:
            self._context.close()
            self._context = None


@pytest.fixture(scope="session")
def shared_page(browser: Browser, lab_server: Server) -> Iterator[SharedPage]:
    """What ``lab`` takes its page from."""
    page = SharedPage(browser, lab_server)
    yield page
    page.close()


@pytest.fixture
def lab(request: pytest.FixtureRequest, shared_page: SharedPage, lab_server: Server) -> Iterator[Lab]:
    """A page of JupyterLab with nothing open: that of the test before, unless something went wrong there."""
    lab = shared_page.lab()
    request.node.labs = [lab]
    yield lab
    errors, external = [*lab.errors], [*shared_page.external]
    keep = not (errors or external or request.node.stash.get(FAILED, False) or shared_page.uses == USES)
    if not (keep and lab.clear()):
        shared_page.close()
    leave(lab_server, external, errors)


@pytest.fixture
def open_alone(browser: Browser) -> Iterator[Open]:
    """Opens a cockpit on a page of its own; no page may log an error."""
    made: list[Alone] = []

    def open_page(drawing: Drawing, **options: Any) -> Alone:
        made.append(Alone(browser.new_page(), drawing, **options))
        made[-1].page.wait_for_function("document.querySelector('.wbc-stage')?.dataset.revision")
        return made[-1]

    yield open_page
    errors = [error for alone in made for error in alone.errors]
    for alone in made:
        alone.page.close()
        alone.drawing.close()
    assert not errors


def leave(server: Server, external: list[str], errors: list[str]) -> None:
    """Leave the server as it was found; nothing outside may have been asked for, and no error logged."""
    server.end_kernels()
    empty(server.folder)
    assert not external, f"the page asked for things outside: {external}"
    assert not errors, f"the page logged errors: {errors}"


def empty(folder: Path) -> None:
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
