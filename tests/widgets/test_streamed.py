"""Long work that a button begins: shown as it comes, cancelled, gone on with, and what goes wrong said where it belongs."""

import threading

import pytest

from tests.helpers.immediate import Immediate
from widgets.controls import streamed
from widgets.controls.message import Message
from widgets.controls.streamed import Streamed, one_at_a_time
from workbench.errors import RunError


class Numbers:
    """Numbers up to ``many`` as results that come one after another, from ``have`` on."""

    def __init__(self, many, have=(), progress=None, cancelled=None, at=lambda number: None):
        self.rows, self.many = list(have), many
        self._progress, self._cancelled, self._at = progress, cancelled, at

    def __iter__(self):
        while len(self.rows) < self.many and not self._cancelled():
            self._at(len(self.rows))
            self.rows.append(len(self.rows))
            self._progress(len(self.rows), self.many)
            yield self.rows[-1]


class Part:
    """A part that counts to five."""

    def __init__(self, executor, make=None):
        self.message, self.seen, self.ended = Message(), [], 0
        self.make = make or (lambda p, c: Numbers(5, self.found, p, c))
        self.found = []
        self.stream = Streamed(self.message, executor, begin=self.begin, show=self.show, ended=self.end)

    def begin(self):
        self.stream.follow("Counting", "numbers", lambda p, c: self.make(p, c))

    def show(self, numbers):
        self.found = list(numbers.rows)
        self.seen.append(len(self.found))

    def end(self):
        self.ended += 1
        self.stream.offer("Go on" if self.found else "Begin", "Takes no time.")


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(streamed, "EVERY", 0.0)


def test_results_are_shown_as_they_come_and_once_more_at_the_end(at_once):
    part = Part(Immediate())
    part.stream.button.click()
    assert part.seen == [1, 2, 3, 4, 5, 5]
    assert part.ended == 1
    assert part.stream.button.description == "Go on"
    assert "Takes no time." in part.stream.cost.value


def test_cancelled_in_the_middle_it_keeps_what_it_has_and_goes_on_from_there(at_once):
    reached, go_on = threading.Event(), threading.Event()

    def hold(number):
        if number == 2 and not go_on.is_set():
            reached.set()
            assert go_on.wait(60)

    part = Part(None, lambda p, c: Numbers(5, part.found, p, c, hold))
    part.stream.button.click()
    assert reached.wait(60)
    assert part.stream.busy
    assert part.stream.button.layout.display == "none"
    part.stream.work.cancel()
    go_on.set()
    assert part.found == [0, 1]
    assert not part.stream.busy
    assert part.stream.button.description == "Go on"
    assert part.stream.button.layout.display == ""
    ended = threading.Event()
    part.stream.work.on_progress(lambda step: step is None and ended.set())
    part.stream.button.click()
    assert ended.wait(60)
    assert part.found == [0, 1, 2, 3, 4]
    part.stream.close()


def test_an_error_is_told_with_its_remedy_and_the_button_comes_back():
    def refuse(progress, cancelled):
        raise RunError("there is no room.", where="disk", remedy="Make some.")

    part = Part(Immediate(), refuse)
    part.stream.button.click()
    assert "Make some." in part.message.value
    assert part.ended == 1
    assert part.stream.button.layout.display == ""
    part.make = lambda p, c: Numbers(5, [], p, c)
    part.stream.button.click()
    assert part.found == [0, 1, 2, 3, 4]
    assert part.message.value == ""


def test_of_rivals_only_one_is_under_way(at_once):
    seen = []
    part, other = Part(Immediate()), Part(Immediate())
    part.make = lambda p, c: Numbers(3, [], p, c, lambda _: seen.append(other.stream.button.disabled))
    one_at_a_time(part.stream, other.stream)
    part.stream.button.click()
    assert seen == [True] * 3
    assert not other.stream.button.disabled


def test_a_rival_that_is_made_meanwhile_waits_too():
    seen = []
    part, other = Part(Immediate()), Part(Immediate())

    def meet(number):
        one_at_a_time(part.stream, other.stream)
        seen.append(other.stream.button.disabled)

    part.make = lambda p, c: Numbers(1, [], p, c, meet)
    part.stream.button.click()
    assert seen == [True]
    assert not other.stream.button.disabled
