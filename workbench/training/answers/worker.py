"""The process that answers: ``python -m workbench.training.answers.worker DESCRIPTOR PARENT_PID RUN_DIR ADAPTER_DIR IDLE``.

Covers the order of things: the models are loaded once, then one question after the other is answered, until nobody asks any
more. Messages are JSON objects over a socket, each with its kind ``k``. In: ``ask`` (``n``, prompt, sampling, voices) and
``cancel``. Out, with the question's ``n``: ``loading``, ``text``, ``answer``, ``without``, ``error``, ``done``. What the models
do is ``voices``' part; ``process`` is the other end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import RunError, WorkbenchError, to_fields
from workbench.training.answers.values import Answer, Sampling, Voice
from workbench.training.config import TrainConfig
from workbench.training.folder import RunFolder
from workbench.training.watch.endings import ending_of

if TYPE_CHECKING:
    from workbench.training.answers.voices import Voices

_LOOK_EVERY = 0.5
_MEMORY = "Ask for fewer tokens, leave the 16-bit base out, end what else uses this memory, or use a larger machine."
Message = dict[str, Any]


class Answerer:
    """Questions as they come, answered one after the other; a newer one breaks off the one that is being answered."""

    def __init__(self, channel: Connection, run: Path, adapter: Path, idle: float) -> None:
        self._channel, self._run, self._adapter, self._idle = channel, run, adapter, idle
        self._questions: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._wanted: int | None = None  # the newest question that is not cancelled
        self._voices: Voices | None = None

    def listen(self, parent: int) -> None:
        """Takes in what is asked, on a thread of its own; ends the process when its parent is gone."""
        with contextlib.suppress(EOFError, OSError):
            while os.getppid() == parent:
                if not self._channel.poll(_LOOK_EVERY):
                    continue
                message = json.loads(self._channel.recv_bytes())
                self._wanted = message["n"] if message["k"] == "ask" else None
                if message["k"] == "ask":
                    self._questions.put(message)
        os._exit(0)

    def run(self) -> None:
        """Answers until nobody has asked for a while, or the models cannot be loaded."""
        with contextlib.suppress(queue.Empty):
            while True:
                question = self._questions.get(timeout=self._idle)
                if question["n"] == self._wanted and not self._through(question):
                    return

    def _through(self, question: Message) -> bool:
        """Answers one question, or says what went wrong; returns whether there are models to answer the next one."""
        n = question["n"]
        try:
            self._answer(n, question["prompt"], Sampling(**question["sampling"]), [Voice(v) for v in question["voices"]])
        except Exception as error:
            traceback.print_exc()
            self._send("error", n, **_told(error, self._run))
        else:
            self._send("done", n)
        return self._voices is not None

    def _answer(self, n: int, prompt: str, sampling: Sampling, asked: list[Voice]) -> None:
        from workbench.training.answers.voices import Voices

        if self._voices is None:
            config = TrainConfig.from_dict(json.loads(RunFolder(self._run).config.read_text("utf-8")))
            self._voices = Voices(self._run, config, self._adapter)
        for voice in asked:
            if self._wanted != n:
                return
            if not self._voices.has(voice):
                if why := self._voices.lacking():
                    self._send("without", n, why=why)
                    continue
                self._send("loading", n, voice=voice)
                try:
                    self._voices.load_original()
                except Exception as error:
                    if (ending := ending_of(error, {"phase": "load"})).kind != "out_of_memory":
                        raise
                    self._send("without", n, why=f"The 16-bit base is left out. {ending.message}")
                    continue
            answer = self._voices.answer(
                voice, prompt, sampling, lambda: None if self._wanted == n else "cancelled", lambda part: self._tell(n, part)
            )
            self._tell(n, answer)

    def _tell(self, n: int, answer: Answer) -> None:
        self._send("answer", n, **dataclasses.asdict(answer))

    def _send(self, k: str, n: int, **fields: Any) -> None:
        self._channel.send_bytes(json.dumps({"k": k, "n": n, **fields}).encode())


def _told(error: Exception, run: Path) -> dict[str, str]:
    """An error's kind, what was wrong, where, and what to do."""
    if isinstance(error, WorkbenchError):
        return to_fields(error)
    ending = ending_of(error, {"phase": "answer"})
    remedy = _MEMORY if ending.kind == "out_of_memory" else "Try again; if it stays, look at the run's files."
    return to_fields(RunError(ending.message, where=str(run), remedy=remedy))


def main(descriptor: str, parent: str, run: str, adapter: str, idle: str) -> None:
    """Serves one parent, and ends at the latest when it does."""
    answerer = Answerer(Connection(int(descriptor)), Path(run), Path(adapter), float(idle))
    threading.Thread(target=answerer.listen, args=(int(parent),), daemon=True).start()
    answerer.run()
    sys.stderr.flush()
    os._exit(0)  # nothing is left to do, and a library's thread must not keep the process


if __name__ == "__main__":
    main(*sys.argv[1:])
