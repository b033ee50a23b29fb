"""Every way of training really trains on a CPU, and what it leaves loads in plain transformers and peft with the same loss.

The worker runs inside the test's process here; its life as a process of its own is ``test_training_runs``' part.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

import workbench as wb
from tests.helpers import in_process, tiny
from tests.helpers.tiny_model import ROWS, write_tiny_model
from workbench.memory.footprint import Plan, trained
from workbench.memory.gpus import devices
from workbench.training import data
from workbench.training.events import Event
from workbench.training.preflight import check_kernels

Train = Callable[..., wb.Run]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def train(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains a few steps to the end, in this process."""

    def train(**fields: Any) -> wb.Run:
        return in_process.train(in_process.config_of(model, **fields), tmp_path_factory.mktemp("run"))

    return train


def of(run: wb.Run, kind: str) -> list[Event]:
    return [e for e in run.events() if e["k"] == kind]


def losses(run: wb.Run) -> list[float]:
    return [e["loss"] for e in of(run, "eval")]


def loss_of(net: Any, config: wb.TrainConfig) -> float:
    """The held-out loss of a model that was loaded without the workbench."""
    from workbench.training.worker import trainer

    tokenizer = data.open_tokenizer(Path(config.model))
    rows = data.load(config, tokenizer, data.held_out_files(config), config.max_eval_rows).rows
    collator = trainer.Collator(tokenizer.pad_token_id)
    import torch

    with trainer.measuring(net, torch.float32):
        loss = trainer.held_out_loss(net, rows, collator, config.per_device_train_batch_size, lambda: None)
    assert loss is not None
    return loss


def base(config: wb.TrainConfig, **how: Any) -> Any:
    import torch
    from bitsandbytes.nn import Linear4bit
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if config.method == "qlora":
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quant_type,
            bnb_4bit_use_double_quant=config.double_quant,
            bnb_4bit_compute_dtype=torch.float32,
        )
    net = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32, **how)
    for module in net.modules():  # as in training: not the kernel that multiplies in bfloat16, on processors that have it
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return net


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "lora", "use_rslora": True, "optim": "adamw_torch"},
        {"method": "lora", "init_lora_weights": "pissa"},
        {"quant_type": "fp4", "use_dora": True, "gradient_accumulation_steps": 2},
        {"init_lora_weights": "olora", "gradient_checkpointing": False},
        {"init_lora_weights": "loftq", "lora_alpha": 16, "double_quant": True},
    ],
    ids=["lora-rslora", "lora-pissa", "qlora-fp4-dora", "qlora-olora", "qlora-loftq"],
)
def test_an_adapter_learns_and_loads_in_plain_peft(train: Train, fields: dict[str, Any]) -> None:
    from peft import PeftModel

    run = train(**fields)
    before, after = losses(run)
    assert after < before - 0.05
    assert len(of(run, "step")) == 4
    assert (run.adapter_dir, run.model_dir) == (run.dir / "adapter", None)
    loaded = PeftModel.from_pretrained(base(run.config), str(run.adapter_dir))
    assert loss_of(loaded, run.config) == pytest.approx(after, abs=1e-5)
    saved = safetensors.numpy.load_file(run.dir / "adapter" / "adapter_model.safetensors")
    source = wb.open_model(run.config.model)
    forecast = trained(source.tensors(), Plan.of(run.config, "cpu"), source.config)
    assert sorted(forecast.values()) == sorted(tensor.size for tensor in saved.values())


def test_every_weight_is_trained_by_epochs_with_evaluations_and_checkpoints(train: Train, tmp_path: Path) -> None:
    """20 rows in batches of 4, two a step: 5 batches, so 3 steps a pass, the last of one batch; 1.5 passes: 5 steps."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(ROWS.read_text("utf-8").splitlines(True)[:20]), "utf-8")
    columns = {"prompt_column": "prompt", "completion_column": "completion"}
    run = train(
        method="full", dataset=str(rows), eval_dataset=str(rows), **columns, num_train_epochs=1.5,
        gradient_accumulation_steps=2, eval_steps=2, save_steps=3, learning_rate=5e-3, optim="paged_adamw_8bit",
    )  # fmt: skip
    (told, _) = of(run, "dataset")
    assert (told["steps"], told["kept"]) == (5, 20)
    assert [(e["n"], e["tokens"] > 0) for e in of(run, "step")] == [(n, True) for n in range(1, 6)]
    assert [e["n"] for e in of(run, "eval")] == [0, 2, 4, 5]
    assert [e["n"] for e in of(run, "checkpoint")] == [3, 5]
    before, *_, after = losses(run)
    assert after < before - 0.05
    assert (run.adapter_dir, run.model_dir) == (None, run.dir / "model")

    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(run.model_dir, dtype=torch.float32)
    assert loss_of(loaded, run.config) == pytest.approx(after, abs=1e-5)
    assert loaded.config.use_cache
    untrained = base(run.config).state_dict()
    assert not any(torch.equal(value, untrained[name]) for name, value in loaded.state_dict().items())


def test_other_block_sizes_and_modules_left_out(model: Path, train: Train) -> None:
    from workbench.training.worker.model import compute_dtype, load_base

    fields = {
        "block_size": 32,
        "double_quant": False,
        "llm_int8_skip_modules": ("down_proj", "model.layers.0.self_attn.q_proj"),
    }
    config = in_process.config_of(model, **fields)
    net = load_base(config, model, compute_dtype(config), lambda: None)
    seen: dict[str, tuple[str, int | None]] = {"lm_head": (type(net.lm_head).__name__, None)}
    for name, module in net.named_modules():
        if "layers.0" in name and hasattr(module, "weight") and module.weight.ndim == 2:
            state = getattr(module.weight, "quant_state", None)
            seen[name.rpartition(".")[2]] = type(module).__name__, state and state.blocksize
    four_bit = ("Linear4bit", 32)
    assert seen == {
        "q_proj": ("Linear", None), "k_proj": four_bit, "v_proj": four_bit, "o_proj": four_bit, "gate_proj": four_bit,
        "up_proj": four_bit, "down_proj": ("Linear", None), "lm_head": ("Linear", None),
    }  # fmt: skip
    held = sum(p.nbytes for p in net.parameters() if hasattr(p, "quant_state"))
    run = train(**fields)
    assert held == wb.receipt(run)["4-bit weights"].measured
    assert held == wb.forecast(wb.open_model(model), run.config, "cpu")["4-bit weights"]
    before, after = losses(run)
    assert after < before - 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "loftq", "lora_alpha": 16},
        {"method": "lora", "init_lora_weights": "pissa"},
        {"method": "full", "num_train_epochs": 0.02},
    ],
    ids=["olora", "loftq", "pissa", "full"],
)
def test_what_begins_from_the_weights_goes_on_from_a_checkpoint_to_the_same_weights(
    train: Train, fields: dict[str, Any]
) -> None:
    """The base that such adapters leave behind is made again, and epochs are counted again."""
    run = train(**fields, save_steps=2, max_eval_rows=0)
    trained_dir = run.adapter_dir or run.model_dir
    assert trained_dir is not None
    (weights,) = trained_dir.glob("*.safetensors")
    whole = weights.read_bytes()
    shutil.rmtree(run.dir / "checkpoints" / "checkpoint-4")
    weights.unlink()
    again = in_process.train(run.config, run.dir, attempt=2)
    assert [e["n"] for e in of(again, "step") if e["attempt"] == 2] == [3, 4]
    assert weights.read_bytes() == whole


@pytest.mark.parametrize(
    ("fields", "shape"),
    [({"block_size": 128}, "(128, 64)"), ({"block_size": 128, "llm_int8_skip_modules": (".*mlp",)}, "(32, 64)")],
)
def test_4_bit_kernels_that_are_wrong_for_a_model_are_told_before_a_run(
    model: Path, fields: dict[str, Any], shape: str
) -> None:
    source = wb.open_model(model)
    with pytest.raises(wb.ConfigError) as caught:
        check_kernels(wb.TrainConfig(**fields), source, "AVX512")
    assert shape in caught.value.what
    assert "(32, 64, 2048, 4096)" in caught.value.remedy
    check_kernels(wb.TrainConfig(**fields), source, "AVX2")
    check_kernels(wb.TrainConfig(), source, "AVX512")
    check_kernels(wb.TrainConfig(method="lora", block_size=128), source, "AVX512")


@pytest.mark.parametrize("block_size", wb.FORMATS["nf4"].block_sizes)
def test_this_machine_is_asked_before_a_run(model: Path, block_size: int) -> None:
    """Launch refuses what this processor computes wrongly, and nothing else; every block size it then names is taken."""
    source, config = wb.open_model(model), wb.TrainConfig(block_size=block_size)
    shapes = [t.shape for t in source.tensors() if t.quantizable]
    right = devices() or all(wb.check_backend(shape, block_size).right for shape in shapes)
    with contextlib.nullcontext() if right else pytest.raises(wb.ConfigError) as caught:
        check_kernels(config, source)
    if caught is not None:
        for named in re.findall(r"\d+", caught.value.remedy):
            check_kernels(wb.TrainConfig(block_size=int(named)), source)


def test_a_checkpoint_that_is_packed_is_judged_by_its_own_block_size(model: Path, tmp_path: Path) -> None:
    tiny.load_4bit(model).save_pretrained(tmp_path / "packed")
    check_kernels(wb.TrainConfig(block_size=128), wb.open_model(tmp_path / "packed"), "AVX512")
