"""The lines of Python behind a view, and ``CopyCode``: a button that copies and shows them. What the lines are: ``code.py``."""

from __future__ import annotations

import anywidget
import traitlets

from widgets.drawing.drawing import script


class Lines(traitlets.HasTraits):
    """What a view gives the header to copy."""

    code = traitlets.Unicode()


class CopyCode(anywidget.AnyWidget):
    """The buttons Copy as code and Show the code; without code it takes no room.

    Where the page may not write to the clipboard, the code is shown with all of it selected.
    """

    _esm = script("drawing/element.js", "controls/copy_lines.js", "controls/copy_code.js")
    code = traitlets.Unicode().tag(sync=True)
    """Plain text: the page puts it into a text box, never into HTML."""
