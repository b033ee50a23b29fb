"""A run tried out: a prompt, and the answers of its base and of its adapter side by side, as they are said.

Covers the controls, the answers while they grow, Cancel, and the life of the process that answers: it is loaded with the first
prompt, and ends with the panel, with another run, and when the run goes on. ``workbench.training.answers`` does the work.
"""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor

import ipywidgets

from widgets import code
from widgets.background.tasks import at_once, guard
from widgets.background.work import Work
from widgets.controls.copy_code import CopyCode
from widgets.controls.message import Message
from widgets.controls.prompt_field import PromptField
from widgets.controls.style import column, fields, fold, note, set_fold, set_note
from workbench.errors import DataError, WorkbenchError
from workbench.progress import Cancelled
from workbench.text import counted
from workbench.training.answers.asking import answering, base_title, voices_of
from workbench.training.answers.process import Answering
from workbench.training.answers.values import Answer, Loading, Sampling, Tried, Voice, titles
from workbench.training.config import TrainConfig
from workbench.training.data import sample_prompts
from workbench.training.folder import ENDED, RunStatus
from workbench.training.runs import Run

_EVERY = 0.25
"""Seconds between two pictures of an answer that grows."""
_LONGEST = 4_096


class TryIt:
    """``widget`` shows once the run on show has ended and left an adapter: ``follow`` sets the run, ``update`` its status."""

    def __init__(self, executor: Executor | None = None, start: Callable[..., Answering] = answering) -> None:
        """``start(run, cancelled=…)`` gives the process that answers for a run."""
        self._start = start
        self._run: Run | None = None
        self._config: TrainConfig | None = None
        self._answering: Answering | None = None
        self._lock = threading.Lock()  # of the process, which the working thread starts
        self._suggested = ""
        self._loading: Voice | None = None
        self.message = Message()
        self._work = Work(executor, self._answered, self._failed)
        self._work.on_progress(lambda step: self._idle() if step is None else None)
        self.prompt = PromptField(description="Prompt", placeholder="A prompt that begins as the run's rows do")
        self.ask = ipywidgets.Button(description="Try it", icon="play")
        self.cancel = ipywidgets.Button(description="Cancel", tooltip="Break the answers off")
        self.temperature = ipywidgets.BoundedFloatText(description="Temperature", value=0, min=0, max=10, step=0.1)
        self.seed = ipywidgets.BoundedIntText(description="Seed", value=0, min=0, max=2**31 - 1)
        self.length = ipywidgets.BoundedIntText(description="Length (tokens)", value=64, min=1, max=_LONGEST)
        self.original = ipywidgets.Checkbox(description="16-bit base too", value=True)
        self.answers = {voice: ipywidgets.HTML() for voice in Voice}
        self.status, self.without, self.copy = ipywidgets.HTML(), note(), CopyCode()
        ask, answers = ipywidgets.Box([self.prompt, self.cancel, self.ask]), ipywidgets.Box(list(self.answers.values()))
        settings = column(fields(self.temperature, self.seed, self.length, self.original, width=120), self.copy)
        self._settings = fold("Settings", settings)
        self.widget = ipywidgets.Box([ask, answers, self.without, self.message, self._settings, self.status])
        for box, kind in ((ask, "wb-ask"), (answers, "wb-answers"), (self.widget, "wb-try")):
            box.add_class(kind)
        self.widget.layout.display = "none"
        self.prompt.on_enter(guard(self.message)(self._ask))
        self.ask.on_click(guard(self.message)(lambda _: self._ask()))
        self.cancel.on_click(guard(self.message)(lambda _: self._give_up()))
        at_once(self.cancel)
        for control in (self.prompt, self.temperature, self.seed, self.length, self.original):
            control.observe(lambda _: self._write_code(), "value")
        self._idle()

    @property
    def sampling(self) -> Sampling:
        """How answers are made, as the controls say."""
        return Sampling(self.length.value, self.temperature.value, self.seed.value)

    def follow(self, run: Run) -> None:
        """Another run: nothing is known of it yet, and the process of the one before ends."""
        self._end_process()
        self._work.cancel()
        self._run, self._config = run, run.config
        self.message.clear()
        set_note(self.without, "")
        self.widget.layout.display = "none"
        self.original.layout.display = "" if self._config.method == "qlora" else "none"
        if self.prompt.value in ("", self._suggested):
            self.prompt.value = self._suggested = _first_prompt(self._config)
        self._clear()
        self._write_code()

    def update(self, status: RunStatus) -> None:
        """The run's present status; one that goes on needs the memory that answers take, and will have another adapter."""
        ended = status.state in ENDED
        if not ended:
            self._end_process()
            self._work.cancel()
        there = ended and self._run is not None and self._run.adapter_dir is not None
        self.widget.layout.display = "" if there else "none"

    def close(self) -> None:
        """End the process and the thread."""
        self._run = None
        self._end_process()
        self._work.close()

    # --- asking ---

    def _ask(self) -> None:
        run, prompt, sampling = self._run, self.prompt.value, self.sampling
        assert run is not None  # the controls are hidden until there is one
        assert self._config is not None
        if not prompt.strip():
            raise DataError("there is no prompt.", where="Prompt", remedy="Write one.")
        voices = voices_of(self._config, self.original.value)
        set_note(self.without, "")
        self._clear()
        self.cancel.layout.display = ""
        self._say("Answering.")
        self._work.submit(
            "Answers", "answers", lambda progress, cancelled: self._answer(run, prompt, sampling, voices, cancelled)
        )

    def _answer(self, run: Run, prompt: str, sampling: Sampling, voices: tuple[Voice, ...], cancelled: Cancelled) -> Tried:
        """On the working thread."""
        show = self._paced()
        if self._answering is None:
            show(Loading(voices[0]))  # before the run's files are compared
        return self._process(run, cancelled).ask(prompt, sampling, voices, show, cancelled)

    def _process(self, run: Run, cancelled: Cancelled) -> Answering:
        """The process that answers for this run; a new one where there is none."""
        with self._lock:
            if self._answering is not None:
                return self._answering
        made = self._start(run, cancelled=cancelled)
        with self._lock:
            if run is not self._run:  # another one is on show, or none any more
                raise InterruptedError
            self._answering = made
        return made

    def _end_process(self) -> None:
        with self._lock:
            process, self._answering = self._answering, None
        if process is not None:
            process.close()

    def _give_up(self) -> None:
        """What is loading is not worth its memory now; what is loaded stays."""
        process = self._answering
        if process is None or not process.loaded:
            self._end_process()
        self._work.cancel()
        self._say("Cancelled.")

    # --- showing ---

    def _paced(self) -> Callable[[Answer | Loading], None]:
        """For the working thread: shows what it hears, but of an answer that grows no more than the page takes in."""
        drawn, waiting = 0.0, False

        def hear(heard: Answer | Loading) -> None:
            nonlocal drawn, waiting
            passing = isinstance(heard, Answer) and not heard.complete
            if not passing or (not waiting and time.monotonic() >= drawn + _EVERY):
                drawn, waiting = time.monotonic(), True
                self._work.partly(lambda: show(heard))

        def show(heard: Answer | Loading) -> None:
            nonlocal waiting
            waiting = False
            self._show(heard)

        return hear

    def _show(self, heard: Answer | Loading) -> None:
        self._loads_no_more()
        if isinstance(heard, Loading):
            self._loading = heard.voice
            what = "the 16-bit base" if heard.voice is Voice.ORIGINAL else "the model and its adapter"
            self._draw(heard.voice, f'loading {what} <progress aria-label="Loading {what}"></progress>', quiet=True)
            return
        text = html.escape(heard.text.strip())
        if heard.complete and not text:
            text = f"<small>{'nothing: it ended at once' if heard.ended else 'nothing but blanks'}</small>"
        elif not heard.ended:
            text += " <small>…</small>"
        self._draw(heard.voice, text, heard.figures)

    def _draw(self, voice: Voice, body: str, figures: str = "", quiet: bool = False) -> None:
        """``body`` is HTML."""
        assert self._config is not None
        title = html.escape(titles(base_title(self._config))[voice])
        body = f"<small>{body}</small>" if quiet else body
        self.answers[voice].layout.display = ""
        self.answers[voice].value = (
            f'<section class="wb-answer wb-answer-{voice}" aria-label="{title}" tabindex="0">'
            f"<h4><span>{title}</span><small>{html.escape(figures)}</small></h4><p>{body}</p></section>"
        )

    def _clear(self) -> None:
        """Empty boxes; the third comes with its answer, and stays."""
        for voice in (Voice.BASE, Voice.ADAPTER):
            self._draw(voice, "")
        if not self.original.value or not self.answers[Voice.ORIGINAL].value or self._answering is None:
            self.answers[Voice.ORIGINAL].layout.display = "none"
            self.answers[Voice.ORIGINAL].value = ""
        else:
            self._draw(Voice.ORIGINAL, "")

    def _answered(self, tried: Tried) -> None:
        set_note(self.without, tried.without)
        self._say("; ".join(f"{voice}: {counted(answer.tokens, 'token')}" for voice, answer in tried.answers.items()))

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, InterruptedError):
            self.message.error(error)

    def _idle(self) -> None:
        self.cancel.layout.display = "none"
        self._loads_no_more()

    def _loads_no_more(self) -> None:
        if self._loading is not None:
            self._draw(self._loading, "")
            self._loading = None

    def _say(self, text: str) -> None:
        """To a screen reader."""
        self.status.value = f'<span class="wb-unseen" role="status">{html.escape(text)}</span>'

    def _write_code(self) -> None:
        sampling = self.sampling
        set_fold(self._settings, "Settings", sampling.summary)
        if self._run is not None:
            self.copy.code = code.try_out(self._run.dir, self.prompt.value, sampling, self.original.value)


def _first_prompt(config: TrainConfig) -> str:
    """A prompt to begin with: the first of the run's samples; "" where that would take reading a dataset."""
    if config.sample_prompts is None and config.dataset != "builtin":
        return ""
    try:
        return next(iter(sample_prompts(config)), "")
    except WorkbenchError:  # the rows are not what they were
        return ""
