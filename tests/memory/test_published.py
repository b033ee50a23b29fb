"""Forecasts set beside what is published: the QLoRA paper (arXiv 2305.14314) and the models' numbers of parameters."""

from __future__ import annotations

import pytest

import workbench as wb
from tests.helpers.shapes import Shapes, llama
from workbench.memory.forecast import forecast_methods
from workbench.memory.ledger import GROUPS
from workbench.memory.savings import double_quant_savings

LLAMA_2 = {
    "7B": (6_738_415_616, llama("Llama-2-7B", 4096, 11_008, 32, 32_000)),
    "13B": (13_015_864_320, llama("Llama-2-13B", 5120, 13_824, 40, 32_000)),
    "70B": (68_976_648_192, llama("Llama-2-70B", 8192, 28_672, 80, 32_000, keys=1024)),
}
"""Parameters as published, and the shapes."""


@pytest.mark.parametrize("size", LLAMA_2)
def test_llama_2_has_its_published_number_of_parameters(size: str) -> None:
    parameters, model = LLAMA_2[size]
    assert sum(t.numel for t in model.tensors()) == parameters
    weights = sum(t.numel for t in model.tensors() if t.quantizable)
    ledger = wb.forecast(model, wb.TrainConfig())
    bits = 8 * (ledger["4-bit weights"] + ledger["absmax scales"] + ledger["second-level scales"]) / weights
    assert bits == pytest.approx(4 + 0.127, abs=0.001)  # the paper's double quantization, section 3


def test_a_7b_base_in_4_bits_is_near_the_qlora_papers() -> None:
    """Section 2 of arXiv 2305.14314 tells 5,048 MB, and not what of: within 15 %, with embeddings and head in fp32."""
    ledger = wb.forecast(LLAMA_2["7B"][1], wb.TrainConfig(upcast_to_fp32=True))
    base = sum(ledger[category] for category in GROUPS["base model"] + GROUPS["scales of the 4-bit weights"])
    assert base == pytest.approx(5_048e6, rel=0.15)


def test_lora_on_a_thousandth_of_the_weights_is_small_beside_them() -> None:
    """The same section: LoRA weights of 0.2 % of a 7B model take 26 MB, in 16 bits; here they are fp32."""
    parameters, model = LLAMA_2["7B"]
    ledger = wb.forecast(model, wb.TrainConfig(lora_r=5))
    assert ledger["adapters"] / 4 == pytest.approx(0.002 * parameters, rel=0.1)
    assert ledger["adapters"] / 2 == pytest.approx(26e6, rel=0.1)


def test_65b_can_be_trained_in_48_gigabytes() -> None:
    """The abstract: fine-tuning a 65B model on a single 48 GB GPU; a row at a time here, of 512 tokens."""
    cfg = wb.TrainConfig(lora_r=64, per_device_train_batch_size=1, optim="paged_adamw_32bit")
    ledger = wb.forecast(llama("LLaMA-65B", 8192, 22_016, 80, 32_000), cfg)
    assert ledger.total - ledger.managed < 48e9


def test_full_fine_tuning_takes_the_twelve_bytes_a_parameter_of_the_qlora_paper() -> None:
    """More than 780 GB for 65 billion parameters (arXiv 2305.14314): weights and gradients in 16 bits, Adam's moments in 32."""
    ledger = forecast_methods(llama("LLaMA-65B", 8192, 22_016, 80, 32_000), wb.TrainConfig())[0]
    assert ledger["weights"] + ledger["gradients"] + ledger["optimizer state"] == pytest.approx(780e9, rel=0.01)


@pytest.mark.parametrize(
    ("model", "megabytes"),
    [
        (llama("LLaMA-7B", 4096, 11_008, 32, 32_000), 302),
        (llama("LLaMA-65B", 8192, 22_016, 80, 32_000), 3_020),
        (llama("TinyLlama", 2048, 5_632, 22, 32_000, keys=256), 45),
        (llama("Qwen2.5-0.5B", 896, 4_864, 24, 151_936, keys=128), 16.7),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_double_quantization_saves_0_373_bits_a_weight(model: Shapes, megabytes: float) -> None:
    savings = double_quant_savings(model)
    assert savings.saved / 1e6 == pytest.approx(megabytes, rel=0.01)
    assert savings.saved_bits_per_weight == pytest.approx(0.373, abs=5e-4)
    plain, double = (wb.forecast(model, wb.TrainConfig(double_quant=on)) for on in (False, True))
    assert plain.total - double.total == savings.saved - savings.codebooks
