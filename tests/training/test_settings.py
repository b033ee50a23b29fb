"""Each field of a configuration is declared once: the checks, the form, the state and the forecast's plan follow from that."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from widgets.panels.train.fields import FIELDS, GROUPS, SWITCHES
from widgets.state import State
from workbench import ConfigError, TrainConfig
from workbench.memory.footprint import Plan
from workbench.training.settings import METHODS, Group, setting, settings_of

SETTINGS = settings_of(TrainConfig)
NUMBERS = {
    "max_train_rows": 0,
    "max_length": 2, "lora_r": 1, "lora_alpha": 1, "page_min_numel": 1, "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1, "max_steps": 1, "nproc_per_node": 1, "save_steps": 0, "save_total_limit": 1,
    "eval_steps": 0, "early_stopping_patience": 0, "max_eval_rows": 0, "sample_max_new_tokens": 1, "seed": 0,
    "logits_at_once": 0, "rescale_mlp": 0,
}  # fmt: skip
"""The smallest value of each field that is a whole number."""
ASIDE = ("device", "padded", "autocast", "logit_bytes")
"""Fields of a plan that are not the run's to choose."""


def refused(**fields: Any) -> list[str]:
    """What is wrong with these fields."""
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**fields)
    return list(caught.value.faults)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(TrainConfig)])
def test_every_field_has_its_declaration_and_its_place_in_the_form(name: str) -> None:
    declared = SETTINGS[name]
    assert declared.label
    assert declared.label not in [other.label for key, other in (SETTINGS | SWITCHES).items() if key != name]
    assert declared.default == next(f.default for f in dataclasses.fields(TrainConfig) if f.name == name)
    assert declared.allows(declared.default)
    assert bool(declared.choices) == (declared.kind == "choice")
    assert set(declared.methods) <= set(METHODS)
    groups = [group for group, names in GROUPS.items() if name in names]
    if declared.not_shown:
        assert name not in FIELDS
        assert groups == []
    else:
        assert FIELDS[name] is declared
        assert groups == [declared.group]


def test_the_form_has_nothing_besides_but_its_switches() -> None:
    assert set(FIELDS) == set(SWITCHES) | {name for name, declared in SETTINGS.items() if not declared.not_shown}
    assert list(GROUPS) == list(Group)
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(FIELDS)


def test_whole_numbers_are_refused_below_their_limit_and_where_they_are_not_whole() -> None:
    assert {name: declared.least for name, declared in SETTINGS.items() if declared.kind == "whole"} == NUMBERS
    for name, least in NUMBERS.items():
        assert getattr(TrainConfig(**{name: least}), name) == least  # type: ignore[arg-type]
        for value in (least - 1, float(least), True, None, "1", math.nan):
            if name == "max_steps" and value == -1:
                continue
            assert f"{name} is {value!r}; it must be a whole number, {least} or more." in refused(**{name: value})


@pytest.mark.parametrize(
    ("name", "right", "wrong", "wanted"),
    [
        ("learning_rate", (1e-9, 1), (0, -1.0, math.inf, None), "above 0"),
        ("num_train_epochs", (0.1, 3, None), (0, math.nan, True), "above 0"),
        ("warmup_steps", (0, 0.5, 7), (-0.1, "1"), "0 or more"),
        ("weight_decay", (0, 2.5), (-1, math.inf), "0 or more"),
        ("max_grad_norm", (0, 1.0), (-1,), "0 or more"),
        ("adam_beta1", (0, 0.5), (1, 1.5, -0.1), "0 or more and below 1"),
        ("adam_beta2", (0, 0.5), (1.0, -0.1), "0 or more and below 1"),
        ("lora_dropout", (0, 0.99), (1, -0.1), "0 or more and below 1"),
    ],
)
def test_real_numbers_are_refused_outside_their_limits(
    name: str, right: tuple[Any, ...], wrong: tuple[Any, ...], wanted: str
) -> None:
    for value in right:
        assert getattr(TrainConfig(**{name: value}), name) == value
    for value in wrong:
        assert refused(**{name: value}) == [f"{name} is {value!r}; it must be a number, {wanted}."]


@pytest.mark.parametrize("name", [name for name, declared in SETTINGS.items() if declared.kind not in ("whole", "real")])
def test_what_a_field_cannot_hold_is_refused_with_what_it_may(name: str) -> None:
    declared = SETTINGS[name]
    for value in (b"bytes", 3.5, {}):
        assert f"{name} is {value!r}; it must be {declared.must_be}." in refused(**{name: value})


@dataclasses.dataclass(frozen=True)
class Planted(TrainConfig):
    """A configuration with limits of its own."""

    lora_r: int = setting(6, "Adapter rank", "whole", Group.USUAL, least=5, below=9)
    optim: str = setting("sgd", "Optimizer", "choice", Group.OPTIMIZER, choices={"sgd": "SGD", "lion": "Lion"})


def test_planted_limits_are_what_the_checks_refuse_and_what_a_form_offers() -> None:
    assert Planted(lora_r=5, optim="LION").optim == "lion"
    with pytest.raises(ConfigError) as caught:
        Planted(lora_r=9, optim="adamw_torch")
    assert set(caught.value.faults) == {
        "lora_r is 9; it must be a whole number, 5 or more and below 9.",
        "optim is 'adamw_torch'; it must be one of 'sgd', 'lion'.",
    }
    assert settings_of(Planted)["optim"].options == (("SGD", "sgd"), ("Lion", "lion"))


def test_the_state_shares_fields_with_a_configuration_and_their_defaults() -> None:
    shared = {f.name: f.default for f in dataclasses.fields(State) if f.name in SETTINGS and f.name != "double_quant"}
    assert shared == {name: SETTINGS[name].default for name in shared}
    assert set(shared) == {
        "model", "block_size", "lora_r", "target_modules", "per_device_train_batch_size", "max_length", "optim",
        "gradient_checkpointing",
    }  # fmt: skip


def test_the_fields_of_a_plan_are_those_of_a_configuration() -> None:
    types = {f.name: (f.type, f.default) for f in dataclasses.fields(TrainConfig)}
    of_plan = {f.name: (f.type, f.default) for f in dataclasses.fields(Plan) if f.name not in ASIDE}
    assert of_plan == {name: types[name] for name in of_plan}
