"""The public names, each once: `widgets/__init__.py` loads them from here when they are first used."""

from .app import Workbench as Workbench
from .drawing.plot import Plot as Plot
from .figures.cost import costs_summary as costs_summary
from .figures.cost import format_costs_figure as format_costs_figure
from .figures.cost import memory_curve_figure as memory_curve_figure
from .figures.cost import output_errors_figure as output_errors_figure
from .figures.cost import sensitivity_figure as sensitivity_figure
from .figures.flow import flow_figure as flow_figure
from .figures.kl_curve import kl_curve_figure as kl_curve_figure
from .figures.kl_curve import why_four as why_four
from .figures.memory import memory_methods_figure as memory_methods_figure
from .figures.model import Places as Places
from .figures.model import duel_figure as duel_figure
from .figures.pager import simulation_figure as simulation_figure
from .figures.run import paging_figure as paging_figure
from .panels.base import View as View
from .panels.cost.view import CostView as CostView
from .panels.distribution import DistributionView as DistributionView
from .panels.double_quant import DoubleQuantView as DoubleQuantView
from .panels.error import BlockErrorView as BlockErrorView
from .panels.formats import FormatsView as FormatsView
from .panels.memory import MemoryView as MemoryView
from .panels.model import ModelPicker as ModelPicker
from .panels.model_map import ModelMapView as ModelMapView
from .panels.train.view import TrainingCell as TrainingCell
from .state import State as State
