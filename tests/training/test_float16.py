"""float16's narrow range: skipped steps are told, what overflows is named with what mends it, and no rate is blamed.

On a CPU, with bitsandbytes' float16 kernels, autocast and torch's scaler for CPUs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import workbench as wb
from tests.helpers import in_process, tiny
from tests.helpers.live_runs import of
from tests.helpers.tiny_model import write_tiny_model
from workbench.errors import ConfigError
from workbench.training import launching, model_checks
from workbench.training.events import EventWriter, read_events
from workbench.training.folder import RunFolder
from workbench.training.loaded_checks import diverged
from workbench.training.model_checks import float16_faults, float16_warning
from workbench.training.watch.endings import Overflowed, ending_of
from workbench.training.worker.health import SKIPS, Health, overflowing, rescale_mlps
from workbench.training.worker.preparation import prepare
from workbench.training.worker.trainer import Steering

IDS = torch.arange(40).reshape(2, 20) + 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama")
    return tiny.save(folder, "llama", {**tiny.LLAMA, "initializer_range": 0.1})


def adapted(folder: Path, boost: float = 1.0) -> Any:
    """A 4-bit model with adapters, and in its second layer an activation so many times larger."""
    import peft
    import transformers

    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16
    )  # fmt: skip
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.float16)
    prepare(net, torch.float16)
    torch.manual_seed(1)
    net = peft.get_peft_model(net, peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)).train()
    layer = net.base_model.model.model.layers[1]
    layer.mlp.act_fn.register_forward_hook(lambda module, given, answer: answer.float() * boost)
    return net


def loss_of(net: Any, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    with torch.autocast("cpu", torch.float16, enabled=dtype is torch.float16):
        loss: torch.Tensor = net(input_ids=IDS, labels=IDS).loss
    return loss


def too_large(net: Any) -> float:
    """A boost with which the second layer's product is twice what float16 holds."""
    found: list[float] = []
    down = net.base_model.model.model.layers[1].mlp.down_proj
    hook = down.register_forward_pre_hook(lambda module, given: found.append(given[0].abs().max().item()))
    loss_of(net)
    hook.remove()
    return 2 * 65_504 / found[0]


def test_the_module_that_overflows_is_named_and_the_rescale_keeps_it_within(model: Path) -> None:
    boost = too_large(adapted(model))
    net = adapted(model, boost)
    assert not torch.isfinite(loss_of(net))
    assert overflowing(net, lambda: loss_of(net), 1.0) == "model.layers.1.mlp.down_proj"
    rescale_mlps(net, 6)
    rescued = loss_of(net)
    assert overflowing(net, lambda: loss_of(net), 1.0) == ""
    plain = adapted(model, boost)
    for module in plain.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32
    assert rescued.item() == pytest.approx(loss_of(plain, torch.float32).item(), rel=0.01)


def test_a_gradient_that_overflows_is_found_too(model: Path) -> None:
    net = adapted(model)
    assert overflowing(net, lambda: loss_of(net), 1.0) == ""
    assert overflowing(net, lambda: loss_of(net), 1e12) != ""


def test_skipped_steps_are_counted_with_the_scale_that_they_leave() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer, scaler = torch.optim.SGD([weight], 0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    accelerator = SimpleNamespace(scaler=scaler, optimizer_step_was_skipped=False)
    health, told = Health(accelerator), []
    for gradient in (1.0, float("inf"), float("nan"), 1.0):
        scaler.scale(weight.sum() * gradient).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        accelerator.optimizer_step_was_skipped = scaler.get_scale() < before
        told.append((*health.step().values(), health.in_a_row))
    assert told == [(1024.0, False, 0), (512.0, True, 1), (256.0, True, 2), (256.0, False, 0)]


def test_where_no_loss_is_scaled_nothing_is_told() -> None:
    assert Health(SimpleNamespace(scaler=None)).step() == {}


def steering(root: Path, overflow: str, skipped: bool = True) -> Steering:
    folder = RunFolder(root)
    writer = EventWriter(folder.events("rank0"), 1)
    found = Steering(wb.TrainConfig(max_steps=9), folder, writer, lambda: None, {}, lambda n: None, 0)
    scaler = SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: 512.0)
    found.trainer = SimpleNamespace(  # type: ignore[assignment]
        batches=[], model=None, overflow=lambda: overflow,
        health=Health(SimpleNamespace(scaler=scaler, optimizer_step_was_skipped=skipped)),
    )  # fmt: skip
    return found


def log(steps: Steering, n: int, loss: float) -> None:
    one = torch.tensor(1)
    steps.trainer.batches.append((1, one, one))
    steps.on_log(None, SimpleNamespace(global_step=n), SimpleNamespace(), {"loss": loss, "grad_norm": float("inf")})


def test_three_skips_in_a_row_end_the_run_by_name_with_the_remedy(tmp_path: Path) -> None:
    steps = steering(tmp_path, "model.layers.1.mlp.down_proj")
    for n in range(1, SKIPS):
        log(steps, n, 2.0)
    with pytest.raises(Overflowed) as ended:
        log(steps, SKIPS, 2.0)
    ending = ending_of(ended.value, {})
    assert ending.kind == "overflow"
    assert "layers.1.mlp.down_proj" in ending.message
    assert "rescale_mlp" in ending.remedy
    assert "learning_rate" not in ending.remedy
    assert [(e["skipped"], e["scale"]) for e in read_events(tmp_path) if e["k"] == "step"] == [(True, 512.0)] * SKIPS


def test_a_norm_that_is_no_number_is_told_where_no_step_was_skipped(tmp_path: Path) -> None:
    steps = steering(tmp_path, "", skipped=False)
    log(steps, 1, 2.0)
    (told,) = [event for event in read_events(tmp_path) if event["k"] == "log"]
    assert told["level"] == "warning"
    assert "norm that is no finite number" in told["text"]


def test_a_lost_loss_in_float16_is_an_overflow_and_no_rate(tmp_path: Path) -> None:
    config = wb.TrainConfig()
    assert "learning_rate" in diverged(torch.nn.Linear(1, 1), config, 5, float("nan")).remedy
    for module in ("", "model.layers.0.self_attn.o_proj"):
        error = diverged(torch.nn.Linear(1, 1), config, 5, float("nan"), module)
        assert isinstance(error, Overflowed)
        assert "learning_rate" not in error.remedy
        assert "float32" in error.remedy
        assert "rescale_mlp" not in error.remedy


@pytest.mark.parametrize("name", ["gemma3", "qwen3-moe", "gpt-oss"])
def test_families_that_overflow_are_named_before_the_run(name: str) -> None:
    import transformers

    kind, values, _ = tiny.ARCHITECTURES[name]
    of_model = transformers.AutoConfig.for_model(kind, **values).to_dict()
    assert kind in float16_warning(of_model)
    assert float16_faults(wb.TrainConfig(), of_model) == []
    (fault,) = float16_faults(wb.TrainConfig(norms_in_16_bits=True), of_model)
    assert fault.startswith(f"norms_in_16_bits is True, and models of the type {kind}")


def test_a_model_within_another_is_named_by_its_own_type() -> None:
    assert "gemma3_text" in float16_warning({"model_type": "other", "text_config": {"model_type": "gemma3_text"}})


def test_nothing_is_said_of_others() -> None:
    assert float16_warning({"model_type": "llama"}) == ""
    assert float16_faults(wb.TrainConfig(norms_in_16_bits=True), {"model_type": "llama"}) == []


@pytest.mark.parametrize(
    ("dtype", "gpu", "expected"),
    [
        ("float16", None, True), ("float16", (9, 0), True), ("bfloat16", (7, 5), False), ("auto", (7, 5), True),
        ("auto", (8, 0), False), ("auto", None, False),
    ],
)  # fmt: skip
def test_a_launch_knows_of_float16(dtype: str, gpu: Any, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_checks, "capability", lambda: gpu)
    assert model_checks.in_float16(wb.TrainConfig(compute_dtype=dtype)) is expected


def test_a_launch_refuses_and_names_a_family_that_overflows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_model(tmp_path / "model")
    config = wb.TrainConfig(str(folder), compute_dtype="float16", method="lora")
    monkeypatch.setattr(model_checks, "OVERFLOWING", {"llama"})
    with pytest.raises(ConfigError, match="known to overflow"):
        wb.launch(replace(config, method="qlora", norms_in_16_bits=True), tmp_path / "refused")
    begun: list[Any] = []
    monkeypatch.setattr(launching, "spawn", lambda *given: begun.append(given))
    wb.launch(config, tmp_path / "run")
    assert [said for said in begun[0][-1] if said] == [float16_warning({"model_type": "llama"})]


def test_a_rescaled_run_is_the_same_run(tmp_path: Path) -> None:
    """To the last bit: powers of two change no digit."""
    folder = write_tiny_model(tmp_path / "model")
    losses = []
    for power in (0, 6):
        run = in_process.train(in_process.config_of(folder, rescale_mlp=power, lora_dropout=0.1), tmp_path / str(power))
        losses.append([(event["loss"], event["grad_norm"]) for event in of(run, "step")])
    assert losses[0] == losses[1]


def test_a_model_without_gated_mlps_cannot_be_rescaled(tmp_path: Path) -> None:
    import transformers

    net = transformers.AutoModelForCausalLM.from_pretrained(tiny.save(tmp_path / "model", *tiny.ARCHITECTURES["gpt2"]))
    with pytest.raises(ConfigError, match="rescale_mlp"):
        rescale_mlps(net, 6)
