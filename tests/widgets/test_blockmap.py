"""The block map without a browser: what it puts on the wire, and what it answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.helpers.texts import missing
from widgets.drawing.blockmap import MAX_CELLS, NO_BLOCK, NOT_FINITE, TOP, BlockMap

ROWS, COLUMNS = 4096, 172


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).random(ROWS * COLUMNS, dtype=np.float32)


@pytest.fixture
def shown(values: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[BlockMap, list[Any]]]:
    """A map of ``values``, and the content and buffers of every message that it sends."""
    block_map, sent = BlockMap(), list[Any]()
    block_map.show(values, COLUMNS, name="RMSE", summary="RMSE of each block.")
    monkeypatch.setattr(block_map, "send", lambda content, buffers=None: sent.append((content, buffers or [])))
    yield block_map, sent
    block_map.close()


def content(block_map: BlockMap) -> Any:
    return block_map.get_state("_current")["_current"]["content"]["map"]


def codes(view: Any) -> np.ndarray:
    return np.frombuffer(view["cells"]["data"], np.uint8)


def ask(block_map: BlockMap, kind: str, **detail: Any) -> None:
    block_map._handle_custom_msg({"type": kind, "id": "1", "number": content(block_map)["number"]} | detail, [])


def test_the_page_gets_the_whole_map_at_its_own_resolution(shown: tuple[BlockMap, list[Any]], values: np.ndarray) -> None:
    block_map, sent = shown
    ask(block_map, "view", rows=[0, ROWS], columns=[0, COLUMNS], height=344, width=500)
    view = content(block_map)["overview"]
    assert (view["tall"], view["wide"]) == (12, 1)
    table = np.pad(values.reshape(ROWS, COLUMNS), ((0, -ROWS % 12), (0, 0)), constant_values=-1)
    expected = table.reshape(-1, 12, COLUMNS).max(axis=1)
    scaled = (expected - values.min()) / (values.max() - values.min()) * TOP
    assert np.abs(codes(view).reshape(expected.shape) - scaled).max() <= 0.51
    assert sum(len(buffer) for _, buffers in sent for buffer in buffers) <= 300_000
    assert sent[-1] == ({"type": "refined", "id": "1"}, [])
    block_map.show(values * 2, COLUMNS, name="RMSE", summary="Twice that.")
    assert content(block_map)["overview"]["tall"] == 12, "what comes next comes at that resolution at once"


def test_a_part_is_pooled_from_the_exact_values(shown: tuple[BlockMap, list[Any]], values: np.ndarray) -> None:
    block_map, sent = shown
    ask(block_map, "view", rows=[100, 150], columns=[10, 30], height=344, width=500)
    message, [cells] = sent[-1]
    assert message["view"] == {"rows": (100, 150), "columns": (10, 30), "tall": 1, "wide": 1}
    part = values.reshape(ROWS, COLUMNS)[100:150, 10:30]
    scaled = (part - values.min()) / (values.max() - values.min()) * TOP
    assert np.abs(np.frombuffer(cells, np.uint8).reshape(50, 20) - scaled).max() <= 0.51
    ask(block_map, "view", rows=[0, ROWS - 1], columns=[0, COLUMNS], height=10_000, width=10_000)
    assert len(sent[-1][1][0]) <= MAX_CELLS


def test_the_pointer_is_told_the_worst_block_and_a_click_chooses_it(
    shown: tuple[BlockMap, list[Any]], values: np.ndarray
) -> None:
    block_map, sent = shown
    chosen: list[int] = []
    end = block_map.on_select(chosen.append)
    part = values.reshape(ROWS, COLUMNS)[36:48, 7]
    worst = (36 + int(part.argmax())) * COLUMNS + 7
    ask(block_map, "tell", rows=[36, 48], columns=[7, 8])
    row = worst // COLUMNS
    assert not missing(sent[-1][0]["text"], f"row {row}, block 7", f"RMSE {part.max():.4g}", "12 blocks")
    ask(block_map, "pick", rows=[36, 48], columns=[7, 8])
    assert chosen == [worst]
    assert block_map.selected == worst
    end()
    ask(block_map, "pick", rows=[0, 1], columns=[0, 1])
    assert chosen == [worst]
    assert block_map.selected == 0


def test_marking_a_block_sends_no_cells(shown: tuple[BlockMap, list[Any]]) -> None:
    block_map, sent = shown
    block_map.select(10**9)
    [(patch, buffers)] = sent
    assert patch["operations"] == [[["map", "selected"], "set", ROWS * COLUMNS - 1]]
    assert not buffers
    block_map.select(None)
    assert block_map.selected is None


def test_what_is_not_finite_is_not_hidden_by_its_neighbours() -> None:
    block_map = BlockMap()
    values = np.arange(40 * 1000 - 3, dtype=np.float32)
    values[5], values[1000] = np.nan, np.inf
    block_map.show(values, 1000, name="RMSE", unit="V", summary="", rows="line of blocks")
    shown = content(block_map)
    assert (shown["low"], shown["high"], shown["bad"]) == (0, values.size - 1, 2)
    cells = codes(shown["overview"]).reshape(40, -1)
    assert shown["overview"]["wide"] == 3
    assert cells[0, 1] == cells[1, 0] == NOT_FINITE
    assert (cells == NOT_FINITE).sum() == 2
    assert cells[-1, -1] == NO_BLOCK, "the last row is short"
    sent: list[Any] = []
    block_map.send = lambda message, buffers=None: sent.append(message)  # type: ignore[method-assign]
    ask(block_map, "tell", rows=[0, 1], columns=[3, 6])
    assert not missing(sent[-1]["text"], "line 0, block 5", "no finite value", "3 blocks")
    block_map.close()


def test_maps_of_one_value_and_of_none() -> None:
    block_map = BlockMap()
    ask_nothing = {"type": "pick", "number": 0, "rows": [0, 1], "columns": [0, 1]}
    block_map._handle_custom_msg(ask_nothing, [])
    assert block_map.selected is None
    block_map.show(np.full(7, 0.5), 7, name="RMSE", summary="All the same.")
    assert set(codes(content(block_map)["overview"])) == {0}
    block_map.show(np.full(7, np.nan), 7, name="RMSE", summary="No value.")
    assert set(codes(content(block_map)["overview"])) == {NOT_FINITE}
    with pytest.raises(ValueError, match="needs values"):
        block_map.show(np.empty(0), 7, name="RMSE", summary="")
    block_map.close()
    block_map.close()


def test_a_question_about_an_earlier_map_is_not_answered(shown: tuple[BlockMap, list[Any]], values: np.ndarray) -> None:
    block_map, sent = shown
    block_map.show(values[:100], 10, name="RMSE", summary="A smaller one.")
    sent.clear()
    for kind in ("view", "tell", "pick"):
        message = {"type": kind, "id": "1", "number": 1, "rows": [4000, 4001], "columns": [0, 1], "height": 9, "width": 9}
        block_map._handle_custom_msg(message, [])
    assert not sent
    assert block_map.selected is None
