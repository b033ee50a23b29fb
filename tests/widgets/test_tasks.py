"""Background work behind widgets: the newest wins, errors arrive, threads end. Every wait has a bound; nothing sleeps."""

from __future__ import annotations

import sys
import threading
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ipywidgets
import pytest

from tests.helpers.immediate import Immediate
from widgets.background import tasks
from widgets.background.tasks import UI, Latest, Ticker, guard
from widgets.controls.message import Message
from workbench.errors import WorkbenchError

SECONDS = 60


class Gate:
    """Work that tells when it started and ends when it is let go."""

    def __init__(self, result: Any = None) -> None:
        self.started, self.release, self.result = threading.Event(), threading.Event(), result

    def __call__(self) -> Any:
        self.started.set()
        assert self.release.wait(SECONDS)
        return self.result


OTHERS = set[threading.Thread]()
"""Threads of views that other tests in this process left open."""


def workers() -> list[threading.Thread]:
    names = ("workbench-latest", "workbench-ticker")
    return [thread for thread in threading.enumerate() if thread.name.startswith(names) and thread not in OTHERS]


@pytest.fixture(autouse=True, scope="module")
def others() -> None:
    OTHERS.update(workers())


def ended(count: int = 0) -> bool:
    """Whether the module's threads are down to ``count``, within a bound."""
    for thread in workers()[count:]:
        thread.join(SECONDS)
    return len(workers()) == count


def test_with_an_immediate_executor_work_is_an_ordinary_call() -> None:
    results: list[int] = []
    states: list[bool] = []
    task = Latest(Immediate(), apply=results.append, busy=states.append)
    task.submit(lambda a, b: a + b, 2, 3)
    assert results == [5]
    assert states == [True, False]
    task.close()
    task.submit(int)
    assert results == [5], "after close nothing happens"


def test_only_the_newest_result_is_applied() -> None:
    applied: list[str] = []
    done = threading.Event()
    states: list[bool] = []
    task = Latest(apply=lambda value: (applied.append(value), done.set()), busy=states.append)
    first = Gate("first")
    task.submit(first)
    assert first.started.wait(SECONDS)
    for i in range(50):
        task.submit(lambda i=i: f"number {i}")
    first.release.set()
    assert done.wait(SECONDS)
    task.close()
    assert applied == ["number 49"]
    assert states[0] is True
    assert states.count(True) == 1
    assert ended()


def test_requests_that_wait_are_skipped_without_running() -> None:
    ran: list[int] = []
    done = threading.Event()
    task = Latest(apply=lambda _: done.set())
    first = Gate()
    task.submit(first)
    assert first.started.wait(SECONDS)
    for i in range(20):
        task.submit(ran.append, i)
    first.release.set()
    assert done.wait(SECONDS)
    task.close()
    assert ran == [19]


def test_debounce_waits_for_quiet() -> None:
    ran: list[int] = []
    done = threading.Event()
    task = Latest(apply=lambda _: done.set(), debounce=0.05)
    for i in range(5):
        task.submit(ran.append, i)
    assert done.wait(SECONDS)
    task.close()
    assert ran == [4]


def test_work_can_rest_until_a_newer_request_comes() -> None:
    rested: list[bool] = []
    started, done = threading.Event(), threading.Event()

    def work(seconds: float) -> None:
        started.set()
        rested.append(task.rest(seconds))

    task = Latest(apply=lambda _: done.set())
    task.submit(work, SECONDS)
    assert started.wait(SECONDS)
    task.submit(work, 0.0)
    assert done.wait(SECONDS)
    task.close()
    assert rested == [False, True]


def test_closing_does_not_wait_for_the_work_of_others_on_a_shared_thread() -> None:
    ran: list[int] = []
    applied: list[str] = []
    with ThreadPoolExecutor(1) as shared:
        others, own = Latest(shared, apply=applied.append), Latest(shared, apply=lambda _: None)
        gate = Gate("the work of others")
        others.submit(gate)
        assert gate.started.wait(SECONDS)
        own.submit(ran.append, 1)
        own.close(timeout=10 * SECONDS)  # would be waited for to its end, and the gate is not that patient
        gate.release.set()
    others.close()
    assert ran == []
    assert applied == ["the work of others"]


def test_long_work_can_see_that_it_is_stale() -> None:
    seen: list[bool] = []
    done = threading.Event()
    started = threading.Event()

    def watch() -> None:
        seen.append(task.stale())
        started.set()
        while not task.stale():
            done.wait(0.001)
        seen.append(task.stale())
        done.set()

    task = Latest(apply=lambda _: None)
    task.submit(watch)
    assert started.wait(SECONDS)
    task.cancel()
    assert done.wait(SECONDS)
    task.close()
    assert seen == [False, True]


def test_an_error_goes_to_failed_and_the_next_request_works() -> None:
    results: list[Any] = []
    errors: list[Exception] = []
    states: list[bool] = []
    task = Latest(Immediate(), apply=results.append, failed=errors.append, busy=states.append)
    task.submit(lambda: 1 / 0)
    task.submit(lambda: "fine")
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert results == ["fine"]
    assert states == [True, False, True, False]


def test_an_error_in_apply_goes_to_failed_too() -> None:
    errors: list[Exception] = []
    states: list[bool] = []
    task = Latest(Immediate(), apply=lambda value: value.missing, failed=errors.append, busy=states.append)
    task.submit(int)
    assert "missing" in str(errors[0])
    assert states[-1] is False


def test_apply_runs_under_the_lock_that_callbacks_share() -> None:
    free: list[bool] = []
    done = threading.Event()

    def apply(_: Any) -> None:
        other = threading.Thread(target=lambda: free.append(UI.acquire(blocking=False)))
        other.start()
        other.join(SECONDS)
        done.set()

    task = Latest(apply=apply)
    task.submit(int)
    assert done.wait(SECONDS)
    task.close()
    assert free == [False]


def test_closing_ends_the_thread_even_while_it_waits_for_the_lock() -> None:
    applied: list[Any] = []
    gate = Gate()
    task = Latest(apply=applied.append)
    with UI:  # as a widget callback that closes its panel holds it
        task.submit(gate)
        gate.release.set()
        assert gate.started.wait(SECONDS)
        task.close()
        task.close()
    assert ended()
    assert not applied


def test_closing_from_apply_does_not_wait_for_itself() -> None:
    done = threading.Event()
    task: Latest

    def apply(_: Any) -> None:
        task.close(timeout=SECONDS)
        done.set()

    task = Latest(apply=apply)
    task.submit(int)
    assert done.wait(SECONDS / 2)
    assert ended()


@pytest.mark.parametrize(
    ("version", "colab", "direct"), [((7, 0, 0), False, True), ((6, 17, 1), False, False), ((7, 0, 0), True, False)]
)
def test_old_kernels_and_colab_get_changes_through_their_event_loop(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, ...], colab: bool, direct: bool
) -> None:
    posted: list[Callable[[], None]] = []
    kernel = types.SimpleNamespace(io_loop=types.SimpleNamespace(add_callback=posted.append))
    shell = types.SimpleNamespace(kernel=kernel)
    monkeypatch.setitem(sys.modules, "ipykernel", types.SimpleNamespace(version_info=version))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    deliver = tasks.delivery()
    done: list[str] = []
    deliver(lambda: done.append("from the kernel's thread"))
    worker = threading.Thread(target=deliver, args=(lambda: done.append("from a worker"),))
    worker.start()
    worker.join(SECONDS)
    assert done == ["from the kernel's thread"] + ["from a worker"] * direct
    assert len(posted) == (not direct)


def test_a_widgets_messages_can_be_left_to_the_subshell_that_the_page_chose() -> None:
    button = ipywidgets.Button()
    tasks.at_once(button)
    assert button.comm._reply_subshell_for({"method": "custom"}, "a subshell") == "a subshell"
    button.close()
    tasks.at_once(button)


def test_a_ticker_applies_what_it_reads_survives_errors_and_ends() -> None:
    values = iter([1, None, OSError("gone"), 2])
    applied: list[int] = []
    errors: list[Exception] = []
    done = threading.Event()

    def read() -> Any:
        value = next(values, None)
        if isinstance(value, Exception):
            raise value
        return value

    def apply(value: int) -> None:
        applied.append(value)
        if value == 2:
            ticker.close()
            done.set()

    ticker = Ticker(read, apply, interval=0.001, failed=errors.append)
    ticker.start()
    ticker.start()
    assert done.wait(SECONDS)
    ticker.close()
    ticker.close()
    ticker.start()
    assert ended()
    assert applied == [1, 2]
    assert [str(error) for error in errors] == ["gone"]


def test_a_ticker_does_not_pile_up_changes() -> None:
    posted: list[Callable[[], None]] = []
    reads = threading.Semaphore(0)
    applied: list[str] = []
    ticker = Ticker(lambda: (reads.release(), "value")[1], applied.append, interval=0.001, deliver=posted.append)
    ticker.start()
    assert reads.acquire(timeout=SECONDS)
    assert not reads.acquire(timeout=0.05), "nothing is read while a change waits to be applied"
    posted[0]()
    assert reads.acquire(timeout=SECONDS)
    ticker.close()
    assert applied == ["value"]
    assert ended()


def test_a_guarded_callback_shows_its_error_and_gives_the_controls_back() -> None:
    message = Message()
    button = ipywidgets.Button()

    @guard(message, [button])
    def launch(_: Any) -> None:
        button.disabled = True
        raise WorkbenchError("No <b>column</b> 'text'.", where="data.jsonl", remedy="Name one of: prompt & completion.")

    launch(None)
    assert not button.disabled
    assert 'role="alert"' in message.value
    for part in ("No &lt;b&gt;column&lt;/b&gt; &#x27;text&#x27;.", "data.jsonl", "Name one of: prompt &amp; completion."):
        assert part in message.value


def test_an_unexpected_error_comes_with_its_folded_traceback() -> None:
    message = Message()
    guard(message)(lambda: {}["<absent>"])()
    assert "KeyError: &#x27;&lt;absent&gt;&#x27;" in message.value
    assert "<details>" in message.value
    assert "Traceback" in message.value


def test_a_message_is_cleared_when_the_next_callback_starts() -> None:
    message = Message()
    message.note("a < b")
    assert "a &lt; b" in message.value
    guard(message)(lambda: None)()
    assert message.value == ""
