"""What drawings and panels share: nothing stays of them when they are closed, and pictures go to the cell that shows them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from widgets.controls.copy_code import CopyCode
from widgets.controls.header import Header
from widgets.controls.style import Panel, column
from widgets.drawing import notebook
from widgets.drawing.blockmap import BlockMap
from widgets.drawing.drawing import Drawing
from widgets.drawing.plot import Plot
from workbench.errors import WorkbenchError

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x04\0\0\0\x02"
"""The beginning of a picture of 4 × 2 pixels."""


def _header() -> Header:
    header = Header()
    header.on_ask("cancel", lambda _: header)
    return header


@pytest.mark.parametrize("make", [Plot, BlockMap, CopyCode, _header, lambda: Panel("A panel", column(Plot()))])
def test_a_closed_widget_leaves_memory(make: Callable[[], Any]) -> None:
    widget = make()
    kept = [weakref.ref(part) for part in notebook._tree(widget)]
    widget.close()
    del widget
    gc.collect()
    assert [reference() for reference in kept] == [None] * len(kept)


def test_a_picture_goes_to_the_cell_that_last_showed_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = iter([{"header": {"msg_id": name}} for name in ("made", "made", "first", "second")])
    monkeypatch.setattr(notebook, "present_cell", lambda: next(cells))
    plot, later = Plot(), Plot()
    assert notebook.cell_of(plot) == {"header": {"msg_id": "made"}}
    panel = Panel("A panel", column(plot))
    for cell in ("first", "second"):
        notebook.shown(panel)
        panel.children[1].children = (plot, later)
        assert notebook.cell_of(plot) == notebook.cell_of(later) == {"header": {"msg_id": cell}}
    panel.close()
    del panel
    gc.collect()
    assert notebook.cell_of(later) == {"header": {"msg_id": "made"}}


def test_without_a_notebook_there_is_no_place_for_a_picture() -> None:
    plot = Plot(summary="Nothing.")
    sent: list[Any] = []
    plot.send = lambda message, buffers=None: sent.append(message)  # type: ignore[method-assign]
    plot._handle_custom_msg({"type": "insert"}, [b"\x89PNG"])
    assert sent == [{"type": "say", "text": "There is no notebook to put a picture in."}]
    with pytest.raises(WorkbenchError, match="No page sent a picture"):
        plot.picture(seconds=0.01)
    plot.close()


def test_a_page_that_was_being_made_when_it_was_asked_for_a_picture_is_asked_again() -> None:
    plot, asked = Plot(), list[Any]()

    def send(message: dict[str, Any], buffers: Any = None) -> None:
        asked.append(message)
        if len(asked) == 2:
            plot._handle_custom_msg({"type": "picture", "id": message["id"]}, [PNG])

    plot.send = send  # type: ignore[method-assign]
    picture = plot.picture(seconds=0.1)
    assert picture.data == PNG
    assert picture._repr_mimebundle_()[1]["image/png"]["alt"] == plot.summary
    assert asked == [asked[0]] * 2
    plot.close()


def test_a_page_that_cannot_take_a_picture_says_why() -> None:
    plot = Plot()

    def answer(message: dict[str, Any], buffers: Any = None) -> None:
        plot._handle_custom_msg({"type": "picture", "id": message["id"], "error": "Error: no PNG"}, [])

    plot.send = answer  # type: ignore[method-assign]
    with pytest.raises(WorkbenchError, match="could not take a picture") as caught:
        plot.picture()
    assert caught.value.remedy == "Error: no PNG"
    plot.close()


def test_every_kind_of_drawing_says_what_it_is() -> None:
    for kind in (Plot, BlockMap):
        drawing = kind()
        assert isinstance(drawing, Drawing)
        assert repr(drawing) == kind.__name__
        drawing.close()
