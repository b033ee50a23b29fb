"""The numbers that the notebooks show and their sentences name: the notebooks' own cells are run, and what came of it is held.

Cells run as they stand, one after the other, up to the one that launches a run, without the app. nbval runs all of them; of the
runs, what was committed is held.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@cache
def ran(name: str) -> dict[str, Any]:
    """What the cells of a notebook leave behind, and as ``said`` what they print."""
    names: dict[str, Any] = {}
    said = io.StringIO()
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if "wb.launch(" in source:
            break
        if cell["cell_type"] == "code" and "Workbench(" not in source:
            with contextlib.redirect_stdout(said):
                exec(compile(source, f"{name}: {cell['id']}", "exec"), names)
    return names | {"said": said.getvalue()}


def text(name: str) -> str:
    """All that a notebook says in words, line breaks as spaces."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))["cells"]
    return " ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown").replace("\n", " ")


pytestmark = pytest.mark.usefixtures("formats")  # a notebook's own formats go with it


def test_quantization() -> None:
    found = ran("01_quantization")
    x, q, restored, absmax = (found[name] for name in ("x", "q", "restored", "absmax"))
    assert (absmax, q[0], round(float(restored[0]), 1)) == (256, 64, 129.0)
    assert (found["same"].codes.astype(np.int8) == q).all()
    assert np.allclose(found["same"].dequantize(), restored, rtol=1e-6)
    assert np.abs(x - restored).max() <= absmax / 254
    assert restored[4] == 0, "0.9 is gone"

    int4, line, error = found["int4"], found["line"], found["line"] - found["becomes"]
    assert np.allclose(int4.levels[1:-1], (int4.edges[:-1] + int4.edges[1:]) / 2), "inner levels are centres"
    assert int4.levels[0] == -1, "the lowest is its bucket's edge"
    assert np.isclose(np.abs(error)[line <= 15 / 16].max(), 1 / 16, atol=1e-3)
    assert np.isclose(error[-1], 1 / 8), "clipped by a whole step"
    e = wb.measure(found["weights"], wb.QuantSpec("int4", 64))
    assert abs(e.rmse / found["predicted"] - 1) < 0.01

    assert found["zeros"] == 4095
    assert found["after"].rmse > 3 * found["before"].rmse
    stats = {e.spec.block_size: e for e in found["found"]}
    assert [e.rmse for e in found["found"]] == sorted((e.rmse for e in found["found"]), reverse=True)
    assert stats[64].spec.bits_per_weight == 4 + 32 / 64
    assert found["columns"]["of them spoilt"] == [1] * 8, "whatever its size, it is one block that pays"
    assert np.median(stats[64].block_rmse) < 1.1 * found["before"].rmse


@pytest.mark.slow
def test_normal_float() -> None:
    found = ran("02_normal_float")
    assert found["said"].count("yours 9.") == 2, "undragged, the levels are NF4's"
    assert min(map(abs, found["equal"])) > 0.07, "no level is exactly 0"
    assert found["start"] == 0.9677083, "the constant in bitsandbytes' create_normal_map"
    assert (found["built"] == found["theirs"]).all()
    assert (wb.FORMATS["nf4"].levels == found["theirs"]).all()
    assert found["gaps"].argmax() == 0

    used = found["used"]
    assert 2.55 < found["largest"] < 2.65
    assert used["normal", "int4"] < used["normal", "nf4"] < 3.95, "NF4 uses more of its bits, not all"
    assert abs(used["trained", "nf4"] - used["normal", "nf4"]) < 0.05
    share = wb.measure(found["weights"], "nf4").occupancy / found["weights"].size
    assert f"from {100 * share.min():.1f} to {100 * share.max():.1f} %" in text("02_normal_float")

    error = found["error"]
    order = ("iq4_nl", "nf4", "af4", "int4-asym", "int4", "int4-sym", "e2m1", "fp4", "mxfp4")
    assert [name for name in sorted(error, key=error.__getitem__) if name in order] == list(order)
    specs = {score.spec.format: score.spec for score in found["duel"].contenders}
    assert (specs["nf4"].block_size, specs["int4-asym"].block_size) == (32, 64)
    at = {(s.spec.format, s.spec.block_size): s for s in found["scores"]}
    percent = {key: f"{100 * score.relative_rmse:.2f}" for key, score in at.items()}
    told = f"{percent['nf4', 32]} against {percent['int4-asym', 64]} %. At 4.6 bits INT4 with a zero point wins, with "
    assert f"{told}{percent['int4-asym', 32]} %" in text("02_normal_float")
    assert at["nf4", 32].bits < at["int4-asym", 64].bits < 4.6 < at["int4-asym", 32].bits < 4.65

    assert list(found["best"].values()) == ["int4-asym", "nvfp4", "int4-asym", "int4-asym"]
    errors = found["errors"]
    assert errors["int4-asym"][32] < errors["nf4"][32]
    assert errors["nf4"][256] < errors["int4-asym"][256]


def test_block_error() -> None:
    found = ran("03_block_error")
    table = found["table"]
    assert len(table) == 42, "seven linear layers in each of six layers"
    low, high = (f"{100 * of(table['relative_rmse']):.1f}" for of in (min, max))
    assert f"All 42 errors lie between {low} and {high} %" in text("03_block_error")
    assert set(found["by_kind"]["kind"].head(2)) == {"down", "v"}
    assert max(table["kurtosis"]) == max(found["by_kind"]["kurtosis"]), "a kind's kurtosis is its largest"

    matrix = wb.open_model("builtin").read("model.layers.2.self_attn.k_proj.weight").astype("f8")
    sizes = np.sqrt((matrix**2).mean(axis=1))
    assert sizes.argmax() == 80
    assert f"{sizes[80] / np.median(sizes):.1f}" == "3.6"

    assert found["together"] > 0.8
    tails = found["tails"]
    beyond = tails.beyond[1]
    assert tails.kurtosis > 4
    assert beyond.share > 20 * beyond.normal_share, "beyond 4 σ there are many times more than normal weights have"
    assert beyond.rmse > 1.2 * beyond.rmse_others
    shrunk = [line.tensor_rmse_apart for line in tails.beyond]
    assert shrunk == sorted(shrunk)
    assert shrunk[0] < tails.rmse
    assert found["rows"].size == 5

    block, e = found["block"], found["e"]
    assert np.isclose(np.sqrt(np.mean(block.errors.astype("f8") ** 2)), e.block_rmse.max())
    assert block.errors[np.abs(block.weights).argmax()] == 0, "the outlier itself is exact"
    assert 0.72 < abs(block.normalised[block.worst]) < 1, "the largest error lies between the two outer levels"


def test_double_quantization() -> None:
    found = ran("04_double_quantization")
    plain, double, B, N = (found[name] for name in ("plain", "double", "B", "N"))
    assert plain.bits_per_weight == 4 + 32 / B == 4.5
    assert double.bits_per_weight == 4 + 8 / B + 32 / (B * N)
    assert f"{found['saved']:.3f}" == "0.373"

    q, p, stored = found["q"], found["p"], found["stored"]
    assert found["levels"].size == 256
    assert np.array_equal(q.nested.absmax, found["second"][:, 0])
    assert found["off"] <= 1
    assert np.allclose(found["restored"], q.nested.dequantize(), rtol=0.02)
    assert np.isclose(found["weight"], q.dequantize().flat[found["i"]], rtol=1e-6), "twice dequantized, by hand"
    assert (p.codes == q.codes).all()
    assert p.nbytes - q.nbytes == stored["without"].sum() - stored["with"].sum()
    assert 0 < found["added"] < 0.005
    assert 0.08 < 1 - q.nbytes / p.nbytes < 0.085, "a twelfth"

    assert found["table"]["bits a weight for scales"].is_monotonic_decreasing
    assert found["table"]["error added, %"].between(0, 0.2).all()
    scores, small = found["scores"], found["trade"][2]
    assert small.bits_per_weight < 4.5
    assert scores[small].relative_rmse < scores[plain].relative_rmse

    models = found["models"]
    assert all(round(s.saved_bits_per_weight, 3) == 0.373 for s in models.values())
    llama = models["huggyllama/llama-7b"].saved
    assert f"{llama / 1e6:.0f} MB ({llama / 2**20:.0f} MiB)" == "302 MB (288 MiB)"
    assert "302 MB (288 MiB)" in text("04_double_quantization")
    assert f"{models['huggyllama/llama-65b'].saved / 1e9:.2f} GB" == "3.02 GB"


def test_lora_and_qlora() -> None:
    import torch

    found = ran("05_lora_and_qlora")
    ledger, linear, adapters, llama = (found[name] for name in ("ledger", "linear", "adapters", "llama"))
    assert ledger["4-bit weights"] == linear // 2, "two a byte"
    assert ledger["adapters"] == ledger["gradients"] == 4 * adapters, "fp32"
    assert found["moments"] == 8 * adapters
    assert adapters / linear < 0.01
    upcast = wb.forecast(llama, wb.TrainConfig(**found["batch"], upcast_to_fp32=True))["weights upcast to fp32"]
    assert f"{upcast / 1e9:.2f} GB for the embedding" in text("05_lora_and_qlora")
    assert f"{ledger['4-bit weights'] / 1e9:.2f} GB of all 4-bit weights" in text("05_lora_and_qlora")

    packed, state, W, W_hat = (found[name] for name in ("packed", "state", "W", "W_hat"))
    assert (packed.dtype, packed.nbytes) == (torch.uint8, W.numel() // 2)
    assert (state.absmax.dtype, state.absmax.nbytes) == (torch.uint8, W.numel() // 64)
    assert found["same"]
    assert 0.05 < found["error"] < 0.12
    for autograd, formula in found["by_hand"].values():
        assert torch.allclose(autograd, formula, rtol=1e-3, atol=1e-2)
    assert packed.grad is None
    assert "floating point" in found["said"], "whole numbers have no gradient"
    assert 0.05 < found["apart"] < 0.15
    assert torch.equal(packed.data, found["before"])
    assert not torch.equal(found["after"], found["product"])
    assert found["rank"] == 8
    assert W_hat.shape == W.shape

    full, lora, *_, last = found["ledgers"]
    weights = sum(t.numel for t in llama.tensors())
    assert full["weights"] + full["gradients"] + full["optimizer state"] == 12 * weights
    assert lora["weights"] == 2 * weights
    assert last["4-bit weights"] == linear // 2
    assert full.total > 90e9
    assert last.total < 8e9 < 16e9 < lora.total < 24e9
    assert found["saved"] == 6 * llama.tensors()[0].numel


@pytest.mark.slow
def test_paged_optimizers_up_to_the_run() -> None:
    found = ran("06_paged_optimizers")
    llama, moments, widths = (found[name] for name in ("llama", "moments", "widths"))
    assert wb.PAGE_MIN_NUMEL == 100_000, "bitsandbytes' rule"
    assert found["first"] >= found["size"] // (2 << 20)
    assert found["again"] <= found["first"] // 100
    assert found["smallest"] == 7 == wb.paging_truth(wb.TrainConfig(), src=llama).smallest_rank
    for rank in (4, 7, 16, 64):
        managed, total = moments(llama, rank)
        ledger = wb.forecast(llama, wb.TrainConfig(lora_r=rank, optim="paged_adamw_32bit"))
        assert ledger["optimizer state, paged"] == ledger.managed == managed
        assert ledger["optimizer state"] + ledger.managed == total
    assert max(found["lines"][0]["y"][:65]) == 0, "SmolLM2 135M pages nothing up to rank 65"
    truths = found["truths"]
    assert truths["embedded model, rank 16"]["eligible to page"] == 0
    assert truths["embedded model, rank 16"].smallest_rank == 143
    assert truths["embedded model, rank 143"]["eligible to page"] > 0
    assert [reason.name for reason in truths["the same, adamw_8bit"].reasons] == ["optimizer"]
    assert found["wide"] == [144 * 704] * 18, "gate, up and down of six layers"
    assert found["eligible"] == 8 * sum(found["wide"])
    assert widths(found["builtin"]).count(704) == 18


@pytest.mark.slow
def test_paging_under_pressure() -> None:
    """The cells of notebook 06 after its run, which need none of it."""
    names: dict[str, Any] = dict(ran("06_paged_optimizers"))
    cells = json.loads((NOTEBOOKS / "06_paged_optimizers.ipynb").read_text("utf-8"))["cells"]
    wanted = ("OrderedDict()", "simulation_figure(", "breathing =", "priced =", "everything =")
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and any(each in source for each in wanted):
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(source, cell["id"], "exec"), names)
    on_t4, breathing, least = names["on_t4"], names["breathing"], names["least"]
    managed, _ = names["moments"](names["llama"], 64)
    missing = on_t4.enough - on_t4.budget
    assert names["circle"] == {100: 0, 99: 100, 50: 100}
    assert on_t4.least < on_t4.budget < on_t4.enough
    assert 0 < missing < managed / 2
    assert 0 <= on_t4.per_step[-1, 1] - managed < 64 * on_t4.page_size, "all of it, in whole pages"
    assert 0 <= breathing.per_step[-1, 1] - missing < 2 * on_t4.page_size, "only what is missing"
    assert wb.simulate_paging(names["llama"], names["crowded"], on_t4.enough).bus_seconds == 0
    for name, price in names["priced"].items():
        assert price["GB/s each way"] * 1e9 == pytest.approx(wb.PCIE[name])
    assert on_t4.bus_seconds == pytest.approx(names["priced"]["PCIe 3.0 x16"]["s a step"])
    assert 0.12 < on_t4.bus_seconds / least < 0.13, "an eighth"
    assert names["everything"].bus_seconds > least


def printed(name: str) -> str:
    """What a notebook's cells printed when it was committed."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


@pytest.mark.slow
def test_workbench_up_to_the_run() -> None:
    found = ran("00_workbench")
    weights, src, ledger = (found[name] for name in ("weights", "src", "ledger"))
    nf4, int4 = found["errors"]["nf4"], found["errors"]["int4"]
    assert nf4.occupancy.sum() == int4.occupancy.sum() == weights.size
    assert nf4.block_rmse.size == weights.size // 64
    assert 0.05 < nf4.relative_rmse < int4.relative_rmse < 0.15
    assert int4.entropy_bits < nf4.entropy_bits < 4
    assert found["plain"].nbytes * 8 / weights.size == 4.5
    assert 4.127 <= found["double"].nbytes * 8 / weights.size < 4.15, "an offset comes on top"
    assert ledger.total == ledger.to_frame()["at the peak"].sum()
    assert ledger["4-bit weights"] == sum(t.numel for t in src.tensors() if t.quantizable) // 2
    assert found["costs"]["KL"].is_monotonic_increasing
    found["dial"].close()


def test_the_run_that_was_committed_learnt_something() -> None:
    said = printed("00_workbench")
    assert "finished – " in said
    losses = re.search(r"held-out loss: ([\d.]+) before, ([\d.]+) after", said)
    assert losses
    assert float(losses[2]) < float(losses[1])
    assert "page events from: host faults" in said
    moved = re.search(r"by up to ([\d.]+) in the logits", said)
    assert moved
    assert float(moved[1]) > 0.01, "the adapter changes what the model says"


def test_the_paged_run_that_was_committed_says_what_it_did_not_see() -> None:
    said = printed("06_paged_optimizers")
    assert "Finished after 6 steps." in said
    assert re.search(r"eligible to page +13\.92 MiB", said)
    assert re.search(r"allocated as managed +0 B", said)
    assert re.search(r"evicted +– ", said), "unmeasured is not zero"
