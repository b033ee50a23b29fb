"""What is released: a wheel and an sdist that install with pip and with uv, and do the main job without the checkout.

The environment is bare but for its dependencies: those of this one are linked into it instead of fetched anew, gigabytes each
time. pip and uv resolve the wheel's requirements against them, offline; this project is not among them.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import workbench as wb

ROOT = Path(__file__).parent.parent
LARGEST = 25_000_000
SCRIPT = """
import os, sys
import workbench as wb
assert wb.__file__.startswith(sys.prefix), wb.__file__
src = wb.open_model("builtin")
assert 0.09 < wb.measure(src.read("model.layers.0.mlp.down_proj.weight"), "nf4").relative_rmse < 0.1
config = wb.TrainConfig(max_steps=2, max_length=64, per_device_train_batch_size=1)
assert wb.fit(wb.forecast(src, config), "T4").verdict == "fits"
run = wb.launch(config)
assert run.wait(300).state == "finished", run.status
wb.export(run, "merged")
print(sorted(os.listdir(run.adapter_dir)), sorted(os.listdir("merged")))
"""


def run(*command: object, cwd: Path, **variables: str) -> str:
    """What a command prints, in an environment that knows of no checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist, as `make dist` builds them."""
    folder = tmp_path_factory.mktemp("dist")
    make = run("make", "--no-print-directory", "--dry-run", "dist", f"DIST={folder}", cwd=ROOT)
    (command,) = (line.partition("python ")[2] for line in make.splitlines() if "hatchling build" in line)
    run(sys.executable, *command.split(), cwd=ROOT)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def files(wheel: Path) -> dict[str, str]:
    """The files in a wheel, each with its digest."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


@pytest.mark.slow
def test_both_are_small_and_the_sdist_makes_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, sdist = built
    assert max(wheel.stat().st_size, sdist.stat().st_size) <= LARGEST
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again", cwd=unpacked)
    (again,) = (tmp_path / "again").glob("*.whl")
    assert files(again) == files(wheel)
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs", "tests"} <= {path.name for path in unpacked.iterdir()}


@pytest.fixture(scope="module", params=["pip", "uv"])
def environment(request: pytest.FixtureRequest, built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a new environment's programs, with the wheel installed in it."""
    home = tmp_path_factory.mktemp(request.param)
    venv.create(home, with_pip=False)
    there = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"(_editable_impl_)?qlora_workbench|(__pycache__|workbench|widgets)$", path.name):
            shutil.copytree(path, there / path.name) if path.suffix == ".dist-info" else (there / path.name).symlink_to(path)
    (home / "share").symlink_to(Path(sys.prefix) / "share")  # JupyterLab's own pages
    programs = home / "bin"
    if request.param == "pip":
        run(sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-index", built[0], cwd=home)
    else:
        run(sys.executable, "-m", "uv", "pip", "install", "--offline", "--python", programs / "python", built[0], cwd=home)
    assert len(list(there.glob("qlora_workbench-*.dist-info"))) == 1
    return programs


def opened(programs: Path, folder: Path, **variables: str) -> str:
    """The page that `qlora-workbench` has a browser open; the browser hands it on through a pipe."""
    pipe, browser = folder / "opened", folder / "browser"
    os.mkfifo(pipe)
    browser.write_text(f'#!/bin/sh\ncat "${{1#file://}}" > {shlex.quote(str(pipe))}\n')
    browser.chmod(0o700)
    home = {f"JUPYTER_{kind}_DIR": str(folder / f"jupyter-{kind.lower()}") for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables | home
    end = os.open(pipe, os.O_RDWR)
    command = [programs / "qlora-workbench", "--port=0", "--ip=127.0.0.1"]
    log = folder / "lab.txt"
    with (
        log.open("wb") as said,
        subprocess.Popen(command, cwd=folder, env=environment | {"BROWSER": str(browser)}, stdout=said, stderr=said) as lab,
    ):
        try:
            ready, _, _ = select.select([end], [], [], 120)
            return os.read(end, 1 << 16).decode() if ready else log.read_text()
        finally:
            lab.kill()
            os.close(end)


@pytest.mark.slow
def test_the_wheel_does_the_main_job_and_brings_its_commands_and_notebooks(environment: Path, tmp_path: Path) -> None:
    own = {"HOME": str(tmp_path), "WORKBENCH_CACHE": str(tmp_path / "cache")}
    for name in ("workbench", "qlora-workbench"):
        assert run(environment / name, "--version", cwd=tmp_path) == f"{name} {wb.__version__}\n"
    run(environment / "qlora-workbench", "--copy-only", cwd=tmp_path, **own)
    copied = {path.name for path in (tmp_path / "qlora-workbench").glob("*.ipynb")}
    assert copied == {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert "/lab/tree/00_workbench.ipynb?token=" in opened(environment, tmp_path, **own)
    if environment.parent.name.startswith("pip"):  # the same files were installed by the other
        printed = run(environment / "python", "-c", SCRIPT, cwd=tmp_path, **own)
        assert "adapter_model.safetensors" in printed
        assert "model.safetensors" in printed.partition("]")[2]
    else:
        shown = "import widgets; print(len(widgets.__all__), widgets.Workbench.__name__, widgets.__file__)"
        assert str(environment.parent) in run(environment / "python", "-c", shown, cwd=tmp_path, **own)


def test_the_version_is_the_same_wherever_it_stands() -> None:
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert heading is not None
    assert heading[1] == wb.__version__
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))["version"]) == wb.__version__


TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path.stem != "config"], ids=lambda path: path.stem)
def test_an_issue_form_is_one_and_names_commands_that_are_there(path: Path) -> None:
    form = yaml.safe_load(path.read_text("utf-8"))
    assert form["name"]
    assert form["description"]
    kinds = {part["type"] for part in form["body"]}
    assert kinds <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}
    named = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(named) == len(set(named))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)`", path.read_text("utf-8"))) <= targets
    if path.stem == "bug":
        assert "workbench doctor" in path.read_text("utf-8")
