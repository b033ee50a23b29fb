"""The simulated pager: the forecast's bytes laid out over a step, and what a budget makes of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import workbench as wb
from tests.helpers.shapes import Shapes, llama
from workbench.memory.gpus import GPUS
from workbench.memory.lru import Extent, Moment
from workbench.memory.pager import CATEGORIES, KEPT, PAGE_SIZES, PCIE, working_set

MIB = 2**20
PAGE = PAGE_SIZES[0]


@pytest.fixture(scope="module")
def model() -> Shapes:
    """A Llama of 12 layers whose adapters of rank 64 have 65,536 elements and more."""
    return llama("small", 1024, 2816, 12, 8192)


PAGES = wb.TrainConfig(lora_r=64, page_min_numel=1, max_length=128)


def by_category(extents: list[Extent]) -> dict[str, int]:
    return {c: sum(e.bytes for e in extents if e.category == c) for c in CATEGORIES}


def test_the_working_set_is_the_forecast_laid_out(model: Shapes) -> None:
    ledger = wb.forecast(model, PAGES)
    extents, _ = working_set(model, PAGES)
    sums = by_category(extents)
    assert sums["weights"] == ledger["4-bit weights"] + ledger["weights"] + ledger["weights upcast to fp32"]
    assert sums["scales"] == ledger["absmax scales"] + ledger["second-level scales"] + ledger["codebooks"]
    assert sums["adapters"] == ledger["adapters"]
    assert sums["gradients"] == ledger["gradients"]
    assert sums["optimizer state, paged"] == ledger.managed == ledger["optimizer state, paged"]
    assert sums["activations"] == pytest.approx(ledger["activations"] + ledger["logits and loss"], rel=0.01)
    assert [e.category for e in extents if e.managed] == ["optimizer state, paged"] * 12


def test_a_step_goes_forward_backward_and_through_the_optimizer_layer_by_layer(model: Shapes) -> None:
    extents, (load, *step) = working_set(model, PAGES)

    def place(m: Moment) -> str:
        return f"{m.phase} {m.name.removeprefix('model.layers.')}"

    layers = [str(i) for i in range(12)]
    assert load.phase == "load"
    assert [place(m) for m in step] == [
        *(f"forward {p}" for p in ("embedding", *layers, "norm and head", "logits and loss")),
        *(f"backward {p}" for p in ("norm and head", *reversed(layers), "embedding")),
        *(f"optimizer {p}" for p in layers),
    ]
    state = {i for i, e in enumerate(extents) if e.category == "optimizer state, paged"}
    assert {i for m in step if m.phase != "optimizer" for i in m.touches} & state == set()
    assert {i for m in step if m.phase == "optimizer" for i in m.touches} >= state
    freed = {extents[i].category for m in step for i in m.frees}
    assert freed == {"activations", "gradients"}  # everything else stays from step to step


@pytest.mark.parametrize(
    ("shapes", "layers"),
    [
        ({"h.0.attn.c_attn.weight": (64, 192), "h.10.mlp.c_fc.weight": (64, 256), "h.2.mlp.c_fc.weight": (64, 256)},
         ["h.0", "h.2", "h.10"]),
        ({f"{side}.block.{i}.layer.0.SelfAttention.q.weight": (64, 64) for side in ("decoder", "encoder") for i in range(2)},
         ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]),
        ({f"model.layers.0.block_sparse_moe.experts.{e}.w{w}.weight": (64, 64) for e in range(4) for w in (1, 2, 3)},
         ["model.layers.0"]),
    ],
)  # fmt: skip
def test_layers_stand_in_the_order_in_which_they_compute(shapes: dict[str, tuple[int, ...]], layers: list[str]) -> None:
    model = Shapes("some", {**shapes, "shared.weight": (1000, 64)}, hidden_size=64)
    config = wb.TrainConfig(optim="paged_adamw_8bit", page_min_numel=1)
    extents, moments = working_set(model, config)
    inner = [
        m.name for m in moments if m.phase == "forward" and m.name not in ("embedding", "norm and head", "logits and loss")
    ]
    assert inner == layers
    taken = {i for m in moments for i in m.takes}
    assert taken == {i for i, e in enumerate(extents) if e.bytes or i in taken}  # nothing of the forecast is left out


def test_accumulation_repeats_forward_and_backward_only(model: Shapes) -> None:
    many = wb.TrainConfig(lora_r=64, gradient_accumulation_steps=3)
    _, moments = working_set(model, many)
    phases = [m.phase for m in moments]
    assert (phases.count("forward"), phases.count("backward"), phases.count("optimizer")) == (3 * 15, 3 * 14, 12)


def test_from_enough_on_nothing_moves_and_below_it_something_does(model: Shapes) -> None:
    enough = wb.simulate_paging(model, PAGES, "H100 80 GB").enough
    fits = wb.simulate_paging(model, PAGES, enough)
    assert fits.per_step.tolist() == [[0, 0]] * 3
    assert fits.bus_seconds == 0
    assert "nothing is evicted" in fits.summary
    short = wb.simulate_paging(model, PAGES, enough - PAGE)
    # The state is used once a step, in a circle: one page too few, and under this rule all of it leaves and comes back.
    state = int(short.resident[-1, CATEGORIES.index("optimizer state, paged")]) + int(short.host[-1])
    assert short.per_step[1:].tolist() == [[state, state]] * 2
    assert short.evictions[-1] == state // PAGE
    assert short.bus_seconds == pytest.approx(2 * state / PCIE["PCIe 3.0 x16"])
    assert "each step evicts" in short.summary


def test_memory_that_breathes_pages_only_what_the_peak_takes(model: Shapes) -> None:
    enough = wb.simulate_paging(model, PAGES, 2**40, keeps_freed=False).enough
    short = wb.simulate_paging(model, PAGES, enough - 5 * PAGE, keeps_freed=False)
    assert short.evictions.tolist() == [0, 5, 5]
    moved_out = {p for p, d in zip(short.phase, short.d2h, strict=True) if d}
    moved_in = {p for p, h in zip(short.phase, short.h2d, strict=True) if h}
    assert moved_out <= {"forward", "backward"}  # the peak drives them out …
    assert moved_in == {"optimizer"}  # … and the optimizer needs them again
    assert not short.resident[:, -1].any()
    assert short.categories[-1] == KEPT


@pytest.mark.parametrize("managed", ["as configured", "everything"])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("page", PAGE_SIZES)
def test_more_memory_never_moves_more(model: Shapes, managed: str, keeps: bool, page: int) -> None:
    top = wb.simulate_paging(model, PAGES, 2**40, page_size=page, managed=managed, keeps_freed=keeps)
    budgets = np.linspace(top.least, top.enough, 9).astype(int).tolist()
    runs = [wb.simulate_paging(model, PAGES, budget, page_size=page, managed=managed, keeps_freed=keeps) for budget in budgets]
    assert all(not r.out_of_memory for r in runs)
    assert all((r.resident.sum(1) <= r.budget).all() for r in runs)
    assert all((a.per_step >= b.per_step).all() for a, b in itertools.pairwise(runs))
    assert runs[0].d2h.any()
    assert not runs[-1].d2h.any()
    assert all((r.per_step[1] == r.per_step[2]).all() for r in runs)  # every step like the one before


def test_least_is_where_memory_runs_out(model: Shapes) -> None:
    least = wb.simulate_paging(model, PAGES, 2**40).least
    assert wb.simulate_paging(model, PAGES, least).out_of_memory == ""
    out = wb.simulate_paging(model, PAGES, least - 2 * PAGE)
    assert out.out_of_memory.partition(",")[0] in ("backward", "forward")
    assert "out of memory at" in out.summary
    assert out.budget < out.needed <= least
    assert len(wb.simulate_paging(model, PAGES, out.needed).step) > len(out.step), "with that much it goes on"
    assert wb.simulate_paging(model, PAGES, least).needed == 0
    assert len(out.step) == len(out.phase) == len(out.resident) == len(out.h2d)


def test_without_paged_state_nothing_can_leave(model: Shapes) -> None:
    plain = wb.TrainConfig(lora_r=64, optim="adamw_8bit", max_length=128)
    simulated = wb.simulate_paging(model, plain, 2**40)
    assert simulated.least == simulated.enough
    assert wb.simulate_paging(model, plain, simulated.enough - 1).out_of_memory
    below_the_rule = wb.TrainConfig(lora_r=4, max_length=128)  # 100,000 elements: none of these adapters has them
    assert wb.simulate_paging(model, below_the_rule, 2**40).least == wb.simulate_paging(model, below_the_rule, 2**40).enough


def test_full_fine_tuning_has_its_own_gradients_and_state() -> None:
    plan = {"method": "full", "optim": "paged_adamw_32bit"}
    model = llama("small", 1024, 2816, 2, 8192)
    extents, _ = working_set(model, type("Full", (), plan)())
    sums = by_category(extents)
    assert sums["gradients"] == sums["weights"]
    assert sums["adapters"] == 0
    assert sums["optimizer state, paged"] == pytest.approx(4 * sums["weights"], rel=0.01)  # 8 bytes for every 2


def test_a_gpu_can_be_named_and_the_frame_holds_every_moment(model: Shapes) -> None:
    simulated = wb.simulate_paging(model, PAGES, "T4 16 GB", bandwidth=PCIE["PCIe 4.0 x16"])
    assert simulated.budget == GPUS["T4 16 GB"].usable == wb.simulate_paging(model, PAGES, GPUS["T4 16 GB"]).budget
    frame = simulated.to_frame()
    assert list(frame.columns) == ["step", "phase", "name", *CATEGORIES, KEPT, "host", "h2d", "d2h", "bus_seconds"]
    assert len(frame) == len(simulated.phase)
    in_16_bits, norms = 2 * 8192 * 1024, 1024 * (2 * 12 + 1)
    assert frame["weights"].iloc[-1] == wb.forecast(model, PAGES)["4-bit weights"] + 2 * in_16_bits + 4 * norms


def test_the_bus_by_its_specification() -> None:
    assert {name: round(rate / 1e9, 2) for name, rate in PCIE.items()} == {
        "PCIe 3.0 x16": 15.75, "PCIe 4.0 x16": 31.51, "PCIe 5.0 x16": 63.02,
    }  # fmt: skip


def test_all_that_is_wrong_is_told_together(model: Shapes) -> None:
    with pytest.raises(wb.ConfigError) as told:
        wb.simulate_paging(model, PAGES, 0, page_size=1, bandwidth=0, managed="some")
    assert len(told.value.faults) == 4
    with pytest.raises(wb.ConfigError, match="no GPU known here"):
        wb.simulate_paging(model, PAGES, "Voodoo 2")
