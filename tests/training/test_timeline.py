"""A run's events as rows on one clock: each comes once, in order of time, and memory adds up to what was sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.gpu_run import GIB, MANAGED, gpu_events
from workbench.memory.ledger import ADAPTERS, BASE, LIVE, OPTIMIZER, PAGED, SCALES, SPARE
from workbench.training.recorded import recorded_run
from workbench.training.results.timeline import BELOW, END_ALL, LAYERS, MOVES, Timeline

SECOND = 10**9


def event(k: str, t: float, attempt: int = 1, **fields: Any) -> dict[str, Any]:
    return {"k": k, "t": int(t * SECOND), "seq": 0, "attempt": attempt, **fields}


def sample(t: float, rss: float, attempt: int = 1, **fields: Any) -> dict[str, Any]:
    return event("sample", t, attempt, source="worker", rss=rss, **fields)


def page(t: float, end: float, direction: str, cause: str, size: int) -> dict[str, Any]:
    return event(
        "page", t, source="cupti", direction=direction, cause=cause, bytes=size, count=1, start=0, end=int(end * SECOND)
    )


def rows(*events: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    timeline = Timeline()
    timeline.feed(events, ended=True)
    return timeline.tails()


def stacks(tails: dict[str, dict[str, np.ndarray]]) -> list[dict[str, float]]:
    """Of each sample the layers that hold something."""
    samples = tails["samples"]
    held = [{layer: float(samples[layer][i]) for layer in LAYERS} for i in range(len(samples["t"]))]
    return [{layer: size for layer, size in stack.items() if size} for stack in held]


def test_memory_of_a_cpu_run_lies_on_what_the_libraries_take_by_what_holds_it() -> None:
    tails = rows(
        sample(1, 300e6), event("memory", 2, moment="libraries", rss=400e6), sample(2.5, 440e6),
        event("memory", 3, moment="load", held={"4-bit weights": 20e6, "weights upcast to fp32": 10e6, "codebooks": 1e6}),
        sample(4, 450e6), event("memory", 5, moment="attach", held={"4-bit weights": 30e6, "adapters": 5e6}), sample(6, 500e6),
        event("sample", 7, source="supervisor", rss=501e6),
    )  # fmt: skip
    assert stacks(tails) == [
        {BELOW: 300e6},
        {BELOW: 400e6, BASE: 40e6},
        {BELOW: 400e6, BASE: 30e6, SCALES: 1e6, LIVE: 19e6},
        {BELOW: 400e6, BASE: 30e6, ADAPTERS: 5e6, LIVE: 65e6},
    ], "until something was walked all above the libraries is the model being loaded"
    assert tails["samples"]["t"].tolist() == [0, 1.5, 3, 5]


def test_memory_of_a_gpu_adds_up_to_what_nvml_tells() -> None:
    gpu = {"allocated": 2e9, "reserved": 3e9, "nvml_used": 5e9, "nvml_total": 16e9, "managed": 1e9}
    [stack] = stacks(rows(event("memory", 0, moment="load", held={"4-bit weights": 1e9}), sample(1, 5e8, **gpu)))
    assert stack == pytest.approx({BELOW: 1e9, BASE: 1e9, LIVE: 1e9, PAGED: 1e9, SPARE: 1e9})
    assert sum(stack.values()) == pytest.approx(gpu["nvml_used"])


def test_paged_state_on_the_gpu_is_inferred_from_what_left_and_what_came_back() -> None:
    gpu = {"allocated": 2e9, "reserved": 2e9, "managed": 1e9}
    hello = event("hello", 0, capabilities={"cupti": {"works": True}})
    held = event("memory", 1, moment="step", held={"4-bit weights": 1e9, "optimizer state": 2e8, PAGED: 1e9})
    tails = rows(
        hello, held, sample(2, 5e8, **gpu), sample(3, 5e8, **gpu), sample(4, 5e8, **gpu),
        page(3.1, 2.5, "d2h", "eviction", 700_000_000), page(3.2, 2.6, "d2h", "coherence", 500_000_000),
        page(4.1, 3.5, "h2d", "prefetch", 400_000_000),
    )  # fmt: skip
    assert [stack.get(PAGED, 0) for stack in stacks(tails)] == pytest.approx([1e9, 0, 4e8]), "never below nothing"
    assert {stack[OPTIMIZER] for stack in stacks(tails)} == {np.float32(2e8)}, "what is not paged is allocated as ever"
    kinds = [MOVES[kind] for kind in tails["pages"]["kind"]]
    assert (kinds, tails["pages"]["t"].tolist()) == (["evicted", "d2h", "h2d"], [2.5, np.float32(2.6), 3.5]), "when they moved"


def test_what_cupti_tells_late_still_comes_in_order() -> None:
    timeline = Timeline()
    timeline.feed([event("hello", 0, capabilities={"cupti": {"works": True}}), sample(1, 1), sample(2, 1)])
    timeline.feed([page(2.3, 1.9, "d2h", "eviction", 1), sample(2.4, 1)])
    first = timeline.tails()
    assert first["pages"]["t"].tolist() == [np.float32(1.9)]
    assert first["samples"]["t"].tolist() == [1], "later ones wait for what may have moved meanwhile"
    timeline.feed([], ended=True)
    assert timeline.tails()["samples"]["t"].tolist() == [2, np.float32(2.4)]


def test_a_resumed_run_goes_on_where_it_was_last_seen_with_nothing_left_open() -> None:
    tails = rows(
        event("phase", 1000, name="train", edge="begin"), event("step", 1010, n=1, loss=2.0),
        event("step", 1020, n=2, loss=None), event("phase", 5000, 2, name="import", edge="begin"), sample(5001, 3e8, 2),
        event("step", 5010, 2, n=2, loss=1.5),
    )  # fmt: skip
    assert tails["steps"]["t"].tolist() == [10, 20, 30]
    assert tails["steps"]["n"].tolist() == [1, 2, 2], "a step that was taken again is there twice, each at its time"
    assert np.isnan(tails["steps"]["loss"][1])
    assert tails["phases"]["edge"].tolist() == [0, END_ALL, 0]
    assert stacks(tails) == [{BELOW: np.float32(3e8)}]


def test_an_invented_gpu_run_evicts_what_it_brings_back() -> None:
    tails = rows(*gpu_events(12))
    moved = {kind: tails["pages"]["amount"][tails["pages"]["kind"] == i].sum() for i, kind in enumerate(MOVES)}
    assert moved["evicted"] == moved["h2d"] > 0
    assert moved["requested"] == pytest.approx(12 * MANAGED)
    resident = tails["samples"][PAGED]
    assert resident.max() == MANAGED
    assert 0 < resident[tails["samples"]["t"] > 40].min() < MANAGED - GIB / 2


@given(st.lists(st.integers(1, 40), max_size=8))
def test_each_row_comes_once_whatever_the_pieces(pieces: list[int]) -> None:
    events, whole, timeline = recorded_run().events()[:200], Timeline(), Timeline()
    whole.feed(events)
    parts, at = [], 0
    for size in [*pieces, len(events)]:
        timeline.feed(events[at : at + size])
        at += size
        parts.append(timeline.tails())
    assert timeline.names == whole.names
    for table, columns in whole.tails().items():
        for name, column in columns.items():
            pieced = np.concatenate([part[table][name] for part in parts if table in part])
            np.testing.assert_array_equal(pieced, column)
