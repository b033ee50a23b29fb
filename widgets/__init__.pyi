"""The public names, each once: `widgets/__init__.py` loads them from here when they are first used."""

from .app import Workbench as Workbench
from .drawing.plot import Plot as Plot
from .figures.cost import format_costs as format_costs
from .figures.cost import memory_curve as memory_curve
from .figures.cost import output_errors as output_errors
from .figures.cost import said_of as said_of
from .figures.cost import sensitivity as sensitivity
from .figures.flow import flow as flow
from .figures.model import Places as Places
from .figures.model import duel as duel
from .figures.pager import simulated as simulated
from .figures.run import paging as paging
from .figures.scales import memory_methods as memory_methods
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
