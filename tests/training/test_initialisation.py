"""LoftQ and PiSSA on a 4-bit base: adapters as peft's own calls make them, and after training the base that goes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit

import workbench as wb
from tests.helpers import in_process, tiny
from tests.helpers.tiny_model import write_tiny_model
from workbench.training.answers.voices import Voices
from workbench.training.results.card import card
from workbench.training.results.merging import Merge

LOFTQ: dict[str, Any] = {"init_lora_weights": "loftq", "lora_r": 8, "lora_alpha": 8, "lora_dropout": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


def begun(model: Path, **fields: Any) -> Any:
    """The model as the worker begins to train it."""
    from workbench.training.worker.model import attach_adapters, load_base

    config = wb.TrainConfig(model=str(model), **fields)
    return attach_adapters(load_base(config, model, torch.float32, lambda: None), config)


def adapted(net: Any) -> dict[str, Any]:
    return {name.removeprefix("base_model.model."): m for name, m in net.named_modules() if hasattr(m, "lora_A")}


def lost(model: Path, name: str, module: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(the original weight, what 4 bits have lost of it)."""
    original = torch.from_numpy(wb.open_model(model).read(f"{name}.weight").astype("float32"))
    weight = module.get_base_layer().weight
    return original, original - dequantize_4bit(weight.data, weight.quant_state).float()


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """KL(p ‖ q) in nats a token, of two models' logits."""
    ours, theirs = (logits.double().log_softmax(-1) for logits in (p, q))
    return float((ours.exp() * (ours - theirs)).sum(-1).mean())


@pytest.fixture
def peft_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """peft moves each weight to a GPU for its singular values: here they stay."""
    move = torch.Tensor.to

    def stay(self: torch.Tensor, *args: Any, device: Any = None, **how: Any) -> torch.Tensor:
        return (
            move(self, *args, **how) if device == "cuda" else move(self, *args, **({"device": device} if device else {}), **how)
        )

    monkeypatch.setattr(torch.Tensor, "to", stay)
    monkeypatch.setattr("peft.utils.loftq_utils.clear_device_cache", lambda: None)


@pytest.mark.parametrize("fields", [{}, {"quant_type": "fp4", "double_quant": True, "lora_r": 4, "lora_alpha": 4}], ids=str)
def test_the_adapters_are_those_of_peft_s_own_call(model: Path, peft_on_a_cpu: None, fields: dict[str, Any]) -> None:
    from peft import replace_lora_weights_loftq

    ours, theirs = begun(model, **{**LOFTQ, **fields}), begun(model, **{**LOFTQ, **fields, "init_lora_weights": True})
    replace_lora_weights_loftq(theirs, str(model))
    assert len(adapted(ours)) == len(adapted(theirs)) > 3
    for mine, its in zip(adapted(ours).values(), adapted(theirs).values(), strict=True):
        for a, b in ((mine.lora_A, its.lora_A), (mine.lora_B, its.lora_B)):
            torch.testing.assert_close(a["default"].weight, b["default"].weight, rtol=1e-4, atol=1e-6)


def test_what_an_adapter_begins_with_is_the_best_of_its_rank_and_added_once(model: Path) -> None:
    net = begun(model, **LOFTQ)
    for name, module in adapted(net).items():
        _, gone = lost(model, name, module)
        left = gone - module.get_delta_weight("default").detach()
        values = torch.linalg.svdvals(gone)
        assert float(left.norm()) == pytest.approx(float(values[8:].norm()), rel=1e-4), "Eckart and Young"
        assert float(left.norm()) < 0.9 * float(gone.norm())
        assert all(
            p.requires_grad and p.dtype is torch.float32 for p in (module.lora_A.default.weight, module.lora_B.default.weight)
        )


def test_the_output_is_nearer_to_the_16_bit_model_s_before_the_first_step(model: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.randint(0, whole.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = whole(ids).logits
        usual, loftq = (begun(model, **{**LOFTQ, "init_lora_weights": how}).eval()(ids).logits for how in (True, "loftq"))
    assert float((loftq - expected).norm()) < 0.95 * float((usual - expected).norm())
    assert 0 < divergence(expected, loftq) < divergence(expected, usual)


def test_pissa_leaves_a_base_in_4_bits_that_with_its_adapters_is_nearer_to_the_weights(model: Path) -> None:
    """What peft documents, in one step: its own beginning on the 16-bit model, and what is left of that in 4 bits."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    fields = {**LOFTQ, "init_lora_weights": "pissa", "lora_alpha": 16, "block_size": 32, "double_quant": True}
    net, usual = begun(model, **fields), begun(model, **{**fields, "init_lora_weights": True})
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    how = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights="pissa")
    theirs = adapted(get_peft_model(whole, how))
    spec = wb.QuantSpec("nf4", 32, double_quant=True)
    for name, module in adapted(net).items():
        torch.testing.assert_close(module.lora_A.default.weight, theirs[name].lora_A.default.weight, rtol=1e-4, atol=1e-6)
        residual = theirs[name].get_base_layer().weight.detach()
        left = torch.from_numpy(wb.quantize(residual.numpy(), spec).dequantize())
        state = module.get_base_layer().weight.quant_state
        assert (state.blocksize, state.nested) == (32, True)
        held = dequantize_4bit(module.get_base_layer().weight.data, state)
        torch.testing.assert_close(held, left, rtol=0, atol=2e-2 * float(left.abs().max()))
        original, gone = lost(model, name, adapted(usual)[name])
        assert float((original - held - module.get_delta_weight("default").detach()).norm()) < float(gone.norm())


@pytest.mark.parametrize("begin", ["pissa", "loftq"])
def test_a_trained_adapter_is_merged_into_the_base_that_it_was_trained_on(model: Path, begin: str, tmp_path: Path) -> None:
    """Held against the worker's model itself, in its state after training; the answers take the same base."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    run = in_process.train(in_process.config_of(model, **{**LOFTQ, "init_lora_weights": begin}), tmp_path)
    net = begun(model, **{**LOFTQ, "init_lora_weights": begin})
    set_peft_model_state_dict(net, load_file(run.adapter_dir / "adapter_model.safetensors"))
    merge = Merge(run)
    for info in merge.tensors:
        if info.name in merge.paths:
            module = adapted(net)[merge.paths[info.name]]
            weight = module.get_base_layer().weight
            trained = dequantize_4bit(weight.data, weight.quant_state) + module.get_delta_weight("default")
            np.testing.assert_allclose(merge.trained(info, merge.held(info)), trained.detach().numpy(), rtol=0, atol=2e-5)
    ids = torch.randint(0, 512, (2, 16), generator=torch.Generator().manual_seed(0))
    voices = Voices(run.dir, run.config, run.adapter_dir)
    with torch.no_grad():
        torch.testing.assert_close(voices._adapted(ids).logits, net.eval()(ids).logits, rtol=1e-3, atol=1e-3)
    assert all(row.dequantized < 0.01 for row in wb.merge_errors(run).rows)


def test_the_card_says_which_base_an_adapter_belongs_on(model: Path) -> None:
    fields = {"model": str(model), "lora_alpha": 16}
    shown = {how: card(wb.TrainConfig(**fields, init_lora_weights=how), [], "adapter") for how in ("pissa", "loftq", True)}
    assert "BitsAndBytesConfig" not in shown["pissa"], "peft takes PiSSA's part out of 16-bit weights alone"
    assert "which peft cannot do in 4 bits" in shown["pissa"]
    assert "BitsAndBytesConfig" in shown["loftq"]
    assert "no adapter for a base in 16 bits" in shown["loftq"]
    assert 'model = PeftModel.from_pretrained(model, "this folder")\n```' in shown[True]


def test_the_card_loads_the_base_as_it_was_trained(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block size and what is left in 16 bits too: LoftQ's adapter makes up for just these 4 bits."""
    how = {**LOFTQ, "block_size": 32, "quant_type": "fp4", "double_quant": True, "llm_int8_skip_modules": ("down_proj",)}
    config = in_process.config_of(model, **how)
    run = in_process.train(config, tmp_path)
    code = card(config, [], "adapter").partition("```python\n")[2].partition("```")[0]
    monkeypatch.setattr(bnb.nn.Params4bit, "__new__", bnb.nn.Params4bit.__new__)  # which the code changes
    cell: dict[str, Any] = {}
    exec(code.replace(f"the folder of {model.name}", str(model)).replace("this folder", str(run.adapter_dir)), cell)
    expected, layers = adapted(begun(model, **how)), adapted(cell["model"])
    assert layers.keys() == expected.keys()
    for name, layer in layers.items():
        mine, theirs = layer.get_base_layer().weight, expected[name].get_base_layer().weight
        assert isinstance(mine, bnb.nn.Params4bit) == isinstance(theirs, bnb.nn.Params4bit) == ("down_proj" not in name)
        assert torch.equal(mine.data, theirs.data) or "down_proj" in name


def test_weights_that_lie_transposed_are_turned(tmp_path: Path) -> None:
    """GPT-2's Conv1D, which peft's call meets with a matrix of another shape."""
    gpt2 = tiny.save(tmp_path / "gpt2", "gpt2", {**tiny.ARCHITECTURES["gpt2"][1], "vocab_size": 512})
    net = begun(gpt2, **LOFTQ, target_modules=("c_attn", "c_fc"))
    for name, module in adapted(net).items():
        stored = wb.open_model(gpt2)
        known = {info.name for info in stored.tensors()}
        key = f"{name}.weight" if f"{name}.weight" in known else f"{name.partition('.')[2]}.weight"
        weight = module.get_base_layer().weight
        gone = torch.from_numpy(stored.read(key).astype("float32")).T - dequantize_4bit(weight.data, weight.quant_state).float()
        left = gone - (module.lora_B.default.weight @ module.lora_A.default.weight).detach()
        assert float(left.norm()) == pytest.approx(float(torch.linalg.svdvals(gone)[8:].norm()), rel=1e-4)


def test_a_rank_above_the_matrix_s_own_leaves_nothing(model: Path) -> None:
    net = begun(model, **{**LOFTQ, "lora_r": 96, "lora_alpha": 96}, target_modules=("k_proj",))
    for name, module in adapted(net).items():
        _, gone = lost(model, name, module)
        assert float((gone - module.get_delta_weight("default").detach()).norm()) < 1e-4 * float(gone.norm())


def test_the_copied_cell_makes_peft_s_call_and_gives_the_same_losses(
    model: Path, peft_on_a_cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = in_process.config_of(model, logits_at_once=0, **LOFTQ)
    (tmp_path / "run").mkdir()
    run = in_process.train(config, tmp_path / "run")
    code = wb.as_code(config)
    assert "replace_lora_weights_loftq(model, MODEL)" in code
    assert "init_lora_weights" not in code
    monkeypatch.chdir(tmp_path)
    cell: dict[str, Any] = {}
    exec(compile(code, "cell", "exec"), cell)
    alone = [entry["loss"] for entry in cell["trainer"].state.log_history if "loss" in entry]
    assert alone == pytest.approx([event["loss"] for event in run.events() if event["k"] == "step"], abs=1e-5)
