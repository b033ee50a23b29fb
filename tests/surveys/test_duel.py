"""Formats at equal bits: who takes part with what, who wins and on which measure, and what nothing else beats."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests.helpers.surveys import checkpoint, layers, weights
from workbench.errors import ModelError, WorkbenchError
from workbench.surveys.duel import entrants

BLOCK_SIZES = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
USUAL = [name for name, form in wb.FORMATS.items() if form.usual]
SCALES = ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e8m0fnu")


@pytest.fixture(scope="module")
def everything() -> wb.Duel:
    return wb.duel("builtin", 4.5)


def possible(*fields: object) -> bool:
    try:
        wb.QuantSpec(*fields)  # type: ignore[arg-type]
    except wb.FormatError:
        return False
    return True


# --- configurations -----------------------------------------------------------------------------------------------------------


def test_configurations_are_all_that_a_spec_can_be_and_each_once():
    expected = {
        wb.QuantSpec(*fields) for fields in itertools.product(USUAL, BLOCK_SIZES, SCALES, (False, True)) if possible(*fields)
    }
    found = wb.configurations()
    assert set(found) == expected
    assert len(found) == len(expected)


def test_configurations_can_be_narrowed():
    assert wb.configurations(["nf4"], block_sizes=[64], scale_dtypes=[None]) == (
        wb.QuantSpec("nf4"),
        wb.QuantSpec("nf4", double_quant=True),
    )
    asymmetric = wb.configurations(["int4-asym"], block_sizes=[64], scale_dtypes=[None])
    assert asymmetric == (wb.QuantSpec("int4-asym", scale_dtype="float16"),), "None is the format's own, float16 here"
    with pytest.raises(wb.FormatError, match="nf5"):
        wb.configurations(["nf5"])
    with pytest.raises(wb.FormatError, match="No format"):
        wb.configurations(["mxfp4"], double_quant=(True,))


# --- who takes part -----------------------------------------------------------------------------------------------------------


@given(st.floats(4.01, 9))
def test_each_way_to_store_scales_enters_with_its_smallest_blocks_that_the_bits_allow(bits):
    entering, left_out = entrants(bits)
    assert all(spec.bits_per_weight <= bits for spec in entering)
    kinds = [(spec.format, spec.scale_dtype, spec.double_quant) for spec in entering]
    assert len(set(kinds)) == len(kinds)
    for spec in wb.configurations():
        if spec.bits_per_weight <= bits:
            of_its_kind = entering[kinds.index((spec.format, spec.scale_dtype, spec.double_quant))]
            assert of_its_kind.block_size <= spec.block_size
    assert {spec.format for spec in entering} | set(left_out) == set(USUAL)
    assert list(dict.fromkeys(spec.format for spec in entering)) == [name for name in USUAL if name not in left_out]


@pytest.mark.parametrize("bits", [4.13, 4.5, 5.0])
def test_the_contender_is_the_configuration_that_errs_least_of_all_that_the_format_has(everything, bits):
    found = everything if bits == 4.5 else wb.duel("builtin", bits)
    searched = wb.duel("builtin", bits, wb.configurations())
    assert len(searched.measured.specs) > 3 * len(found.measured.specs)
    assert [score.spec for score in found.contenders] == [score.spec for score in searched.contenders]
    for score in searched.contenders:
        mine = [s for s in wb.configurations([score.spec.format]) if s.bits_per_weight <= bits]
        assert score.rmse == min(searched.measured.score(spec).rmse for spec in mine)


def test_block_size_and_double_quantization_are_chosen_by_measured_error_not_by_bits():
    at = {bits: {score.spec.format: score.spec for score in wb.duel("builtin", bits).contenders} for bits in (4.2, 4.5)}
    assert at[4.5]["nf4"] == wb.QuantSpec("nf4", 32, "float16")
    assert at[4.2]["nf4"] == wb.QuantSpec("nf4", 64, double_quant=True), "on fewer bits than blocks of 256 in float32"
    exact = wb.quantize(weights((8, 64)), "nf4").dequantize()
    assert wb.duel(exact, 4.5, ["nf4"]).contenders[0].spec == wb.QuantSpec("nf4"), "what these weights were made with"


def test_specifications_that_are_given_are_all_tried_and_equal_errors_take_the_fewest_bits():
    candidates = [wb.QuantSpec("nf4"), wb.QuantSpec("nf4", 128), wb.QuantSpec("nf4", 4096)]
    assert wb.duel(weights((8, 4096)), 4.5, candidates).contenders[0].spec == candidates[0]
    same = np.full((8, 4096), 0.5, np.float32)
    assert wb.duel(same, 4.5, candidates).contenders[0].spec == candidates[2]
    halves = wb.configurations(["nf4"], block_sizes=64, scale_dtypes=("bfloat16", "float16", "float32"), double_quant=False)
    assert wb.duel(same, 4.5, halves).contenders[0].spec == wb.QuantSpec("nf4", 64, "float16"), "listed before bfloat16"


def test_a_rotation_can_enter_as_a_choice():
    x = np.random.default_rng(0).standard_normal((64, 512), np.float32)
    x[::7, ::63] *= 30
    both = wb.configurations("nf4", block_sizes=64, scale_dtypes=(None,), double_quant=False, rotate=(None, "hadamard"))
    assert wb.duel(x, 4.5, both).contenders[0].spec == wb.QuantSpec("nf4", rotate="hadamard")


def test_zero_points_and_scale_dtypes_count(everything):
    bits = {score.spec.format: score.spec.bits_per_weight for score in everything.contenders}
    assert bits["int4-asym"] == 4 + (16 + 4) / 64
    assert bits["mxfp4"] == 4 + 8 / 32
    assert bits["iq4_nl"] == 4 + 16 / 32
    nvfp4 = next(score for score in everything.contenders if score.spec.format == "nvfp4")
    assert nvfp4.bits > nvfp4.spec.bits_per_weight == 4.5, "one float32 for each tensor comes on top"
    for score in everything.contenders:
        sizes = [row.tensor.numel for row in everything.measured.rows]
        assert score.nbytes == sum(map(score.spec.nbytes, sizes))
        assert score.bits == 8 * score.nbytes / sum(sizes)


def test_a_format_that_is_too_large_is_named_with_what_it_takes(everything):
    assert dict(everything.left_out) == {"int8": wb.QuantSpec("int8", 4096, double_quant=True).bits_per_weight}
    assert {"nvfp4", "iq4_nl", "int8"} == set(wb.duel(weights((8, 64)), 4.3).left_out)
    with pytest.raises(wb.FormatError, match=r"NF4 takes the fewest, 4\.0020"):
        wb.duel(weights((8, 64)), 4)


# --- who wins -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nf4", "fp4", "af4", "int4-sym", "e2m1", "mxfp4", "nvfp4"])
def test_every_format_wins_on_weights_that_are_made_of_its_own_levels(name):
    x = np.random.default_rng(0).standard_normal((64, 512), np.float32)
    spec = next(s for s in entrants(4.5)[0] if s.format == name)
    found = wb.duel(wb.quantize(x, spec).dequantize(), 4.5)
    assert found.winners("rmse") == found.winners("sqnr_db") == (name,)


def test_who_errs_exactly_alike_wins_together():
    found = wb.duel(
        np.full((8, 64), 0.5, np.float32), candidates=[wb.QuantSpec("nf4"), wb.QuantSpec("fp4"), wb.QuantSpec("int4")]
    )
    assert found.winners() == ("nf4", "fp4"), "both have the level 1, and INT4 stops at 7/8"
    assert [score.spec.format for score in found.ranked] == ["nf4", "fp4", "int4"]
    assert found.wins() == {"nf4": 1, "fp4": 1, "int4": 0}


def test_nothing_finite_has_no_winner():
    found = wb.duel(np.full((8, 64), np.nan, np.float32))
    assert [found.winners(on) for on in ("rmse", "mean_sqnr_db")] == [(), ()]
    assert [score.spec for score in found.ranked] == [score.spec for score in found.contenders]
    with pytest.raises(WorkbenchError, match="rmse, sqnr_db, mean_sqnr_db"):
        found.winners("beauty")


def test_errors_are_pooled_over_weights_and_not_averaged_over_tensors(everything):
    src, spec = wb.open_model("builtin"), wb.QuantSpec("nf4")
    noise, power, count, each = 0.0, 0.0, 0, []
    for info in (t for t in src.tensors() if t.quantizable):
        x = src.read(info.name)
        error = x.astype(np.float64) - wb.quantize(x, spec).dequantize()
        noise, power, count = noise + (error**2).sum(), power + (x.astype(np.float64) ** 2).sum(), count + x.size
        each.append((x.size, (error**2).mean() / (x.astype(np.float64) ** 2).mean()))
    score = everything.measured.score(spec)
    assert score.rmse == pytest.approx(math.sqrt(noise / count), rel=1e-5)
    assert score.sqnr_db == pytest.approx(10 * math.log10(power / noise), rel=1e-6)
    sizes, ratios = np.array(each).T
    assert score.mean_sqnr_db == pytest.approx(-10 * math.log10(np.average(ratios, weights=sizes)), rel=1e-6)


def test_large_weights_decide_the_rmse_and_every_tensor_the_mean_sqnr(tmp_path):
    """One tensor of large weights on INT4's levels, two of small weights on NF4's."""
    grid = {name: wb.quantize(weights((64, 640), np.float32), wb.QuantSpec(name)).dequantize() for name in ("int4-sym", "nf4")}
    parts = {"q_proj": 100 * grid["int4-sym"], "k_proj": grid["nf4"] / 100, "v_proj": grid["nf4"] / 100}
    folder = checkpoint(tmp_path, {f"model.layers.0.self_attn.{name}.weight": x for name, x in parts.items()})
    found = wb.duel(folder, candidates=[wb.QuantSpec("nf4"), wb.QuantSpec("int4-sym")])
    assert found.winners("rmse") == found.winners("sqnr_db") == ("int4-sym",)
    assert found.winners("mean_sqnr_db") == ("nf4",)
    assert found.wins("tensor") == {"nf4": 2, "int4-sym": 1}


def test_rounds_are_fought_by_tensor_layer_and_kind(everything):
    assert [fought.label for fought in everything.rounds("layer")] == [0, 1, 2, 3, 4, 5]
    assert {fought.label for fought in everything.rounds("kind")} == {"q", "k", "v", "o", "gate", "up", "down"}
    rounds = everything.rounds()
    assert len(rounds) == 42
    assert sum(everything.wins().values()) == 42
    for fought in rounds:
        least = min(score.rmse for score in fought.scores)
        assert [s.spec.format for s in fought.scores if s.rmse == least] == list(fought.winners())
    with pytest.raises(WorkbenchError, match="tensor, layer, kind"):
        everything.rounds("moon")


def test_tables(everything):
    whole, by_layer = everything.to_frame(), everything.to_frame("layer")
    assert list(whole["format"]) == [score.spec.format for score in everything.contenders]
    assert list(whole.loc[whole["won"], "format"]) == list(everything.winners())
    assert len(by_layer) == 6 * len(whole)
    assert by_layer.groupby("layer")["won"].sum().tolist() == [1] * 6


# --- double quantization ------------------------------------------------------------------------------------------------------


def test_what_double_quantization_gains_and_costs_stands_beside(everything):
    assert set(everything.trades) == {name for name in USUAL if wb.FORMATS[name].rule == "absmax"} - {"int8"}
    src = wb.open_model("builtin")
    sizes = [t.numel for t in src.tensors() if t.quantizable]
    plain, double = wb.QuantSpec("nf4"), wb.QuantSpec("nf4", double_quant=True)
    trade = everything.trades["nf4"]
    assert (trade.plain.spec, trade.double.spec) == (plain, double)
    assert trade.bytes_saved == sum(plain.nbytes(n) - double.nbytes(n) for n in sizes)
    assert trade.bits_saved == pytest.approx(plain.bits_per_weight - double.bits_per_weight, abs=1e-3)
    assert 0 < trade.error_added < 0.01
    assert trade.error_added == pytest.approx(trade.double.rmse / trade.plain.rmse - 1)


def test_a_contender_that_is_double_quantized_is_set_against_itself_without():
    found = wb.duel(weights((64, 640)), 4.2, candidates=wb.configurations(["nf4"], block_sizes=[64]))
    assert found.contenders[0].spec.double_quant
    assert found.trades["nf4"].plain.spec == wb.QuantSpec("nf4")


# --- the front ----------------------------------------------------------------------------------------------------------------


def test_the_front_is_what_nothing_beats():
    found = wb.pareto(weights((256, 640)))
    assert len(found.points) == sum(len(wb.FORMATS[name].block_sizes) for name in USUAL)
    for point in found.points:
        beaten = any(
            other.score.bits <= point.score.bits
            and other.score.rmse <= point.score.rmse
            and (other.score.bits, other.score.rmse) != (point.score.bits, point.score.rmse)
            for other in found.points
        )
        assert point.on_front == (not beaten)
    bits, errors = zip(*((score.bits, score.rmse) for score in found.front), strict=True)
    assert list(bits) == sorted(bits)
    assert list(errors) == sorted(errors, reverse=True)


def test_the_best_for_a_number_of_bits():
    found = wb.pareto(weights((256, 640)), wb.configurations(["nf4", "fp4", "int4-asym"]))
    for bits in (4.1, 4.25, 4.5, 5):
        within = [point.score.rmse for point in found.points if point.score.bits <= bits]
        assert found.best(bits).rmse == min(within)
        assert found.best(bits).bits <= bits
    with pytest.raises(wb.FormatError, match=r"takes the fewest, 4\.0"):
        found.best(4)


def test_the_front_of_a_model_a_layer_group_and_a_tensor():
    specs = wb.configurations(["nf4", "int4-asym"], block_sizes=[32, 64, 128], scale_dtypes=[None])
    src = wb.open_model("builtin")
    model = wb.pareto(src, specs)
    name = "model.layers.2.mlp.down_proj.weight"
    assert model.only(tensor=name).to_frame().equals(wb.pareto(src, specs, tensors=[name]).to_frame())
    alone = wb.pareto(src.read(name), specs)
    for point, other in zip(model.only(layer=2, kind="down").points, alone.points, strict=True):
        assert point.score.spec == other.score.spec
        assert point.score.rmse == pytest.approx(other.score.rmse, rel=1e-6)
    assert len(model.only(kind="down").measured.rows) == 6
    with pytest.raises(ModelError, match="layer=9"):
        model.only(layer=9)


# --- what is measured ---------------------------------------------------------------------------------------------------------


def test_a_sample_of_an_array_says_that_it_is_one():
    x = weights((1024, 1024))
    whole, part = wb.duel(x), wb.duel(x, sample=1 / 16)
    assert (whole.measured.sampled, part.measured.sampled) == (None, 1 / 16)
    for a, b in zip(whole.contenders, part.contenders, strict=True):
        assert (a.bits, a.numel) == (b.bits, b.numel), "stored are all the weights"
        assert b.rmse == pytest.approx(a.rmse, rel=0.05)
    with pytest.raises(wb.FormatError, match="measured whole"):
        wb.duel("builtin", sample=1 / 16)
    with pytest.raises(wb.FormatError, match="no tensors"):
        wb.duel(x, tensors=["model.norm.weight"])


def test_tensors_that_cannot_be_read_are_left_out_and_told(tmp_path: Path):
    names = list(layers(4))
    for shard in (0, 1):
        part = {name: x for i, (name, x) in enumerate(layers(4).items()) if i // 2 == shard}
        checkpoint(tmp_path / f"{shard}", part)
        (tmp_path / f"{shard}" / "model.safetensors").rename(tmp_path / f"{shard}.safetensors")
    index = {"weight_map": {name: f"{i // 2}.safetensors" for i, name in enumerate(names)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    src = wb.open_model(tmp_path)
    (tmp_path / "1.safetensors").unlink()
    found = wb.duel(src)
    assert [row.tensor.name for row in found.measured.rows] == names[:2]
    assert [row.tensor.name for row in found.measured.failed] == names[2:]
    assert all(row.error for row in found.measured.failed)
    (tmp_path / "0.safetensors").unlink()
    with pytest.raises(ModelError, match="nothing to compare"):
        wb.duel(src)


def test_a_duel_can_be_cancelled():
    for model in (weights((1500, 1024)), "builtin"):
        with pytest.raises(InterruptedError):
            wb.duel(model, cancelled=lambda: True)


def test_a_format_of_one_s_own_takes_part():
    from workbench.quant import formats

    levels = np.linspace(-1, 1, 16)
    wb.register_format("even", levels)
    try:
        x = wb.quantize(weights((64, 640), np.float32), wb.QuantSpec("even")).dequantize()
        assert wb.duel(x, 4.5).winners() == ("even",)
    finally:
        del formats._formats["even"]
