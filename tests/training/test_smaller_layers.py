"""Layers that take less on request: norms that answer in 16 bits, and inputs that wait on the host. On a CPU."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests.helpers import in_process, tiny
from tests.helpers.live_runs import of
from tests.helpers.tiny_model import write_tiny_model
from workbench.errors import ConfigError
from workbench.training.worker.accounting import Kept
from workbench.training.worker.offload import HiddenOnHost
from workbench.training.worker.preparation import answer_in, prepare

SIMULATED = {  # Llama-3.1-8B, one row of as many tokens: GiB allocated at the peak
    (2_048, False): 7.12, (2_048, True): 6.33, (8_192, False): 11.69, (8_192, True): 8.09,
}  # fmt: skip
"""From real transformers models run on tensors without memory, storages counted; not measured on a GPU."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.mark.parametrize(("tokens", "on_host"), SIMULATED)
def test_the_forecast_is_near_the_simulated_step(tokens: int, on_host: bool) -> None:
    config = wb.TrainConfig(
        per_device_train_batch_size=1, max_length=tokens, lora_dropout=0.0, optim="adamw_8bit", norms_in_16_bits=True,
        inputs_on_host=on_host,
    )  # fmt: skip
    judged = wb.fit(wb.forecast(wb.PublishedShapes("meta-llama/Llama-3.1-8B-Instruct"), config), "T4")
    allocated = (judged.ledger.needed - judged.ledger["CUDA context"]) / 2**30
    assert allocated == pytest.approx(SIMULATED[tokens, on_host], rel=0.04)
    assert judged.verdict == "fits"


def test_they_are_offered_with_what_they_cost() -> None:
    model = wb.PublishedShapes("meta-llama/Llama-3.1-8B-Instruct")
    config = wb.TrainConfig(per_device_train_batch_size=1, max_length=10_240)
    changes = wb.ways_to_fit(model, config, "T4")
    assert changes is not None
    assert "inputs_on_host" in changes[0].fields
    assert "not yet run on a GPU" in repr(changes)
    offered = {name for each in wb.alternatives(model, config, "T4") for name in each.fields}
    assert {"inputs_on_host", "norms_in_16_bits"} <= offered


def test_what_is_not_kept_cannot_be_moved() -> None:
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        wb.TrainConfig(inputs_on_host=True, gradient_checkpointing=False)


def test_norms_in_16_bits_learn_alike_and_keep_less(model: Path, tmp_path: Path) -> None:
    losses, recomputed = {}, {}
    for narrow in (True, False):
        config = in_process.config_of(model, compute_dtype="bfloat16", norms_in_16_bits=narrow, lora_dropout=0.0)
        run = in_process.train(config, tmp_path / str(narrow))
        losses[narrow] = [event["loss"] for event in of(run, "step")]
        recomputed[narrow] = next(e["recomputed"] for e in of(run, "memory") if e["moment"] == "step")
    assert losses[True] == pytest.approx(losses[False], abs=0.02)
    assert losses[True] != losses[False]
    assert recomputed[True] < recomputed[False]


def test_the_residual_stream_stays_float32(tmp_path: Path) -> None:
    net = prepare(tiny.load_4bit(tiny.save(tmp_path / "model", "qwen3", {**tiny.LLAMA, "head_dim": 16})), torch.bfloat16)
    answer_in(net, torch.bfloat16)
    seen: dict[str, Any] = {}
    layer = net.model.layers[1]
    layer.register_forward_pre_hook(lambda module, given: seen.update(residual=given[0].dtype))
    layer.mlp.up_proj.register_forward_pre_hook(lambda module, given: seen.update(product=given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        net(input_ids=torch.arange(8)[None])
    assert seen == {"residual": torch.float32, "product": torch.bfloat16}


@pytest.mark.parametrize("watched", [False, True])
def test_inputs_that_were_moved_give_the_same_gradients(tmp_path: Path, watched: bool) -> None:
    """The CPU stands for the GPU: what lies there is copied away and back."""
    import transformers

    folder, ids = tiny.save(tmp_path / "model", "llama", tiny.LLAMA), torch.arange(60).reshape(2, 30)
    found, kept = [], []
    for on_host in (None, HiddenOnHost(device="cpu")):
        net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
        net.gradient_checkpointing_enable({"use_reentrant": False})
        watch = Kept(net)
        hooks: Any = contextlib.nullcontext()
        if on_host:
            on_host.of(net, *ids.shape)
            hooks = torch.autograd.graph.saved_tensors_hooks(on_host.pack, on_host.unpack)
        with watch.forward(on_host) if watched else hooks:
            loss = net(input_ids=ids, labels=ids).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in net.parameters())])
        kept.append(watch.saved["activations"])
    assert on_host is not None
    assert on_host.moved >= tiny.LLAMA["num_hidden_layers"] * ids.numel() * tiny.LLAMA["hidden_size"] * 4
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert not watched or kept[1] < kept[0] / 2
