"""Packages that some tests need: without one they skip on a reader's machine, and fail in CI, where it must be there."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest


def needed(package: str, reason: str, here: bool = True) -> Any:
    """The package; without it the test skips, in CI it fails, unless there is none for this machine (``here``)."""
    if os.environ.get("CI") and here:
        return importlib.import_module(package)
    return pytest.importorskip(package, reason=reason)


def needed_gguf() -> Any:
    """The package gguf."""
    return needed("gguf", "the package gguf, of the extra gguf, is not installed here")
