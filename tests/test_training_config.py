"""A configuration is checked whole, says everything that is wrong at once, and survives JSON."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError

import pytest

from workbench import ConfigError, TrainConfig


def test_the_defaults_are_qlora_as_the_paper_has_it() -> None:
    config = TrainConfig()
    assert (config.method, config.quant_type, config.double_quant, config.block_size) == ("qlora", "nf4", True, 64)
    assert (config.optim, config.target_modules) == ("paged_adamw_32bit", "all-linear")
    with pytest.raises(FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


def test_all_faults_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(
            method="qlra", quant_type="int4", block_size=48, lora_r=0, lora_dropout=1.0, learning_rate=math.nan, max_steps=True,
            double_quant=1, prompt_column="q", text_column="t", target_modules=(), model="",  # type: ignore[arg-type]
        )  # fmt: skip
    told = "\n".join(caught.value.faults)
    wrong = "method quant_type block_size lora_r lora_dropout learning_rate max_steps double_quant target_modules model"
    for name in (*wrong.split(), "prompt_column and completion_column", "text_column and prompt_column"):
        assert name in told, name
    assert len(caught.value.faults) == 12
    assert "'qlora'" in told
    assert "32, 64, 128" in told


@pytest.mark.parametrize(
    ("fields", "columns"),
    [
        ({}, ("prompt", "completion")),
        ({"text_column": "text"}, ("text",)),
        ({"dataset": "rows.csv"}, ("text",)),
        ({"dataset": "rows.csv", "prompt_column": "q", "completion_column": "a"}, ("q", "a")),
    ],
)
def test_which_columns_are_read(fields: dict[str, str], columns: tuple[str, ...]) -> None:
    assert TrainConfig(**fields).columns == columns  # type: ignore[arg-type]


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.03, 3), (0.5, 50), (7, 7)])
def test_warm_up_is_steps_or_a_share_of_them(warmup: float, steps: int) -> None:
    assert TrainConfig(max_steps=100, warmup_steps=warmup).warmup == steps


def test_json_and_back() -> None:
    config = TrainConfig(target_modules=("q_proj", "v_proj"), sample_prompts=("a",), block_size=128)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_misspelt_field_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"'learning_rte' is no field\. Did you mean 'learning_rate'"):
        TrainConfig.from_dict({"learning_rte": 1e-4})
