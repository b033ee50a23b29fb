"""The ladder of bits: a live model's continuation and its KL divergence at each number of bits, from a process of its own."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import workbench as wb
from workbench.cost import ladder
from workbench.cost.ladder import BITS, FORMATS, Ladder


class Received:
    """What the process says, and the moment when it is done."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._said = threading.Condition()

    def __call__(self, message: dict[str, Any]) -> None:
        with self._said:
            self.messages.append(message)
            self._said.notify_all()

    def until(self, **fields: Any) -> None:
        """Wait for a message with these fields."""
        with self._said:
            assert self._said.wait_for(lambda: any(fields.items() <= message.items() for message in self.messages), 120)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["k"] == kind]


@pytest.fixture(scope="module")
def received() -> Received:
    received = Received()
    process = Ladder(received)
    process.ask("to run, v.")
    received.until(k="done")
    process.ask("music, n.")
    received.until(k="done", prompt="music, n.")
    process.close()
    process.close()
    return received


def test_fewer_bits_move_predictions_and_weights_further(received: Received) -> None:
    costs = {message["bits"]: message for message in received.of("cost")}
    assert tuple(costs) == BITS
    for what in ("kl", "flips", "error"):
        values = [costs[bits][what] for bits in BITS]
        assert values == sorted(values), what
        assert values[0] == 0
    assert costs[4]["kl"] < 0.02 < 0.2 < costs[2]["kl"]
    ratios = [costs[fewer]["kl"] / costs[bits]["kl"] for bits, fewer in ((6, 5), (5, 4), (4, 3), (3, 2))]
    assert 3.5 < min(ratios[:2]) < max(ratios[:2]) < 4.5, "about fourfold with each bit, as notebook 00 says"
    assert 5 < ratios[2] < 6
    assert 12.5 < ratios[3] < 13.5


def test_the_error_is_that_of_every_linear_layer(received: Received) -> None:
    src = wb.open_model("builtin")
    pooled = wb.survey(src, wb.QuantSpec(FORMATS[3], 64), progress=False).to_frame()
    error = np.sqrt((pooled["rmse"] ** 2 * pooled["numel"]).sum() / (pooled["rms"] ** 2 * pooled["numel"]).sum())
    said = next(message["error"] for message in received.of("cost") if message["bits"] == 3)
    assert said == pytest.approx(error, rel=1e-4)


def test_four_bits_say_what_sixteen_do_and_two_do_not(received: Received) -> None:
    texts = {message["bits"]: message["text"] for message in received.of("text") if message["prompt"] == "to run, v."}
    assert texts[8] == texts[16]
    assert texts[4] == texts[16]
    assert texts[2] != texts[16]


class Spoken:
    """Rungs that say what they are asked, and at one number of bits meet a newer prompt."""

    def __init__(self, prompts: queue.SimpleQueue[str], at: int) -> None:
        self._prompts, self._at, self.bits = prompts, at, 0

    def set(self, bits: int) -> None:
        self.bits = bits

    def says(self, prompt: str, asked: Callable[[], object | None]) -> str:
        if prompt == "first" and self.bits == self._at:
            assert asked() is None
            self._prompts.put("second")
            self._prompts.put("third")
            assert asked()
        return prompt

    def costs(self, bits: int) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("at", [BITS[0], BITS[-1]])
def test_the_newest_prompt_breaks_the_older_ones_off_and_is_never_lost(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "IDLE", 0.0)
    prompts: queue.SimpleQueue[str] = queue.SimpleQueue()
    prompts.put("before")
    prompts.put("first")
    received = Received()
    ladder.answer(prompts, Spoken(prompts, at), lambda k, **fields: received({"k": k, **fields}))  # type: ignore[arg-type]
    assert [message["prompt"] for message in received.of("done")] == ["third"]
    said = [(message["prompt"], message["bits"]) for message in received.of("text")]
    assert said == [("first", bits) for bits in BITS[: BITS.index(at)]] + [("third", bits) for bits in BITS]


def test_a_process_that_dies_says_so_and_the_next_prompt_starts_another() -> None:
    received = Received()
    process = Ladder(received)
    process.ask("to run, v.")
    assert process._process is not None
    assert os.getsid(process._process.pid) == process._process.pid, "Ctrl-C in the notebook does not reach it"
    process._process.kill()
    received.until(k="error")
    assert "has ended" in received.of("error")[0]["text"]
    process.close()
    process.ask("a word after its end")
    assert process._process is None
