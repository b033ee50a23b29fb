"""``CopyButton``: a button that puts a text on the clipboard; with ``shown`` the text stands beside it."""

from __future__ import annotations

import anywidget
import traitlets

from widgets.drawing.drawing import script


class CopyButton(anywidget.AnyWidget):
    """``label`` is the button's; where the page may not write to the clipboard, the text is shown and selected."""

    _esm = script("drawing/element.js", "controls/copy_lines.js", "controls/copy_button.js")

    label = traitlets.Unicode().tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)
    """Plain text; the button takes no room while there is none."""
    what = traitlets.Unicode().tag(sync=True)
    """What the text is, for a screen reader."""
    shown = traitlets.Bool(False).tag(sync=True)
