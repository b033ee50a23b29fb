"""Forecasts beside steps that others measured on a T4.

Source: Anassbzdd/fitcheck, ``data/measurements`` (a Kaggle T4; torch 2.10 and 2.14). Their setup is forecast, not ours:
adapters on q, k, v and o without dropout, no double quantization, torch's AdamW, keys and values expanded for every head, no
autocast, and the output of the forward pass held through the backward pass: 16 bytes a logit, 14 without a 4-bit base.
"""

from __future__ import annotations

import statistics
from typing import Any, NamedTuple

import pytest

import workbench as wb
from workbench.memory.footprint import Plan
from workbench.memory.forecast import MemoryLedger
from workbench.memory.ledger import CONTEXT
from workbench.memory.shortlist import PUBLISHED, config_of

MIB = 2**20


class Measured(NamedTuple):
    """A step on a T4, in MiB: at the allocator's peak, and as the process had it then."""

    model: str
    method: str
    rank: int
    rows: int
    tokens: int
    allocated: int
    process: int


STEPS = (
    Measured("Qwen/Qwen2.5-7B-Instruct", "qlora", 16, 1, 1_024, 10_586, 12_021),
    Measured("deepseek-coder-1.3b", "qlora", 16, 1, 1_024, 1_972, 2_313),
    Measured("Llama-3.2-3B", "qlora", 16, 1, 1_024, 5_495, 6_409),
    Measured("Qwen2.5-1.5B", "qlora", 32, 2, 1_024, 6_828, 7_541),
    Measured("HuggingFaceTB/SmolLM2-135M-Instruct", "qlora", 32, 1, 4_096, 3_577, 3_925),
    Measured("HuggingFaceTB/SmolLM2-135M-Instruct", "qlora", 32, 2, 512, 1_064, 1_335),
    Measured("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "qlora", 32, 2, 512, 1_849, 2_195),
    Measured("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "qlora", 32, 1, 1_024, 1_843, 2_175),
    Measured("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "qlora", 32, 4, 1_024, 3_896, 5_027),
    Measured("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "qlora", 32, 2, 2_048, 3_896, 4_891),
    Measured("Qwen2.5-1.5B", "lora", 32, 2, 1_024, 7_402, 7_907),
    Measured("HuggingFaceTB/SmolLM2-1.7B-Instruct", "lora", 32, 1, 2_048, 4_977, 5_539),
    Measured("HuggingFaceTB/SmolLM2-135M-Instruct", "lora", 32, 1, 4_096, 3_148, 3_425),
    Measured("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "lora", 32, 2, 512, 2_756, 3_021),
    Measured("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "lora", 32, 2, 2_048, 4_354, 4_837),
)


OTHERS = {
    "deepseek-coder-1.3b": config_of("llama", 2_048, 5_504, 24, 16, 16, 32_256, False),
    "Llama-3.2-3B": config_of("llama", 3_072, 8_192, 28, 24, 8, 128_256, True),
    "Qwen2.5-1.5B": config_of("qwen2", 1_536, 8_960, 28, 12, 2, 151_936, True),
}
"""The shapes of models that the package does not list, from their config.json."""


def forecast(step: Measured) -> MemoryLedger:
    """As their setup was."""
    model = wb.PublishedShapes(step.model, None if step.model in PUBLISHED else OTHERS[step.model])
    plan = Plan(
        method=step.method, lora_r=step.rank, lora_dropout=0, double_quant=False, optim="adamw_torch", autocast=False,
        upcast_to_fp32=True, logits_at_once=0,
        target_modules=("q_proj", "k_proj", "v_proj", "o_proj"), logit_bytes=16 if step.method == "qlora" else 14,
        per_device_train_batch_size=step.rows, max_length=step.tokens, padded=True,
    )  # fmt: skip
    return wb.fit(wb.forecast(model, plan), "T4").ledger


def _name(step: Measured) -> str:
    return f"{step.model.rpartition('/')[2]}, {step.method}, {step.rows} x {step.tokens}"


@pytest.mark.parametrize("step", STEPS, ids=_name)
def test_a_step_on_a_t4_takes_what_is_forecast(step: Measured) -> None:
    ledger = forecast(step)
    assert (ledger.needed - ledger[CONTEXT]) / MIB == pytest.approx(step.allocated, rel=0.015)
    assert ledger.total / MIB == pytest.approx(step.process, rel=0.08)


def test_the_process_is_within_4_percent_on_average() -> None:
    errors = [abs(forecast(step).total / MIB / step.process - 1) for step in STEPS]
    assert statistics.mean(errors) < 0.04


def on_a_t4(model: str, **fields: Any) -> wb.Fit:
    """One row a step, everything else as by default."""
    config = wb.TrainConfig(model=model, per_device_train_batch_size=1, **fields)
    return wb.fit(wb.forecast(wb.PublishedShapes(model), config), "T4")


@pytest.mark.parametrize(("model", "most"), [("meta-llama/Llama-3.1-8B-Instruct", 8.7), ("Qwen/Qwen3-8B", 9.3)])
def test_an_8b_fits_with_the_defaults_and_not_as_it_used_to_be_prepared(model: str, most: float) -> None:
    lean = on_a_t4(model, max_length=2_048)
    assert lean.ledger.total / 2**30 <= most
    assert lean.verdict == "fits"
    assert on_a_t4(model, max_length=2_048, upcast_to_fp32=True, logits_at_once=0).verdict != "fits"


def test_8192_tokens_of_an_8b_fit_with_what_costs_time_or_digits() -> None:
    model = "meta-llama/Llama-3.1-8B-Instruct"
    assert on_a_t4(model, max_length=8_192).verdict != "fits"
    assert on_a_t4(model, max_length=8_192, norms_in_16_bits=True, inputs_on_host=True).verdict == "fits"
