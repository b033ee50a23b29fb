"""Trying a run out in the panel, without a browser: answers as they grow, Cancel, errors, and when the process ends."""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.immediate import Immediate
from tests.helpers.tiny_model import write_tiny_model
from widgets.controls.style import close_tree
from widgets.panels.train.try_it import TryIt
from workbench.training.answers.asking import answering
from workbench.training.answers.values import Answer, Loading, Sampling, Voice
from workbench.training.folder import RunStatus
from workbench.training.host import create_time

FINISHED, RUNNING = RunStatus("finished"), RunStatus("running")
HOSTILE = "<img src=x onerror=window.ran=1> joy"
ALL = tuple(Voice)


class Fake:
    """In the place of the process: says what a script says, and remembers what it was asked."""

    def __init__(self, script: Callable[..., None] | None = None, without: str = "") -> None:
        self.script, self.without = script, without
        self.asked: list[tuple[str, Sampling, tuple[Voice, ...]]] = []
        self.started = self.closed = 0
        self.loaded = False

    def __call__(self, run: wb.Run, cancelled: Callable[[], bool]) -> Any:
        self.started += 1
        return self

    def ask(
        self,
        prompt: str,
        sampling: Sampling,
        voices: tuple[Voice, ...],
        hear: Callable[[Any], None],
        cancelled: Callable[[], bool],
    ) -> wb.Tried:
        self.asked.append((prompt, sampling, voices))
        if self.script:
            self.script(hear, cancelled)
        self.loaded = True
        there = [voice for voice in voices if voice is not Voice.ORIGINAL or not self.without]
        answers = {voice: Answer(voice, f"{HOSTILE} {voice}", 7, 0.5, ended=True) for voice in there}
        for answer in answers.values():
            hear(answer)
        return wb.Tried(prompt, answers, self.without)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    return trained(model, tmp_path_factory.mktemp("run"))


def trained(model: Path, root: Path, **fields: Any) -> wb.Run:
    return in_process.ended(in_process.train(in_process.config_of(model, max_steps=2, max_eval_rows=0, **fields), root))


Make = Callable[..., TryIt]


@pytest.fixture
def make(run: wb.Run) -> Iterator[Make]:
    """Makes the part, with a finished run on show, and closes it twice."""
    made: list[TryIt] = []

    def make(process: Any, executor: Any = None, of: wb.Run = run) -> TryIt:
        part = TryIt(executor or Immediate(), process)
        made.append(part)
        part.follow(of)
        part.update(FINISHED)
        part.prompt.value = "happiness, n."
        return part

    yield make
    for part in made:
        part.close()
        part.close()
        close_tree(part.widget)


def shown(part: TryIt, voice: Voice) -> str:
    """What stands in a model's box, as HTML; "" where there is none."""
    return "" if part.answers[voice].layout.display == "none" else str(part.answers[voice].value)


def test_it_is_there_once_the_run_has_ended_and_left_an_adapter(run: wb.Run) -> None:
    part = TryIt(Immediate(), Fake())
    try:
        assert part.widget.layout.display == "none"
        part.follow(run)
        part.update(RUNNING)
        assert part.widget.layout.display == "none"
        part.update(FINISHED)
        assert part.widget.layout.display == ""
        assert shown(part, Voice.BASE)
        assert shown(part, Voice.ADAPTER)
        assert not shown(part, Voice.ORIGINAL)
    finally:
        part.close()


def test_enter_asks_and_the_answers_stand_side_by_side_as_text(make: Make) -> None:
    fake = Fake()
    part = make(fake)
    part.temperature.value, part.seed.value, part.length.value = 0.7, 3, 20
    part.prompt._handle_custom_msg({"kind": "enter", "value": "lawyer, n."}, [])
    assert fake.asked == [("lawyer, n.", Sampling(20, 0.7, 3), ALL)]
    for voice in ALL:
        assert html.escape(f"{HOSTILE} {voice}") in shown(part, voice)
        assert "<img" not in shown(part, voice)
        assert "7 tokens · 0.5 s" in shown(part, voice)
    assert part.cancel.layout.display == "none"
    assert part.message.value == ""
    part.ask.click()
    assert fake.started == 1, "the process is loaded once"


def test_the_16_bit_base_is_asked_where_it_is_wanted_and_another_than_the_base(make: Make, model: Path, tmp_path: Path) -> None:
    fake = Fake(without="The 16-bit base is left out: no <room>.")
    part = make(fake)
    part.ask.click()
    assert not shown(part, Voice.ORIGINAL)
    assert "no &lt;room&gt;." in part.without.value
    part.original.value = False
    part.ask.click()
    assert fake.asked[-1][2] == (Voice.BASE, Voice.ADAPTER)
    part.follow(trained(model, tmp_path, method="lora"))
    part.original.value = True
    part.ask.click()
    assert fake.asked[-1][2] == (Voice.BASE, Voice.ADAPTER)
    assert part.original.layout.display == "none"


def test_it_says_what_is_loading_and_draws_a_growing_answer_a_few_times_a_second(make: Make) -> None:
    seen: list[str] = []

    def script(hear: Callable[[Any], None], cancelled: Callable[[], bool]) -> None:
        seen.append(shown(part, Voice.BASE))
        part.answers[Voice.BASE].observe(lambda change: seen.append(change["new"]), "value")
        for n in range(1000):
            hear(Answer(Voice.BASE, "joy " * n, n, 0.1, complete=False))

    part = make(Fake(script))
    part.ask.click()
    assert "<progress" in seen[0]
    assert len(seen) < 20
    assert html.escape(HOSTILE) in seen[-1]


def test_an_error_stands_in_its_place_and_nothing_seems_to_load(make: Make) -> None:
    def script(hear: Callable[[Any], None], cancelled: Callable[[], bool]) -> None:
        hear(Loading(Voice.ADAPTER))
        raise wb.RunError("the process was <killed>.", where="a run", remedy="Ask again.")

    part = make(Fake(script))
    part.ask.click()
    assert "the process was &lt;killed&gt;." in part.message.value
    assert 'class="wb-remedy"' in part.message.value
    assert not any("<progress" in box.value for box in part.answers.values())
    assert part.cancel.layout.display == "none"
    part.prompt.value = " "
    part.ask.click()
    assert "there is no prompt" in part.message.value


@pytest.mark.parametrize("loaded", [False, True])
def test_cancel_gives_the_answers_up_and_what_is_not_loaded_yet(make: Make, loaded: bool) -> None:
    asked, ended = threading.Event(), threading.Event()

    def script(hear: Callable[[Any], None], cancelled: Callable[[], bool]) -> None:
        fake.loaded = loaded
        asked.set()
        while not cancelled():
            pass
        ended.set()
        raise InterruptedError

    fake = Fake(script)
    with ThreadPoolExecutor(1) as threads:
        part = make(fake, threads)
        part.ask.click()
        assert asked.wait(60)
        assert part.cancel.layout.display == ""
        part.cancel.click()
        assert ended.wait(60)
        assert part.cancel.layout.display == "none"
        assert fake.closed == (0 if loaded else 1)
        assert not any("<progress" in box.value for box in part.answers.values())
        part.close()
    assert part.message.value == ""


def test_the_process_ends_with_another_run_with_one_that_goes_on_and_with_the_panel(make: Make, run: wb.Run) -> None:
    fake = Fake()
    part = make(fake)
    part.ask.click()
    part.update(FINISHED)
    assert fake.closed == 0
    part.update(RUNNING)
    assert fake.closed == 1
    part.update(FINISHED)
    part.ask.click()
    assert fake.started == 2
    part.follow(run)
    assert fake.closed == 2
    part.update(FINISHED)
    part.ask.click()
    part.close()
    assert fake.closed == 3


def test_the_first_prompt_is_the_run_s_and_what_was_typed_stays(run: wb.Run, model: Path, tmp_path: Path) -> None:
    part = TryIt(Immediate(), Fake())
    part.follow(trained(model, tmp_path, sample_prompts=("patriotism, n.",)))
    assert part.prompt.value == "patriotism, n."
    part.prompt.value = "my own"
    part.follow(run)
    assert part.prompt.value == "my own"
    part.close()


@pytest.mark.slow
def test_a_real_process_answers_copy_as_code_says_the_same_and_it_ends_with_the_panel(make: Make, run: wb.Run) -> None:
    processes = []

    def start(*given: Any, **how: Any) -> Any:
        processes.append(answering(*given, **how))
        return processes[0]

    part = make(start)
    part.length.value = 12
    part.ask.click()
    assert part.message.value == ""
    names: dict[str, Any] = {}
    exec(part.copy.code, names)
    for voice in ALL:
        assert html.escape(names["answers"][0][voice].text.strip()) in shown(part, voice)
    pid = processes[0].pid
    part.close()
    assert pid is not None
    assert create_time(pid) is None
