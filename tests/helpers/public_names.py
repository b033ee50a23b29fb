"""The modules that define a package's public names, read from its stub."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def homes(package: str) -> dict[str, str]:
    """Name → the module below the package that it is loaded from: ``{"QuantSpec": "quantization", …}``."""
    stub = ast.parse((ROOT / package / "__init__.pyi").read_text("utf-8"))
    return {
        a.name: node.module for node in ast.walk(stub) if isinstance(node, ast.ImportFrom) and node.module for a in node.names
    }
