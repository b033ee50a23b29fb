"""QLoRA Workbench: see how weights fall into 4-bit bins, what that costs, and what a QLoRA run does with memory.

Every public name is loaded when it is first used (PEP 562), so that ``import workbench`` loads neither torch nor numba nor
plotly. The widgets live in the package ``widgets``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from workbench._version import __version__ as __version__

if TYPE_CHECKING:
    from workbench.cost.evaluation import Cost, Evaluation, evaluate
    from workbench.cost.methods import MethodComparison, MethodResult, compare_methods
    from workbench.cost.mixing import CurvePoint, Mix, mix
    from workbench.cost.repairs import Repair, Repairs, repairs
    from workbench.cost.sensitivities import ModuleCost, Sensitivity, sensitivity
    from workbench.errors import ConfigError, DataError, FormatError, ModelError, RunError, WorkbenchError
    from workbench.memory.forecast import MemoryLedger, forecast
    from workbench.memory.pager import PagerSimulation, simulate_paging
    from workbench.quant.bnb import BackendCheck, check_backend
    from workbench.quant.formats import FORMATS, Format, register_format
    from workbench.quant.measure import ErrorStats, Tally, Totals, measure
    from workbench.quant.outliers import Outliers, outliers
    from workbench.quant.quantize import Quantized, QuantSpec, quantize
    from workbench.report import write_report
    from workbench.sources import Source, TensorInfo, open_model
    from workbench.surveys.duel import configurations, duel, pareto
    from workbench.surveys.scores import Duel, Pareto
    from workbench.surveys.survey import Survey, survey
    from workbench.training.config import TrainConfig
    from workbench.training.recipe import as_code
    from workbench.training.results.export import Exported, export
    from workbench.training.results.merging import MergeError, MergeErrors, merge_errors
    from workbench.training.results.receipt_meter import ReceiptMeter, receipt
    from workbench.training.results.receipts import Receipt
    from workbench.training.results.truth import PagingTruth, paging_truth
    from workbench.training.runs import Run, attach, launch, runs

_HOME = {
    "quant.bnb": ("BackendCheck", "check_backend"),
    "surveys.duel": ("configurations", "duel", "pareto"),
    "cost.evaluation": ("Cost", "Evaluation", "evaluate"),
    "cost.methods": ("MethodComparison", "MethodResult", "compare_methods"),
    "cost.mixing": ("CurvePoint", "Mix", "mix"),
    "cost.repairs": ("Repair", "Repairs", "repairs"),
    "cost.sensitivities": ("ModuleCost", "Sensitivity", "sensitivity"),
    "errors": ("WorkbenchError", "ModelError", "FormatError", "DataError", "RunError", "ConfigError"),
    "quant.formats": ("FORMATS", "Format", "register_format"),
    "quant.measure": ("ErrorStats", "Tally", "Totals", "measure"),
    "memory.forecast": ("MemoryLedger", "forecast"),
    "quant.outliers": ("Outliers", "outliers"),
    "memory.pager": ("PagerSimulation", "simulate_paging"),
    "quant.quantize": ("QuantSpec", "Quantized", "quantize"),
    "training.results.receipt_meter": ("ReceiptMeter", "receipt"),
    "training.results.receipts": ("Receipt",),
    "report": ("write_report",),
    "surveys.scores": ("Duel", "Pareto"),
    "sources": ("Source", "TensorInfo", "open_model"),
    "surveys.survey": ("Survey", "survey"),
    "training.config": ("TrainConfig",),
    "training.results.export": ("Exported", "export"),
    "training.results.merging": ("MergeError", "MergeErrors", "merge_errors"),
    "training.recipe": ("as_code",),
    "training.runs": ("Run", "attach", "launch", "runs"),
    "training.results.truth": ("PagingTruth", "paging_truth"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

# Spelt out for type checkers and editors; a test holds it equal to the names above.
__all__ = [
    "FORMATS",
    "BackendCheck",
    "ConfigError",
    "Cost",
    "CurvePoint",
    "DataError",
    "Duel",
    "ErrorStats",
    "Evaluation",
    "Exported",
    "Format",
    "FormatError",
    "MemoryLedger",
    "MergeError",
    "MergeErrors",
    "MethodComparison",
    "MethodResult",
    "Mix",
    "ModelError",
    "ModuleCost",
    "Outliers",
    "PagerSimulation",
    "PagingTruth",
    "Pareto",
    "QuantSpec",
    "Quantized",
    "Receipt",
    "ReceiptMeter",
    "Repair",
    "Repairs",
    "Run",
    "RunError",
    "Sensitivity",
    "Source",
    "Survey",
    "Tally",
    "TensorInfo",
    "Totals",
    "TrainConfig",
    "WorkbenchError",
    "as_code",
    "attach",
    "check_backend",
    "compare_methods",
    "configurations",
    "duel",
    "evaluate",
    "export",
    "forecast",
    "launch",
    "measure",
    "merge_errors",
    "mix",
    "open_model",
    "outliers",
    "paging_truth",
    "pareto",
    "quantize",
    "receipt",
    "register_format",
    "repairs",
    "runs",
    "sensitivity",
    "simulate_paging",
    "survey",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"workbench.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
