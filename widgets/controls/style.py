"""The small vocabulary that panels are built from: ``Panel``, its boxes and its texts, in one look.

Colours and fonts come from the page's theme through style.css, so light and dark follow by themselves; manners.js keeps
plain keys inside the panel and names slider handles. A control's own ``description`` is its visible label (units in
brackets) and its accessible name; inside ``fields`` it stands above the control. No panel's content is here.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any

import anywidget
import ipywidgets
import traitlets

from widgets.background.tasks import hears_between_cells
from widgets.controls.message import Message
from widgets.drawing import notebook
from widgets.drawing.drawing import script


class Manners(anywidget.AnyWidget):
    """Brings the style sheets to the page and does for its panel what CSS cannot; shows nothing itself."""

    _esm = script("controls/busy.js", "controls/manners.js")
    _css = script(
        "drawing/colab.css",
        "controls/style.css",
        "controls/header.css",
        "panels/views.css",
        "panels/plots.css",
        "panels/train/train.css",
        "panels/train/try_it.css",
    )
    title = traitlets.Unicode().tag(sync=True)
    hears_between_cells = traitlets.Bool().tag(sync=True)
    """Whether the kernel takes what the page sends only while no cell runs."""

    def __init__(self, title: str) -> None:
        super().__init__(title=title, hears_between_cells=hears_between_cells())
        self.on_msg(lambda *_: self.send({"type": "heard"}))


class Panel(notebook.Noted, ipywidgets.VBox):
    """A panel: what it holds, and a place for messages. Its title is read out, not shown: the picture comes first.

    ``message`` shows notes and errors (``widgets.background.tasks.guard`` takes it). ``close`` runs what ``when_closed`` was
    given, newest first, then frees every widget inside, with its style and layout models; closing twice is harmless. Pictures
    of what is in it go to the cell that last showed it.
    """

    children: tuple[Any, ...]

    def __init__(self, title: str, *children: Any) -> None:
        self.message = Message()
        self._endings: list[Callable[[], None]] = []
        super().__init__([Manners(title=title), *children, self.message])
        self.add_class("wb-panel")

    def when_closed(self, ending: Callable[[], None]) -> None:
        """Call ``ending()`` once when the panel closes: stop a thread, drop an observer."""
        self._endings.append(ending)

    def close(self) -> None:
        """End what runs for the panel and free all its models."""
        while self._endings:
            self._endings.pop()()
        for child in self.children:
            close_tree(child)
        super().close()
        self.layout.close()


def close_tree(widget: Any) -> None:
    """Close a widget, everything inside it, and their style and layout models."""
    if isinstance(widget, Panel):
        widget.close()
        return
    for child in getattr(widget, "children", ()):
        close_tree(child)
    parts = [getattr(widget, name, None) for name in ("style", "layout")]
    widget.close()
    for part in parts:
        if part is not None:
            part.close()


def heading(text: str, why: str = "", aside: str = "") -> ipywidgets.HTML:
    """A part's heading in one line; ``set_heading`` changes it."""
    widget = ipywidgets.HTML()
    set_heading(widget, text, why, aside)
    return widget


def set_heading(widget: ipywidgets.HTML, text: str, why: str = "", aside: str = "") -> None:
    """Set a heading, the explanation that its ``?`` opens over what is below, and the quieter words after it; all escaped."""
    button = '<button type="button" class="wb-why" aria-expanded="false" aria-label="What this shows">?</button>' if why else ""
    explanation = f'<div class="wb-explanation" role="note" hidden>{html.escape(why)}</div>' if why else ""
    widget.value = (
        f'<div class="wb-caption"><h3 class="wb-heading">{html.escape(text)}</h3>{button}'
        f"<small>{html.escape(aside)}</small>{explanation}</div>"
    )


def note(text: str = "") -> ipywidgets.HTML:
    """A quiet explanatory sentence; ``set_note`` changes it."""
    widget = ipywidgets.HTML()
    set_note(widget, text)
    return widget


def set_note(widget: ipywidgets.HTML, text: str) -> None:
    """Change a note's text, which is escaped here."""
    widget.value = f'<div class="wb-note">{html.escape(text)}</div>' if text else ""


def column(*children: Any) -> ipywidgets.Box:
    """One below the other, with even gaps."""
    return _box("wb-column", children)


def row(*children: Any) -> ipywidgets.Box:
    """Side by side, wrapping where there is no room: buttons, a control and what it says."""
    return _box("wb-row", children)


def bar(*children: Any) -> ipywidgets.Box:
    """One line over a picture: its heading, and beside it the controls, each with its label before it."""
    box = row(*children)
    box.add_class("wb-bar")
    return box


def split(picture: Any, figures: Any, wide: bool = False) -> ipywidgets.Box:
    """A picture, and beside it what it comes to in numbers; one below the other where it is narrow. ``wide``: the numbers."""
    box = _box("wb-split", (picture, figures))
    if wide:
        box.add_class("wb-wide")
    return box


def grid(*children: Any) -> ipywidgets.Box:
    """Equal cells, as many in a row as fit: plots beside one another."""
    return _box("wb-grid", children)


def choice(description: str, titles: Mapping[str, str]) -> ipywidgets.Dropdown:
    """A choice among the keys of ``titles``, each shown by its title."""
    return ipywidgets.Dropdown(description=description, options=[(title, name) for name, title in titles.items()])


def fold(title: str, *children: Any, subtitle: str = "") -> ipywidgets.Box:
    """What a reader opens on demand: a button, and ``children`` below it; ``set_fold`` changes the title line."""
    inner = children[0] if len(children) == 1 else column(*children)
    box = _box("wb-fold", (ipywidgets.HTML(), inner))
    set_fold(box, title, subtitle)
    return box


def set_fold(box: ipywidgets.Box, title: str, subtitle: str = "", *, wrong: bool = False) -> None:
    """Set a fold's title, the quieter subtitle beside it, and whether it stays open because something in it is wrong."""
    box.children[0].value = (
        f'<button type="button" class="wb-fold-title" aria-expanded="false"><span>{html.escape(title)}</span>'
        f"<small>{html.escape(subtitle)}</small></button>"
    )
    (box.add_class if wrong else box.remove_class)("wb-faulty")


def fields(*controls: Any, width: int = 150) -> ipywidgets.Box:
    """Labelled controls in a grid of cells at least ``width`` pixels wide, each label above its control.

    A control with the class ``wb-span`` takes two cells.
    """
    box = _box("wb-fields", controls)
    box.layout.grid_template_columns = f"repeat(auto-fill, minmax(min(100%, {width}px), 1fr))"
    return box


def _box(kind: str, children: tuple[Any, ...]) -> ipywidgets.Box:
    box = ipywidgets.Box(children)
    box.add_class(kind)
    return box
