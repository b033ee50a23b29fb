"""The notebooks' heroes on a plain page, without Jupyter: what is dragged, what follows, and that it is what Python computes.

Their scripts run on a model of which only ``get`` and ``set`` are there, as a page without a kernel has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

import widgets
import workbench as wb
from tests.browser.alone import DARK, LIGHT
from tests.widgets.test_heroes import Said
from widgets.heroes.block_scales import PLACE
from widgets.heroes.hero import Hero

K_PROJ = "model.layers.2.self_attn.k_proj.weight"

_PAGE = """<!doctype html><meta charset="utf-8"><style>body { margin: 8px; background: var(--jp-layout-color1); }
[data-jp-theme-light="true"] { --jp-layout-color1: #fff; --jp-ui-font-color1: rgba(0,0,0,.87); }
[data-jp-theme-light="false"] { --jp-layout-color1: #111; --jp-ui-font-color1: #fff; }
%s</style><body data-jp-theme-light="true"><div id="place"></div></body>"""

_OPEN = """async ([source, data, state]) => {
    const traits = { data, state }, { default: hero } = await import(
        URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    let follow;
    window.traits = traits;
    window.place = (state) => { traits.state = state; follow(); };
    const model = {
        get: (name) => traits[name],
        set: (name, value) => { traits[name] = value; },
        on: (_, call) => { follow = call; },
    };
    window.end = hero.render({ model, el: document.getElementById("place") });
}"""


class Alone:
    """A hero on a page."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(error.stack or str(error)))

    def open(self, hero: Hero, width: int = 960) -> None:
        """Show another hero, from the start."""
        self.page.set_viewport_size({"width": width, "height": 640})
        self.page.goto("about:blank")
        self.page.set_content(_PAGE % hero._css)
        self.page.evaluate(_OPEN, [hero._esm, hero.data, hero.state])
        self.page.wait_for_function("Number(document.querySelector('.wb-hero')?.dataset.drawn) >= 1")
        hero.close()

    def shown(self) -> dict[str, str]:
        """What the picture comes to, once all that was asked for is drawn."""
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return dict(self.page.evaluate("({ ...document.querySelector('.wb-hero-body').dataset })"))

    def at(self, **state: Any) -> dict[str, str]:
        """What it comes to with the handles there."""
        self.page.evaluate("(state) => window.place(state)", state)
        return self.shown()

    def state(self) -> dict[str, Any]:
        """What Python would receive."""
        return dict(self.page.evaluate("window.traits.state"))

    def slider(self, name: str) -> Any:
        return self.page.get_by_role("slider", name=name, exact=True)

    def drag(self, name: str, right: float = 0, down: float = 0) -> None:
        """Take hold of a handle and let go of it elsewhere, in pixels."""
        box = self.slider(name).locator(".wb-grip").bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + right, y + down, steps=4)
        self.page.mouse.up()

    def pull(self, name: str, to: float) -> None:
        """Drag the thumb of a range to this share of its width."""
        slider = self.slider(name)
        box = slider.bounding_box()
        assert box is not None
        at = slider.evaluate("(range) => (range.value - range.min) / (range.max - range.min)")
        thumb = 16.0
        x, y = box["x"] + thumb / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x + at * (box["width"] - thumb), y)
        self.page.mouse.down()
        self.page.mouse.move(x + to * (box["width"] - thumb), y, steps=4)
        self.page.mouse.up()

    def headline(self) -> str:
        return self.page.locator(".wb-hero-line b").inner_text()


@pytest.fixture(scope="module")
def shared(browser: Browser) -> Iterator[Alone]:
    alone = Alone(browser.new_page())
    yield alone
    alone.page.close()


@pytest.fixture
def alone(shared: Alone) -> Iterator[Alone]:
    """A page on which nothing may go wrong."""
    shared.errors.clear()
    yield shared
    assert not shared.errors


@pytest.fixture(scope="module")
def weights() -> Any:
    return wb.open_model("builtin").read(K_PROJ)


def percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")


# ---------------------------------------------------------------- the page's numbers are wb.measure's


@pytest.mark.usefixtures("formats")
def test_sixteen_levels_err_as_measured(alone: Alone, weights: Any) -> None:
    alone.open(widgets.LevelsEditor(weights))
    assert alone.shown()["error"] == percent(wb.measure(weights, "nf4").relative_rmse)
    random = np.random.default_rng(0)
    for _ in range(8):
        levels = [float(level) for level in np.float32(np.sort(random.uniform(-1, 1, 16)))]
        wb.register_format("dragged", levels)
        found = wb.measure(weights, "dragged")
        shown = alone.at(levels=levels)
        assert shown["error"] == percent(found.relative_rmse)
        assert float(shown["rmse"]) == pytest.approx(found.rmse, rel=1e-6)


def test_a_row_with_an_outlier_errs_as_measured(alone: Alone, weights: Any) -> None:
    view = widgets.BlockScales(weights[0])
    alone.open(view)
    for outlier, size in ((4.0, 256), (12.5, 128), (60.0, 256), (60.0, 32), (100.0, 64)):
        view.state = {"outlier": outlier, "size": size}
        row = view.weights
        spec = wb.QuantSpec("int4", size)
        restored = wb.quantize(row, spec).dequantize()
        others = np.delete(np.stack([row, restored]).astype("f8"), PLACE, axis=1)
        shown = alone.at(outlier=outlier, size=size)
        assert float(shown["rmse"]) == float(f"{wb.measure(row, spec).rmse:.4g}")
        assert shown["zeros"] == str(int(((restored == 0) & (row != 0)).sum()))
        assert shown["others"] == percent(np.sqrt(((others[0] - others[1]) ** 2).sum() / (others[0] ** 2).sum()))


def test_a_matrix_with_an_outlier_channel_errs_as_measured(alone: Alone, weights: Any) -> None:
    view = widgets.OutlierChannel(weights)
    alone.open(view)
    for size in view.data["sizes"]:
        for times in (1, 8):
            larger = weights.astype(np.float32)
            larger[view.row] *= times
            found = wb.measure(larger, wb.QuantSpec("nf4", size))
            restored = wb.quantize(larger, wb.QuantSpec("nf4", size)).dequantize().astype("f8")
            beside = [row for row in range(80, 96) if row != view.row]
            hurt = np.sqrt(((larger - restored)[beside] ** 2).sum() / (larger.astype("f8")[beside] ** 2).sum())
            shown = alone.at(size=size, times=times)
            assert (shown["error"], shown["hurt"]) == (percent(found.relative_rmse), percent(hurt))
            assert float(shown["rmse"]) == float(f"{found.rmse:.4g}")


def test_scales_quantized_twice_err_and_take_what_python_says(alone: Alone, weights: Any) -> None:
    view = widgets.ScaleBytes(weights)
    alone.open(view)
    for size in view.data["sizes"]:
        for double in (False, True):
            spec = wb.QuantSpec("nf4", size, double_quant=double)
            shown = alone.at(size=size, double=double)
            assert shown["error"] == percent(wb.measure(weights, spec).relative_rmse)
            assert shown["bits"] == f"{spec.bits_per_weight - 4:.3f}"
    assert alone.at(size=64, double=True)["saved"] == "302 MB"


def test_one_weight_is_stored_as_inspected(alone: Alone, weights: Any) -> None:
    view = widgets.OneWeight(weights)
    alone.open(view)
    for size in view.data["sizes"]:
        for double in (False, True):
            spec = wb.QuantSpec("nf4", size, double_quant=double)
            stats = wb.measure(weights, spec)
            for weight in (0, 255, 20_687, 32_767):
                block, i = wb.inspect_block(weights, stats, weight // size), weight % size
                shown = alone.at(size=size, double=double, weight=weight)
                assert shown["error"] == percent(stats.relative_rmse)
                assert float(shown["rmse"]) == float(f"{stats.block_rmse[block.index]:.4g}")
                assert (int(shown["level"]), float(shown["becomes"])) == (block.codes[i], block.restored[i])
                numbers = [block.weights[i], block.absmax, block.normalised[i], block.levels[i], block.scale, block.restored[i]]
                printed = [text.replace("−", "-") for text in alone.page.locator(".wb-hero-sum b").all_inner_texts()]
                assert [float(text) for text in printed[:-1]] == [float(f"{float(number):.5g}") for number in numbers]
                assert float(printed[-1]) == float(f"{float(block.errors[i]):.3g}")


# ---------------------------------------------------------------- drag it and it breaks


def test_a_block_and_a_weight_are_chosen_by_keys_and_by_pointer(alone: Alone, weights: Any) -> None:
    alone.open(widgets.OneWeight(weights))
    assert (alone.slider("Block").get_attribute("aria-valuetext") or "").startswith("Row 80, block 3: RMSE")
    alone.slider("Block").press("ArrowRight")
    alone.slider("Block").press("ArrowUp")
    alone.slider("Weight of the block").press("End")
    alone.shown()
    assert (alone.slider("Block").get_attribute("aria-valuetext") or "").startswith("Row 81, block 2: RMSE")
    assert alone.state()["weight"] == 81 * 256 + 2 * 64 + 63
    alone.drag("Weight of the block", right=-4000)
    assert alone.state()["weight"] == 81 * 256 + 2 * 64
    box = alone.slider("Block").bounding_box()
    assert box is not None
    alone.page.mouse.click(box["x"] + 66, box["y"] + 10)
    assert alone.state()["weight"] == 0, "the first block"


def test_a_level_dragged_away_costs_and_lloyds_brings_it_back(alone: Alone, weights: Any) -> None:
    alone.open(widgets.LevelsEditor(weights))
    best = float(alone.shown()["error"].split()[0])
    alone.drag("Level 12 of 16", right=30)
    worse = float(alone.shown()["error"].split()[0])
    assert worse > best + 0.2
    alone.slider("Level 12 of 16").press("Home")
    assert alone.state()["levels"][11] == pytest.approx(alone.state()["levels"][10] + 1 / 1024, abs=1e-6), "stops at the next"
    assert re.fullmatch(r"0\.\d+ of absmax", str(alone.slider("Level 12 of 16").get_attribute("aria-valuetext")))
    alone.page.get_by_role("button", name="Run Lloyd").click()
    alone.page.wait_for_function("document.querySelector('.wb-hero-body').dataset.running === 'false'")
    alone.page.wait_for_function("document.querySelector('.wb-hero-line').dataset.mood === 'good'")
    assert float(alone.shown()["error"].split()[0]) < best, "on these weights better than NF4"


def test_lloyd_s_algorithm_ends_with_the_picture(alone: Alone, weights: Any) -> None:
    alone.open(widgets.LevelsEditor(weights))
    alone.shown()
    moved = alone.page.evaluate(
        """async () => {
            const levels = () => String(window.traits.state.levels), frame = () => new Promise(requestAnimationFrame);
            const button = document.querySelector("[data-key=lloyd]"), before = levels();
            button.click();
            window.end();
            const first = levels();
            for (let i = 0; i < 3; i++) await frame();
            return [before !== first, first !== levels()];
        }"""
    )
    assert moved == [True, False]


def test_an_outlier_dragged_down_takes_every_weight_to_zero_and_blocks_bring_them_back(alone: Alone, weights: Any) -> None:
    alone.open(widgets.BlockScales(weights[0]))
    assert int(alone.shown()["zeros"]) < 90
    alone.drag("Outlier", down=90)
    assert int(alone.shown()["zeros"]) == 255
    alone.slider("Outlier").press("Shift+ArrowUp")
    assert alone.state()["outlier"] < 30
    alone.slider("Outlier").press("End")
    assert alone.state()["outlier"] == 100
    alone.shown()
    assert alone.slider("Outlier").get_attribute("aria-valuetext") == "100.0 standard deviations below zero"
    dial = alone.slider("Weights to one scale")
    dial.press("Home")
    assert int(alone.shown()["zeros"]) < 120, "only the outlier's own block of 32 is lost"
    assert dial.get_attribute("aria-valuetext") == "32 weights"


def test_larger_blocks_spread_an_outlier_channels_harm(alone: Alone, weights: Any) -> None:
    alone.open(widgets.OutlierChannel(weights))
    small = float(alone.shown()["hurt"].split()[0])
    alone.pull("Weights to one scale", 1)
    assert float(alone.shown()["hurt"].split()[0]) > 1.4 * small
    alone.slider("Weights to one scale").press("Home")
    hurt = []
    for _ in range(7):
        alone.slider("Weights to one scale").press("ArrowRight")
        hurt.append(float(alone.shown()["hurt"].split()[0]))
    assert hurt[-1] > 1.5 * hurt[0]
    alone.slider("Row 80").press("End")
    assert float(alone.shown()["hurt"].split()[0]) > 95, "nothing is left of its neighbours"


def test_bytes_of_scales_melt(alone: Alone, weights: Any) -> None:
    alone.open(widgets.ScaleBytes(weights))
    assert alone.headline() == "0.500 bits a weight for scales"
    alone.page.get_by_role("button", name="Quantize the scales too").click()
    alone.shown()
    assert alone.headline() == "0.127 bits a weight for scales"
    assert "0.373 bits saved: 302 MB on Llama 7B" in alone.page.locator(".wb-hero-line").inner_text()
    alone.pull("Weights to one scale", 0)
    assert alone.shown()["bits"] == "0.254"


def test_boxes_grow_with_the_rank_until_they_do_not_fit(alone: Alone) -> None:
    alone.open(widgets.MemoryBoxes(gpu="RTX 3060 12 GB"))
    before = alone.shown()
    assert before["verdict"] == "fits"
    alone.pull("Rank", 1)
    after = alone.shown()
    assert int(after["total"]) > int(before["total"]) + 3e9
    assert after["verdict"] != "fits"
    alone.page.get_by_role("button", name="Full fine-tuning").click()
    assert alone.shown()["verdict"] == "does not fit"
    assert alone.slider("Rank").is_disabled()
    alone.page.get_by_role("combobox", name="Model").select_option("meta-llama/Llama-3.2-1B-Instruct")
    assert int(alone.shown()["total"]) < int(after["total"])


def test_the_long_batch_ends_a_run_unless_its_optimizer_is_paged(alone: Alone) -> None:
    alone.open(widgets.PagingSpike())
    assert alone.shown()["dead"] == "31"
    alone.page.get_by_role("button", name="Paged AdamW").click()
    assert alone.shown()["dead"] == "0"
    assert alone.headline() == "All 50 batches, one 0.17 s slower"
    alone.slider("Batch 31, its length").press("End")
    assert alone.shown()["dead"] == "31", "so long that paging does not help"
    alone.drag("Batch 31, its length", down=80)
    shown = alone.shown()
    assert (shown["dead"], shown["seconds"]) == ("0", "0.00")
    assert int(shown["tokens"]) < 3072


def answered_dial() -> Hero:
    """One that has heard all that the model's process, which there is none of here, has to say."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("widgets.heroes.bits_dial.Ladder", Said)
        dial: Any = widgets.BitsDial("to run, v.", bits=2)
    dial._ladder.answer("to run, v.")
    return dial


def test_the_dial_shows_no_text_of_another_prompt(alone: Alone) -> None:
    alone.open(answered_dial())
    assert alone.shown()["text"] == " 2"
    alone.pull("Bits a weight", 0)
    assert alone.state()["bits"] == 16
    assert alone.shown()["text"] == " 16"
    assert alone.at(bits=4, prompt="to run, v.")["text"] == " 4"
    assert alone.at(bits=4, prompt="music, n.")["text"] == "", "the kernel has not heard of it yet"
    assert alone.page.locator(".wb-hero-said").inner_text() == "Generating …"


# ---------------------------------------------------------------- everywhere


def all_of_them(weights: Any) -> dict[str, Hero]:
    made = (
        widgets.LevelsEditor(weights), widgets.BlockScales(weights[0], outlier=60), widgets.OutlierChannel(weights),
        widgets.OneWeight(weights), widgets.ScaleBytes(weights), widgets.MemoryBoxes(), widgets.PagingSpike(),
        answered_dial(), widgets.ClaimCards({"7B shrinks to 3.5 GB": ("What do its weights take?", 1, 30, "GB")}),
    )  # fmt: skip
    return {type(hero).__name__: hero for hero in made}


@pytest.mark.slow
@pytest.mark.parametrize(("width", "theme"), [(960, LIGHT), (960, DARK), (380, DARK)])
def test_each_fits_its_place_and_has_a_name(alone: Alone, weights: Any, width: int, theme: str) -> None:
    for name, hero in all_of_them(weights).items():
        alone.open(hero, width)
        alone.page.evaluate("(theme) => { document.body.dataset.jpThemeLight = theme; }", theme)
        box = alone.page.locator(".wb-hero").bounding_box()
        assert box is not None
        assert width < 500 or box["height"] <= 440, f"{name} is taller than a first screen leaves"
        assert alone.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        assert len(str(alone.page.get_by_role("figure").get_attribute("aria-label"))) > 40, name
        unnamed = "[...document.querySelectorAll('[role=slider], input')].filter((h) => !h.ariaLabel && !h.labels?.length)"
        assert alone.page.evaluate(f"{unnamed}.length") == 0, name
        ends = alone.page.evaluate(
            """() => [...document.querySelectorAll('.wb-hero text')].filter((t) => {
                const box = t.getBoundingClientRect(), frame = t.closest('.wb-hero').getBoundingClientRect();
                return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
            }).map((t) => t.textContent)"""
        )
        assert ends == [], name
