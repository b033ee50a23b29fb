"""EVA: adapters as peft's own call makes them of the run's rows, kept as a run is resumed, saved to load without rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests.helpers import in_process
from tests.helpers.tiny_model import write_tiny_model
from tests.training.test_initialisation import adapted, begun
from tests.training.test_recipe import check_losses
from workbench.training.choices import EVA_ROWS
from workbench.training.worker import eva, material

EVA: dict[str, Any] = {"init_lora_weights": "eva", "lora_r": 4, "lora_alpha": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


def batches(config: wb.TrainConfig, model: Path) -> list[dict[str, torch.Tensor]]:
    return eva.batches_of(material.prepare(config, model, lambda *_, **__: None)[1], config)


def first_steps(net: Any) -> dict[str, torch.Tensor]:
    return {name: module.lora_A["default"].weight.detach() for name, module in adapted(net).items()}


@pytest.mark.parametrize(
    "fields", [{}, {"use_dora": True, "packing": True}, {"method": "lora", "compute_dtype": "bfloat16"}], ids=str
)
def test_the_adapters_are_those_of_peft_s_own_call(model: Path, fields: dict[str, Any]) -> None:
    from peft import EvaConfig, LoraConfig, initialize_lora_eva_weights
    from peft.tuners.lora.eva import get_eva_state_dict

    config = in_process.config_of(model, **EVA, **fields)
    some = batches(config, model)
    ours, theirs = (begun(model, **{**EVA, **fields}) for _ in range(2))
    passes = list[int]()
    eva.begin_with_eva(ours, config, some, passes.append)
    how = LoraConfig(r=4, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    theirs.peft_config["default"].init_lora_weights = "eva"
    theirs.config.use_cache = False
    directions = get_eva_state_dict(theirs, some, how, show_progress_bar=False)
    initialize_lora_eva_weights(theirs, eva_state_dict=directions)
    made = first_steps(theirs)
    for name, a in first_steps(ours).items():
        assert torch.equal(a, made[name])
        assert a.shape[0] == 4
        torch.testing.assert_close(a @ a.T, torch.eye(4), atol=1e-4, rtol=0)
        assert not adapted(ours)[name].lora_B["default"].weight.any(), "the base is unchanged"
    assert passes == [*range(1, len(passes) + 1)]


def test_rows_are_drawn_with_the_seed(model: Path) -> None:
    config = in_process.config_of(model, **EVA)
    one, again = batches(config, model), batches(config, model)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(one, again, strict=True))
    other = batches(in_process.config_of(model, **{**EVA, "seed": 2}), model)
    assert any(
        a["input_ids"].shape != b["input_ids"].shape or (a["input_ids"] != b["input_ids"]).any()
        for a, b in zip(one, other, strict=False)
    )
    assert sum(len(batch["input_ids"]) for batch in one) <= EVA_ROWS


def test_a_run_is_resumed_without_eva_to_the_same_bits_and_its_adapter_loads_without_rows(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = in_process.train(in_process.config_of(model, **EVA, save_steps=2, lora_dropout=0.1), tmp_path)
    assert [e["edge"] for e in run.events() if e["k"] == "phase" and e["name"] == "eva"] == ["begin", "end"]
    assert run.adapter_dir is not None
    weights = run.adapter_dir / "adapter_model.safetensors"
    whole = weights.read_bytes()
    saved = json.loads((run.adapter_dir / "adapter_config.json").read_text("utf-8"))
    assert saved["init_lora_weights"] is True
    assert saved["eva_config"] is None
    assert (saved["r"], saved["rank_pattern"], saved["alpha_pattern"]) == (4, {}, {})

    base = AutoModelForCausalLM.from_pretrained(model)
    net = PeftModel.from_pretrained(base, str(run.adapter_dir))
    assert any(module.lora_B["default"].weight.any() for module in adapted(net).values())
    assert not [w for w in recwarn if "eva" in str(w.message).lower()]
    assert all(row.dequantized < 0.01 for row in wb.merge_errors(run).rows)
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    weights.unlink()
    monkeypatch.setattr(eva, "initialize_lora_eva_weights", None)  # a second call would fail
    again = in_process.train(run.config, tmp_path, attempt=2)
    assert [e["n"] for e in again.events() if e["k"] == "step" and e["attempt"] == 2] == [3, 4]
    assert weights.read_bytes() == whole


@pytest.mark.parametrize(
    "fields",
    [
        {"lora_dropout": 0.1, "max_eval_rows": 0},
        pytest.param({"method": "lora", "packing": True, "max_length": 64}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_copied_cell_makes_peft_s_call_on_the_same_rows(
    model: Path, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = in_process.config_of(model, logits_at_once=0, **EVA, **fields)
    assert "initialize_lora_eva_weights(model, batches" in wb.as_code(config)
    monkeypatch.chdir(tmp_path)
    check_losses(config, tmp_path / "run")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text("utf-8"))
    assert saved["init_lora_weights"] is True


def test_what_would_never_settle_or_has_too_few_directions_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = in_process.config_of(model, **{**EVA, "lora_r": 512})
    with pytest.raises(wb.ConfigError, match=r"1,024 tokens that bear a loss.*Make lora_r smaller"):
        batches(config, model)
    wide = in_process.config_of(model, **{**EVA, "lora_r": 33}, per_device_train_batch_size=16)
    with pytest.raises(wb.ConfigError, match=r"66 inputs.*Make lora_r 32 or smaller"):
        eva.begin_with_eva(begun(model, **{**EVA, "lora_r": 33}), wide, [], print)

    config = in_process.config_of(model, **EVA)
    monkeypatch.setattr(eva, "PASSES", 3)
    with pytest.raises(wb.ConfigError, match="have not settled in 3 passes"):
        eva.begin_with_eva(begun(model, **EVA), config, batches(config, model), lambda _: None)


def test_which_fields_it_goes_with() -> None:
    wb.TrainConfig(init_lora_weights="eva", method="lora", llm_int8_skip_modules=())
    wb.TrainConfig(init_lora_weights="eva", llm_int8_skip_modules=("down_proj",), upcast_to_fp32=True)
    with pytest.raises(wb.ConfigError, match="turn upcast_to_fp32 on"):
        wb.TrainConfig(init_lora_weights="eva", llm_int8_skip_modules=("down_proj",))
