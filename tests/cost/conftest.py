"""What the tests of costs share: a tiny model, and measuring inside the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cost_in_process import measuring
from tests.helpers.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def measured_here() -> Iterator[None]:
    """What is measured is measured on a thread of this process."""
    with measuring():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("cost"))
