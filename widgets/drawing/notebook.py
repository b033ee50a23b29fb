"""Which cell of the notebook shows a widget, and how a picture gets into that cell's outputs after it has run.

A widget shows nothing without its kernel, and a picture inside an ``Output`` widget is widget state again. So a picture
is published as an ordinary ``display_data`` message whose parent is the execution that showed the view: the front end adds it
to that cell's outputs, and the notebook keeps it as an image/png that GitHub, nbviewer and nbconvert show. A page that was
reloaded since the cell ran no longer listens for that execution. Nothing here draws.
"""

from __future__ import annotations

import base64
import struct
import sys
import weakref
from collections.abc import Iterator
from typing import Any

_shown: list[tuple[weakref.ref[Any], dict[str, Any]]] = []


def present_cell() -> dict[str, Any]:
    """The message that asked for what is running now, an empty dict outside of a kernel."""
    shell = _shell()
    return dict(shell.get_parent() or {}) if shell is not None and hasattr(shell, "kernel") else {}


def shown(widget: Any) -> None:
    """Remember that the present cell shows ``widget``, with all that is in it now or later."""
    _shown[:] = [(kept, cell) for kept, cell in _shown if kept() not in (None, widget)]
    _shown.append((weakref.ref(widget), present_cell()))


def cell_of(widget: Any) -> dict[str, Any]:
    """The execution that last showed a widget that contains ``widget``; else the one in which it was made."""
    for root, cell in reversed(_shown):
        if cell and any(part is widget for part in _tree(root())):
            return dict(cell)
    return dict(getattr(widget, "made_in", {}))


class Noted:
    """The first base class of a widget, so that each cell that shows it is remembered."""

    def _repr_mimebundle_(self, **options: Any) -> Any:
        shown(self)
        return super()._repr_mimebundle_(**options)  # type: ignore[misc]

    def _handle_displayed(self, **options: Any) -> None:
        """What ipywidgets 7, which Colab has, calls in place of ``_repr_mimebundle_``."""
        shown(self)
        super()._handle_displayed(**options)  # type: ignore[misc]


def insert_picture(widget: Any, png: bytes, alt: str) -> str:
    """Put a PNG, twice as fine as it is to be seen, below the cell that shows ``widget``; returns a sentence about it."""
    cell, shell = cell_of(widget), _shell()
    if shell is None or not cell.get("header"):
        return "There is no notebook to put a picture in."
    publisher = shell.display_pub
    width, height = struct.unpack(">II", png[16:24])
    content = {
        "data": {"image/png": base64.b64encode(png).decode(), "text/plain": alt},
        "metadata": {"image/png": {"width": width // 2, "height": height // 2, "alt": alt}},
        "transient": {},
    }
    publisher.session.send(publisher.pub_socket, "display_data", content, parent=cell, ident=publisher.topic)
    return (
        "The picture is in the notebook, below the cell that shows this. After a reload of the page, run that cell again first."
    )


def _tree(widget: Any) -> Iterator[Any]:
    if widget is not None:
        yield widget
        for child in getattr(widget, "children", ()):
            yield from _tree(child)


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None
