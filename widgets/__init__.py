"""The workbench on screen: ``Workbench`` and its views, each of which also stands alone in a cell.

Loaded lazily, as ``workbench`` is. Asking for the first view starts compressing plotly.js in the background, and making it
starts compiling the kernels, so that neither the first plot nor a slider waits.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from widgets.views import VIEWS

if TYPE_CHECKING:
    from widgets.app import Workbench as Workbench
    from widgets.drawing.plot import Plot as Plot
    from widgets.panels.base import View as View
    from widgets.panels.cost.view import CostView as CostView
    from widgets.panels.distribution import DistributionView as DistributionView
    from widgets.panels.double_quant import DoubleQuantView as DoubleQuantView
    from widgets.panels.error import BlockErrorView as BlockErrorView
    from widgets.panels.formats import FormatsView as FormatsView
    from widgets.panels.memory import MemoryView as MemoryView
    from widgets.panels.model import ModelPicker as ModelPicker
    from widgets.panels.model_map import ModelMapView as ModelMapView
    from widgets.panels.train.view import TrainingCell as TrainingCell

_MODULE = {view.name: view.module for view in VIEWS} | {"Plot": "drawing.plot", "View": "panels.base", "Workbench": "app"}
__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'widgets' has no attribute {name!r}")
    importlib.import_module("widgets.drawing.plotly_js").begin()
    value = getattr(importlib.import_module(f"widgets.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
