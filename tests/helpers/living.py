"""The widgets that this process keeps, for tests of what closing frees."""

from __future__ import annotations

import ipywidgets


def widgets() -> set[str]:
    """The model ids of every widget that is not closed; ipywidgets 7, which Colab has, and 8 keep them in different places."""
    kept = getattr(ipywidgets.widgets.widget, "_instances", None)
    return set(ipywidgets.Widget.widgets if kept is None else kept)
