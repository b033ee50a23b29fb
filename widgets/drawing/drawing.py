"""``Drawing``: what a plot and a block map have in common, and ``picture``, which turns what is on screen into a PNG.

A drawing's content is a tree that Python and the pages both hold (widgets/drawing/wire.py); a change travels as one patch with
binary buffers, so that a reloaded page, a second tab or a saved notebook shows what is true now. Here are the content, its
summary and error, the reader's events and the picture. What is drawn, and how, is the business of widgets/drawing/plot.py and
widgets/drawing/blockmap.py; drawing.js is the other half of this file.
"""

from __future__ import annotations

import functools
import pathlib
import threading
import uuid
from collections.abc import Callable
from typing import Any

import anywidget
import traitlets

from widgets.background.listeners import Listeners
from widgets.background.tasks import at_once
from widgets.drawing import notebook
from widgets.drawing.wire import detach, diff
from workbench.errors import WorkbenchError

DEFAULT_HEIGHT = 320
_ASKED = 5
"""How often a page is asked for a picture before none is expected any more."""

Callback = Callable[[Any], None]


@functools.cache
def script(*names: str) -> str:
    """The named files of the package ``widgets`` as one JavaScript module or style sheet.

    For ``_esm`` and ``_css``: a path in their place would be watched, and the watcher keeps every widget in memory for good.
    """
    folder = pathlib.Path(__file__).parents[1]
    return "\n".join((folder / name).read_text("utf-8") for name in names)


class Drawing(notebook.Noted, anywidget.AnyWidget):
    """Something drawn on the page, with a summary, an error that may stand over it, events and a picture.

    ``summary`` is the sentence a screen reader gets in place of the drawing; ``height`` in pixels is kept free from the
    start, so that nothing jumps. Methods may be called from any thread.
    """

    _css = script("drawing/colab.css")
    height = traitlets.Int(DEFAULT_HEIGHT).tag(sync=True)
    _key = traitlets.Unicode().tag(sync=True)
    # The state as both sides hold it; its value lives in _state, so that a patch does not also send the whole of it.
    _current = traitlets.Dict().tag(sync=True, to_json=lambda _, drawing: drawing._state)

    def __init__(self, content: dict[str, Any], summary: str, height: int, **traits: Any) -> None:
        self._lock = threading.RLock()
        self._chosen = Listeners()
        self._state: dict[str, Any] = {"revision": 0, "content": content | {"summary": summary, "error": ""}}
        self._pictures: dict[str, tuple[threading.Event, list[bytes | str]]] = {}
        self.made_in = notebook.present_cell()
        super().__init__(height=height, _key=uuid.uuid4().hex, **traits)
        self.on_msg(self._receive)
        at_once(self)

    @property
    def summary(self) -> str:
        """What a screen reader says of the drawing."""
        return str(self._state["content"]["summary"])

    @property
    def error(self) -> str:
        """The message that stands over the drawing, or an empty string."""
        return str(self._state["content"]["error"])

    def fail(self, error: BaseException | str) -> None:
        """Show an error as text over the drawing; it stays until the next ``show``."""
        text = error if isinstance(error, str) else (str(error) or type(error).__name__)
        with self._lock:
            self._become(self._state["content"] | {"error": text})

    def picture(self, seconds: float = 15.0) -> Any:
        """What is on screen as an ``IPython.display.Image``; as a cell's value it stays in the notebook as a PNG.

        Where the kernel gets no message from the page while a cell runs (Colab's, and ipykernel before 7), "Insert picture"
        beside the drawing does the same.

        Raises:
            WorkbenchError: Where no page answers within ``seconds``: none shows the drawing, or none of their messages arrives.
        """
        from IPython.display import Image

        asked, answers = threading.Event(), list[bytes | str]()
        name = uuid.uuid4().hex
        self._pictures[name] = (asked, answers)
        try:
            # Asked again: a page that is still being made does not hear, and what it answers at first may wait for this cell.
            for _ in range(_ASKED):
                self.send({"type": "picture", "id": name})
                if asked.wait(seconds / _ASKED):
                    break
            else:
                raise WorkbenchError(
                    "No page sent a picture.",
                    where=repr(self),
                    remedy="Show the view in a cell first, and use its Insert picture where the kernel is busy with cells.",
                )
        finally:
            del self._pictures[name]
        if isinstance(answers[0], str):
            raise WorkbenchError("The page could not take a picture.", where=repr(self), remedy=answers[0])
        # IPython types its displays in part.
        return Image(data=answers[0], format="png", retina=True, metadata={"alt": self.summary})  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Remove the drawing from every page and free its models; closing twice is harmless."""
        self._chosen.clear()
        layout = self.layout
        super().close()
        if layout is not None:
            layout.close()

    def _become(self, content: dict[str, Any]) -> None:
        """Make ``content`` the current state and send the pages what changed; the caller holds the lock."""
        self._publish(content, diff(self._state["content"], content))

    def _publish(self, content: dict[str, Any], operations: list[list[Any]]) -> None:
        """Make ``content`` the current state and send the pages the operations that lead to it; the caller holds the lock."""
        if not operations:
            return
        before = self._state["revision"]
        self._state = {"revision": before + 1, "content": content}
        buffers: list[bytes] = []
        patch = [[path, verb, *(detach(value, buffers) for value in values)] for path, verb, *values in operations]
        self.send({"type": "patch", "from": before, "to": before + 1, "operations": patch}, buffers)

    def _choose(self, detail: Any) -> None:
        """Call the callbacks with what the reader chose."""
        try:
            self._chosen(detail)
        except Exception as error:  # shown here, because a callback's exception reaches no cell
            self.fail(error)

    def _receive(self, _: Any, message: dict[str, Any], buffers: Any) -> None:
        kind = message.get("type")
        if kind == "hello":  # a page that opened, or missed a patch: send everything unless it is up to date
            with self._lock:
                if message.get("revision") != self._state["revision"]:
                    self.send_state("_current")
                else:
                    self.send({"type": "here"})
        elif kind == "picture" and message.get("id") in self._pictures:
            asked, answers = self._pictures[message["id"]]
            answers.append(bytes(buffers[0]) if buffers else str(message.get("error")))
            asked.set()
        elif kind == "insert" and buffers:
            self.send({"type": "say", "text": notebook.insert_picture(self, bytes(buffers[0]), self.summary)})

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}: {self.summary}" if self.summary else name
