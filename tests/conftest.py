"""What every test shares: no network, the browser or the reason why there is none, and GPU tests only where there is a GPU."""

from __future__ import annotations

import os

import pytest

from tests.chromium import REMEDY, find

# Nothing that the tests do needs the Hub; a test that asked for it must fail at once, here and in the processes it starts.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything under tests/browser is a browser test; GPU tests are skipped, with the reason, where CUDA is missing."""
    for item in items:
        if "browser" in item.path.parts:
            item.add_marker(pytest.mark.browser)
        if item.get_closest_marker("gpu") and not _cuda():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium. Without one a browser test is skipped with the remedy; under CI it fails."""
    path = find()
    if path is None:
        why = f"no Chromium: {REMEDY}"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    return path
