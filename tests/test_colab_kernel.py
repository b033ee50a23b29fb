"""The app in a kernel as Colab's is: one that has no subshells, whose page shows only what the kernel's own thread sends.

A real kernel and the messages that a page would send it. With Colab's own ipykernel in ``make test-colab``. What Colab's page
makes of the messages is not shown here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).parents[1]
SECONDS = 120
VIEW = "application/vnd.jupyter.widget-view+json"

# Notes of each message that makes or changes a widget whose it is, and whether the kernel's own thread sends it.
AS_ON_COLAB = """
import threading, google.colab
senders, session = [], get_ipython().kernel.session
def send(stream, message, content=None, *rest, _send=session.send, **more):
    if str(message).startswith("comm_"):
        senders.append((content["comm_id"], threading.current_thread() is threading.main_thread()))
    return _send(stream, message, content, *rest, **more)
session.send = send
"""

APP = """
from widgets import Workbench
app = Workbench("builtin")
print(app.distribution.plots[0].model_id, app.header.model_id)
"""

BUSY_UNTIL = """
import pathlib
while not pathlib.Path({path!r}).exists():
    threading.Event().wait(0.01)
print(app.state["block_size"])
"""


class Page:
    """What a page says to a kernel, and what it hears."""

    def __init__(self, client: BlockingKernelClient) -> None:
        self.client = client
        self.shown: list[dict[str, Any]] = []
        """Every output that cells had, with its metadata."""

    def start(self, code: str) -> str:
        """Has a cell run, and does not wait for it."""
        return str(self.client.execute(code))

    def ended(self, cell: str) -> str:
        """What the cell printed, once it has run."""
        printed = ""
        while True:
            message = self.client.get_iopub_msg(timeout=SECONDS)
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != cell:
                continue
            assert kind != "error", "\n".join(content["traceback"])
            if kind == "stream" and content["name"] == "stdout":
                printed += content["text"]
            if kind in ("display_data", "execute_result"):
                self.shown.append(content)
            if kind == "status" and content["execution_state"] == "idle":
                return printed.strip()

    def run(self, code: str) -> str:
        """What a cell printed."""
        return self.ended(self.start(code))

    def choose(self, model: str, **choice: Any) -> None:
        """Something was chosen in the header."""
        data = {"method": "custom", "content": {"kind": "choose", "value": choice}}
        self.client.shell_channel.send(self.client.session.msg("comm_msg", {"comm_id": model, "data": data}))

    def until_drawn(self, model: str) -> None:
        """Waits, without running a cell, until the kernel sends something for that model."""
        while (message := self.client.get_iopub_msg(timeout=SECONDS))["content"].get("comm_id") != model:
            assert message["msg_type"] != "error", message["content"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    paths = os.pathsep.join(map(str, (ROOT / "tests" / "browser" / "colab" / "kernel", ROOT)))
    manager, client = start_new_kernel(cwd=str(tmp_path_factory.mktemp("colab")), env=os.environ | {"PYTHONPATH": paths})
    page = Page(client)
    page.run(AS_ON_COLAB)
    yield page
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_results_reach_the_page_between_cells_and_from_the_kernels_own_thread(page: Page, tmp_path: Path) -> None:
    plot, header = page.run(APP).split()
    page.until_drawn(plot)

    page.choose(header, block_size=128)
    page.until_drawn(plot)
    assert page.run("print(app.state['block_size'], all(own for _, own in senders), len(senders) > 50)") == "128 True True"

    let_go = tmp_path / "let go"
    busy = page.start(BUSY_UNTIL.format(path=str(let_go)))
    page.choose(header, block_size=256)
    let_go.touch()
    assert page.ended(busy) == "128", "while a cell runs, the kernel takes no message"
    page.until_drawn(plot)
    assert page.run("print(app.state['block_size'], all(own for _, own in senders))") == "256 True"


def test_what_is_shown_names_the_widget_manager_that_anywidget_switched_on(page: Page) -> None:
    page.run("app.distribution.plots[0]")
    (shown,) = [output for output in page.shown if VIEW in output["data"]]
    assert shown["metadata"][VIEW]["colab"]["custom_widget_manager"]["url"] == "https://manager.test/manager.js"


def test_pictures_of_what_is_in_the_app_go_to_the_cell_that_shows_it(page: Page) -> None:
    cell = page.start("app")
    page.ended(cell)
    page.run("app.tabs.selected_index = 2; plot = app.error.plots[0]")  # which was not there when the app was shown
    assert page.run("from widgets.drawing import notebook; print(notebook.cell_of(plot)['header']['msg_id'])") == cell


def test_a_change_by_another_thread_would_have_been_noticed(page: Page) -> None:
    page.run(
        "import ipywidgets; button = ipywidgets.Button()\n"
        "other = threading.Thread(target=button.set_trait, args=('description', 'Other')); other.start(); other.join()"
    )
    assert page.run("print([own for of, own in senders if of == button.model_id])") == "[True, False]", (
        "made here, changed there"
    )
