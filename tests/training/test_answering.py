"""The process that answers for a run: it streams, is broken off, dies by name, and ends when its owner does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.live_runs import until_gone
from tests.helpers.tiny_model import write_tiny_model
from workbench.training.answers.asking import answering
from workbench.training.answers.process import Answering
from workbench.training.answers.values import Answer, Loading, Sampling, Voice
from workbench.training.host import create_time

pytestmark = pytest.mark.slow

PROMPT = "happiness, n."
BOTH = (Voice.BASE, Voice.ADAPTER)
ALL = (*BOTH, Voice.ORIGINAL)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    config = in_process.config_of(write_tiny_model(tmp_path_factory.mktemp("tiny")), max_eval_rows=0, max_steps=3)
    return in_process.ended(in_process.train(config, tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def process(run: wb.Run) -> Iterator[Answering]:
    """One process for all tests that leave it as it was."""
    with answering(run) as process:
        yield process


def test_answers_stream_from_one_process_that_is_loaded_once(process: Answering) -> None:
    heard: list[Answer | Loading] = []
    first = process.ask(PROMPT, Sampling(200), ALL, heard.append)
    pid = process.pid
    partial = [one for one in heard if isinstance(one, Answer) and not one.complete]
    assert {one.voice for one in partial} == set(ALL), "each is heard of before it is whole"
    for voice in BOTH:
        counts = [one.tokens for one in partial if one.voice is voice]
        assert counts == sorted(counts)
    assert Loading(Voice.ORIGINAL) in heard
    heard.clear()
    assert {v: a.text for v, a in process.ask(PROMPT, Sampling(200), ALL, heard.append).answers.items()} == {
        voice: answer.text for voice, answer in first.answers.items()
    }
    assert process.pid == pid
    assert not any(isinstance(one, Loading) for one in heard)


def test_an_answer_is_broken_off_and_the_next_question_answered(process: Answering) -> None:
    process.ask(PROMPT, Sampling(1), BOTH)
    pid, begun = process.pid, threading.Event()
    with pytest.raises(InterruptedError):
        process.ask(PROMPT, Sampling(200), BOTH, lambda heard: begun.set(), begun.is_set)
    again = process.ask(PROMPT, Sampling(3), BOTH)
    assert [answer.tokens for answer in again.answers.values()] == [3, 3]
    assert process.pid == pid, "what is loaded stays"
    with pytest.raises(wb.RunError, match="seconds"):
        process.ask(PROMPT, Sampling(10**6), BOTH, timeout=0.01)


def test_what_is_cancelled_while_it_loads_is_loaded_for_the_next_question(run: wb.Run) -> None:
    with answering(run) as process:
        pids: list[int | None] = []
        with pytest.raises(InterruptedError):
            process.ask(PROMPT, Sampling(200), BOTH, lambda heard: pids.append(process.pid), lambda: bool(pids))
        heard: list[Answer | Loading] = []
        assert process.ask(PROMPT, Sampling(2), BOTH, heard.append)["adapter"].tokens == 2
        assert heard[0] == Loading(Voice.BASE)
        assert [process.pid] == pids


def test_a_process_that_is_killed_is_named_and_the_next_question_starts_another_that_closing_ends(run: wb.Run) -> None:
    with answering(run) as process:
        process.ask(PROMPT, Sampling(1), BOTH)

        def kill(heard: object) -> None:
            if process.pid:
                os.kill(process.pid, signal.SIGKILL)

        with pytest.raises(wb.RunError, match="killed") as died:
            process.ask(PROMPT, Sampling(200), BOTH, kill)
        assert "memory" in died.value.remedy
        assert process.ask(PROMPT, Sampling(2), BOTH)["adapter"].tokens == 2
        another = process.pid
        with pytest.raises(InterruptedError):
            process.ask(PROMPT, Sampling(200), BOTH, lambda heard: process.close())
        assert create_time(another or 0) is None
    assert process.pid is None, "to close it twice is fine"
    with pytest.raises(InterruptedError):
        process.ask(PROMPT, Sampling(1), BOTH)


def test_a_process_that_nobody_asks_ends_and_is_started_again(run: wb.Run) -> None:
    assert run.adapter_dir is not None
    with Answering(run.dir, run.adapter_dir, idle=0.01) as process:
        process.ask(PROMPT, Sampling(1), BOTH)
        first = process.pid
        until_gone(run, first)
        assert process.ask(PROMPT, Sampling(1), BOTH)["base"].tokens == 1
        assert process.pid != first


def test_it_dies_with_its_parent(run: wb.Run) -> None:
    script = (
        "import os, signal, sys\n"
        "from workbench.training.answers.asking import answering\n"
        "from workbench.training.answers.values import Sampling, Voice\n"
        "process = answering(sys.argv[1])\n"
        "process.ask('a', Sampling(1), (Voice.BASE,))\n"
        "print(process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(run.dir)], capture_output=True, text=True)
    until_gone(run, int(done.stdout))
