"""Weights that are NaN or infinite, all equal, or all zero: counted alike everywhere, and no "nan" shown as a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

import workbench as wb
from tests.helpers.immediate import Immediate
from widgets import Workbench
from workbench.cli.text import survey_text
from workbench.surveys.rows import nonfinite_summary, pooled

SPECS = [
    wb.QuantSpec("nf4"), wb.QuantSpec("nf4", double_quant=True), wb.QuantSpec("nvfp4"), wb.QuantSpec("mxfp4"),
    wb.QuantSpec("int4-asym"), wb.QuantSpec("int8"),
]  # fmt: skip


def normal(value: float = 0.0, count: int = 0, shape: tuple[int, int] = (64, 256)) -> NDArray[np.float32]:
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    x.reshape(-1)[: 300 * count : 300] = value
    return x


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.title)
def test_averages_are_those_of_the_blocks_that_are_not_left_out(spec: wb.QuantSpec, value: float) -> None:
    x = normal(value, 2)
    e = wb.measure(x, spec)
    kept = np.isfinite(e.block_rmse)
    assert (e.nans + e.infinities, e.bad_blocks) == (2, int((~kept).sum()))
    if kept.any():
        assert e.rmse == pytest.approx(np.sqrt(np.mean(e.block_rmse[kept].astype(np.float64) ** 2)), rel=1e-6)
        assert e.rms == pytest.approx(np.sqrt(np.mean(x.reshape(-1, spec.block_size)[kept].astype(np.float64) ** 2)), rel=1e-6)
        assert np.isfinite([e.max, e.sqnr_db]).all()
    else:
        assert np.isnan([e.rmse, e.mae, e.max, e.rms]).all()
    tally = wb.Tally([spec])
    if tally.looks_first:
        tally.look(x)
    tally.feed(x)
    (totals,) = tally.totals()
    assert (totals.bad_blocks, totals.nans) == (e.bad_blocks, e.nans)


def test_a_nan_takes_every_block_with_double_quantization_as_in_bitsandbytes() -> None:
    import torch
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(torch.from_numpy(normal(np.nan, 1)), quant_type="nf4", compress_statistics=True)
    assert torch.isnan(functional.dequantize_4bit(packed, state)).all()
    assert wb.measure(normal(np.nan, 1), SPECS[1]).bad_blocks == 64 * 256 // 64


def test_what_is_left_of_the_averages_is_told_by_specification() -> None:
    stats = [wb.measure(normal(np.nan, 2), spec) for spec in SPECS[:2]]
    assert nonfinite_summary(stats) == (
        "2 weights are NaN and 0 infinite; their 2 blocks are left out of every average; under NF4, blocks of 64, double "
        "quantized no block is left to average."
    )
    assert nonfinite_summary([wb.measure(normal(), SPECS[0])]) == ""
    whole = pooled([stats[1], wb.measure(normal(), SPECS[1])])  # a tensor that is lost takes no other with it
    assert whole.rmse == wb.measure(normal(), SPECS[1]).rmse
    assert whole.relative_rmse == pytest.approx(wb.measure(normal(), SPECS[1]).relative_rmse)
    assert "all" not in nonfinite_summary([whole])


@pytest.mark.parametrize("shape", [(1, 40), (1, 64), (2, 100)])
def test_a_tensor_of_one_block_or_with_none_left_has_no_average(shape: tuple[int, int]) -> None:
    for x in (normal(np.inf, 1, shape), np.full(shape, np.nan, np.float32)):
        e = wb.measure(x[:1, :40], SPECS[0])
        assert e.bad_blocks == e.block_rmse.size == 1
        assert np.isnan([e.rmse, e.max, pooled([e, e]).rmse, pooled([e, e]).max]).all()


def model(folder: Path, **tensors: NDArray[Any]) -> str:
    save_file({f"model.layers.0.mlp.{name}.weight": x for name, x in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    return str(folder)


def test_a_survey_tells_in_the_terminal_what_its_table_counts(tmp_path: Path) -> None:
    survey = wb.survey(model(tmp_path, up_proj=normal(np.nan, 2), down_proj=normal(-np.inf, 3), gate_proj=normal()), SPECS[:1])
    frame = survey.run().to_frame()
    told = survey_text(survey, 5)
    assert f"{frame.nans.sum()} weights are NaN and {frame.infinities.sum()} infinite" in told
    assert "They are in model.layers.0.mlp.down_proj.weight and model.layers.0.mlp.up_proj.weight." in told
    assert "nan" not in told.replace("NaN", "")
    assert "NaN" not in survey_text(wb.survey("builtin", SPECS[:1], tensors=["model.layers.0.mlp.up_proj.weight"]).run(), 5)


@pytest.mark.parametrize("value", [0.0, 0.5, np.nan, np.inf])
def test_no_view_and_no_report_shows_nan_as_a_number(value: float, tmp_path: Path) -> None:
    folder = model(tmp_path, up_proj=np.full((64, 64), value, np.float32), down_proj=normal(shape=(64, 64)))
    survey = wb.survey(folder, SPECS[:2]).run()
    wb.write_report(survey, tmp_path / "report.html")
    assert "nan " not in (tmp_path / "report.html").read_text("utf-8")
    assert "nan " not in survey_text(survey, 5)
    app = Workbench(folder, executor=Immediate())
    app.session.store.update(tensor="model.layers.0.mlp.up_proj.weight")
    for index in range(5):
        app.tabs.selected_index = index
    shown = " ".join(str(getattr(widget, "value", "")) for widget in every(app))
    app.close()
    for number in ("nan σ", "nan %", "nan dB"):
        assert number not in shown, shown[max(0, shown.index(number) - 200) : shown.index(number) + 9]


def every(widget: Any) -> list[Any]:
    return [widget, *(inner for child in getattr(widget, "children", ()) for inner in every(child))]


# --- in training, and in what formats cost ------------------------------------------------------------------------------------

SPOILT = "model.layers.1.mlp.down_proj"


def spoil(folder: Path, row: int, value: float) -> Path:
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save

    from tests.helpers.tiny_model import write_tiny_model

    weights = load_file(write_tiny_model(folder) / "model.safetensors")
    weights[f"{SPOILT}.weight"][row] = value
    save(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_no_number_is_traced_to_the_weight_and_not_to_the_rate(value: float, tmp_path: Path) -> None:
    from workbench.training.loaded_checks import diverged

    folder = spoil(tmp_path, 3, value)
    error = diverged(None, wb.TrainConfig(model=str(folder)), 1, float("nan"))
    assert f"'{SPOILT}.weight' holds" in error.what
    assert "learning_rate" not in error.remedy


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_dora_on_an_output_of_zeros_is_named_where_peft_divides_by_its_length(method: str, tmp_path: Path) -> None:
    import torch

    from workbench.training.loaded_checks import diverged
    from workbench.training.worker.model import attach_adapters, load_base

    config = wb.TrainConfig(model=str(spoil(tmp_path, 7, 0.0)), method=method, use_dora=True, lora_dropout=0.0)
    net = attach_adapters(load_base(config, tmp_path, torch.float32, lambda: None), config)
    with torch.no_grad():
        assert net(torch.arange(3, 20)[None]).logits.isnan().any()
    error = diverged(net, config, 1, float("nan"))
    assert f"'{SPOILT}' has an output of zeros" in error.what
    assert "use_dora" in error.remedy


def test_a_weight_beyond_its_dtype_and_a_rate_that_was_too_high_are_told_apart(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from workbench.training.loaded_checks import diverged

    config = wb.TrainConfig(model=str(spoil(tmp_path, 7, 1e6)), method="lora")
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16).requires_grad_(False)
    assert f"'{SPOILT}.weight'" in diverged(half, config, 1, float("nan")).what
    whole = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).requires_grad_(False)
    assert "learning_rate" not in diverged(whole, config, 1, float("inf")).remedy
    assert "learning_rate" in diverged(whole, config, 2, float("nan")).remedy


def test_evaluate_names_the_tensor_that_makes_its_loss_no_number(tmp_path: Path) -> None:
    with pytest.raises(wb.ModelError, match=rf"no number in 16 bits.*{SPOILT}\.weight' holds 128 weights that are NaN"):
        wb.evaluate(spoil(tmp_path, 3, np.nan), ["nf4"], max_rows=4, max_length=32).run()


def test_evaluate_refuses_what_is_no_causal_language_model_at_once(tmp_path: Path) -> None:
    from tests.helpers import tiny
    from tests.helpers.tiny_model import tiny_tokenizer

    kind, config, cls = tiny.ARCHITECTURES["bert"]
    tiny_tokenizer().save_pretrained(tiny.save(tmp_path, kind, config, cls))
    with pytest.raises(wb.ModelError, match="encoder"):
        wb.evaluate(tmp_path)
