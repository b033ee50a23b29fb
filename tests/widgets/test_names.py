"""The views there are: each a public name of the package, in a tab of the app."""

from __future__ import annotations

import pytest

import widgets
from tests.helpers.public_names import homes
from widgets.views import TABS, VIEWS


def test_every_view_is_a_public_name_with_a_tab() -> None:
    where = homes("widgets")
    assert all(where[entry.name] == entry.module for entry in VIEWS)
    assert len(TABS) == 8
    assert len({entry.attribute for entry in VIEWS}) == len(VIEWS)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = widgets.no_such_name
