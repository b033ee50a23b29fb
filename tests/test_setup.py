"""The files that install the project agree with each other, and installing it on Colab replaces nothing there."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.helpers import chromium, colab

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CONDA_NAMES = {"pytorch": "torch"}  # where conda-forge's name differs by more than _ and -
NOT_ON_COLAB = {"bitsandbytes"}
ASKED_FOR = ["gguf"]  # extras that code imports when they are first needed, with an error that names them
# Import names that are not the distribution's own name, and packages that come with one that is required.
DISTRIBUTIONS = {"pynvml": "nvidia-ml-py"}
BROUGHT_BY = {
    "llvmlite": "numba", "pyarrow": "datasets", "ipython": "ipywidgets", "traitlets": "ipywidgets", "tqdm": "huggingface-hub",
}  # fmt: skip


def required(*extras: str) -> dict[str, Requirement]:
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines) if r.name != PROJECT["name"]}


def pinned(path: str) -> dict[str, Version]:
    lines = (ROOT / path).read_text("utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_environment_yml_asks_for_what_pyproject_asks_for() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    python, pip, *lines, last = environment["dependencies"]
    conda = {}
    for requirement in map(Requirement, lines):
        name = CONDA_NAMES.get(requirement.name, requirement.name)
        conda[canonicalize_name(name)] = requirement.specifier
    assert conda == {name: requirement.specifier for name, requirement in required("lab").items()}
    assert (pip, last) == ("pip", {"pip": ["--editable ."]})
    named = re.fullmatch(r"python=(3\.\d+)", python)  # the one form in which Binder's repo2docker takes note of it
    assert named is not None
    assert f"Programming Language :: Python :: {named[1]}" in PROJECT["classifiers"]


def test_environment_dev_yml_adds_what_the_tests_and_pytest_s_own_options_need() -> None:
    """In the same environment, and by pyproject's own list: nothing that could differ from it."""
    base, dev = (yaml.safe_load((ROOT / name).read_text("utf-8")) for name in ("environment.yml", "environment-dev.yml"))
    assert (dev["name"], dev["channels"]) == (base["name"], base["channels"])
    assert dev["dependencies"] == ["pip", {"pip": ["--editable .[dev]"]}]
    assert {"pytest", "nbval", "pytest-xdist"} <= set(required("dev"))


@pytest.mark.parametrize("name", sorted(required()))
def test_colab_already_has_a_version_that_satisfies_us(name: str) -> None:
    colab, requirement = pinned("tests/colab.txt"), required()[name]
    if name in NOT_ON_COLAB:
        assert name not in colab
        needs = [Requirement(line) for line in importlib.metadata.requires(name) or []]
        wanted = {canonicalize_name(n.name): n for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})}
        assert not {n for n, r in wanted.items() if colab[n] not in r.specifier}, "it would replace a package on Colab"
    else:
        assert colab[name] in requirement.specifier


def test_with_colabs_versions_those_tests_run_that_meet_them() -> None:
    tests = ROOT / "tests"
    chosen = {path.relative_to(tests).with_suffix("").as_posix() for path in tests.rglob("test_*.py") if colab.runs(path)}
    meeting = {
        "test_colab_kernel",
        "widgets/test_views",
        "widgets/test_search",
        "training/test_methods",
        "sources/test_quantizable",
    }
    assert meeting <= chosen
    assert not chosen & {"quant/test_measure", "quant/test_format_references", "training/test_kills", "training/test_limits"}


def test_constraints_pin_every_requirement_within_its_bounds() -> None:
    constraints = pinned("constraints.txt")
    (own,) = (each for each in map(Requirement, PROJECT["optional-dependencies"]["dev"]) if each.name == PROJECT["name"])
    for name, requirement in required("dev", *own.extras).items():
        assert constraints[name] in requirement.specifier
    assert constraints["torch"] == Version("2.13.0")  # without a local label, so that CPU and CUDA wheels both fit


def test_every_package_that_the_code_imports_is_required() -> None:
    imported = set()
    for path in [*(ROOT / "workbench").rglob("*.py"), *(ROOT / "widgets").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - {"workbench", "widgets"}
    names = {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in third_party}
    assert {BROUGHT_BY.get(name, name) for name in names} <= set(required(*ASKED_FOR))


def test_the_wheel_holds_the_model_the_data_and_the_scripts(tmp_path: Path) -> None:
    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    names = set(zipfile.ZipFile(built).namelist())
    committed = subprocess.run(
        ["git", "ls-files", "workbench", "widgets"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(committed) <= names
    assert {"workbench/builtin/data/train.jsonl", "widgets/drawing/plot.js"} <= names
    assert any(name.endswith("licenses/NOTICE") for name in names)


def test_a_chromium_is_found_where_it_is_named_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", sys.executable)
    assert chromium.find() == sys.executable
    monkeypatch.setenv("CHROMIUM", "/no/such/browser")
    assert chromium.find() is None
