"""The workbench over a real model, tensor by tensor. `make smollm2` makes the model and runs these; `make test` does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.helpers import kept, smollm2, tiny
from tests.helpers.cost_in_process import measuring
from workbench.cost.assignments import Assignment
from workbench.sources.packed import logical, packed, weights
from workbench.sources.rule import left_in_16_bits

pytestmark = pytest.mark.smollm2
FOLDER = Path(os.environ.get("SMOLLM2", smollm2.FOLDER))
SPEC = wb.QuantSpec("nf4", 64, double_quant=True)


@pytest.fixture(scope="module")
def source() -> wb.Source:
    return wb.open_model(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    """The model as QLoRA loads it."""
    return tiny.load_4bit(FOLDER)


def test_it_opens_with_its_tensors_and_configuration(source: wb.Source) -> None:
    infos = source.tensors()
    assert (len(infos), sum(t.numel for t in infos)) == (272, 134_515_008)
    assert (source.config["model_type"], source.licence) == ("llama", "apache-2.0")
    assert {t.dtype for t in infos} == {"BF16"}


def test_the_rule_is_exact_and_both_are_what_the_load_does(source: wb.Source, model: Any) -> None:
    import bitsandbytes as bnb

    held = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    assert len(held) == 30 * 7
    for exact in (False, True):
        assert {t.name for t in source.tensors(exact=exact) if t.quantizable} == held


def test_every_code_is_that_of_the_loaded_model(source: wb.Source, model: Any) -> None:
    for t in source.tensors():
        if t.quantizable:
            module = model.get_submodule(t.name.removesuffix(".weight"))
            q = wb.quantize(weights(source, t.name), SPEC)
            np.testing.assert_array_equal(q.packed, module.weight.data.numpy(), err_msg=t.name)


def test_what_stays_in_16_bits_is_the_tied_embedding(source: wb.Source) -> None:
    left = left_in_16_bits(source.tensors())
    assert (left[0].reason, left[0].nbytes) == ("an embedding, tied to the output head", 49_152 * 576 * 2)
    assert not any(out.unexpected for out in left)


def test_a_survey_of_every_tensor_is_finite(source: wb.Source) -> None:
    specs = [wb.QuantSpec(name) for name in ("nf4", "fp4", "int4", "mxfp4")]
    rows = list(wb.survey(source, specs, tensors="all", progress=False))
    assert {row.tensor.name for row in rows} == {t.name for t in source.tensors()}
    assert {row.error for row in rows} == {None}
    assert all(np.isfinite(totals.rmse) and totals.nans == 0 for row in rows for totals in row.totals)
    nf4 = [row.totals[0].relative_rmse for row in rows if row.tensor.quantizable]
    assert 0.05 < min(nf4) < max(nf4) < 0.15


def test_saved_in_4_bits_it_opens_with_the_same_codes(source: wb.Source, model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "packed", max_shard_size="30MB")
    saved = wb.open_model(tmp_path / "packed")
    own = {t.name: t for t in logical(saved)}
    for t in source.tensors():
        if t.quantizable:
            assert own[t.name].shape == t.shape
            assert own[t.name].reason == "already in 4 bits: NF4, blocks of 64, double quantized"
    for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.17.mlp.down_proj.weight"):
        held = packed(saved, name)
        assert held is not None
        q = wb.quantize(source.read(name), SPEC)
        np.testing.assert_array_equal(held.codes, q.codes)
        np.testing.assert_array_equal(held.dequantize(), held.quantized().dequantize(held.dtype))
        np.testing.assert_allclose(held.scales, q.scales, rtol=1e-2)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointed"])
def test_activations_are_forecast_within_15_percent(checkpointing: bool) -> None:
    config = wb.TrainConfig(model=str(FOLDER), gradient_checkpointing=checkpointing)
    model = kept.loaded(config)
    for rows, length, padded in ((1, 64, False), (2, 128, False), (1, 512, False), (2, 128, True)):
        forecast, measured = kept.activation_bytes(model, config, rows, length, padded)
        assert forecast == pytest.approx(measured, rel=0.15), (rows, length, padded)


MODULES = 14
"""Modules whose costs are measured: two layers of thirty, in which everything else stays in 4 bits."""


def test_the_predicted_order_of_mixes_is_the_measured_one() -> None:
    modules = [t.name.removesuffix(".weight") for t in wb.open_model(FOLDER).tensors() if t.quantizable][:MODULES]
    with measuring():
        sens = wb.sensitivity(FOLDER, modules=modules, max_rows=4, max_length=48).run()
        start = sens.job.nbytes(Assignment(sens.spec))
        saved = sum(row.saved_bytes for row in sens.rows)
        mixes = [wb.mix(sens, start + int(share * saved)) for share in (0.0, 0.3, 1.0)]
        kls = [mix.measure() or 0.0 for mix in mixes]
    predicted = [mix.predicted_kl for mix in mixes]
    assert predicted[0] > predicted[1] >= predicted[2]
    assert kls[0] > kls[1] >= kls[2]
