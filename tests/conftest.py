"""What every test shares: no network, the browser or the reason why there is none, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests.helpers.chromium import REMEDY, find

if TYPE_CHECKING:
    from tests.helpers.hub_server import HubServer
    from tests.helpers.preloaded import Forks

# Nothing that the tests do needs the Hub; a test that asked for it must fail at once, here and in the processes it starts.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread a process: several test processes share the cores, and OpenMP threads that wait for each other by spinning make
# a training step many times slower there. Set before torch is loaded, and inherited by kernels and training runs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is read from afar and which models were opened last is kept here, and not among the user's own files.
_CACHE = tempfile.TemporaryDirectory(prefix="workbench-tests-", ignore_cleanup_errors=True)
os.environ["WORKBENCH_CACHE"] = _CACHE.name
# A shell that starts the tests in the background has them ignore Ctrl-C, and so all that they start and send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A test says what holds, not how fast; the first example of a kernel compiles it.
hypothesis.settings.register_profile("workbench", deadline=None)
hypothesis.settings.load_profile("workbench")

LONG = ("browser", "notebooks", "training")
"""Folders whose files take longest."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything under tests/browser is a browser test; where there is no Chromium or no GPU, what needs one is skipped.

    The files that take longest go first, so that no worker ends long after the others.
    """
    items.sort(key=lambda item: next((n for n, folder in enumerate(LONG) if folder in item.path.parts), len(LONG)))
    for item in items:
        if "browser" in item.path.parts:
            item.add_marker("browser")
    needs = {"browser": (find, f"no Chromium: {REMEDY}"), "gpu": (_cuda, "needs a CUDA GPU")}
    for name, (there, why) in needs.items():
        needing = [item for item in items if item.get_closest_marker(name)]
        if needing and not there():
            for item in needing:
                item.add_marker(pytest.mark.skip(reason=why))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under CI a browser test that would be skipped fails: there is no green without a browser."""
    report = yield
    if report.skipped and item.get_closest_marker("browser") and os.environ.get("CI", "").lower() in ("1", "true"):
        report.outcome = "failed"
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """Has pytest name every test alike in the environment: a fork server serves one environment, and then the next test too."""
    os.environ["PYTEST_CURRENT_TEST"] = "a test"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    """The same for the test itself."""
    os.environ["PYTEST_CURRENT_TEST"] = "a test"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A Hub on the loopback interface, which huggingface_hub uses for the time of the test."""
    from tests.helpers.hubs import at_loopback

    with at_loopback(tmp_path) as server:
        yield server


@pytest.fixture
def formats() -> Iterator[None]:
    """The formats that are registered before are those that are registered after."""
    from workbench.quant.formats import _formats

    before = dict(_formats)
    yield
    _formats.clear()
    _formats.update(before)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts training runs without the seconds that importing torch takes."""
    from tests.helpers.preloaded import Forks

    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium, for tests that are marked as browser tests."""
    path = find()
    assert path is not None, "mark the test with @pytest.mark.browser"
    return path


@pytest.fixture(autouse=True)
def _environment_of_cells() -> Iterator[None]:
    """A copied cell that a test runs changes the environment of its process, which a run started there would take over."""
    before = dict(os.environ)
    yield
    for name in ("CUDA_VISIBLE_DEVICES", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        os.environ.pop(name, None)
        if name in before:
            os.environ[name] = before[name]
