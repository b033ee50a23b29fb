"""A page as Colab's are, with a kernel of Colab's versions behind it: cells, each with its output frame, and what consoles say.

Covers the page, the files it is answered with, and the kernel. What is done in the app is in app.py; what the page is made of
is in site/, and what the kernel finds as ``google.colab`` in kernel/.
"""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from playwright.sync_api import Browser, FrameLocator, Page, Route

from tests.browser.colab import npm
from tests.browser.lab import PATIENCE
from tests.browser.server import ROOT, TOKEN, Server

HERE = Path(__file__).parent
KERNEL = ROOT / ".venv-colab" / "bin" / "python"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_BROWSERS_OWN = "Permissions policy violation: The Clipboard API has been blocked"  # which is what was asked for
_ANYONE = {"Access-Control-Allow-Origin": "*"}


def prepare(home: Path) -> None:
    """Let the server whose files are in ``home`` start kernels of Colab's versions, and serve the notebook's page itself.

    Chromium lets a page that a test answers for reach no address of this machine.
    """
    settings = {"ServerApp": {"extra_static_paths": [str(HERE / "site")]}}
    (home / "config").mkdir()
    (home / "config" / "jupyter_server_config.json").write_text(json.dumps(settings))
    folder = home / "data" / "kernels" / "colab"
    folder.mkdir(parents=True)
    specification = {
        "argv": [str(KERNEL), "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Colab",
        "language": "python",
        "env": {
            "PYTHONPATH": os.pathsep.join([str(HERE / "kernel"), str(ROOT)]),
            "NUMBA_CACHE_DIR": str(ROOT / ".venv-colab" / "numba"),
        },
    }
    (folder / "kernel.json").write_text(json.dumps(specification))


class Notebook:
    """A notebook on Colab, whose every cell is run below the others.

    ``theme``: light or dark. ``clipboard``: whether its outputs may write there. ``opened``: whether they are told of models
    that are made after they were there, which is not known of Colab.
    """

    def __init__(
        self, browser: Browser, server: Server, *, theme: str = "light", clipboard: bool = True, opened: bool = True
    ) -> None:
        self.errors: list[str] = []
        self.outside: list[str] = []
        self._context = browser.new_context(viewport={"width": 1280, "height": 1000}, has_touch=True)
        self._context.route("**/*", self._answer)
        self._server = server
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on("console", lambda message: message.type == "error" and self._error(message.text))
        self.page.on("pageerror", lambda error: self._error(error.stack or str(error)))
        options = {
            "kernel": self._start_kernel(),
            "token": TOKEN,
            "theme": theme,
            "clipboard": int(clipboard),
            "opened": int(opened),
        }
        self.page.goto(f"{server.url}/static/host.html?{urlencode(options)}")
        self.page.evaluate("colabPage.ready")
        self.run("import google.colab")

    def _error(self, text: str) -> None:
        if _BROWSERS_OWN not in text:
            self.errors.append(text)

    def run(self, code: str) -> str:
        """What a new cell printed, once it has run; raises what it raises."""
        return self.start(code)()

    def start(self, code: str) -> Callable[[], str]:
        """Has a new cell run; the function that is returned waits for its end."""
        cell = self.page.evaluate_handle("code => colabPage.runCell(code)", code)
        return lambda: str(cell.evaluate("cell => cell.done"))

    def until(self, expression: str, wanted: str) -> None:
        """Waits until an expression of the kernel's has that repr; in no cell, and only where none runs."""
        self.page.evaluate("asked => colabPage.until(...asked)", [f"print(repr({expression}))", wanted, PATIENCE])

    def ask(self, expression: str) -> str:
        """The repr of an expression of the kernel's."""
        return str(self.page.evaluate("code => colabPage.ask(code)", f"print(repr({expression}))"))

    @property
    def output(self) -> FrameLocator:
        """What is in the newest output frame."""
        return self.outputs[-1]

    @property
    def outputs(self) -> list[FrameLocator]:
        """What is in each output frame, from the top."""
        frames = self.page.locator("iframe")
        return [frames.nth(i).content_frame for i in range(frames.count())]

    @property
    def heights(self) -> list[float]:
        """Of the output frames, in pixels."""
        return [float(height) for height in self.page.locator("iframe").evaluate_all("all => all.map(e => e.offsetHeight)")]

    def throttle(self, times: float) -> None:
        """Have the notebook's page, and its output frames, compute that many times slower."""
        frames = [frame for frame in self.page.frames if frame is not self.page.main_frame]
        for part in (self.page, *frames[:1]):  # the frames share a process
            self._context.new_cdp_session(part).send("Emulation.setCPUThrottlingRate", {"rate": times})

    def shot(self, name: str) -> None:
        """A picture of the page as high as it is, into ``$WORKBENCH_SHOTS`` where that is set."""
        if folder := os.environ.get("WORKBENCH_SHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            before, height = self.page.viewport_size, self.page.evaluate("document.documentElement.scrollHeight")
            self.page.set_viewport_size({"width": 1280, "height": max(int(height), 1000)})  # what is below is not painted else
            self.page.screenshot(path=Path(folder) / f"colab-{name}.png")
            if before:
                self.page.set_viewport_size(before)

    def close(self) -> None:
        """Ends the page and its kernel."""
        self._context.close()
        self._kernels("DELETE", f"/{self._kernel}")

    def _start_kernel(self) -> str:
        self._kernel: str = json.loads(self._kernels("POST", "", {"name": "colab"}))["id"]
        return self._kernel

    def _kernels(self, method: str, path: str, body: dict[str, str] | None = None) -> bytes:
        headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
        content = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"{self._server.url}/api/kernels{path}", content, headers, method=method)
        with urllib.request.urlopen(request) as answer:
            return bytes(answer.read())

    def _answer(self, route: Route) -> None:
        """From site/ and npm's packages; the server answers for the rest of what is its own."""
        address = route.request.url.partition("?")[0]
        parts = urlsplit(address)
        file: Path | None = None
        if parts.hostname in ("frames.test", "manager.test"):
            file = HERE / "site" / parts.path.lstrip("/")
        elif parts.hostname == "127.0.0.1" or parts.scheme in ("data", "blob"):
            return route.continue_()
        else:
            file = npm.file_at(address)
        if file is not None and file.is_file():
            return route.fulfill(
                body=file.read_bytes(), content_type=_TYPES.get(file.suffix, "application/octet-stream"), headers=_ANYONE
            )
        if "font-awesome" in address:  # the manager asks for an icon font, which the app does not use
            return route.fulfill(body="", content_type="text/css", headers=_ANYONE)
        self.outside.append(address)
        return route.abort()
