"""QLoRA Workbench: see how weights fall into 4-bit bins, what that costs, and what a QLoRA run does with memory.

The public names stand in ``__init__.pyi``, and nowhere else. Each is loaded when it is first used (SPEC 1), so that
``import workbench`` loads neither torch nor numba nor plotly. The widgets live in the package ``widgets``.
"""

from __future__ import annotations

import lazy_loader

from workbench import compat
from workbench._version import __version__ as __version__

compat.install()
__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
