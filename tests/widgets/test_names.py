"""The package's public names: each is there, and type checkers know it from the same place."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import widgets
from widgets.views import TABS, VIEWS


def test_type_checkers_find_each_public_name_where_it_is_loaded_from() -> None:
    nodes = ast.walk(ast.parse(Path(widgets.__file__).read_text("utf-8")))
    named = {a.name: node.module for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names if a.asname}
    assert sorted(named) == dir(widgets) == widgets.__all__
    for name, module in named.items():
        assert getattr(widgets, name) is getattr(importlib.import_module(str(module)), name)


def test_every_view_is_a_public_name_with_a_tab() -> None:
    assert {entry.name for entry in VIEWS} < set(widgets.__all__)
    assert len(TABS) == 8
    assert len({entry.attribute for entry in VIEWS}) == len(VIEWS)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = widgets.no_such_name
