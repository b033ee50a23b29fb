"""Choosing a model in a real JupyterLab: suggestions while typing, a model from a loopback Hub, and what may go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator

from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook
from tests.browser.test_app import model_field
from tests.helpers.hub_server import HubServer, hub_server
from tests.helpers.hubs import environment, sharded, single, weights

pytestmark = pytest.mark.slow


@pytest.fixture
def picker(lab: Lab, lab_server: Server, tmp_path: Path) -> Iterator[tuple[Lab, HubServer]]:
    """A page with notebooks whose kernels know a loopback Hub."""
    with hub_server() as server:
        server.add("llamas/tiny-llama", sharded(weights(4, 256), 3), card={"license": "apache-2.0"}, downloads=12_345)
        server.add("llamas/huge-llama", single(weights(1, 64)), gated=True, downloads=2_000_000)
        moe = {f"model.layers.0.block_sparse_moe.experts.{i}.w1.weight": t for i, t in enumerate(weights(4, 256).values())}
        tensors = weights(1, 256) | {name: tensor for name, tensor in moe.items() if tensor.ndim == 2}
        server.add("llamas/mixed-llama", single(tensors, model_type="mixtral"), card={"license": "mit"})
        setting = f"import os\nos.environ.update({environment(server, tmp_path)!r})"
        write_notebook(lab_server.folder / "picker.ipynb", setting, "from widgets import ModelPicker\np = ModelPicker()\np")
        write_notebook(
            lab_server.folder / "app.ipynb", setting, "from widgets import Workbench\nWorkbench('llamas/tiny-llama')"
        )
        lab.page.set_viewport_size({"width": 1200, "height": 1100})
        yield lab, server


def open_picker(lab: Lab) -> None:
    lab.open("picker.ipynb")
    lab.run_all(120)
    lab.page.wait_for_selector(".wb-table[aria-label='Tensors of builtin']")


def line(lab: Lab, name: str) -> Locator:
    return lab.page.get_by_role("option", name=name)


def test_a_model_is_found_while_typing_and_opens_from_the_hub(picker: tuple[Lab, HubServer]) -> None:
    lab, server = picker
    open_picker(lab)
    model_field(lab)
    line(lab, "Qwen/Qwen3-8B").wait_for()
    lab.shot("picker-focus-light", ".wb-panel")
    model_field(lab).fill("")
    model_field(lab).press_sequentially("llamas/")
    line(lab, "llamas/huge-llama").wait_for()
    assert "2 M downloads a month, gated" in line(lab, "llamas/huge-llama").inner_text()
    lab.shot("picker-typing-light", ".wb-panel")
    model_field(lab).press_sequentially("tiny")
    line(lab, "llamas/huge-llama").wait_for(state="detached")
    lab.until("() => document.querySelector('.wb-suggestions-status').textContent === ''")
    model_field(lab).press("ArrowDown")
    assert line(lab, "llamas/tiny-llama").get_attribute("aria-selected") == "true"
    model_field(lab).press("Enter")
    lab.page.wait_for_selector(".wb-table[aria-label='Tensors of llamas/tiny-llama']")
    facts = lab.page.locator(".wb-facts").inner_text()
    assert "apache-2.0" in facts
    assert "at commit aaaaaaaaaaaa" in facts
    lab.page.get_by_role("dialog", name="Open a model").wait_for(state="hidden")
    lab.shot("picker-opened-light", ".wb-panel")
    lab.knows("p.session.store.value.model", "llamas/tiny-llama")
    assert all(request.range for request in server.requests if "/resolve/" in request.path)

    model_field(lab).fill("llama")
    assert line(lab, "llamas/tiny-llama").count() >= 0
    lab.page.get_by_role("group", name="Opened before").get_by_role("option", name="llamas/tiny-llama").wait_for()
    lab.theme("JupyterLab Dark")
    model_field(lab).fill("llamas/")
    line(lab, "llamas/mixed-llama").click()
    lab.page.wait_for_selector(".wb-warning")
    assert "stay in 16 bits" in lab.page.locator(".wb-warning").inner_text()
    lab.shot("picker-warning-dark", ".wb-panel")
    model_field(lab).fill("llamas/")
    line(lab, "llamas/huge-llama").wait_for()
    lab.shot("picker-typing-dark", ".wb-panel")
    lab.theme("JupyterLab Light")


def test_what_cannot_be_opened_is_told_in_the_panel_and_the_controls_come_back(picker: tuple[Lab, HubServer]) -> None:
    lab, _ = picker
    open_picker(lab)
    said = {
        "llamas/no-such-llama": "has no such model, or it is private",
        "llamas/huge-llama": "It is gated: its owner asks readers to log in and accept terms",
        "/no/such/folder": "There is no such folder",
    }
    for wrong, told in said.items():
        model_field(lab).fill(wrong)
        model_field(lab).press("Enter")
        alert = lab.page.locator(".wb-error[role=alert]", has_text=told)
        alert.wait_for()
        assert "Traceback" not in alert.inner_text()
        lab.shot(f"picker-wrong-{len(wrong)}-light", ".wb-panel")
        assert lab.page.get_by_role("button", name="Model", exact=True).inner_text() == "builtin"
    model_field(lab).fill("llamas/tiny-llama")
    lab.page.keyboard.press("Enter")
    lab.page.wait_for_selector(".wb-table[aria-label='Tensors of llamas/tiny-llama']")
    assert lab.page.locator(".wb-error[role=alert]").count() == 0


def test_a_slow_hub_shows_progress_and_can_be_given_up(picker: tuple[Lab, HubServer]) -> None:
    lab, server = picker
    open_picker(lab)
    server.fail(server="cdn", stall=True, times=1_000)
    model_field(lab).fill("llamas/tiny-llama")
    model_field(lab).press("Enter")
    lab.page.locator("progress[aria-label='Opening llamas/tiny-llama']").wait_for()
    lab.shot("picker-progress-light", ".wb-panel")
    assert lab.kernel("print('the kernel is free')") == "the kernel is free\n"
    lab.page.get_by_role("button", name="Cancel", exact=True).click()
    lab.page.locator("progress").wait_for(state="hidden")
    server.faults.clear()
    model_field(lab).fill("llamas/tiny-llama")
    lab.page.keyboard.press("Enter")
    lab.page.wait_for_selector(".wb-table[aria-label='Tensors of llamas/tiny-llama']")


def test_a_server_that_gives_no_parts_asks_before_the_whole_file_is_taken(picker: tuple[Lab, HubServer]) -> None:
    lab, server = picker
    open_picker(lab)
    server.fail(server="cdn", ranges=False, times=1_000)
    model_field(lab).fill("llamas/tiny-llama")
    model_field(lab).press("Enter")
    lab.page.locator(".wb-error[role=alert]", has_text="The server ignores byte ranges").wait_for()
    lab.shot("picker-whole-light", ".wb-panel")
    lab.page.get_by_role("button", name="Download whole files", exact=True).click()
    lab.page.wait_for_selector(".wb-table[aria-label='Tensors of llamas/tiny-llama']")
    assert lab.page.get_by_role("button", name="Download whole files", exact=True).count() == 0


def test_the_app_opens_on_a_model_from_the_hub_without_holding_up_the_kernel(picker: tuple[Lab, HubServer]) -> None:
    lab, server = picker
    server.fail(server="cdn", stall=True, times=1_000)
    lab.open("app.ipynb")
    lab.run_all(120)
    lab.page.locator("progress[aria-label='Opening llamas/tiny-llama']").wait_for()
    lab.shot("app-opening-light", ".wb-panel")
    server.faults.clear()
    lab.page.get_by_role("button", name="Cancel", exact=True).click()
    lab.page.locator(".widget-tab .lm-TabBar-tab", has_text="Model").first.click()
    model_field(lab).fill("llamas/tiny-llama")
    model_field(lab).press("Enter")
    lab.page.wait_for_selector(".wb-table[aria-label='Tensors of llamas/tiny-llama']")
    lab.shot("app-model-light", ".wb-panel")

    # A survey over the network is begun by the reader, who can give it up and take it up again.
    survey = lab.page.get_by_role("button", name="Survey the model")
    survey.wait_for()
    server.fail(server="cdn", stall=True, times=1_000)
    survey.click()
    lab.page.locator("progress[aria-label='Surveying llamas/tiny-llama']").wait_for()
    lab.shot("app-surveying-light", ".wb-panel")
    lab.page.get_by_role("button", name="Cancel", exact=True).locator("visible=true").click()
    survey.wait_for()
    server.faults.clear()
    survey.click()
    lab.page.locator(".wb-note", has_text="8 of 8 tensors").wait_for()
