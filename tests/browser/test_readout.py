"""What a plot tells of the place under the pointer or the keys, and what stands where there is no figure."""

from __future__ import annotations

import pytest

from tests.browser.conftest import Server
from tests.browser.lab import Lab, write_notebook

pytestmark = pytest.mark.slow

CELL = """
from widgets.drawing.plot import Plot

def bars(name, heights, axis):
    width = 8 / len(heights)
    return {"type": "bar", "name": name, "x": [width * (i + 0.5) for i in range(len(heights))], "y": heights,
            "width": [width] * len(heights), "yaxis": axis, "hoverinfo": "none", "meta": ["place", "height"],
            "customdata": [f"{i}\\t{height}" for i, height in enumerate(heights)]}

plot = Plot({"data": [bars("coarse", [1, 3], "y"), bars("fine", [4, 5, 6, 7], "y2")],
             "layout": {"yaxis": {"domain": [0.55, 1]}, "yaxis2": {"domain": [0, 0.45]}, "hovermode": False}},
            "Two rows of bars.", height=300)
empty = Plot(height=120, waiting="Still to come.")
display(plot, empty)
"""

ROWS = """() => [...document.querySelectorAll('.workbench-readout tbody tr')].map((row) =>
    (row.hasAttribute('aria-current') ? '> ' : '') + [...row.cells].map((cell) => cell.textContent).join(' '))"""
BOXES = """() => [...document.querySelectorAll('.workbench-drawing, .workbench-readout')].map((e) => {
    const { x, y, width, height } = e.getBoundingClientRect();
    return [x, y, width, height];
})"""


def point(lab: Lab, x: float, subplot: str) -> None:
    """Move the pointer to an x, half way up a part of the picture."""
    place = lab.plot(
        0,
        f"""(() => {{
            const {{ xaxis, {subplot} }} = plot._fullLayout, box = plot.getBoundingClientRect();
            return [box.x + xaxis._offset + xaxis.d2p({x}), box.y + {subplot}._offset + {subplot}._length / 2];
        }})()""",
    )
    lab.page.mouse.move(*place)


def test_every_row_of_bars_is_read_at_one_place(lab: Lab, lab_server: Server) -> None:
    write_notebook(lab_server.folder / "readout.ipynb", CELL)
    lab.open("readout.ipynb")
    lab.run_all()
    lab.plots(1)
    assert lab.page.evaluate(ROWS) == ["> coarse 1 3", "fine 2 6"], "at first the highest bar of the first row"

    boxes = lab.page.evaluate(BOXES)
    point(lab, 1, "yaxis")
    assert lab.page.evaluate(ROWS) == ["> coarse 0 1", "fine 0 4"]
    point(lab, 3, "yaxis2")
    assert lab.page.evaluate(ROWS) == ["coarse 0 1", "> fine 1 5"], "the row that the pointer is in leads"
    band = lab.page.locator(".workbench-band").first.bounding_box()
    assert band is not None
    assert band["width"] == pytest.approx(lab.plot(0, "plot._fullLayout.xaxis.d2p(2) - plot._fullLayout.xaxis.d2p(0)"), abs=1)

    lab.page.locator(".workbench-plot [role=figure]").first.focus()
    lab.page.keyboard.press("ArrowRight")
    assert lab.page.evaluate(ROWS) == ["coarse 1 3", "> fine 2 6"]
    lab.until("() => document.querySelector('.workbench-plot [role=status]').textContent === 'fine, place 2, height 6'")
    assert lab.page.evaluate(BOXES) == boxes, "reading moves nothing"

    lab.kernel("plot.show({'data': [bars('coarse', [1, 3], 'y'), bars('fine', [4, 5, 9, 7], 'y2')], 'layout': {}})")
    lab.until(f"() => ({ROWS})()[1] === '> fine 2 9'")


def test_a_plot_without_a_figure_says_what_it_waits_for_and_draws_no_axes(lab: Lab, lab_server: Server) -> None:
    write_notebook(lab_server.folder / "waiting.ipynb", CELL)
    lab.open("waiting.ipynb")
    lab.run_all()
    waiting = lab.page.locator("[aria-label='Still to come.']")
    assert waiting.inner_html() == ""
    said = lab.page.locator(".workbench-waiting:text-is('Still to come.')")
    said.wait_for()
    lab.kernel("empty.show({'data': [{'type': 'scatter', 'y': [1, 2]}]}, 'A line.')")
    lab.plots(2)
    said.locator("visible=true").wait_for(state="detached")
    lab.kernel("plot.wait('Nothing is left.')")
    lab.page.locator(".workbench-waiting:text-is('Nothing is left.')").wait_for()
    assert lab.page.locator(".workbench-plot .main-svg .xaxislayer-above").count() == 1, "the line's alone"
    assert not lab.page.locator(".workbench-readout:visible").count()
    lab.kernel("plot.show({'data': [bars('coarse', [2, 1], 'y')], 'layout': {}}, 'Bars.')")
    lab.until(f"() => ({ROWS})()[0] === '> coarse 0 2'")
