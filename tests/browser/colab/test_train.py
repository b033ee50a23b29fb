"""A run on a page as Colab's: its rows, its launch, its lanes and result; and Stop, beside an idle kernel and a busy one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.colab.app import App
from tests.browser.colab.conftest import Opener
from tests.helpers.tiny_model import write_tiny_model

pytestmark = pytest.mark.colab

SMALL: dict[str, Any] = {"max_eval_rows": 4, "sample_max_new_tokens": 6, "save_steps": 1000}

BUSY = """
open({gate!r}).read()  # a pipe: until somebody has written to it
print("done")
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("tiny")))


def opened(open_notebook: Opener, model: str, steps: int, **options: Any) -> App:
    book = open_notebook(**options)
    train = SMALL | {"max_steps": steps}
    app = App(book, model, tab="Train", max_length=48, per_device_train_batch_size=2, train=train)
    expect(app.button("Launch")).to_be_enabled()
    return app


@pytest.mark.parametrize(("theme", "told"), [("light", False), ("dark", True)])
def test_a_run_is_watched_to_its_result(open_notebook: Opener, model: str, theme: str, told: bool) -> None:
    app = opened(open_notebook, model, 6, theme=theme, opened=told)
    app.button("Preview rows").click()
    expect(app.pages.locator("mark").first).to_be_visible()
    app.book.shot(f"train-before-{theme}")

    app.button("Launch").click()
    for lane in ("Loss", "Memory", "Phases"):
        expect(app.lane(lane)).to_be_visible()
    expect(app.button("Stop")).to_be_enabled()
    expect(app.button("New run")).to_be_enabled()
    expect(app.pages.get_by_text("loads in plain peft").first).to_be_visible()
    assert app.faint() == []
    app.book.shot(f"train-after-{theme}")


def test_stop_is_taken_at_once_by_an_idle_kernel_and_by_a_busy_one_when_its_cell_ends(
    open_notebook: Opener, model: str, tmp_path: Path
) -> None:
    app = opened(open_notebook, model, 100_000)
    app.button("Launch").click()
    app.until_steps(2)
    app.button("Stop").click()
    expect(app.button("Resume")).to_be_enabled()
    app.book.until("app.train.run.status.state", "'stopped'")

    app.button("Resume").click()
    expect(app.button("Stop")).to_be_enabled()
    gate = tmp_path / "let go"
    os.mkfifo(gate)
    busy = app.book.start(BUSY.format(gate=str(gate)))
    app.button("Stop").click()
    told = app.panel.get_by_role("status").filter(has_text="The kernel is busy with a cell")
    expect(told).to_be_visible()
    assert app.faint() == []
    app.book.shot("train-busy")
    gate.write_text("")
    assert busy() == "done"
    expect(told).to_be_hidden()
    app.book.until("app.train.run.status.state", "'stopped'")
    expect(app.button("Resume")).to_be_enabled()
