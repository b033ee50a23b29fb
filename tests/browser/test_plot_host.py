"""The plot host in a real JupyterLab: what crosses the wire, what the reader does, themes, reloads, errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import FloatRect

from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook

pytestmark = pytest.mark.slow

TEN = """
import numpy as np, plotly.graph_objects as go
from widgets.drawing.plot import Plot
x = np.arange(200, dtype=np.float32)
plots = [Plot(go.Figure(go.Scatter(x=x, y=np.sin(x / (5 + i)))), summary=f"A sine, number {i}.", height=240) for i in range(10)]
display(*plots)
"""

ONE = """
import ipywidgets, numpy as np
from widgets.drawing.plot import Plot

def figure(heights, line=0.0):
    x = np.arange(2000, dtype=np.float32)
    return {"data": [{"type": "scatter", "x": x, "y": np.sin(x / 50) + line, "name": "line"},
                     {"type": "bar", "x": [0, 500, 1000, 1500], "y": heights, "width": 300, "name": "bars"}],
            "layout": {"title": {"text": "One plot"}}}

said = ipywidgets.Label("nothing yet")
plot = Plot(figure([9, 9, 9, 9]), summary="A line over four bars.", height=300)
plot.on_click(lambda point: setattr(said, "value", f"clicked {point['name']} {point['index']} at {point['x']}"))
display(plot, said)
plot.show(figure([2, 4, 3, 5]))  # at once: the page may still be loading the widget
"""


@pytest.fixture
def lab(open_lab: Callable[[], Lab]) -> Lab:
    """A page that no test had before: the first plot of a page asks for plotly.js."""
    return open_lab()


def place(lab: Lab) -> FloatRect:
    """Where the area that holds a plot's points is on the page now."""
    box = lab.page.locator(".workbench-plot .nsewdrag").first.bounding_box()
    assert box is not None
    return box


def test_ten_plots_share_one_plotly(lab: Lab, lab_server: Server) -> None:
    write_notebook(lab_server.folder / "ten.ipynb", TEN)
    lab.open("ten.ipynb")
    before = lab.received
    lab.run_all()
    lab.plots(10)
    crossed = lab.received - before
    print(f"ten plots: {crossed / 1e6:.2f} MB over the websocket")
    assert crossed < 2_000_000, "plotly.js crosses once, whatever the number of plots"
    assert lab.page.evaluate("typeof globalThis.Plotly") == "undefined", "no global is left behind"
    assert lab.page.locator(".workbench-plot [role=figure]").first.get_attribute("aria-label") == "A sine, number 0."
    lab.shot("ten-plots")

    lab.kernel("for plot in plots:\n    plot.close()\n    plot.close()")
    lab.until("() => document.querySelectorAll('.js-plotly-plot').length === 0")


def click_bar(lab: Lab, at: float) -> None:
    """Click into the bar at ``x = at``, half way up."""
    x, y = lab.plot(
        0,
        f"""(() => {{
            const {{ xaxis, yaxis }} = plot._fullLayout, box = plot.getBoundingClientRect();
            return [box.x + xaxis._offset + xaxis.d2p({at}), box.y + yaxis._offset + yaxis.d2p(1.5)];
        }})()""",
    )
    lab.page.mouse.move(x, y)
    lab.until("() => document.querySelector('.hoverlayer .hovertext')")
    lab.page.mouse.click(x, y)


def test_a_plot_lives(open_lab: Callable[[], Lab], lab_server: Server) -> None:
    write_notebook(lab_server.folder / "one.ipynb", ONE)
    lab = open_lab()
    lab.open("one.ipynb")
    lab.run_all()
    lab.plots(1)
    lab.until_plot(0, "plot.data[1].y[3] === 5")

    click_bar(lab, 1000)
    lab.page.wait_for_selector("text=clicked bars 2 at 1000")

    # A change of the bars sends the bars alone, and the line keeps its array, so plotly need not redraw it.
    lab.page.evaluate("() => { window.line = document.querySelector('.js-plotly-plot').data[0].y; }")
    before = lab.received
    lab.kernel("plot.show(figure([7, 4, 3, 5]))")
    lab.until_plot(0, "plot.data[1].y[0] === 7 && plot.data[0].y === window.line")
    assert lab.received - before < 20_000, "of which running the cell takes most"
    lab.shot("plot-light")

    lab.theme("JupyterLab Dark")
    lab.until_plot(0, "plot._fullLayout.colorway[0] === '#56b4e9'")
    assert lab.plot(0, "plot._fullLayout.paper_bgcolor").replace(" ", "") == "rgba(0,0,0,0)"
    lab.shot("plot-dark")
    lab.theme("JupyterLab Light")
    lab.until_plot(0, "plot._fullLayout.colorway[0] === '#0072b2'")

    # VS Code and Colab name their themes elsewhere: on a page that bears their marks a plot follows those.
    lab.page.evaluate("() => { delete document.body.dataset.jpThemeLight; }")
    for mark, unmark in (
        ("document.body.dataset.vscodeThemeKind = 'vscode-dark'", "delete document.body.dataset.vscodeThemeKind"),
        ("document.documentElement.setAttribute('theme', 'dark')", "document.documentElement.setAttribute('theme', 'light')"),
    ):
        lab.page.evaluate(mark)
        lab.until_plot(0, "plot._fullLayout.colorway[0] === '#56b4e9'")
        lab.page.evaluate(unmark)
        lab.until_plot(0, "plot._fullLayout.colorway[0] === '#0072b2'")
    lab.page.evaluate("() => { document.body.dataset.jpThemeLight = 'true'; }")

    # An error stands in the plot as text; the next figure replaces it.
    lab.kernel("plot.fail('<img src=x> is <b>not</b> markup')")
    lab.page.wait_for_selector(".workbench-plot [role=alert]:has-text('<img src=x> is <b>not</b> markup')")
    lab.kernel("plot.show(figure([6, 4, 3, 5]))")
    lab.page.wait_for_selector(".workbench-plot [role=alert]", state="hidden")

    # A changed figure keeps the zoom.
    lab.page.locator(".workbench-plot .nsewdrag").first.scroll_into_view_if_needed()
    box = place(lab)
    lab.page.mouse.move(box["x"] + 100, box["y"] + 40)
    lab.page.mouse.down()
    lab.page.mouse.move(box["x"] + 300, box["y"] + 150, steps=4)
    lab.page.mouse.up()
    lab.until_plot(0, "['xaxis', 'yaxis'].every((axis) => plot._fullLayout[axis].autorange === false)")
    zoom = lab.plot(0, "plot._fullLayout.xaxis.range")
    lab.kernel("plot.show(figure([6, 6, 3, 5]))")
    lab.until_plot(0, "plot.data[1].y[1] === 6")
    assert lab.plot(0, "plot._fullLayout.xaxis.range") == zoom

    # A reloaded page and a second tab show the present figure, and both get what comes after.
    lab.menu("File", "Save Notebook")
    lab.page.wait_for_selector(".lm-TabBar-tab.jp-mod-dirty", state="detached")
    lab.page.reload()
    lab.plots(1)
    second = open_lab()  # not sooner: a page of JupyterLab that hears of another's name before it has its own logs an error
    second.open("one.ipynb")
    for tab in (lab, second):
        tab.plots(1)
        tab.until_plot(0, "plot.data[1].y[1] === 6 && plot.data[0].y.length === 2000")
    second.kernel("plot.show(figure([6, 6, 8, 5]))")
    for tab in (lab, second):
        tab.until_plot(0, "plot.data[1].y[2] === 8")
    click_bar(lab, 1500)
    lab.page.wait_for_selector("text=clicked bars 3 at 1500")


def test_hidden_plots_wait_and_failed_ones_recover(lab: Lab, lab_server: Server) -> None:
    write_notebook(
        lab_server.folder / "hidden.ipynb",
        ONE.replace("display(plot, said)", "box = ipywidgets.VBox([plot], layout={'display': 'none'}); display(box)"),
        "other = Plot({'data': [{'type': 'scatter', 'y': [1, None, float('nan'), 2]}]}); other",
        "later = Plot(summary='Still to come.'); later",
    )
    lab.open("hidden.ipynb")

    # A browser that cannot inflate plotly.js: the plot says so in its place; the next figure tries again.
    lab.page.evaluate("() => { window.kept = window.DecompressionStream; window.DecompressionStream = undefined; }")
    lab.run_all()
    lab.page.wait_for_selector(".workbench-plot [role=alert]:has-text('The plot could not be drawn.')")
    assert lab.errors
    assert all("[workbench] plot" in error for error in lab.errors), lab.errors
    lab.errors.clear()
    lab.page.evaluate("() => { window.DecompressionStream = window.kept; }")
    lab.kernel("other.show({'data': [{'type': 'scatter', 'y': [1, None, float('nan'), 3]}]})")
    lab.until_plot(0, "plot.dataset.revision === '1' && plot.data[0].y[3] === 3")
    lab.page.wait_for_selector(".workbench-plot [role=alert]", state="hidden")

    # A plot that was hidden is drawn when it appears, in the size it then has.
    assert lab.page.locator(".js-plotly-plot").count() == 1
    lab.kernel("box.layout.display = 'flex'")
    lab.plots(2)
    lab.until_plot(0, "plot.data[1].y[3] === 5 && Math.abs(plot._fullLayout.width - plot.clientWidth) <= 1")

    # A plot whose figure is still to come shows no empty axes; then it does show.
    assert lab.page.locator("[aria-label='Still to come.']").inner_html() == ""
    lab.kernel("later.show({'data': [{'type': 'scatter', 'y': [3, 1, 2]}]})")
    lab.plots(3)


EVENTS = """
import ipywidgets
from widgets.drawing.plot import Plot

said = ipywidgets.Label("no click")
plot = Plot({"data": [{"type": "scatter", "mode": "markers", "x": [1, 2, 3], "y": [4, 5, 6], "name": "first"},
                      {"type": "bar", "x": [1, 2, 3], "y": [3, 2, 1], "name": "second"}],
             "layout": {}}, summary="Three points and three bars.", height=300)
plot.on_click(lambda point: setattr(said, "value", f"click: {point['name']} {point['index']}"))
display(plot, said)
"""


def test_points_are_reached_by_the_mouse_and_by_the_keyboard(lab: Lab, lab_server: Server) -> None:
    write_notebook(lab_server.folder / "events.ipynb", EVENTS)
    lab.open("events.ipynb")
    lab.run_all()
    lab.plots(1)

    # From point to point and from trace to trace, aloud, and Enter is a click; none of it reaches the notebook.
    figure, live = lab.page.locator(".workbench-plot [role=figure]"), lab.page.locator(".workbench-plot [role=status]")
    figure.focus()
    for key, heard in (
        ("ArrowRight", "first, x 1, y 4"),
        ("ArrowRight", "first, x 2, y 5"),
        ("End", "first, x 3, y 6"),
        ("ArrowDown", "second, x 3, y 1"),
        ("Home", "second, x 1, y 3"),
    ):
        lab.page.keyboard.press(key)
        lab.until("(text) => document.querySelector('.workbench-plot [role=status]').textContent === text", argument=heard)
    lab.page.keyboard.press("Enter")
    lab.page.wait_for_selector("text=click: second 0")
    assert live.get_attribute("aria-live") == "polite"
    lab.page.keyboard.press("b")
    assert lab.page.locator(".jp-CodeCell").count() == 1
    lab.page.keyboard.press("p")
    lab.page.wait_for_selector(".jp-CodeCell img")
    lab.shot("plot-keyboard")
