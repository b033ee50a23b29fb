"""The ladder of bits: a live model's continuation and its KL divergence at each number of bits, from a process of its own."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import workbench as wb
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
    ladder = Ladder(received)
    ladder.ask("to run, v.")
    received.until(k="done")
    ladder.ask("music, n.")
    received.until(k="done", prompt="music, n.")
    ladder.close()
    ladder.close()
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


def test_a_process_that_dies_says_so_and_the_next_prompt_starts_another() -> None:
    received = Received()
    ladder = Ladder(received)
    ladder.ask("to run, v.")
    assert ladder._process is not None
    ladder._process.kill()
    received.until(k="error")
    assert "has ended" in received.of("error")[0]["text"]
    ladder.close()
    ladder.ask("a word after its end")
    assert ladder._process is None
