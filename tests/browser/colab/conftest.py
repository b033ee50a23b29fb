"""One Jupyter server with kernels of Colab's versions; each test opens notebooks on it and ends with a guarantee of quiet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.colab import npm
from tests.browser.colab.page import Notebook, prepare
from tests.browser.conftest import empty
from tests.browser.lab import PATIENCE
from tests.browser.server import Server, jupyterlab

expect.set_options(timeout=PATIENCE * 1000)

Opener = Callable[..., Notebook]


@pytest.fixture(scope="session")
def colab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Jupyter server in a folder of its own; skips where Colab's versions or its manager are not to be had."""
    if why := npm.missing():
        pytest.skip(why)
    home = tmp_path_factory.mktemp("jupyter-colab")
    prepare(home)
    with jupyterlab(home, tmp_path_factory.mktemp("content")) as server:
        yield server


@pytest.fixture
def open_notebook(browser: Browser, colab_server: Server) -> Iterator[Opener]:
    """Opens notebooks: ``open_notebook(theme="dark")``; their consoles must have said nothing bad at the end."""
    books: list[Notebook] = []

    def make(**options: Any) -> Notebook:
        books.append(Notebook(browser, colab_server, **options))
        return books[-1]

    yield make
    for book in books:
        book.close()
    empty(colab_server.folder)
    errors, outside = [e for book in books for e in book.errors], [a for book in books for a in book.outside]
    assert not outside, f"the page asked for things outside: {outside}"
    assert not errors, f"the page logged errors: {errors}"
