"""``BitsDial``: what the embedded model says with its weights in 16 to 2 bits, and how far its predictions move."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import workbench as wb
from widgets.background.tasks import at_once, delivery
from widgets.heroes.hero import Hero, among, hero_script
from workbench.cost.ladder import BITS, FORMATS, ROWS, Ladder
from workbench.errors import DataError, RunError

if TYPE_CHECKING:
    import pandas as pd

MOST = 200
"""Characters of a prompt at most."""


class BitsDial(Hero):
    """A dial of bits over a live model: its continuation of a prompt that the reader may change, and KL divergence.

    Every linear layer's weight is quantized to symmetric integers in blocks of 64. KL divergence is from the 16-bit model, in
    nats a token, measured on held-out rows of the example dataset. The model runs on the CPU in a process of its own, which
    ends with ``close``, with the kernel, or after ten minutes without a prompt.

    Args:
        prompt: The text that the model continues.
        bits: Where the dial stands at first.

    Raises:
        FormatError: For bits that it does not have.
        DataError: For a prompt that is empty or too long.

    >>> dial = widgets.BitsDial("to run, v.", bits=2)  # doctest: +SKIP
    """

    _esm = hero_script("bits_dial")
    _ladder: Ladder | None = None

    def __init__(self, prompt: str = "to run, v.", bits: int = 4) -> None:
        among(bits, BITS, "number of bits")
        if not isinstance(prompt, str) or not 0 < len(prompt.strip()) <= MOST:
            raise DataError("There is no such prompt.", where="BitsDial", remedy=f"Give a text of 1 to {MOST} characters.")
        self._known = threading.Condition()
        self._found: dict[str, Any] = {
            "prompt": prompt, "texts": {}, "costs": {}, "done": "", "phase": "loading", "problem": "",
        }  # fmt: skip
        self._deliver = delivery()
        self._ladder = Ladder(self._take)
        super().__init__(dial_data(dict(self._found)), {"bits": bits, "prompt": prompt})
        self.observe(self._moved, "state")
        at_once(self)
        self._ask(self._ladder, prompt)

    def wait(self, seconds: float = 120.0) -> pd.DataFrame:
        """A line for each number of bits, once the prompt on show is continued with all of them.

        Columns: bits, KL divergence in nats a token, share of flipped tokens, relative error of the weights, and the text.

        Raises:
            RunError: Where that takes longer than ``seconds``, or the model's process has ended.
        """
        import pandas as pd

        until, prompt = time.monotonic() + seconds, self.state["prompt"]
        with self._known:
            while self._found["done"] != prompt:
                if self._found["problem"]:
                    raise RunError(self._found["problem"], where="BitsDial", remedy="Show it again.")
                if not self._known.wait(until - time.monotonic()) and time.monotonic() >= until:
                    raise RunError(f"There is no answer within {seconds:g} s.", where="BitsDial", remedy="Wait longer.")
            texts, costs = dict(self._found["texts"]), dict(self._found["costs"])
        lines = [
            {
                "bits": bits, "KL": costs[str(bits)]["kl"], "flips": costs[str(bits)]["flips"],
                "error": costs[str(bits)]["error"], "text": texts[str(bits)],
            }
            for bits in BITS
        ]  # fmt: skip
        return pd.DataFrame(lines)

    def close(self) -> None:
        """End the model's process and free the view; closing twice is harmless."""
        self.unobserve_all()
        if self._ladder is not None:
            self._ladder.close()
        super().close()

    def _moved(self, change: Any) -> None:
        prompt, before = change["new"].get("prompt"), change["old"].get("prompt")
        if self._ladder is not None and prompt != before and isinstance(prompt, str) and 0 < len(prompt.strip()) <= MOST:
            self._ask(self._ladder, prompt)

    def _ask(self, ladder: Ladder, prompt: str) -> None:
        with self._known:
            self._found = {**self._found, "prompt": prompt, "texts": {}, "done": "", "problem": ""}
        self._show()
        ladder.ask(prompt)

    def _take(self, message: dict[str, Any]) -> None:
        """On the thread that reads what the model's process says."""
        kind, found = message.pop("k"), self._found
        with self._known:
            match kind:
                case "loaded":
                    found = {**found, "phase": "answering"}
                case "text" if message["prompt"] == self.state["prompt"]:
                    found = {**found, "texts": {**found["texts"], str(message["bits"]): message["text"]}}
                case "cost":
                    found = {**found, "costs": {**found["costs"], str(message.pop("bits")): message}}
                case "done":
                    found = {**found, "done": message["prompt"], "phase": "answering"}
                case "error":
                    found = {**found, "problem": message["text"]}
            self._found = found
            self._known.notify_all()
        self._show()

    def _show(self) -> None:
        self._deliver(lambda: setattr(self, "data", {**self.data, "found": self._found}))


def dial_data(found: dict[str, Any]) -> dict[str, Any]:
    """What the page draws from: all numbers of bits, and the texts and costs that are ``found`` by now."""
    titles = {str(bits): wb.FORMATS[name].title for bits, name in FORMATS.items()}
    return {"bits": list(BITS), "titles": titles, "rows": ROWS, "most": MOST, "found": found}
