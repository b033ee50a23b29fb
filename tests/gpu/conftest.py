"""Each step in a process of its own, and at the end the report of those that ran."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from tests.gpu.step import NO_CUDA, Facts, Outcome, Step, carry_out, report

NOTHING_CHECKED = 77
"""Exit code of ``pytest -m gpu`` where there is no GPU: nothing passed, and nothing failed."""
_outcomes: list[Outcome] = []


@pytest.fixture
def facts() -> Facts:
    """What a step finds. Its own process fills another."""
    return {}


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Has a step carried out elsewhere."""
    if (marker := pyfuncitem.get_closest_marker("gpu")) is None:
        return None
    shows = (inspect.getdoc(pyfuncitem.function) or "").rstrip(".")
    outcome = carry_out(Step(pyfuncitem.function.__module__, pyfuncitem.function.__name__, shows, **marker.kwargs))
    pyfuncitem.user_properties.append(("outcome", dataclasses.asdict(outcome)))
    if not outcome.passed:
        pytest.fail(outcome.message, pytrace=False)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keeps what a step found."""
    if report.when == "call":
        _outcomes.extend(Outcome(**value) for name, value in report.user_properties if name == "outcome")


def _nothing_checked(config: pytest.Config, exit_code: int) -> bool:
    return config.option.markexpr == "gpu" and exit_code == pytest.ExitCode.OK and not _outcomes


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Says by the exit code that nothing was checked."""
    if _nothing_checked(session.config, exitstatus):
        session.exitstatus = NOTHING_CHECKED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    """The report, to be pasted into an issue."""
    if _outcomes:
        terminalreporter.write(f"\n{report(_outcomes)}\n")
    elif _nothing_checked(config, exitstatus):
        terminalreporter.write_line(NO_CUDA)
