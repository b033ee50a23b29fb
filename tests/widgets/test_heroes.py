"""The notebooks' heroes without a browser: what Python sends the page, and what it refuses."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import widgets
import workbench as wb
from widgets.heroes.hero import MOST, packed
from workbench.errors import FormatError


@pytest.fixture(scope="module")
def weights() -> NDArray[Any]:
    """A matrix (128, 256) of the embedded model, with an outlier channel."""
    return wb.open_model("builtin").read("model.layers.2.self_attn.k_proj.weight")


HEROES: dict[str, Callable[[NDArray[Any]], Any]] = {
    "levels": widgets.LevelsEditor,
    "block scales": lambda weights: widgets.BlockScales(weights[0]),
    "one weight": widgets.OneWeight,
    "outlier channel": widgets.OutlierChannel,
    "scale bytes": widgets.ScaleBytes,
    "memory boxes": lambda _: widgets.MemoryBoxes(),
    "paging spike": lambda _: widgets.PagingSpike(),
}


@pytest.mark.parametrize("name", HEROES)
def test_a_page_without_jupyter_gets_all_of_it_as_json(name: str, weights: NDArray[Any]) -> None:
    hero = HEROES[name](weights)
    sent = json.dumps([hero.data, hero.state])
    assert len(sent) < 700_000
    assert "export default" in hero._esm
    assert "import " not in hero._esm.replace("import(", "")
    hero.close()
    hero.close()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.int32])
def test_an_array_travels_bit_for_bit(dtype: Any) -> None:
    array = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    node = packed(array)
    back = np.frombuffer(base64.b64decode(node["base64"]), np.dtype(dtype)).reshape(node["shape"])
    assert np.array_equal(back, array)
    assert node["dtype"] == array.dtype.name


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: widgets.LevelsEditor(np.zeros(100, np.float32)), "100 weights cannot be drawn"),
        (lambda: widgets.LevelsEditor(np.zeros(MOST + 64, np.float32)), "cannot be drawn"),
        (lambda: widgets.LevelsEditor(np.full(4096, np.nan, np.float32)), "not finite"),
        (lambda: widgets.LevelsEditor(np.zeros(4100, np.float32)), "no whole blocks of 64"),
        (lambda: widgets.LevelsEditor(np.zeros(4096, np.float32), levels=[0.0, 1.0]), "16 levels"),
        (lambda: widgets.BlockScales(np.zeros(300, np.float32)), "300 weights were given"),
        (lambda: widgets.BlockScales(np.zeros(256, np.float32), size=48), "no block size 48"),
        (lambda: widgets.ScaleBytes(np.zeros(1500, np.float32)), "no whole blocks of 1,024"),
        (lambda: widgets.OneWeight(np.zeros((64, 352), np.float32)), "no rows of whole blocks of 256"),
        (lambda: widgets.OutlierChannel(np.zeros((64, 704), np.float32)), "no whole blocks of 4,096"),
        (lambda: widgets.OutlierChannel(np.ones((64, 256), np.float32), row=64), "no row 64"),
        (lambda: widgets.MemoryBoxes(rank=5), "no rank 5"),
        (lambda: widgets.MemoryBoxes(gpu="abacus"), "abacus"),
    ],
)
def test_what_cannot_be_shown_says_why(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(wb.WorkbenchError, match=said) as found:
        make()
    assert isinstance(found.value, FormatError | wb.ConfigError)


def test_the_levels_can_be_registered_as_a_format(weights: NDArray[Any]) -> None:
    editor = widgets.LevelsEditor(weights)
    assert np.array_equal(np.float32(editor.levels), wb.FORMATS["nf4"].levels)
    editor.state = {"levels": [*editor.levels[:8], 0.05, *editor.levels[9:]]}
    assert editor.levels[8] == 0.05


def test_the_outlier_is_where_it_was_dragged(weights: NDArray[Any]) -> None:
    view = widgets.BlockScales(weights[0])
    view.state = {"outlier": 60.0, "size": 256}
    moved = np.flatnonzero(view.weights != weights[0].astype(np.float32))
    assert moved.tolist() == [150]
    assert view.weights[150] < -50 * np.delete(view.weights, 150).std()
    found = wb.measure(view.weights, wb.QuantSpec("int4", 256))
    assert found.occupancy[8] == 255, "every other weight becomes 0"


def test_the_boxes_are_the_forecast() -> None:
    boxes = widgets.MemoryBoxes()
    model = boxes.data["models"][0]
    ledger = wb.forecast(
        wb.PublishedShapes(model["name"]),
        wb.TrainConfig(method="qlora", lora_r=64, upcast_to_fp32=True, per_device_train_batch_size=1, max_length=512),
    )
    found = model["found"]["QLoRA, fp32 head 64"]
    assert found["total"] == ledger.total == sum(found["parts"])
    shown = dict(zip(boxes.data["parts"], found["parts"], strict=True))
    assert shown["weights in fp32"] == ledger["weights upcast to fp32"] > shown["4-bit weights"] == ledger["4-bit weights"]
    assert found["verdicts"] == [wb.fit(ledger, gpu).verdict for gpu in wb.GPUS]


def test_the_spike_is_the_simulation() -> None:
    spike = widgets.PagingSpike()
    found = spike.data["found"][spike.data["lengths"].index(3072)]
    config = wb.TrainConfig(lora_r=64, max_length=3072, per_device_train_batch_size=1, optim="paged_adamw_32bit")
    told = wb.simulate_paging(wb.PublishedShapes("meta-llama/Llama-3.1-8B-Instruct"), config, 10 << 30)
    assert found["seconds"] == told.bus_seconds > 0
    assert found["evicted"] == told.per_step[-1, 1]
    assert found["least"] > 10 << 30 > found["paged_least"], "without paging it ends, with paging it does not"


def test_what_is_saved_on_a_model_of_7_billion_is_computed_from_its_shapes(weights: NDArray[Any]) -> None:
    data = widgets.ScaleBytes(weights).data
    at = data["sizes"].index(64)
    saved = data["plain"][at] - data["double"][at]
    assert saved == wb.savings_of_published(64, 256)["huggyllama/llama-7b"].saved
    assert f"{saved / 1e6:.0f}" == "302"


class Said:
    """A ladder that answers when the test has it answer."""

    def __init__(self, receive: Callable[[dict[str, Any]], object]) -> None:
        self.receive, self.asked, self.closed = receive, list[str](), False

    def ask(self, prompt: str) -> None:
        self.asked.append(prompt)

    def close(self) -> None:
        self.closed = True

    def answer(self, prompt: str) -> None:
        for bits in (16, 8, 6, 5, 4, 3, 2):
            self.receive({"k": "text", "prompt": prompt, "bits": bits, "text": f" {bits}"})
            self.receive({"k": "cost", "bits": bits, "kl": 1 / bits, "flips": 0.0, "error": 0.0, "tokens": 9})
        self.receive({"k": "done", "prompt": prompt})


@pytest.fixture
def dial(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("widgets.heroes.bits_dial.Ladder", Said)
    return widgets.BitsDial("one")


def test_the_dial_shows_what_is_known_and_waits_for_the_rest(dial: Any) -> None:
    ladder = dial._ladder
    assert ladder.asked == ["one"]
    assert dial.data["found"]["phase"] == "loading"
    ladder.answer("one")
    assert dial.data["found"]["texts"]["4"] == " 4"
    assert dial.wait(0.1)["bits"].tolist() == [16, 8, 6, 5, 4, 3, 2]


def test_another_prompt_keeps_the_costs_and_drops_late_texts(dial: Any) -> None:
    ladder = dial._ladder
    ladder.answer("one")
    dial.state = {**dial.state, "prompt": "two"}
    ladder.receive({"k": "text", "prompt": "one", "bits": 2, "text": "late"})
    assert ladder.asked == ["one", "two"]
    assert dial.data["found"]["texts"] == {}
    assert dial.data["found"]["costs"]["2"]["kl"] == 0.5
    with pytest.raises(wb.WorkbenchError, match="no answer within"):
        dial.wait(0.01)
    dial.state = {**dial.state, "prompt": "   "}
    assert ladder.asked == ["one", "two"], "a prompt of nothing is not asked"


def test_a_model_that_cannot_be_run_is_said(dial: Any) -> None:
    dial._ladder.receive({"k": "error", "text": "The process that runs the model has ended."})
    assert dial.data["found"]["problem"]
    with pytest.raises(wb.WorkbenchError, match="has ended"):
        dial.wait(1)
    dial.close()
    assert dial._ladder.closed


@pytest.mark.parametrize("prompt", ["", "  ", "x" * 201, None])
def test_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(wb.WorkbenchError, match="no such prompt"):
        widgets.BitsDial(prompt)
