"""Small C libraries that stand in for a driver's: compiled by the tests with the system's C compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parent / "stubs"


def compile_stub(name: str, target: Path) -> Path:
    """Compiles ``stubs/<name>.c`` into the shared library ``target``; without a compiler a test skips, in CI it fails."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        message = "no C compiler for the stub libraries. Debian and Ubuntu: apt-get install gcc libc6-dev"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    command = [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-pthread"]
    done = subprocess.run(
        [*command, "-o", str(target), str(SOURCES / f"{name}.c")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target
