"""The views there are, in the order of the app's tabs: the one table that the app, its tabs and the package's names read."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class Entry(NamedTuple):
    """A view of the app."""

    attribute: str
    """Of ``Workbench``, by which Python reaches the view."""
    tab: str
    """The title of the tab that shows it."""
    module: str
    """Where its class is, within ``widgets``."""
    name: str
    """Its class, a public name of ``widgets``."""

    def load(self) -> Any:
        """The class; its module is imported by this."""
        return getattr(importlib.import_module(f"widgets.{self.module}"), self.name)


VIEWS = (
    Entry("model", "Model", "panels.model", "ModelPicker"),
    Entry("map", "Model", "panels.model_map", "ModelMapView"),
    Entry("distribution", "Distribution", "panels.distribution", "DistributionView"),
    Entry("error", "Error", "panels.error", "BlockErrorView"),
    Entry("formats", "Formats", "panels.formats", "FormatsView"),
    Entry("double_quant", "Double quant", "panels.double_quant", "DoubleQuantView"),
    Entry("memory", "Memory", "panels.memory", "MemoryView"),
    Entry("cost", "Cost", "panels.cost.view", "CostView"),
    Entry("train", "Train", "panels.train.view", "TrainingCell"),
)
TABS = tuple(dict.fromkeys(view.tab for view in VIEWS))
"""The app's tabs, in their order."""
