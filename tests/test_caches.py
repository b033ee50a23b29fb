"""Where nothing can be written in the user's home, everything goes on among the temporary files, and that is said once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workbench import caches

ROOT = Path(__file__).parent.parent
OF_CACHES = ("WORKBENCH_CACHE", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HF_HOME", "HF_DATASETS_CACHE")


def run(script: str, package: Path = ROOT, **variables: str) -> tuple[Any, str]:
    """What a script prints as JSON, and what it says beside it; of the variables for caches it has those that are given."""
    environment = {name: value for name, value in os.environ.items() if name not in OF_CACHES}
    environment |= {"PYTHONPATH": str(package), **variables}
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture
def no_home(tmp_path: Path) -> dict[str, str]:
    """A home in which nothing can be written, by root neither: a file; and a folder for temporary files."""
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    return {"HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path / "temporary")}


KERNELS = """
import json, numpy as np, workbench as wb
found = wb.measure(np.linspace(-1, 1, 256, dtype=np.float32), wb.QuantSpec()).max
from workbench.kernels import rounding
stats = [value.stats for value in vars(rounding).values() if hasattr(value, "stats")]
compiled, loaded = (sum(sum(getattr(s, name).values()) for s in stats) for name in ("cache_misses", "cache_hits"))
print(json.dumps([found, compiled, loaded]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="names Linux's variable")
def test_without_a_home_kernels_are_compiled_once_and_the_variable_is_named(no_home: dict[str, str]) -> None:
    (first, compiled, _), said = run(KERNELS, **no_home)
    (second, again, loaded), _ = run(KERNELS, **no_home)
    assert first == second
    assert compiled > again == 0
    assert loaded > 0
    assert said.count("cannot be written") == 1
    assert "XDG_CACHE_HOME" in said
    _, said = run(KERNELS, **no_home, XDG_CACHE_HOME=no_home["TMPDIR"])
    assert said == ""


def test_a_folder_for_numba_that_cannot_be_written_is_passed_over(tmp_path: Path, no_home: dict[str, str]) -> None:
    (_, compiled, _), _ = run(KERNELS, **no_home, NUMBA_CACHE_DIR=f"{no_home['HOME']}/numba")
    (_, again, _), _ = run(KERNELS, **no_home)
    assert compiled > again == 0


def test_without_a_home_rows_are_previewed_and_a_run_ends_well(tmp_path: Path, no_home: dict[str, str]) -> None:
    script = f"""
import json, sys
from pathlib import Path
import workbench as wb
from tests.helpers.in_process import config_of
from tests.helpers.tiny_model import write_tiny_model
from workbench.training.previews import preview
config = config_of(write_tiny_model(Path({str(tmp_path)!r}) / "model"), max_steps=1, max_eval_rows=0)
counts = preview(config).counts
print(json.dumps([counts["kept"] > 0, wb.launch(config, Path({str(tmp_path)!r}) / "run").wait().state]))
"""
    (found, state), _ = run(script, **no_home)
    assert (found, state) == (True, "finished")


def test_a_folder_that_another_user_could_have_filled_is_not_used(tmp_path: Path, no_home: dict[str, str]) -> None:
    """What is in it is loaded as code."""
    script = "import json; from workbench import caches; print(json.dumps(str(caches.user_folder())))"
    usual = Path(run(script, **no_home)[0])
    assert Path(run(script, **no_home)[0]) == usual
    assert usual.stat().st_mode & 0o077 == 0
    usual.chmod(0o777)
    assert Path(run(script, **no_home)[0]) != usual
    usual.rmdir()
    (tmp_path / "elsewhere").mkdir()
    usual.symlink_to(tmp_path / "elsewhere")
    assert Path(run(script, **no_home)[0]) != usual


@pytest.mark.parametrize("home", ["", "relative", "~"])
def test_a_home_that_is_none_is_survived(no_home: dict[str, str], home: str) -> None:
    script = "import json; from workbench import caches; print(json.dumps(str(caches.user_folder())))"
    assert Path(run(script, **no_home | {"HOME": home})[0]).is_absolute()


def test_a_folder_is_made_for_its_user_alone(tmp_path: Path) -> None:
    assert caches.writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0
    (tmp_path / "file").write_text("")
    assert not caches.writable(tmp_path / "file" / "c")


def test_compiled_kernels_lie_outside_the_package_and_go_with_its_sources(tmp_path: Path) -> None:
    """Left in the package they would stay when it is uninstalled, and with them a package of that name without code."""
    package, kept = tmp_path / "package", tmp_path / "kept"
    shutil.copytree(ROOT / "workbench", package / "workbench", ignore=shutil.ignore_patterns("__pycache__"))
    (_, compiled, _), _ = run(KERNELS, package, XDG_CACHE_HOME=str(kept))
    assert compiled > 0
    left = {path.suffix for path in package.rglob("*") if path.is_file()} & {".nbi", ".nbc"}
    assert not left
    assert {path.suffix for path in kept.rglob("*.nb?")} == {".nbi", ".nbc"}
    # Another file's functions are part of a kernel, which numba takes no notice of: an upgrade must not go on with the old.
    with (package / "workbench" / "kernels" / "simd.py").open("a", encoding="utf-8") as file:
        file.write("# another version\n")
    (_, again, loaded), _ = run(KERNELS, package, XDG_CACHE_HOME=str(kept))
    assert (again, loaded) == (compiled, 0)
