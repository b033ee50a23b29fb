"""The examples in the docstrings of what is public: each is run as it is written, with the embedded model or small arrays.

An example that would start a run, write a file or need a browser is marked ``+SKIP``.
"""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import widgets
import workbench as wb
from tests.helpers.public_names import homes
from workbench.quant.formats import _formats

FINDER = doctest.DocTestFinder()
GLOBS = {"wb": wb, "np": np, "widgets": widgets}


def examples() -> Iterator[doctest.DocTest]:
    """Every docstring with an example of a public name, or of a public class's member."""
    for package in (wb, widgets):
        for name, home in homes(package.__name__).items():
            value = getattr(package, name)
            if callable(value):
                module = importlib.import_module(f".{home}", package.__name__)
                for test in FINDER.find(value, f"{package.__name__}.{name}", module, vars(module) | GLOBS):
                    if test.examples:
                        yield test


@pytest.fixture
def formats() -> Iterator[None]:
    """The formats that are registered before are those that are registered after."""
    before = dict(_formats)
    yield
    _formats.clear()
    _formats.update(before)


@pytest.mark.usefixtures("formats")
@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.name)
def test_an_example_in_a_docstring_gives_what_it_says(
    example: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runner, said = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE), list[str]()
    runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)


def test_examples_are_found() -> None:
    assert {"workbench.measure", "workbench.quantize", "workbench.survey"} <= {test.name for test in examples()}
