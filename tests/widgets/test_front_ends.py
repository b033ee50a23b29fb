"""What a front end of Colab's versions reads of tabs and sliders, whichever ipywidgets is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import pytest

import widgets
from tests.helpers.immediate import Immediate
from widgets import Workbench
from widgets.controls.front_ends import Tabs, slider
from widgets.views import TABS

WIDGETS = Path(widgets.__file__).parent
BEFORE_8 = int(ipywidgets.__version__.partition(".")[0]) < 8


def inside(widget: Any) -> Iterator[Any]:
    yield widget
    for child in getattr(widget, "children", ()):
        yield from inside(child)


def test_a_tab_s_titles_are_in_its_state_as_a_list() -> None:
    tabs = Tabs([("One", ipywidgets.HTML()), ("Two", ipywidgets.HTML())])
    assert list(tabs.get_state()["titles"]) == ["One", "Two"]
    assert [tabs.get_title(i) for i in range(2)] == ["One", "Two"], "an older front end asks so"


def test_a_slider_reports_continuously_where_keys_would_not_be_heard_else() -> None:
    assert slider("Size", (32, 64), 64).continuous_update is BEFORE_8
    assert slider("Size", (32, 64), 64).value == 64


def test_a_slider_of_one_option_is_refused() -> None:
    with pytest.raises(ValueError, match="two options"):
        slider("Size", (32,))


@pytest.mark.parametrize("kind", ["Tab", "SelectionSlider", "FloatSlider", "IntSlider"])
def test_what_needs_care_is_made_in_one_place(kind: str) -> None:
    paths = [path for path in WIDGETS.rglob("*.py") if f"ipywidgets.{kind}(" in path.read_text("utf-8")]
    assert [path.name for path in paths if path.name != "front_ends.py"] == []


def test_no_slider_of_the_app_has_one_option_or_is_deaf_to_keys() -> None:
    app = Workbench("builtin", executor=Immediate())
    try:
        for i in range(len(TABS)):
            app.tabs.selected_index = i
        sliders = [w for w in inside(app) if isinstance(w, (ipywidgets.SelectionSlider, ipywidgets.FloatSlider))]
        assert sliders
        for each in sliders:
            assert each.continuous_update == BEFORE_8, each.description
            assert len(getattr(each, "options", (0, 1))) > 1, each.description
    finally:
        app.close()
