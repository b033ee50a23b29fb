"""The claims about QLoRA that notebook 08 judges: all that the source texts make, each with its verdict, and the numbers of 09.

The notebooks are run again, and in their kernels what came of it is held.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.notebook_runs import run_again

VERDICTS = {
    "7B shrinks from 28 GB to 3.5 GB": "holds only if",
    "65B shrinks from 130 GB to 32.5 GB": "holds only if",
    "The quantization constant is 127 / absmax": "holds only if",
    "Three blocks have three constants, QC1 to QC3": "holds",
    "Outliers waste computation": "does not hold",
    "NF4's levels lie close together at the centre and apart at the ends": "holds",
    "Double quantization saves 0.375 bits a weight": "holds only if",
    "That is 315 MB on 7B": "holds only if",
    "65B needs 8 GB for constants after double quantization": "does not hold",
    "Dequantizing twice gives back the weight": "does not hold",
    "LoRA's optimizer state for 65B is 260 GB": "does not hold",
    "A paged 8-bit optimizer's state for 65B is 40 GB": "does not hold",
    "32.5 GB, 8 GB and 40 GB: so 65B trains on 48 GB": "does not hold",
    "LoRA on 65B cannot run on one GPU": "holds",
    "The paper's recipe for 65B fits 48 GB": "holds only if",
    "7–13B fits 16 GB": "holds",
    "30–40B fits 24 GB": "holds only if",
    "70B fits 48 GB": "holds only if",
    "One card takes 10–20B with LoRA and 50–65B with QLoRA": "holds only if",
    "A long batch makes memory spike": "holds",
    "Optimizer state leaves the GPU while data is processed": "holds only if",
    "LoRA trains 0.1 % of the parameters – or 1 %": "holds only if",
    "PEFT trains less than 1–5 % of the parameters": "holds only if",
    "All weights but LoRA's are NF4": "does not hold",
    "Activations are quantized too": "does not hold",
    "For computing, weights are dequantized to full precision": "does not hold",
    "Weights are normalised to zero mean and unit variance": "does not hold",
    "Every bin of NF4 holds the same number of weights": "does not hold",
    "NF4 is information-theoretically optimal for normal weights": "does not hold",
    "NF4 keeps a normal distribution": "does not hold",
    "Outliers hold the important information": "holds only if",
    "NF4 is better than INT4 and FP4": "holds only if",
    "Rotation helps 4-bit weights": "holds only if",
    "In four bits the model is near-identical": "holds only if",
    "QLoRA trains on par with 16-bit LoRA": "holds only if",
    "4-bit loading needs bitsandbytes 0.41": "does not hold",
}


@pytest.mark.slow
def test_the_claims_when_they_are_judged_again(tmp_path: Path) -> None:
    run_again("08_claims", tmp_path, claims)


def claims(found: dict[str, Any]) -> None:
    """What notebook 08 computes."""
    cards = found["cards"]
    assert cards.verdicts == VERDICTS
    value = {card["claim"]: card["found"]["value"] for card in cards.data["cards"]}
    assert all(card["low"] <= value[card["claim"]] <= card["high"] for card in cards.data["cards"] if card["question"])

    weights, trained = found["weights"], sum(64 * sum(t.shape) for t in found["llama_65b"].tensors() if t.quantizable)
    assert weights(found["llama_7b"]) == 6_738_415_616
    assert weights(found["llama_65b"]) == 65_285_660_672
    assert round(value["7B shrinks from 28 GB to 3.5 GB"], 2) == 3.87
    assert round(value["65B shrinks from 130 GB to 32.5 GB"], 1) == 34.5
    assert round(value["Double quantization saves 0.375 bits a weight"], 3) == 0.373
    assert round(value["That is 315 MB on 7B"]) == 302
    assert found["recipe"]["adapters"] == 4 * trained
    assert found["adam"](found["recipe"]) * 1e9 == 8 * trained
    assert value["32.5 GB, 8 GB and 40 GB: so 65B trains on 48 GB"] == 80.5
    assert 0 < found["all_48"].usable - found["peft_way"].total < 0.5e9, "next to nothing is left"
    assert found["eight_bit"][16].total == pytest.approx(40e9, rel=0.05)
    assert all(2.5 < qlora / lora < 3.5 for lora, qlora in found["most"].values()), "about 3 to 1 on every card"
    assert (found["zeros"], found["values"], found["compute_bytes"]) == (4095, 16, 2)
    assert found["by_lloyd"].relative_rmse < 0.98 * found["by_nf4"].relative_rmse
    assert found["nf4"] < found["int4"] < found["fp4"]
    assert found["beyond"]["fp4"][0] > 0 > found["beyond"]["int4"][0], "these rows do not tell NF4 from symmetric INT4"
    assert round(found["forgetful"], 3) == 0.375, "32/64 − 8/64"
    assert found["used"][1] == 2, "of sixteen levels"
    assert found["low"] < 0 < found["high"], "of rotation KL tells nothing on these rows"
    assert 0 < value["Rotation helps 4-bit weights"] < 1
    others = [name for name in found["real"] if name not in found["worse"]]
    assert sum(found["turned"][name] > found["straight"][name] for name in others) > len(others) / 2, "others lose"
    assert found["before"] - found["lora"] > 0.15, "it learnt something"


@pytest.mark.slow
def test_what_it_costs_when_it_is_measured_again(tmp_path: Path) -> None:
    run_again("09_what_it_costs", tmp_path, costs)


def costs(found: dict[str, Any]) -> None:
    """What notebook 09 computes."""
    kl = {cost.spec.format: cost.kl for cost in found["curve"].rows if cost.spec and cost.spec.format.startswith("int")}
    steps = [kl[name] for name in ("int8", "int7-sym", "int6-sym", "int5-sym", "int4-sym", "int3-sym", "int2-sym")]
    times = [less / more for more, less in pairwise(steps)]
    assert all(3 < each < 5 for each in times[:4]), "about four times for each bit down to four"
    assert times[5] > times[4] > max(times[:4]), "steeper below"
    nf4 = next(cost for cost in found["curve"].rows if cost.spec and cost.spec.title.startswith("NF4"))
    assert nf4.kl < kl["int4-sym"] < 0.01

    table, modules, mix = found["table"], found["modules"], found["mix"]
    assert found["together"] > 0.8
    assert table["kl_high"]["NF4, blocks of 64"] < table["kl_low"]["FP4, blocks of 64"]
    assert table["kl_high"]["NF4, blocks of 64"] > table["kl_low"]["AF4, blocks of 64"]
    assert 0 < found["helped"] < len(table)
    assert modules["relative_rmse"].between(0.08, 0.10).all()
    assert (modules["output_error"] < modules["relative_rmse"]).all()
    assert modules["share"].sum() == pytest.approx(found["whole"], rel=0.1), "the shares add up to the whole"
    assert mix.nbytes <= 4_800_000
    assert 0.35 < 1 - mix.measured_kl / mix.in_4_bits.kl < 0.47, "about two fifths"
    assert mix.measured_kl == pytest.approx(mix.predicted_kl, rel=0.15)

    full, lora, qlora = found["race"].results
    assert full.loss_before == lora.loss_before
    assert lora.kl_before == 0 < qlora.kl_before < 0.01
    moved = qlora.loss_before - lora.loss_before
    assert all(each.loss_before - each.loss_after > 10 * abs(moved) for each in (full, lora, qlora)), "many times"
    assert full.tensor_bytes > lora.tensor_bytes > qlora.tensor_bytes
