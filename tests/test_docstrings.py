"""The docstrings of what is public: their sections are those of the signature, and their examples are run as they are written.

Args names each parameter once, in order. Returns stands where a function takes anything and gives something back, and in a
method with Args that does; of others the first line says what it is. Raises names errors that a reader can catch, with all that
stand in the code of the function itself. Examples use the embedded model or small arrays; one that would start a run or a
measurement, write a file or need a browser is marked ``+SKIP``.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import doctest
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pytest

import widgets
import workbench as wb
from tests.helpers.public_names import homes

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


def documented() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Each public function, method and constructor, with its name and the docstring that describes its parameters."""
    for package in (wb, widgets):
        for name in homes(package.__name__):
            value = getattr(package, name)
            if not inspect.isclass(value):
                if callable(value):
                    yield name, value, inspect.getdoc(value) or ""
                continue
            # A dataclass describes its fields one by one, and not in its docstring.
            if "__init__" in vars(value) and not dataclasses.is_dataclass(value):
                yield name, value.__init__, inspect.getdoc(value) or ""
            for member in dir(value):
                method = None if member.startswith("_") else inspect.getattr_static(value, member)
                method = getattr(method, "__func__", method)  # of a static or class method
                if inspect.isfunction(method) and method.__module__.startswith(("workbench.", "widgets.")):
                    yield f"{name}.{member}", method, inspect.getdoc(method) or ""


def section(doc: str, title: str) -> list[str]:
    """The names in one of a docstring's sections, in order, with stars taken off."""
    head = re.search(rf"^{title}:\n((?:    .*\n?|\n)+)", doc, re.MULTILINE)
    return re.findall(r"^    \*{0,2}([^ :][^:\n]*)", head[1], re.MULTILINE) if head else []


def parameters(call: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a caller gives, by name."""
    return {name: found for name, found in inspect.signature(call).parameters.items() if name not in ("self", "cls")}


DOCUMENTED = {name: (call, doc) for name, call, doc in documented()}
PUBLIC_ERRORS = {
    name for name, value in vars(builtins).items() if inspect.isclass(value) and issubclass(value, BaseException)
} | {name for name in homes("workbench") if name.endswith("Error") and issubclass(getattr(wb, name), wb.WorkbenchError)}
MADE_HERE = {"Deployed", "Evaluation", "MethodComparison", "Mix", "Repairs", "Run", "Sensitivity", "Survey"}
"""Classes that a function makes: what it takes is described there."""


@pytest.mark.parametrize("name", DOCUMENTED)
def test_args_names_each_parameter_once_and_in_order(name: str) -> None:
    call, doc = DOCUMENTED[name]
    given, taken = section(doc, "Args"), parameters(call)
    needed = [each for each, kind in taken.items() if kind.kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)]
    if given or (len(needed) >= 2 and name not in MADE_HERE):
        assert given == [each for each in taken if each in needed or each in given]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_returns_says_what_comes_back(name: str) -> None:
    call, doc = DOCUMENTED[name]
    gives = str(inspect.signature(call).return_annotation) not in ("None", "Self")
    if gives and (section(doc, "Args") if "." in name else parameters(call)):
        assert re.search(r"^Returns:\n    \S", doc, re.MULTILINE)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_an_error_of_a_functions_own_lines_stands_under_raises(name: str) -> None:
    call, doc = DOCUMENTED[name]
    body = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(call))))
    named = {node.id for found in ast.walk(body) if isinstance(found, ast.Raise) for node in ast.walk(found) if is_error(node)}
    assert named <= set(section(doc, "Raises"))


def is_error(node: ast.AST) -> TypeGuard[ast.Name]:
    """Whether it is the name of an error that a reader can catch."""
    return isinstance(node, ast.Name) and node.id in PUBLIC_ERRORS


@pytest.mark.parametrize("name", [name for name, (_, doc) in DOCUMENTED.items() if section(doc, "Raises")])
def test_raises_names_errors_that_a_reader_can_catch(name: str) -> None:
    assert set(section(DOCUMENTED[name][1], "Raises")) <= PUBLIC_ERRORS


@pytest.mark.parametrize("name", DOCUMENTED)
def test_errors_are_told_of_under_raises(name: str) -> None:
    prose = re.split(r"^(?:Args:|Returns:|Raises:|>>>)", DOCUMENTED[name][1], maxsplit=1, flags=re.MULTILINE)[0]
    assert not PUBLIC_ERRORS & set(re.findall(r"\w+", prose))


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
