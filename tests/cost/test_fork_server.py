"""A measuring process is like one started anew, and has its libraries from the start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from workbench.atomic import take_lock
from workbench.cost import fork_server
from workbench.training.environment import without_secrets

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="processes start anew elsewhere")
IDLE, TELLS = "tests.helpers.idle", "tests.helpers.tells"
PATIENCE = 120
"""Seconds: loading the libraries takes some."""


@pytest.fixture(scope="module", autouse=True)
def no_gpu() -> Iterator[None]:
    """As on a machine without an NVIDIA GPU; what was loaded before is left to itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fork_server, "devices", lambda: 0)
        patch.setattr(fork_server, "_server", None)
        yield


def started(module: str, folder: Path, variable: str = "a value") -> fork_server.Process:
    """Holds the folder's lock, and writes to its log."""
    with (folder / "log.txt").open("ab") as log, (folder / ".lock").open("w") as lock:
        take_lock(lock)
        environment = without_secrets() | {"OF_THIS_TEST": variable}
        return fork_server.start(module, str(folder), environment, log.fileno(), lock.fileno())


def is_free(folder: Path) -> bool:
    """Whether nothing holds the folder's lock."""
    with (folder / ".lock").open("w") as lock:
        try:
            take_lock(lock)
        except BlockingIOError:
            return False
        return True


def server() -> psutil.Process:
    """The process that has the libraries."""
    assert fork_server._server is not None
    return psutil.Process(fork_server._server.process.pid)


@on_linux
def test_each_begins_as_if_anew_with_its_libraries_there(tmp_path: Path) -> None:
    expected = {
        "libraries": True, "folder": str(tmp_path), "arguments": [str(tmp_path), True], "own session": True,
        "variable": "a value", "input": "",
    }  # fmt: skip
    for _ in range(2):
        (tmp_path / "log.txt").unlink(missing_ok=True)
        assert started(TELLS, tmp_path).wait(PATIENCE) == 0
        assert json.loads((tmp_path / "log.txt").read_text()) == expected


@on_linux
def test_how_it_ended_is_told_with_its_last_words(tmp_path: Path) -> None:
    process = started("tests.helpers.no_such_module", tmp_path)
    assert process.wait(PATIENCE) == process.poll() == 1
    assert "No module named" in (tmp_path / "log.txt").read_text()
    process.terminate()  # which does nothing any more
    process.kill()


@on_linux
def test_it_holds_its_lock_until_it_ends_and_is_ended_alone(tmp_path: Path) -> None:
    started(TELLS, tmp_path).wait(PATIENCE)  # so that the libraries are there
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
    one, other = (started(IDLE, folder) for folder in folders)
    assert (one.poll(), other.poll()) == (None, None)
    assert not any(map(is_free, folders))
    one.terminate()
    assert one.wait(PATIENCE) == -15
    assert is_free(folders[0])
    assert not is_free(folders[1])
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(0)
    other.kill()
    assert other.wait(PATIENCE) == -9


@on_linux
def test_before_the_libraries_are_there_it_can_be_ended_and_others_start_anew(tmp_path: Path) -> None:
    started(TELLS, tmp_path).wait(PATIENCE)
    of_another_environment = server()
    first = started(IDLE, tmp_path, "another")
    loading, folder = server(), tmp_path / "second"
    of_another_environment.wait(PATIENCE)
    folder.mkdir()
    second = started(IDLE, folder, "another")
    assert isinstance(second, subprocess.Popen)
    first.terminate()
    assert first.wait(PATIENCE) == -15
    loading.wait(PATIENCE)
    assert is_free(tmp_path)
    assert second.poll() is None
    second.kill()
    second.wait(PATIENCE)


@on_linux
@pytest.mark.slow
def test_where_the_one_with_the_libraries_was_killed_its_forks_end_and_there_is_another(tmp_path: Path) -> None:
    started(TELLS, tmp_path).wait(PATIENCE)
    orphan, killed = started(IDLE, tmp_path), server()
    killed.kill()
    killed.wait(PATIENCE)
    assert orphan.wait(PATIENCE) == -9
    assert is_free(tmp_path)
    assert started(TELLS, tmp_path).wait(PATIENCE) == 0
    assert server() != killed


@on_linux
def test_a_fork_that_cannot_be_made_ends_no_other(tmp_path: Path) -> None:
    started(TELLS, tmp_path).wait(PATIENCE)
    idle = started(IDLE, tmp_path)
    server().rlimit(psutil.RLIMIT_NOFILE, (1, 1))  # it can take no open file
    (other := tmp_path / "other").mkdir()
    anew = started(TELLS, other)
    assert isinstance(anew, subprocess.Popen)
    assert anew.wait(PATIENCE) == 0
    assert idle.poll() is None
    idle.kill()
    assert idle.wait(PATIENCE) == -9
    fork_server._server = None  # another for the tests to come


@on_linux
@pytest.mark.slow
def test_packages_that_were_changed_are_loaded_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(TELLS, tmp_path).wait(PATIENCE)
    before = server()
    monkeypatch.setattr(fork_server, "_installed", list)
    fork = started(IDLE, tmp_path)
    assert server() != before
    fork.terminate()
    fork.wait(PATIENCE)
    before.wait(PATIENCE)


@on_linux
@pytest.mark.slow
def test_it_ends_with_the_process_that_it_was_for(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "import sys; from pathlib import Path\n"
        "from tests.cost.test_fork_server import TELLS, fork_server, server, started\n"
        "fork_server.devices = lambda: 0\n"
        "started(TELLS, Path(sys.argv[1])).wait()\n"
        "print(server().pid)\n"  # no guard: a script of a user's is not run again by what it starts
    )
    command = [sys.executable, str(tmp_path / "user.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert len(said) == 1
    if psutil.pid_exists(pid := int(said[0])):
        psutil.Process(pid).wait(PATIENCE)


def test_beside_a_gpu_it_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "devices", lambda: 1)
    process = started(TELLS, tmp_path)
    assert isinstance(process, subprocess.Popen)
    assert process.wait(PATIENCE) == 0
    assert not json.loads((tmp_path / "log.txt").read_text())["libraries"]
