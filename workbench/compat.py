"""What is put right in other packages as they are imported, in every process that imports the workbench.

Covers bitsandbytes alone, which fetches code from the Hub and runs it (0.49 and 0.50, through the package ``kernels``): on a
CPU with AVX-512 and bfloat16 while it is imported, in bitsandbytes/backends/cpu/ops.py, printing a warning where it cannot; on
macOS 26 or newer when it first needs a kernel, in ``_get_kernel`` of bitsandbytes/backends/mps/ops.py. Its own kernels do the
same work. Does not touch what was imported before the workbench.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType, SimpleNamespace

_CPU, _MPS = "bitsandbytes.backends.cpu.ops", "bitsandbytes.backends.mps.ops"


class _NoKernels(ModuleType):
    """In the place of ``kernels``: a Hub that has none of the kernels that are asked for."""

    @staticmethod
    def get_kernel(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(gemm_4bit_forward=None)


class _WithoutHub(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        installed = sys.modules.get("kernels")
        sys.modules["kernels"] = _NoKernels("kernels")
        try:
            super().exec_module(module)
        finally:
            del sys.modules["kernels"]
            if installed is not None:
                sys.modules["kernels"] = installed
        if module.__name__ == _MPS:
            module._kernel_load_failed = True  # type: ignore[attr-defined]  # what it notes where it cannot fetch


class _Finder:
    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in (_CPU, _MPS):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _WithoutHub(name, spec.origin)
        return spec


def install() -> None:
    """From now on ``import bitsandbytes`` fetches nothing. Once is enough; twice does no harm."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
