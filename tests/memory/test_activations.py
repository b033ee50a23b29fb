"""The forecast of activations on the embedded model against what a forward and a backward pass really keep.

On SmolLM2-135M it is held in ``test_smollm2``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import workbench as wb
from tests.helpers import kept
from workbench import compat
from workbench.memory.footprint import Plan, activations

GRID = ((1, 32), (4, 64), (2, 256))
"""Rows and tokens; with padding the last."""
SMALL = ((1, 24), (2, 32))
"""The same for bfloat16, which many CPUs compute slowly."""
WAYS: dict[str, dict[str, Any]] = {
    "qlora": {},
    "qlora, bfloat16": {"compute_dtype": "bfloat16"},
    "qlora, DoRA": {"use_dora": True},
    "qlora, DoRA without dropout": {"use_dora": True, "lora_dropout": 0.0},
    "lora, bfloat16": {"method": "lora", "compute_dtype": "bfloat16"},
    "full": {"method": "full"},
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointed"])
@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.slow if "DoRA" in way else ()) for way in WAYS])
def test_activations_are_forecast_within_15_percent(way: str, checkpointing: bool) -> None:
    """Held against the storages that live between a forward pass and its backward pass, and, with checkpointing, those of the
    layer that is computed again.
    """
    config = wb.TrainConfig(**WAYS[way], gradient_checkpointing=checkpointing)
    model = kept.loaded(config)
    grid = SMALL if config.compute_dtype == "bfloat16" else GRID
    for rows, length in grid:
        forecast, measured = kept.activation_bytes(model, config, rows, length)
        assert forecast == pytest.approx(measured, rel=0.15), (rows, length)
    forecast, measured = kept.activation_bytes(model, config, *grid[-1], padded=True)
    assert forecast == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_heads_that_attend_by_turns_keep_no_more_than_at_once(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU below compute capability 8: keys and values that heads share are not repeated, nor cast at every turn."""
    from transformers import AttentionInterface

    config = wb.TrainConfig(compute_dtype=dtype)
    at_once = kept.activation_bytes(kept.loaded(config), config, *SMALL[-1])
    mapping = AttentionInterface._global_mapping
    monkeypatch.setitem(mapping, "sdpa", mapping["sdpa"])  # to be put back
    compat.heads_by_turns()
    assert kept.activation_bytes(kept.loaded(config), config, *SMALL[-1]) == at_once


def test_padding_costs_a_mask_and_repeated_keys_and_values() -> None:
    source = wb.open_model("builtin")
    plan = Plan(device="cpu", max_length=512)
    whole, padded = (activations(source.tensors(), source.config, replace(plan, padded=p)) for p in (False, True))
    hidden, keys, layers = 256, 128, 6
    assert padded.all_layers - whole.all_layers == 4 * (512 + 2 * (hidden - keys)) * layers
