"""The model picker without a browser: what it tells of a model, what it does with one that is far away or cannot be had."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.hub_server import HubServer
from tests.helpers.hubs import sharded, single, weights
from tests.helpers.immediate import Immediate
from tests.helpers.texts import missing
from widgets.background import recents
from widgets.background.pace import Pace, Step
from widgets.controls.progress import ProgressRow
from widgets.panels.model import ModelPicker
from widgets.session import Session

SECONDS = 60


@pytest.fixture
def llamas(hub: HubServer) -> HubServer:
    hub.add("llamas/tiny", sharded(weights(2, 256), 2), card={"license": "apache-2.0"})
    hub.add("llamas/gated", single(weights(1, 64)), gated=True)
    return hub


@pytest.fixture
def picker(llamas: HubServer) -> Iterator[ModelPicker]:
    made = ModelPicker(executor=Immediate())
    yield made
    made.close()


def choose(picker: ModelPicker, name: str) -> None:
    """What a reader does: type a name and press Enter."""
    picker.header._receive(picker.header, {"kind": "open", "value": name}, [])


def test_it_tells_what_the_embedded_model_is_and_what_stays_in_16_bits(picker: ModelPicker) -> None:
    told = picker.summary.value
    for text in ("LlamaForCausalLM", "5.48 million in 56 tensors", "BF16", "Apache-2.0", "comes with the workbench"):
        assert text in told
    assert "an embedding, tied to the output head" in picker.rest.value
    assert "wb-warning" not in picker.rest.value, "nothing of it is unexpected"
    assert picker.table.value.count("<tr>") == 1 + 56


def test_a_model_opens_from_the_hub_and_is_remembered(picker: ModelPicker, llamas: HubServer) -> None:
    choose(picker, "llamas/tiny")
    assert picker.message.value == ""
    assert picker.session.store.value.model == "llamas/tiny"
    assert "apache-2.0" in picker.summary.value
    assert "the Hub, at commit aaaaaaaaaaaa" in picker.summary.value
    assert recents.recent()[0] == "llamas/tiny"
    assert picker.session.analysis is not None
    assert picker.session.analysis.tensor.quantizable


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("llamas/none", "no such model, or it is private"),
        ("llamas/gated", "It is gated"),
        ("/no/such/folder", "There is no such folder"),
        ("", "A model is named by"),
        ("<b>", "There is no such folder"),
    ],
)
def test_what_cannot_be_opened_is_told_and_the_present_model_stays(picker: ModelPicker, name: str, told: str) -> None:
    choose(picker, name)
    assert told in picker.message.value
    assert "<b>" not in picker.message.value
    assert picker.session.store.value.model == "builtin"
    assert picker.header.state["model"] == "builtin"
    choose(picker, "llamas/tiny")
    assert picker.message.value == ""


def test_without_network_it_says_so(picker: ModelPicker, llamas: HubServer) -> None:
    llamas.close()
    choose(picker, "llamas/tiny")
    assert "there is no network" in picker.message.value


def test_a_server_that_gives_no_parts_is_asked_for_whole_files_only_on_a_click(picker: ModelPicker, llamas: HubServer) -> None:
    llamas.fail(server="cdn", ranges=False, times=1_000)
    assert picker.download.layout.display == "none"
    choose(picker, "llamas/tiny")
    assert "would send the whole file" in picker.message.value
    assert picker.download.layout.display == ""
    picker.download.click()
    assert (picker.message.value, picker.download.layout.display) == ("", "none")
    assert picker.session.store.value.model == "llamas/tiny"


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [
        ("mixtral", "model.layers.0.block_sparse_moe.experts.{}.w1.weight", "An expert: fused with the others"),
        ("falcon", "transformer.h.{}.mlp.dense_4h_to_h.weight", "own class (FalconLinear)"),
    ],
)
def test_a_warning_says_what_stays_in_16_bits_though_one_may_not_expect_it(
    picker: ModelPicker, tmp_path: Path, kind: str, name: str, told: str
) -> None:
    (tmp_path / "model").mkdir()
    tensors = {name.format(i): np.ones((128, 1024), np.float16) for i in range(4)}
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": kind}))
    choose(picker, str(tmp_path / "model"))
    assert picker.message.value == ""
    assert told in picker.rest.value.partition("</div>")[0]
    assert not missing(picker.rest.value, "4 tensors", "524,288 weights", "1.05 MB", "778.10 kB more")
    assert "0 weights of 0 tensors" in picker.summary.value


def test_slow_work_is_shown_and_can_be_given_up(llamas: HubServer) -> None:
    """On threads of its own, with a Hub that stalls in the middle of a header."""
    llamas.fail(server="cdn", stall=True, times=1_000)
    session, seen, failed = Session(), threading.Event(), threading.Event()
    row = ProgressRow(session)
    session.on_progress(lambda step: seen.set() if step is not None else None)
    session.load("llamas/tiny", failed=lambda _: failed.set())
    assert seen.wait(SECONDS)
    assert row.layout.display == "flex"
    assert "Opening llamas/tiny" in row.bar.value
    row.button.click()
    assert (row.layout.display, row.bar.value) == ("none", "")
    assert session.store.value.model == "builtin"
    assert not failed.is_set()
    row.close()
    session.close()


def test_progress_is_shown_neither_too_early_nor_when_it_is_no_longer_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Step] = []
    stale: list[bool] = []
    pace = Pace(shown.append, deliver=lambda change: change(), patience=1_000)
    pace.begin("Reading x", "bytes", lambda: bool(stale))
    pace.moved(1, 2)
    assert (pace.look(), shown) == (False, [])
    pace = Pace(shown.append, deliver=lambda change: change(), patience=0)
    pace.begin("Reading <x>", "bytes", lambda: bool(stale))
    pace.moved(1_000_000, 2_000_000)
    assert shown == [Step("Reading <x>", 1_000_000, 2_000_000, "bytes")]
    stale.append(True)
    pace.begin("Reading y", "bytes", lambda: bool(stale))
    assert (pace.look(), len(shown)) == (True, 1)


def test_a_row_escapes_and_counts() -> None:
    session = Session(executor=Immediate())
    row = ProgressRow(session)
    row.show(Step("Reading <x>", 1_000_000, 2_000_000, "bytes"))
    assert "Reading &lt;x&gt;: 1.00 MB of 2.00 MB" in row.bar.value
    assert 'value="1000000" max="2000000"' in row.bar.value
    row.show(Step("Opening y", 0, 0, "headers"))
    assert "Opening y …" in row.bar.value
    row.show(Step("Opening y", 3, 30, "headers"))
    assert "Opening y: 3 of 30 headers" in row.bar.value
    row.close()
    session.close()
