"""The plot host without a browser: what it puts on the wire, and that both ends agree on the figure."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import living
from widgets.drawing.plot import Plot, PlotlyLibrary
from widgets.drawing.wire import ARRAY, detach, diff, encode, encode_figure


class Wire(list[tuple[dict[str, Any], list[bytes]]]):
    """Records what a plot sends."""

    def __init__(self, plot: Plot, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        monkeypatch.setattr(plot, "_send", lambda message, buffers=None: self.append((message, list(buffers or []))))

    def patches(self) -> list[tuple[list[Any], list[bytes]]]:
        """The operations of each patch, and its buffers."""
        return [
            (message["content"]["operations"], buffers)
            for message, buffers in self
            if message["method"] == "custom" and message["content"]["type"] == "patch"
        ]


@pytest.fixture
def plot() -> Iterator[Plot]:
    x = np.arange(1000, dtype=np.float32)
    plot = Plot(go.Figure([go.Scatter(x=x, y=np.sin(x)), go.Bar(y=[1, 2, 3])]), summary="A line and three bars.")
    yield plot
    plot.close()


def apply(tree: Any, operations: list[list[Any]], buffers: list[bytes]) -> Any:
    """What plot.js does with a patch."""

    def attach(value: Any) -> Any:
        if isinstance(value, dict) and ARRAY in value:
            return {ARRAY: value[ARRAY], "shape": value["shape"], "data": buffers[value["buffer"]]}
        if isinstance(value, dict):
            return {key: attach(item) for key, item in value.items()}
        return [attach(item) for item in value] if isinstance(value, list) else value

    tree = copy.deepcopy(tree)
    for path, verb, *values in operations:
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        key = path[-1]
        if verb == "set" and isinstance(parent, list) and key == len(parent):
            parent.append(attach(values[0]))
        elif verb == "set":
            parent[key] = attach(values[0])
        elif verb == "del":
            del parent[key]
        elif verb == "tail":
            start, rest = values[0], attach(values[1])
            kept = parent[key]["data"][: start * np.dtype(parent[key][ARRAY]).itemsize]
            parent[key] = parent[key] | {"shape": [start + rest["shape"][0]], "data": kept + rest["data"]}
        else:
            del parent[key][values[0] :]
    return tree


def test_arrays_travel_as_bytes_of_the_narrowest_safe_type() -> None:
    assert encode(np.arange(3, dtype=np.int64)) == {
        ARRAY: "int32",
        "shape": [3],
        "data": np.arange(3, dtype=np.int32).tobytes(),
    }
    assert encode(np.array([2**40]))[ARRAY] == "float64"
    assert encode(np.array([], dtype=np.int64))["data"] == b""
    assert encode(np.array([True, False]))[ARRAY] == "uint8"
    assert encode(np.ones((2, 3), dtype=np.float16)[:, ::2]) | {"data": b""} == {ARRAY: "float32", "shape": [2, 2], "data": b""}
    assert encode(np.ones((2, 2, 2))) == [[[1.0, 1.0], [1.0, 1.0]]] * 2
    assert encode(np.array(["a", None], dtype=object)) == ["a", None]
    assert encode(np.array(["2026-01-02", "NaT"], dtype="datetime64[D]")) == ["2026-01-02", None]


def test_scalars_become_json() -> None:
    assert encode({"a": (np.float32(0.5), np.int8(3), float("nan"), float("inf"), None, "x", True)}) == {
        "a": [0.5, 3, None, None, None, "x", True]
    }
    with pytest.raises(TypeError, match="cannot hold a object"):
        encode({"a": object()})


def test_plotlys_base64_arrays_become_binary() -> None:
    figure = go.Figure(go.Heatmap(z=np.arange(6, dtype=np.float32).reshape(2, 3)))
    node = encode_figure(json.loads(figure.to_json()))["data"][0]["z"]
    if isinstance(node, dict):  # before plotly 6 its JSON holds plain lists
        assert node == encode(np.arange(6, dtype=np.float32).reshape(2, 3))


def test_the_default_template_gives_way_to_the_page_and_a_chosen_one_stays() -> None:
    assert "template" not in encode_figure(go.Figure(layout={"title": "x"}))["layout"]
    assert encode_figure(go.Figure(layout={"template": "plotly_dark"}))["layout"]["template"]["layout"]["paper_bgcolor"]
    assert encode_figure({"layout": {"template": "ggplot2"}})["layout"]["template"]["layout"]["plot_bgcolor"]


def test_ten_plots_refer_to_one_library(monkeypatch: pytest.MonkeyPatch) -> None:
    plots = [Plot({}) for _ in range(10)]
    states = [plot.get_state() for plot in plots]
    assert len({state["library"] for state in states}) == 1
    assert sum(len(str(state)) for state in states) < 400_000, "plotly.js is in none of them"
    library, sent = PlotlyLibrary.shared(), list[Any]()
    assert len(str(library.get_state())) < 40_000, "a notebook that is saved with its widgets stays small"
    monkeypatch.setattr(library, "send", lambda content, buffers=(): sent.append((content, *buffers)))
    library._handle_custom_msg(
        {"type": "hello"}, []
    )  # repeated by the page until it is heard, which plotly.js is too large for
    library._handle_custom_msg({"type": "plotly"}, [])
    here, (content, gzipped) = sent
    assert here == ({"type": "here"},)
    assert (content, gzipped[:2]) == ({"type": "plotly"}, b"\x1f\x8b")
    for plot in plots:
        plot.close()


def test_a_closed_library_is_made_anew() -> None:
    old = PlotlyLibrary.shared()
    old.close()
    plot = Plot({})
    assert plot.library is not old
    plot.close()


def test_show_sends_what_changed_and_nothing_else(plot: Plot, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(plot, monkeypatch)
    x = np.arange(1000, dtype=np.float32)
    plot.show(go.Figure([go.Scatter(x=x, y=np.cos(x)), go.Bar(y=[1, 2, 3])]))
    [(operations, buffers)] = wire.patches()
    assert [(path, verb) for path, verb, _ in operations] == [(["data", 0, "y"], "set")]
    assert [len(buffer) for buffer in buffers] == [4000]
    plot.show(go.Figure([go.Scatter(x=x, y=np.cos(x)), go.Bar(y=[1, 2, 3])]))
    assert len(wire) == 1, "the same figure again sends nothing"


def test_an_array_that_its_owner_changed_in_place_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    y = np.zeros(8)
    plot = Plot({"data": [{"y": y}]})
    wire = Wire(plot, monkeypatch)
    y[3] = 1
    plot.show({"data": [{"y": y}]})
    assert len(wire.patches()) == 1
    plot.close()


def test_a_growing_curve_sends_only_its_new_end(monkeypatch: pytest.MonkeyPatch) -> None:
    y = np.arange(1000, dtype=np.float32)
    plot = Plot({"data": [{"y": y[:990]}]})
    wire = Wire(plot, monkeypatch)
    plot.show({"data": [{"y": y}]})
    [([[path, verb, start, _]], buffers)] = wire.patches()
    assert (path, verb, start) == (["data", 0, "y"], "tail", 990)
    assert [len(buffer) for buffer in buffers] == [40]
    plot.close()


def test_traces_come_and_go(plot: Plot, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = Wire(plot, monkeypatch)
    before = copy.deepcopy(plot.get_state("_current")["_current"]["content"])
    plot.show({"data": [{"type": "bar", "y": [1.0]}], "layout": {"title": {"text": "now"}}}, summary="One bar.")
    [(operations, buffers)] = wire.patches()
    after = plot.get_state("_current")["_current"]["content"]
    assert apply(before, operations, buffers) == after
    assert after["summary"] == plot.summary == "One bar."
    assert repr(plot) == "Plot: One bar."


leaves = st.none() | st.integers(2, 5) | st.sampled_from(["a", "b"])
arrays = st.lists(st.integers(0, 1), max_size=6).map(lambda items: encode(np.array(items, dtype=np.int16)))
trees = st.recursive(
    leaves | arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("pqr"), inner, max_size=3),
    max_leaves=12,
)


@given(st.fixed_dictionaries({"data": trees, "layout": trees}), st.fixed_dictionaries({"data": trees, "layout": trees}))
def test_a_patch_turns_any_tree_into_any_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    buffers: list[bytes] = []
    operations = [[path, verb, *(detach(value, buffers) for value in values)] for path, verb, *values in diff(old, new)]
    json.dumps(operations)
    assert apply(old, operations, buffers) == new
    assert not diff(new, new)


def test_a_page_that_missed_a_patch_is_sent_everything(plot: Plot, monkeypatch: pytest.MonkeyPatch) -> None:
    plot.show({"data": []})
    wire = Wire(plot, monkeypatch)
    plot._handle_custom_msg({"type": "hello", "revision": 1}, [])
    assert [message["content"] for message, _ in wire] == [{"type": "here"}], "it is up to date"
    plot._handle_custom_msg({"type": "hello", "revision": 0}, [])
    assert wire[1][0]["method"] == "update"
    assert wire[1][0]["state"]["_current"]["revision"] == 1


def test_events_reach_their_callbacks_until_they_are_unsubscribed(plot: Plot) -> None:
    seen: list[Any] = []
    unsubscribe = plot.on_click(seen.append)
    plot._handle_custom_msg({"type": "click", "detail": {"curve": 0, "index": 4}}, [])
    plot._handle_custom_msg({"type": "hover", "detail": {}}, [])
    unsubscribe()
    unsubscribe()
    plot._handle_custom_msg({"type": "click", "detail": {"curve": 0, "index": 5}}, [])
    assert seen == [{"curve": 0, "index": 4}]


def test_a_failing_callback_shows_in_the_plot_until_the_next_figure(plot: Plot) -> None:
    plot.on_click(lambda point: point["missing"])
    plot._handle_custom_msg({"type": "click", "detail": {}}, [])
    assert "missing" in plot.error
    plot.show({})
    assert plot.error == ""


def test_a_plot_that_waits_has_no_figure_and_says_for_what() -> None:
    plot = Plot(height=100, waiting="Still to come.")
    content = plot.get_state("_current")["_current"]["content"]
    assert (content["data"], content["layout"], content["waiting"]) == ([], {}, "Still to come.")
    plot.show({"data": [{"y": [1]}]}, "A point.")
    assert plot.get_state("_current")["_current"]["content"]["waiting"] == ""
    plot.fail("wrong")
    plot.wait("There is none.")
    content = plot.get_state("_current")["_current"]["content"]
    assert (content["data"], content["waiting"], plot.summary, plot.error) == ([], "There is none.", "There is none.", "")
    plot.close()


def test_the_figures_own_height_is_the_place_it_takes() -> None:
    for plot, height in (
        (Plot({"layout": {"height": 500}}), 500),
        (Plot({}), 320),
        (Plot({"layout": {"height": 500}}, height=200), 200),
    ):
        assert plot.height == height
        assert "height" not in plot.get_state("_current")["_current"]["content"]["layout"]
        plot.close()


def test_closing_frees_every_model_and_may_be_repeated() -> None:
    PlotlyLibrary.shared()
    gc.collect()
    before = living.widgets()
    for _ in range(20):
        plot = Plot(go.Figure(go.Scatter(y=[1, 2])))
        plot.on_click(print)
        plot.close()
        plot.close()
        plot.show({"data": [{"y": [1]}]})  # after the end: harmless
    assert living.widgets() == before
