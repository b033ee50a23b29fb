"""The workbench on screen: ``Workbench`` and its views, each of which also stands alone in a cell.

Loaded lazily, as ``workbench`` is; the first view starts compiling the kernels in the background, so that no slider waits.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from widgets.app import Workbench
    from widgets.panels.cost import CostView
    from widgets.panels.distribution import DistributionView
    from widgets.panels.double_quant import DoubleQuantView
    from widgets.panels.error import BlockErrorView
    from widgets.panels.formats import FormatsView
    from widgets.panels.memory import MemoryView
    from widgets.panels.model import ModelPicker
    from widgets.panels.model_map import ModelMapView
    from widgets.panels.train import TrainingCell
    from widgets.plot import Plot

_HOME = {
    "Workbench": "app",
    "ModelPicker": "panels.model",
    "ModelMapView": "panels.model_map",
    "DistributionView": "panels.distribution",
    "BlockErrorView": "panels.error",
    "FormatsView": "panels.formats",
    "DoubleQuantView": "panels.double_quant",
    "MemoryView": "panels.memory",
    "CostView": "panels.cost",
    "TrainingCell": "panels.train",
    "Plot": "plot",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'widgets' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"widgets.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
