"""The workbench on screen: ``Workbench``, its views, each of which also stands alone in a cell, and what they are made of.

The public names stand in ``__init__.pyi``, and nowhere else: the views, ``State``, ``View`` and ``Plot`` for views of your own,
and functions that make a figure for ``Plot`` of a result (``duel_figure``, ``flow_figure`` …). Each is loaded when it is
first used, as in ``workbench``. Asking for the first one starts compressing plotly.js in the background, and making a view
starts compiling the kernels, so that neither the first plot nor a slider waits.
"""

from __future__ import annotations

import importlib
from typing import Any

import lazy_loader

import workbench as workbench  # before bitsandbytes, whose import it puts right (workbench/compat.py)

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        importlib.import_module("widgets.drawing.plotly_js").begin()
    return _load(name)
