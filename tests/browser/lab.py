"""Drives a real JupyterLab in Chromium: opens notebooks, runs them, reads what the page shows.

Covers the page and what crosses its websocket. Does not cover starting the server and the browser (conftest.py). Every wait
is for a condition and has a bound.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Error, Page, WebSocket

# What JupyterLab itself logs in an ordinary session, none of it ours.
IGNORED_ERRORS = re.compile(r"favicon|Failed to load resource: the server responded with a status of 404")

WINDOW: Any = {"width": 1280, "height": 900}
PATIENCE = 120
"""Seconds that a page may take to what is waited for, where no longer is asked for: the machine may be busy with others."""

_KERNEL_IDLE = """() => {
    const session = globalThis.jupyterapp?.shell.currentWidget?.sessionContext?.session;
    return session?.kernel?.connectionStatus === "connected" && session.kernel.status === "idle";
}"""

_OPEN = """async (path) => {
    const { commands, shell } = globalThis.jupyterapp;
    const opened = await commands.execute("docmanager:open", { path });
    for (const other of [...shell.widgets("main")]) if (other !== opened) other.dispose();
    shell.activateById(opened.id);
}"""
_CLOSE_ALL = """() => {
    const { shell } = globalThis.jupyterapp;
    for (const open of [...shell.widgets("main")]) open.dispose();
    shell.expandLeft();
}"""

_PLOTS = "document.querySelectorAll('.js-plotly-plot')"


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of code cells."""
    notebook = {
        "nbformat": 4, "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        "cells": [
            {"cell_type": "code", "id": f"cell-{i}", "source": source, "metadata": {}, "outputs": [], "execution_count": None}
            for i, source in enumerate(cells)
        ],
    }  # fmt: skip
    path.write_text(json.dumps(notebook))
    return path


class Lab:
    """One page of JupyterLab on one notebook; ``received`` counts the bytes of its websockets by direction.

    ``workspace`` must be each open page's own: pages that ask for one name settle it among themselves with reloads, and
    log an error when their messages cross.
    """

    def __init__(self, page: Page, url: str, token: str, workspace: str) -> None:
        self.page, self.url, self.token, self.workspace = page, url, token, workspace
        self.errors: list[str] = []
        self.received = self.sent = 0
        self._empty, self._loaded = False, 0
        page.set_default_timeout(PATIENCE * 1000)
        page.on("console", lambda message: message.type == "error" and self._error(message.text))
        page.on("pageerror", lambda error: self._error(error.stack or str(error)))
        page.on("websocket", self._count)
        page.on("load", self._load)

    def _error(self, text: str) -> None:
        if not IGNORED_ERRORS.search(text):
            self.errors.append(text)

    def _load(self, _: Page) -> None:
        self._loaded += 1

    def _count(self, socket: WebSocket) -> None:
        def got(frame: str | bytes) -> None:
            self.received += len(frame)

        def gave(frame: str | bytes) -> None:
            self.sent += len(frame)

        socket.on("framereceived", got)
        socket.on("framesent", gave)

    def open(self, notebook: str) -> None:
        """Open a notebook of the server's folder and wait for its kernel; a page that was cleared is not loaded again."""
        if self._empty:
            self.page.evaluate(_OPEN, notebook)
            self._empty = False
        else:
            self.page.goto(f"{self.url}/lab/workspaces/{self.workspace}/tree/{notebook}?token={self.token}&reset")
        self.until(_KERNEL_IDLE)

    def clear(self) -> bool:
        """Close all that is open and put the window as it was, for the test that has the page next.

        False if that fails, and for a page that was loaded again, which goes on to restore what it had.
        """
        if self._loaded > 1:
            return False
        try:
            self.page.evaluate(_CLOSE_ALL)
            self.page.mouse.move(0, 0)
            self.page.set_viewport_size(WINDOW)
        except Error:
            return False
        self._empty = True
        return True

    def forget(self) -> None:
        """Count and note from here on."""
        self.page.evaluate("0")  # what is on its way is heard
        self.errors.clear()
        self.received = self.sent = 0

    def menu(self, *labels: str) -> None:
        """Choose from the menu bar: ``menu("Run", "Run All Cells")``."""
        bar, *items = labels
        self.page.click(f'.lm-MenuBar-itemLabel:text-is("{bar}")')
        for item in items:
            self.page.click(f'.lm-Menu-itemLabel:text-is("{item}")')

    def run_all(self, seconds: float = PATIENCE) -> None:
        """Run every cell and wait until all have a number and the kernel is idle."""
        self.start_all()
        self.finished(seconds)

    def start_all(self) -> None:
        """Run every cell without waiting."""
        self.menu("Run", "Run All Cells")

    def finished(self, seconds: float = PATIENCE) -> None:
        """Wait until every code cell has run; one that is folded shows no number."""
        self.until(
            """() => {
                const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
                return prompts.length && prompts.every((p) => /^$|\\[\\d+\\]:/.test(p.textContent));
            }""",
            seconds,
        )
        self.until(_KERNEL_IDLE, seconds)

    def until(self, condition: str, seconds: float = PATIENCE, argument: Any = None) -> Any:
        """Wait until a JavaScript function of the page is true, and return its value."""
        return self.page.wait_for_function(condition, arg=argument, timeout=seconds * 1000).json_value()

    def plots(self, count: int = 1) -> None:
        """Wait until ``count`` plots are drawn."""
        self.until(f"(n) => {_PLOTS}.length >= n && [...{_PLOTS}].every((p) => p.dataset.revision)", argument=count)

    def plot(self, index: int = 0, what: str = "data") -> Any:
        """``data`` or ``layout`` of a plot, or any expression in ``plot``, as plain lists and dicts."""
        expression = what if "plot" in what else f"plot.{what}"
        return self.page.evaluate(
            f"""(i) => {{
                const plot = {_PLOTS}[i];
                const plain = (v) => ArrayBuffer.isView(v) ? Array.from(v) : v;
                return JSON.parse(JSON.stringify({expression}, (_, v) => plain(v)));
            }}""",
            index,
        )

    def until_plot(self, index: int, condition: str, seconds: float = PATIENCE) -> None:
        """Wait until an expression in ``plot`` is true."""
        self.until(f"(i) => {{ const plot = {_PLOTS}[i]; return plot && ({condition}); }}", seconds, index)

    def shown(self) -> str:
        """What can be read on the page, with the errors it logged; what stood in the way where it does not answer."""
        try:
            return "\n".join([self.page.locator("body").inner_text(timeout=10_000), *self.errors])
        except Error as error:
            return str(error)

    def text(self, selector: str) -> str:
        """The text of the first element that matches."""
        return self.page.locator(selector).first.inner_text()

    def theme(self, name: str) -> None:
        """Choose a theme in the settings menu and wait until the page has it, and no longer shows JupyterLab's sign over it."""
        self.menu("Settings", "Theme", name)
        self.until("(light) => document.body.dataset.jpThemeLight === light", argument=str("Light" in name).lower())
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")

    def alone(self) -> None:
        """Close the side bar, so that the notebook has the window's width."""
        self.page.evaluate("globalThis.jupyterapp.shell.collapseLeft()")
        self.page.locator("#jp-left-stack").wait_for(state="hidden")

    def kernel(self, code: str) -> str:
        """Run code in the notebook's kernel, as a cell would but without one, and return what it printed."""
        return str(
            self.page.evaluate(
                """async (code) => {
                    const { kernel } = globalThis.jupyterapp.shell.currentWidget.sessionContext.session;
                    const future = kernel.requestExecute({ code, store_history: false });
                    let printed = "";
                    future.onIOPub = ({ header, content }) => {
                        if (header.msg_type === "stream") printed += content.text;
                        if (header.msg_type === "error") printed += content.traceback.join("\\n");
                    };
                    const reply = await future.done;
                    if (reply.content.status !== "ok") throw new Error(printed);
                    return printed;
                }""",
                code,
            )
        )

    def value(self, expression: str) -> Any:
        """What an expression is in the kernel, which goes through JSON."""
        return json.loads(self.kernel(f"import json; print(json.dumps({expression}))"))

    def knows(self, expression: str, value: Any) -> None:
        """Wait until an expression in the kernel is this: what the page shows at once may reach the kernel later."""
        end = time.monotonic() + PATIENCE
        while (found := self.value(expression)) != value:
            assert time.monotonic() < end, f"{expression} stays {found!r}"

    def shot(self, name: str, selector: str | None = None, without: str = "") -> None:
        """A picture into ``$WORKBENCH_SHOTS``, where that is set, in 256 colours: a third of the bytes, and nobody sees it.

        ``without``: a selector of what is left out, as this machine's paths are.
        """
        folder = os.environ.get("WORKBENCH_SHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            target = self.page.locator(selector).first if selector else self.page
            hide = f"{without} {{ display: none !important; }}" if without else ""
            picture = Image.open(io.BytesIO(target.screenshot(style=hide))).convert("RGB")
            picture.quantize(256, dither=Image.Dither.NONE).save(Path(folder) / f"{name}.png", optimize=True)


Opener = Callable[..., Lab]
