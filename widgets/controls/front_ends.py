"""Controls that need one thing from ipywidgets 8 and another from 7, which Colab has: tabs and sliders.

Colab's page reads 7's widgets with a front end made for 8 (controls 4.0.0-alpha.3): it looks for a tab's title where 8 keeps
it, hears only dragging where a slider is not to report continuously, and cannot make a slider of one option.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets
import traitlets

BEFORE_8 = not hasattr(ipywidgets.Tab, "titles")


class Tabs(ipywidgets.Tab):
    """``pages``, each under its title."""

    if BEFORE_8:
        titles = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(self, pages: Sequence[tuple[str, Any]]) -> None:
        super().__init__([page for _, page in pages])
        with self.hold_sync():  # else a message for each
            for i, (title, _) in enumerate(pages):
                self.set_title(i, title)
            self.titles = [title for title, _ in pages]


def slider(description: str, options: Sequence[Any], value: Any = None) -> ipywidgets.SelectionSlider:
    """A slider among two options or more, values or pairs of label and value; None chooses the first."""
    if len(options) < 2:
        raise ValueError(f"{description}: a slider needs two options, and has {len(options)}")
    chosen = {} if value is None else {"value": value}
    return ipywidgets.SelectionSlider(description=description, options=options, continuous_update=BEFORE_8, **chosen)


def number_slider(description: str, *, step: float, readout_format: str) -> ipywidgets.FloatSlider:
    """A slider of numbers from 0 to 1, until it is given other bounds."""
    return ipywidgets.FloatSlider(
        description=description, min=0, max=1, value=1, step=step, readout_format=readout_format, continuous_update=BEFORE_8
    )
