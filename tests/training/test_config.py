"""A configuration is checked whole, says everything that is wrong at once, and survives JSON."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError

import pytest

from workbench import ConfigError, TrainConfig
from workbench.training.settings import settings_of


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
        ({"dataset": "rows.csv", "messages_column": "chat"}, ("chat",)),
    ],
)
def test_which_columns_are_read(fields: dict[str, str], columns: tuple[str, ...]) -> None:
    assert TrainConfig(**fields).columns == columns  # type: ignore[arg-type]


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.03, 3), (0.5, 50), (7, 7)])
def test_warm_up_is_steps_or_a_share_of_them(warmup: float, steps: int) -> None:
    assert TrainConfig(max_steps=100, warmup_steps=warmup).warmup == steps


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"init_lora_weights": "pissa"}, 'needs unquantized weights, which method "qlora" does not hold'),
        ({"init_lora_weights": "loftq"}, "make lora_alpha 16, as lora_r is."),
        ({"init_lora_weights": "loftq", "lora_alpha": 16, "use_rslora": True}, "turn use_rslora off"),
        ({"init_lora_weights": "loftq", "lora_alpha": 16, "use_dora": True}, "after use_dora has taken the magnitudes"),
        ({"init_lora_weights": "loftq", "method": "lora"}, "quantizes nothing"),
        ({"init_lora_weights": "olora", "block_size": 128}, "block_size is 128; use 64"),
        ({"init_lora_weights": 1}, "must be one of True, 'gaussian'"),
        ({"method": "full", "use_dora": True, "use_rslora": True}, 'use_rslora, use_dora: method "full" has no adapters'),
        ({"method": "full", "compute_dtype": "float16"}, "cannot train every weight"),
        ({"llm_int8_skip_modules": ("q(",)}, "must be a tuple of module names or regular expressions"),
        ({"method": "lora", "llm_int8_skip_modules": ("down_proj",)}, "quantizes nothing"),
        ({"num_train_epochs": 2, "max_steps": 10}, "max_steps and num_train_epochs exclude each other"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0; it must be a number, above 0"),
        ({"max_steps": 0}, "max_steps is 0; it must be a whole number, 1 or more"),
        ({"messages_column": "chat", "text_column": "text"}, "a row is a chat or a text"),
        ({"dataset_split": "test"}, "for folders and the Hub"),
        ({"eval_split": "test"}, "held-out rows of its own"),
        ({"dataset": "rows", "dataset_split": ""}, "dataset_split is ''; it must be a name"),
    ],
)
def test_what_excludes_what(fields: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**fields)  # type: ignore[arg-type]
    (fault,) = caught.value.faults
    assert told in fault


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "gaussian", "block_size": 256, "quant_type": "fp4"},
        {"init_lora_weights": "pissa", "method": "lora"},
        {"init_lora_weights": "loftq", "lora_alpha": 16, "block_size": 32, "quant_type": "fp4"},
        {"use_dora": True, "use_rslora": True, "llm_int8_skip_modules": ("down_proj",)},
        {"method": "full", "compute_dtype": "bfloat16", "optim": "paged_adamw_8bit"},
    ],
)
def test_what_goes_together(fields: dict[str, object]) -> None:
    config = TrainConfig(**fields)  # type: ignore[arg-type]
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs", "steps"),
    [(100, 4, 1, 1, 25), (101, 4, 1, 1, 26), (101, 4, 4, 1, 7), (101, 4, 4, 2.5, 18), (1, 8, 8, 3, 3), (100, 4, 1, 0.1, 3)],
)
def test_epochs_become_steps_once_the_rows_are_known(
    rows: int, batch: int, accumulation: int, epochs: float, steps: int
) -> None:
    config = TrainConfig(
        num_train_epochs=epochs, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, warmup_steps=0.5
    )
    assert config.max_steps == -1
    known = config.for_rows(rows)
    assert (known.max_steps, known.num_train_epochs, known.warmup) == (steps, None, math.ceil(steps / 2))
    assert known.for_rows(7) == known


def test_without_steps_and_epochs_there_are_a_hundred_steps() -> None:
    assert TrainConfig().max_steps == TrainConfig.from_dict({"max_steps": -1}).max_steps == 100


def test_a_config_file_from_before_a_field_was_added_keeps_working() -> None:
    old = {"model": "builtin", "method": "lora", "max_steps": 7, "target_modules": ["q_proj"], "sample_prompts": None}
    config = TrainConfig.from_dict(old)
    assert (config.max_steps, config.num_train_epochs, config.init_lora_weights, config.use_dora) == (7, None, True, False)


def test_json_and_back() -> None:
    config = TrainConfig(target_modules=("q_proj", "v_proj"), sample_prompts=("a",), block_size=128)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_misspelt_field_is_named_with_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"'learning_rte' is no field\. Did you mean 'learning_rate'"):
        TrainConfig.from_dict({"learning_rte": 1e-4})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("lora_rank", "lora_r"), ("r", "lora_r"), ("rank", "lora_r"), ("alpha", "lora_alpha"), ("lr", "learning_rate"),
        ("batch_size", "per_device_train_batch_size"), ("epochs", "num_train_epochs"), ("steps", "max_steps"),
        ("max_seq_length", "max_length"), ("bnb_4bit_quant_type", "quant_type"), ("LoRA-rank", "lora_r"),
    ],
)  # fmt: skip
def test_a_field_s_name_elsewhere_leads_to_it(given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{given}' is no field\. Did you mean '{meant}'\?"):
        TrainConfig(**{given: 8})


def test_no_name_from_elsewhere_stands_for_two_fields_or_for_another_one() -> None:
    declared = settings_of(TrainConfig)
    others = [name for field in declared.values() for name in field.also.split()]
    assert len(set(others)) == len(others)
    assert not set(others) & set(declared)
