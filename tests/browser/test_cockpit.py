"""The cockpit on a page: all lanes in place from the start, what the crosshair reads, keys, replay, and a run in JupyterLab."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page

import workbench as wb
from tests.browser.alone import DARK, LIGHT
from tests.browser.conftest import Open, Server
from tests.browser.lab import Lab, write_notebook
from tests.helpers.gpu_run import gpu_events
from tests.helpers.immediate import Immediate
from tests.helpers.texts import missing
from tests.helpers.tiny_model import write_tiny_model
from widgets.drawing.cockpit import HEIGHT, Cockpit
from widgets.panels.train import words
from widgets.panels.train.live import RunView
from workbench.training.folder import RunStatus
from workbench.training.results.timeline import Timeline

LANES = ("Loss", "Memory", "Paging", "Phases")
LOW = 270
"""Height of the bar and the lanes of a run that has ended."""


def started() -> Cockpit:
    """As it is from the moment Launch is pressed: no event yet."""
    cockpit = Cockpit()
    actions = list(words.actions(RunStatus("starting")))
    cockpit.begin("a run", state="starting", actions=actions, layers=words.layers(False), total=60, settings="QLoRA on a model")
    return cockpit


def on_gpu(steps: int = 12, **options: Any) -> Cockpit:
    """A run on a GPU that goes on."""
    cockpit, timeline = Cockpit(), Timeline()
    timeline.feed(gpu_events(steps, **options), ended=True)
    cockpit.begin("a run", settings="QLoRA on a model · 60 steps")
    feed(cockpit, timeline)
    return cockpit


def feed(cockpit: Cockpit, timeline: Timeline, **facts: Any) -> None:
    known = {
        "state": "running", "actions": ["edit", "pause", "stop"], "layers": words.layers(True), "total": 60, "left": 100.0,
        "names": timeline.names, "device": "An invented GPU", "forecast": 15.8 * 2**30, "capacity": 14.7 * 2**30,
        "managed": timeline.managed, "measures": True,
    }  # fmt: skip
    cockpit.update(timeline.tails(), **(known | facts))


def recorded() -> Cockpit:
    """The run that comes with the workbench, which has ended."""
    view = RunView(lambda status: None, lambda error: None, Immediate(), offers=("resume", "new"))
    view.follow(wb.recorded_run())
    return view.cockpit


def lane(page: Page, name: str) -> Locator:
    return page.locator(f"[role=img][aria-label^='{name}']")


def boxes(page: Page) -> dict[str, tuple[float, ...]]:
    """Where everything stands that has a name or a place of its own."""
    found: dict[str, tuple[float, ...]] = page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('.wbc-bar > *, .wbc-block, .wbc-lane, .wbc-stage, canvas')]
            .map((e, i) => [`${i} ${e.className}`, e.getBoundingClientRect()])
            .map(([name, b]) => [name, [b.x, b.y, b.width, b.height]]))"""
    )
    return found


def stage(page: Page, what: str) -> str:
    return str(page.evaluate(f"document.querySelector('.wbc-stage').dataset.{what}"))


def point(page: Page, share: float) -> None:
    """Put the pointer over a share of the lanes' width."""
    box = page.locator(".wbc-lanes").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 56 + share * (box["width"] - 62), box["y"] + 180)
    page.wait_for_function("document.querySelector('.wbc-stage').dataset.cursor !== ''")


def block(page: Page, name: str) -> str:
    return page.locator(f".wbc-block.wbc-{name}").inner_text()


def reads(page: Page, name: str, *texts: str) -> None:
    """Wait until a block of the readout says this."""
    for text in texts:
        page.locator(f".wbc-block.wbc-{name}", has_text=text).wait_for()


@pytest.mark.parametrize("width", [1090, 940])
def test_all_lanes_stand_where_they_stay_before_the_first_event_and_while_steps_arrive(open_alone: Open, width: int) -> None:
    cockpit = started()
    alone = open_alone(cockpit, width=width)
    before = {name: lane(alone.page, name).bounding_box() for name in LANES}
    assert "waits for the first" in str(lane(alone.page, "Loss").get_attribute("aria-label"))
    for box in before.values():
        assert box is not None
        assert box["y"] + box["height"] <= HEIGHT
    timeline, events = Timeline(), gpu_events(12)
    for at in range(0, len(events), 200):
        timeline.feed(events[at : at + 200], ended=at + 200 >= len(events))
        feed(cockpit, timeline)
    alone.page.wait_for_function("document.querySelector('.wbc-stage').dataset.steps === '12'")
    alone.page.wait_for_selector("[role=img][aria-label^='Loss: at step']", state="attached")
    assert {name: lane(alone.page, name).bounding_box() for name in LANES} == before
    assert alone.page.locator(".workbench-cockpit").bounding_box()["height"] == HEIGHT  # type: ignore[index]


def test_in_float16_a_strip_under_the_loss_shows_its_scale_and_the_steps_that_were_skipped(open_alone: Open) -> None:
    cockpit = on_gpu(float16=True)
    page = open_alone(cockpit, width=1090).page
    page.wait_for_selector("[role=img][aria-label*='scale of the loss 8,192, steps skipped 3']", state="attached")
    reads(page, "loss", "2.0e-4 · 0.60", "2¹³")
    page.locator(".wbc-lanes").focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    reads(page, "loss", "step 9", "2.0e-4 · skipped")
    if folder := os.environ.get("WORKBENCH_SHOTS"):
        page.screenshot(path=Path(folder) / "float16.png")
    assert "scale" not in str(lane(open_alone(on_gpu(), width=1090).page, "Loss").get_attribute("aria-label"))


@pytest.mark.parametrize("theme", [LIGHT, DARK])
@pytest.mark.parametrize("width", [1090, 940, 720, 480])
def test_nothing_sticks_out_and_every_target_is_large_enough(open_alone: Open, width: int, theme: str) -> None:
    for cockpit in (started(), on_gpu(), on_gpu(float16=True), recorded()):
        page = open_alone(cockpit, width=width, theme=theme).page
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        small = page.evaluate(
            """() => [...document.querySelectorAll('button, input')].filter((e) => e.checkVisibility())
                .map((e) => [e.innerText, e.getBoundingClientRect()]).filter(([, b]) => b.width < 20 || b.height < 20)"""
        )
        assert small == []
        ratio = page.evaluate("document.querySelector('canvas').width / document.querySelector('canvas').clientWidth")
        assert abs(ratio - page.evaluate("devicePixelRatio")) < 0.01


def test_the_crosshair_reads_all_lanes_and_moves_no_box(open_alone: Open) -> None:
    page = open_alone(on_gpu()).page
    before, latest = boxes(page), block(page, "loss")
    point(page, 0.3)
    read = block(page, "loss")
    assert read != latest
    assert "at " in read
    point(page, 0.2)
    assert block(page, "loss") != read
    assert "paged state (inferred)" in block(page, "memory")
    assert "evicted to host" in block(page, "paging")
    assert boxes(page) == before
    page.mouse.move(5, 5)
    page.wait_for_function("document.querySelector('.wbc-stage').dataset.cursor === ''")
    assert block(page, "loss") == latest


def test_paging_is_read_by_the_step(open_alone: Open) -> None:
    page = open_alone(on_gpu()).page
    page.locator(".wbc-lanes").focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")  # from step 12 to step 9, which evicts nothing
    reads(page, "paging", "paging in step 9", "▼ evicted to host0")
    page.keyboard.press("ArrowLeft")
    reads(page, "paging", "paging in step 8", "▼ evicted to host922", "▲ host → GPU922")


def test_the_keyboard_goes_by_steps_zooms_and_follows(open_alone: Open) -> None:
    page = open_alone(on_gpu()).page
    page.locator(".wbc-lanes").focus()
    page.keyboard.press("ArrowLeft")
    reads(page, "loss", "step 12")
    page.keyboard.press("ArrowLeft")
    reads(page, "loss", "step 11")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    reads(page, "loss", "step 12")  # there is no later one
    whole = stage(page, "window")
    page.keyboard.press("+")
    page.wait_for_function("(whole) => document.querySelector('.wbc-stage').dataset.window !== whole", arg=whole)
    page.keyboard.press("End")
    page.wait_for_selector(".wbc-tools button[aria-pressed=true]:text-matches('Follow')")
    page.keyboard.press("Home")
    page.wait_for_function("(whole) => document.querySelector('.wbc-stage').dataset.window === whole", arg=whole)


def test_dragging_zooms_and_a_double_click_shows_the_whole(open_alone: Open) -> None:
    page = open_alone(on_gpu()).page
    whole = stage(page, "window")
    point(page, 0.2)
    page.mouse.down()
    point(page, 0.4)
    page.mouse.up()
    page.wait_for_function("(whole) => document.querySelector('.wbc-stage').dataset.window !== whole", arg=whole)
    from_, to = (float(part) for part in stage(page, "window").split(","))
    begin, end = (float(part) for part in whole.split(","))
    assert (from_, to) == pytest.approx((begin + 0.2 * (end - begin), begin + 0.4 * (end - begin)), rel=0.05)
    page.locator(".wbc-lanes canvas").last.dblclick(position={"x": 300, "y": 100})
    page.wait_for_function("(whole) => document.querySelector('.wbc-stage').dataset.window === whole", arg=whole)


def test_its_buttons_are_those_that_fit_the_state(open_alone: Open) -> None:
    alone = open_alone(on_gpu())
    alone.page.get_by_role("button", name="Pause", exact=True).click()
    alone.page.get_by_role("button", name="Stop", exact=True).click()
    assert [len(alone.sent(kind)) for kind in ("pause", "stop")] == [1, 1]
    assert not alone.page.get_by_role("button", name="Replay").is_visible()
    alone.drawing.update({}, state="stopped", ended=True, actions=["resume", "new"])  # type: ignore[attr-defined]
    alone.page.get_by_role("button", name="Resume", exact=True).click()
    assert len(alone.sent("resume")) == 1
    assert not alone.page.get_by_role("button", name="Stop", exact=True).is_visible()


def test_while_the_model_is_fetched_the_bar_shows_its_bytes(open_alone: Open) -> None:
    cockpit = started()
    fetch = {"done": 1_200_000_000, "total": 5_400_000_000, "left": 140.0, "text": "1.20 GB of 5.40 GB, 30.00 MB/s"}
    cockpit.update({}, state="fetching", fetch=fetch)
    page = open_alone(cockpit).page
    said = page.locator(".wbc-bar").inner_text()
    assert not missing(said, "Fetching the model", "1.20 GB of 5.40 GB, 30.00 MB/s", "2:20 left", "Stop")
    bytes_fetched = page.get_by_role("progressbar", name="Bytes of the model fetched")
    assert bytes_fetched.evaluate("e => e.value / e.max") == pytest.approx(1.2 / 5.4)
    cockpit.update({}, state="running", fetch=None)
    page.get_by_role("progressbar", name="Steps done").wait_for()
    assert not missing(page.locator(".wbc-bar").inner_text(), "Running", "step 0 of 60")


def test_a_run_is_played_again_without_the_kernel(open_alone: Open) -> None:
    alone = open_alone(recorded())
    page = alone.page
    assert page.locator(".workbench-cockpit").bounding_box()["height"] == LOW  # type: ignore[index]
    page.wait_for_selector("text=/recorded on a CPU, /")
    page.get_by_role("button", name="Replay").click()
    page.wait_for_function("document.querySelector('.wbc-stage').dataset.steps === '0'")
    page.wait_for_function("Number(document.querySelector('.wbc-stage').dataset.steps) > 3")
    page.get_by_role("button", name="Hold").click()
    page.get_by_role("slider").fill("20")
    page.wait_for_selector("text=/^0:20 of /")
    held = stage(page, "steps")
    assert 0 < int(held) < 60
    page.get_by_role("button", name="1×").click()
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("(held) => Number(document.querySelector('.wbc-stage').dataset.steps) > held", arg=int(held))
    page.get_by_role("button", name="Close").click()
    page.wait_for_function("document.querySelector('.wbc-stage').dataset.steps === '60'")
    assert {m["type"] for m in page.evaluate("window.sent")} == {"hello"}, "it only greets Python, which does not answer here"


def test_without_a_gpu_the_lane_says_so_and_what_it_shows_is_simulated(open_alone: Open) -> None:
    page = open_alone(recorded()).page
    assert "simulated" in str(lane(page, "Paging").get_attribute("aria-label"))
    assert "host page faults (OS)" in block(page, "paging")


def test_a_missed_patch_is_asked_for_and_mended(open_alone: Open) -> None:
    alone = open_alone(on_gpu(4))
    tell, alone.drawing.send = alone.drawing.send, lambda *_: None  # type: ignore[method-assign]
    alone.drawing.update({}, state="stopping", actions=[])  # type: ignore[attr-defined]
    alone.drawing.send = tell  # type: ignore[method-assign]
    alone.drawing.update({}, state="stopped", ended=True, actions=[])  # type: ignore[attr-defined]
    alone.page.wait_for_function("window.sent.filter((message) => message.type === 'hello').length === 2")
    alone.hear()
    alone.page.wait_for_selector(".wbc-state:text-matches('Stopped')")


def test_a_picture_is_taken_of_it(open_alone: Open) -> None:
    alone = open_alone(on_gpu())
    alone.page.locator(".wbc-lanes").focus()
    alone.page.keyboard.press("p")
    alone.page.wait_for_function("window.sent.some((message) => message.type === 'insert')")
    [picture] = alone.sent("insert")
    assert picture["bytes"][0] > 10_000


CELL = """
import workbench as wb
from widgets import TrainingCell
config = wb.TrainConfig(max_steps={steps}, max_length=48, per_device_train_batch_size=2, max_eval_rows=4, eval_steps=4,
                        sample_prompts=(), save_steps=0)
cell = TrainingCell({model!r}, config=config)
cell
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.slow
def test_a_run_is_seen_from_launch_to_its_end_and_played_again(lab: Lab, lab_server: Server, model: Path) -> None:
    write_notebook(lab_server.folder / "cockpit.ipynb", CELL.format(model=str(model), steps=12))
    lab.page.set_viewport_size({"width": 1280, "height": 2600})
    lab.open("cockpit.ipynb")
    lab.run_all()
    lab.page.get_by_role("button", name="Launch", exact=True).click()
    for name in LANES:
        lane(lab.page, name).wait_for()
    places = {name: lane(lab.page, name).bounding_box() for name in LANES}
    top = lab.page.locator(".workbench-cockpit").bounding_box()
    assert top is not None
    assert all(box["y"] + box["height"] - top["y"] <= 450 for box in places.values() if box)
    lab.until("() => Number(document.querySelector('.wbc-stage').dataset.steps) > 2", 180)
    lab.shot("cockpit-running", ".wb-run-view")
    lab.page.locator(".wbc-lanes").focus()
    for key in ("b", "ArrowLeft", "d", "d"):
        lab.page.keyboard.press(key)
    assert lab.page.locator(".jp-CodeCell").count() == 1, "keys stay here"
    lab.page.wait_for_selector(".wbc-state:text-matches('Finished')", timeout=180_000)
    lab.until("() => document.querySelector('.wbc-stage').dataset.steps === '12'")
    assert "simulated" in str(lane(lab.page, "Paging").get_attribute("aria-label"))
    lab.shot("cockpit-finished", ".wb-run-view")

    lab.theme("JupyterLab Dark")
    lab.until("() => document.querySelector('.workbench-cockpit').dataset.dark === 'true'")
    lab.shot("cockpit-dark", ".wb-run-view")
    lab.theme("JupyterLab Light")

    lab.page.get_by_role("button", name="Replay").click()
    lab.page.get_by_role("button", name="1×").click()
    lab.until("() => Number(document.querySelector('.wbc-stage').dataset.steps) > 2")
    lab.page.get_by_role("button", name="Close").click()
    lab.until("() => document.querySelector('.wbc-stage').dataset.steps === '12'")
    for title in ("Receipt", "Samples", "Batches", "Log", "Settings"):
        lab.page.get_by_role("tab", name=title).click()
    lab.page.get_by_role("table", name="Settings of the run").wait_for()
