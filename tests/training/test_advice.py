"""Rules of thumb before a run: room in the adapter against what the run learns, and what a learning rate goes by."""

from __future__ import annotations

from typing import Any

import pytest

import workbench as wb
from workbench.training.advice import SOURCE


def seen(rows: int, tokens: int, bearing: int, whole: bool = True) -> wb.Preview:
    """A dataset of so many rows."""
    return wb.Preview((), {"kept": rows, "tokens": tokens, "loss_tokens": bearing}, whole)


def advised(rows: wb.Preview, **fields: Any) -> wb.Advice:
    return wb.advice(wb.TrainConfig(**{"per_device_train_batch_size": 2, "max_steps": 5, **fields}), rows)


def test_parameters_are_those_that_are_trained() -> None:
    source = wb.open_model("builtin")
    shapes = [t.shape for t in source.tensors() if t.quantizable]
    found = advised(seen(10, 100, 50), lora_r=4)
    assert found.exact
    assert found.parameters == sum(4 * (out + into) for out, into in shapes)
    assert found.room == 2 * found.parameters
    assert advised(seen(10, 100, 50), method="full").parameters > found.parameters


@pytest.mark.parametrize(
    ("fields", "rows", "tokens"),
    [
        ({}, seen(100, 1000, 500), 50),  # ten rows of 5
        ({"gradient_accumulation_steps": 2, "nproc_per_node": 2}, seen(100, 1000, 500), 200),
        ({"max_steps": 1000}, seen(100, 1000, 500), 500),  # a row that comes again says nothing new
        ({"max_steps": -1, "num_train_epochs": 3}, seen(100, 1000, 500), 500),
        ({"max_steps": -1, "num_train_epochs": 0.5}, seen(100, 1000, 500), 250),
        ({"max_steps": 1000}, seen(100, 1000, 500, whole=False), 10_000),  # the first rows stand for all
        ({"max_steps": -1, "num_train_epochs": 1}, seen(100, 1000, 500, whole=False), None),
        ({"packing": True, "max_length": 50}, seen(100, 1000, 500), 250),  # five rows a pack
        ({}, seen(0, 0, 0), None),
    ],
)  # fmt: skip
def test_tokens_with_a_loss_over_the_whole_run(fields: dict[str, Any], rows: wb.Preview, tokens: int | None) -> None:
    found = advised(rows, **fields)
    assert found.loss_tokens == tokens
    assert found.whole is rows.whole
    assert found.enough is (None if tokens is None else found.room >= tokens)


def test_what_does_not_fit_is_said() -> None:
    small = advised(seen(10**6, 10**9, 10**9, whole=False), max_steps=10**5)
    assert not small.enough
    assert "more to learn than that" in small.capacity
    assert "have room" in advised(seen(10, 100, 50)).capacity
    assert SOURCE in repr(small)
    assert "not measured" in repr(small)


def test_learning_rates_go_by_the_method() -> None:
    rows = seen(10, 100, 50)
    assert "about ten times that of full" in advised(rows, method="lora", max_steps=100).learning_rate
    assert "about fifteen times" in advised(rows, max_steps=99).learning_rate
    assert "a tenth of LoRA's" in advised(rows, method="full").learning_rate
    assert "16 bits" in advised(rows, method="qlora").learning_rate
    assert "16 bits" not in advised(rows, method="lora").learning_rate


def test_what_padding_costs_is_said_of_the_rows_that_were_looked_at() -> None:
    found = wb.advice(wb.TrainConfig())
    assert "is padding, as estimated for these rows (" in found.padding
    assert found.padding in repr(found)
    assert advised(seen(10, 100, 50)).padding
    alone = wb.TrainConfig(per_device_train_batch_size=1)
    assert wb.advice(alone).padding.startswith("Of a batch 0 % is padding")
