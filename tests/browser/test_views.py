"""The views in a real JupyterLab: from the model's map down to one weight and back, formats, code, hostile names, restarts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect
from safetensors.numpy import save_file

from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook
from tests.browser.test_app import choice, choose, open_app, read, shows, tab, until

pytestmark = pytest.mark.slow

EVIL = "<img src=x onerror=globalThis.pwned=1><script>globalThis.pwned=1</script>"


def click_cell(lab: Lab, kind: str, layer: int) -> None:
    """Click a cell of the model's map."""
    lab.page.get_by_role("figure", name="Map of").scroll_into_view_if_needed()
    place = read(
        lab,
        "Map of",
        f"""(() => {{
            const {{ xaxis, yaxis }} = plot._fullLayout, box = plot.getBoundingClientRect();
            const column = xaxis.ticktext.indexOf('{kind}');
            return [box.x + xaxis._offset + xaxis.d2p(column), box.y + yaxis._offset + yaxis.d2p({layer})];
        }})()""",
    )
    lab.page.mouse.click(*json.loads(place))


def test_from_the_model_down_to_one_weight_and_back_up(lab: Lab, lab_server: Server) -> None:
    open_app(lab, lab_server)
    tab(lab, "Model")
    lab.until("() => /42 of 42 tensors/.test(document.body.innerText)")
    click_cell(lab, "o", 2)
    name = "model.layers.2.self_attn.o_proj.weight"
    shows(lab, "Tensor", "o_proj")
    shows(lab, "Layer", "layer 2")
    lab.page.get_by_label("Colour shows").select_option(label="Kurtosis")
    until(lab, "Map of builtin under NF4, blocks of 64: Kurtosis", "plot.data[1].name === 'Kurtosis'")

    tab(lab, "Error")
    weights = lab.page.get_by_role("application", name=re.compile(r"^Block [\d,]+:"))
    before = weights.get_attribute("aria-label")
    lab.page.get_by_role("list", name="Worst blocks").get_by_role("button").nth(1).click()
    expect(weights).not_to_have_attribute("aria-label", before or "")
    weights.press("Home")
    for _ in range(5):
        weights.press("ArrowRight")
    lab.page.get_by_role("figure", name="Weight 5:").wait_for()
    lab.knows("(app.state['tensor'], app.state['weight'])", [name, 5])

    tab(lab, "Model")
    lab.page.get_by_label("only layer 2").check()
    lab.page.get_by_label("Tensors of layer 2, the worst first (Kurtosis)").wait_for()
    assert lab.page.get_by_label("Tensors of layer 2").locator("option").count() == 7
    choose(lab, "Layer", "layer 3")
    lab.page.get_by_label("Tensors of layer 3").wait_for()
    tab(lab, "Distribution")
    until(lab, "Histogram of", "plot.data.length === 7")
    fields = "[app.state[name] for name in ('tab', 'tensor', 'block', 'weight')]"
    lab.knows(fields, ["Distribution", name.replace("2", "3"), None, None])


def test_quantiles_and_outliers_follow_the_tensor(lab: Lab, lab_server: Server) -> None:
    open_app(lab, lab_server)
    lab.page.get_by_role("radio", name="How normal").check()
    until(lab, "Quantiles of the weights as they are", "plot.data[1].x.length === 201")
    lab.page.wait_for_selector(".wb-table[aria-label^='Outliers by'] th:has-text('6 σ')")
    before = lab.text(".wb-table[aria-label^='Outliers by']")
    lab.page.get_by_label("Quantiles of", exact=True).select_option(label="weights / absmax of their block")
    until(lab, "Quantiles of the weights / absmax", "Math.max(...plot.data[1].y) < 4")
    choose(lab, "Layer", "layer 3")
    choose(lab, "Tensor", "self_attn.q_proj")
    lab.until(
        "(before) => document.querySelector(\".wb-table[aria-label^='Outliers by']\").innerText !== before", argument=before
    )


def test_formats_duel_at_the_bits_asked_for_on_the_tensor_and_on_the_model(lab: Lab, lab_server: Server) -> None:
    open_app(lab, lab_server)
    tab(lab, "Formats")
    lab.page.wait_for_selector(".wb-table[aria-label^='Formats at 4.5 bits'] tbody tr:nth-child(10)")
    bits = lab.page.get_by_label("at most (bits per weight)")
    bits.fill("4.25")
    bits.press("Tab")
    lab.page.wait_for_selector(".wb-table[aria-label^='Formats at 4.25 bits']")
    lab.page.get_by_label("Compared on").select_option(label="the whole model")
    lab.page.wait_for_selector(".wb-table[aria-label='Formats at 4.25 bits per weight or fewer on builtin, 42 tensors']")
    until(lab, "Relative RMSE against stored bits", "plot.data.length >= 12")

    bits.fill("4")
    bits.press("Tab")
    lab.page.wait_for_selector(".wb-error[role=alert] .wb-remedy")
    bits.fill("4.5")
    bits.press("Tab")
    lab.page.wait_for_selector(".wb-table[aria-label='Formats at 4.5 bits per weight or fewer on builtin, 42 tensors']")
    assert not lab.page.locator(".wb-error").locator("visible=true").count()


def test_the_code_is_copied_or_where_the_clipboard_is_closed_shown_selected(
    open_lab: Callable[[], Lab], lab_server: Server
) -> None:
    lab = open_lab()  # which loses its clipboard
    open_app(lab, lab_server)
    lab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    copy = lab.page.get_by_role("button", name="Copy as code").locator("visible=true")
    copy.click()
    shown = lab.page.get_by_role("dialog", name="The code")
    shown.get_by_role("status").filter(has_text="Copied.").wait_for()
    copied = lab.page.evaluate("navigator.clipboard.readText()")
    assert copied == lab.value("app.distribution.copy.code")

    lab.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('closed')); }")
    lab.page.keyboard.press("Escape")
    shown.wait_for(state="hidden")
    copy.click()
    box = shown.get_by_label("Code that gives the numbers shown here")
    box.wait_for()
    assert box.evaluate("(e) => e.value.slice(e.selectionStart, e.selectionEnd)") == copied
    # The box has the focus: a plain key there is not JupyterLab's, for which two d's delete the cell.
    lab.page.keyboard.press("d")
    lab.page.keyboard.press("d")
    assert lab.page.locator(".jp-CodeCell").count() == 1
    copy.click()
    box.wait_for(state="hidden")

    cell = lab.value("app.distribution.copy.code")
    lab.kernel(cell)
    assert "True" in lab.kernel("print(stats[0].rmse == app.session.analysis.stats[0].rmse)")


@pytest.fixture
def hostile(lab_server: Server) -> Path:
    """A model whose folder, architecture, layers' kinds and licence hold markup; its tensors' names are what can be opened."""
    folder = lab_server.folder / EVIL.replace("/", "")
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {
        f"model.layers.{i}.self_attn.{kind}_proj.weight": rng.standard_normal((64, 64), np.float32)
        for i in range(2)
        for kind in "qk"
    }
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "architectures": [EVIL], "torch_dtype": EVIL, "license": EVIL}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_markup_in_names_is_shown_as_text_in_every_view(lab: Lab, lab_server: Server, hostile: Path) -> None:
    cell = (
        "import numpy as np, workbench as wb\nfrom widgets import Workbench\n"
        f"wb.register_format({EVIL!r}, np.linspace(-1, 1, 16))\n"
        f"app = Workbench({str(hostile)!r}, state={{'formats': [{EVIL!r}, 'nf4']}})\napp"
    )
    write_notebook(lab_server.folder / "app.ipynb", cell)
    lab.page.set_viewport_size({"width": 1400, "height": 1500})
    lab.open("app.ipynb")
    lab.run_all(120)
    drawn = {
        "Model": "Map of", "Distribution": "Histogram of", "Formats": "Relative RMSE against",
        "Double quant": "Scales take",
    }  # fmt: skip
    for name, start in drawn.items():
        tab(lab, name)
        until(lab, start, "plot.data.length > 0")
    tab(lab, "Memory")
    lab.until("() => document.querySelectorAll('.wb-rows-of-bars tr').length === 5")
    tab(lab, "Error")
    lab.page.get_by_role("figure", name="Weight ").wait_for()
    tab(lab, "Model")
    lab.until("() => /4 of 4 tensors/.test(document.body.innerText)")
    assert EVIL in lab.text(".wb-facts"), "the architecture is shown as it is"
    tab(lab, "Distribution")
    lab.page.get_by_role("button", name="Copy as code").locator("visible=true").click()
    assert lab.page.evaluate("globalThis.pwned") is None
    assert lab.page.locator(".wb-panel img[src='x'], .wb-panel script").count() == 0
    assert lab.value("app.message.value") == ""


def test_a_page_reload_shows_the_app_as_it_was_and_a_restart_begins_anew(lab: Lab, lab_server: Server) -> None:
    open_app(lab, lab_server)
    choice(lab, "Block size").press("ArrowRight")
    tab(lab, "Formats")
    lab.page.wait_for_selector(".wb-table[aria-label^='Formats at 4.5 bits'] tbody tr:nth-child(10)")
    lab.knows("(app.state['tab'], app.state['block_size'])", ["Formats", 128])
    lab.menu("File", "Save Notebook")
    lab.until("() => !document.querySelector('.jp-mod-dirty')")
    state = lab.value("app.state")

    lab.open("app.ipynb")
    lab.page.wait_for_selector(".wb-table[aria-label^='Formats at 4.5 bits'] tbody tr:nth-child(10)")
    shows(lab, "Block size", "128")
    tab(lab, "Distribution")
    until(lab, "Histogram of", "plot.data.length === 7")

    lab.menu("Kernel", "Restart Kernel and Run All Cells…")
    lab.page.locator(".jp-Dialog button", has_text="Restart").click()
    shows(lab, "Block size", "64")
    lab.finished(120)
    until(lab, "Histogram of", "plot.data.length === 7")
    lab.knows("app.state['block_size']", 64)
    lab.kernel(f"app.close(); app = Workbench(state={state!r})")
    assert lab.value("app.state") == state


def test_changes_that_come_fast_in_every_view_end_with_the_last(lab: Lab, lab_server: Server) -> None:
    open_app(lab, lab_server)
    name = "model.layers.0.mlp.down_proj.weight"
    for shown in ("Model", "Error", "Formats", "Double quant", "Distribution"):
        tab(lab, shown)
        lab.page.locator(".wb-panel .wb-panel").locator("visible=true").first.wait_for()  # a tab that is passed by is not built
        for i in range(10):
            choice(lab, "Tensor").press(("Home", "End")[i % 2])
        shows(lab, "Tensor", "down_proj")
    until(lab, "Histogram of 180,224 weights", "plot.data.length === 7")
    tab(lab, "Formats")
    lab.page.wait_for_selector(f".wb-table[aria-label$='on {name}']")
    tab(lab, "Model")
    lab.until("() => /42 of 42 tensors/.test(document.body.innerText)")
    assert lab.value("[view.message.value for view in app.views]") == [""] * 6
