"""The app as a web page: `make app` serves it to who has its token alone; it answers, and runs no cell meant for a notebook."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.server import ROOT, keep_inside, served

pytestmark = pytest.mark.slow

TOKEN = "page-tests"
HISTOGRAM = "[role=figure][aria-label^='Histogram of'][data-revision]"
ICONS = "/npm/@fortawesome/fontawesome-free@"  # Voilà's own pages ask for an icon font, which the app does not use


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where the command of `make app` serves a copy of the notebook; it makes a token of its own unless one is named."""
    make = ["make", "--no-print-directory", "--dry-run", "app"]
    said = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    _, command = said.replace("\\\n", " ").split("bin/voila ")
    arguments = shlex.split(command)
    assert "--token" in arguments
    home, folder = tmp_path / "jupyter", tmp_path / "served"
    home.mkdir()
    (folder / "notebooks").mkdir(parents=True)
    shutil.copy(ROOT / "notebooks" / "00_workbench.ipynb", folder / "notebooks")
    with served(home, folder, "-m", "voila", *arguments, f"--token={TOKEN}", answers="/voila/static/voila.js") as url:
        yield url


def test_the_page_is_the_app_answers_and_can_be_dark(browser: Browser, address: str) -> None:
    with browser.new_context(viewport={"width": 1280, "height": 1400}) as context:
        outside, errors = keep_inside(context), []
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(error.stack or str(error)))
        page.goto(f"{address}/?token={TOKEN}&theme=dark", timeout=120_000)
        page.wait_for_selector(HISTOGRAM, timeout=120_000)
        assert page.evaluate(f"document.querySelector(`{HISTOGRAM}`)._fullLayout.colorway[0]") == "#56b4e9"

        before = page.locator(HISTOGRAM).get_attribute("aria-label")
        page.get_by_role("combobox", name="Block size", exact=True).focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(f"(before) => document.querySelector(`{HISTOGRAM}`).ariaLabel !== before", arg=before)
        if shots := os.environ.get("WORKBENCH_SHOTS"):
            page.screenshot(path=Path(shots) / "page-dark.png")

        assert page.get_by_role("heading", level=1).all_inner_texts() == ["QLoRA Workbench"]
        assert page.get_by_text("Launch it").count() == 0, "the cells for a notebook, one of which trains, are left out"
        assert all(ICONS in request for request in outside)
        assert not errors


def status(address: str) -> int:
    """What the server answers, where it answers: not what it sends on to."""

    class Stays(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    try:
        with urllib.request.build_opener(Stays).open(address, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_who_has_no_token_gets_neither_the_page_nor_a_kernel(address: str) -> None:
    pages = ("", "?token=", "?token=wrong", "voila/render/x.ipynb", "voila/files/x")
    for refused in (*pages, "api/kernels", "api/kernels/0/channels"):
        assert status(f"{address}/{refused}") in (302, 403), refused
    assert status(f"{address}/?token={TOKEN}") == 200


def test_make_app_prints_its_address_with_the_token_it_made(tmp_path: Path) -> None:
    home = tmp_path / "jupyter"
    home.mkdir()
    notebook = shutil.copy(ROOT / "notebooks" / "00_workbench.ipynb", tmp_path)
    with served(home, tmp_path, "-m", "voila", str(notebook), "--token", answers="/voila/static/voila.js") as url:
        printed = re.findall(r"http\S+\?token=(\w{32,})", (home / "log.txt").read_text())
        assert printed
        assert status(f"{url}/?token={printed[0]}") == 200
