"""The model card tells every setting of a run that is not as by default, and no name breaks out of its tables."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest

import workbench as wb
from workbench.training.results.card import card
from workbench.training.results.export import _bases
from workbench.training.settings import Setting, settings_of

SETTINGS = settings_of(wb.TrainConfig)
SAYS_NOTHING_OF_THE_RESULT = {
    "mirror_dir", "push_to_hub", "hub_model_id", "hub_private_repo", "report_to", "save_steps", "save_total_limit",
    "sample_prompts", "sample_max_new_tokens",
}  # fmt: skip
BESIDE: dict[str, dict[str, Any]] = {
    "dataset_config": {"dataset": "rows"},
    "dataset_split": {"dataset": "rows"},
    "dataset_revision": {"dataset": "rows"},
    "eval_split": {"dataset": "rows"},
    "prompt_column": {"completion_column": "answer"},
    "completion_column": {"prompt_template": "{question}"},
    "thoughts": {"messages_column": "messages"},
    "load_best_model_at_end": {"eval_steps": 5},
    "early_stopping_patience": {"eval_steps": 5},
    "num_train_epochs": {"max_steps": -1},
}
"""What a field needs before it may be anything else than by default."""
HOSTILE = "a`|b\n\n# c <img src=x onerror=alert(1)> [d](javascript:e) \\| --- 'f' {{ 7 * 7 }}"


def another(declared: Setting) -> Any:
    """A value that is not the default."""
    if declared.kind in ("flag", "whole", "real"):
        if declared.kind == "flag":
            return not declared.default
        between = declared.below if math.isfinite(declared.below) else 7
        return between / 2 if declared.kind == "real" else 7
    if declared.kind == "choice":
        return next(value for _, value in reversed(declared.options) if value != declared.default)
    return {"names": ("q_proj",), "patterns": ("q_proj",), "texts": ("once",)}.get(declared.kind, "{zz}")


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "model_revision"])  # told by the commit on the Hub
def test_every_field_that_is_not_as_by_default_is_told(name: str) -> None:
    beside = BESIDE.get(name, {})
    value = {"method": "lora", "row_shape": "alpaca", "block_size": 128, "hub_model_id": "zz"}.get(
        name, another(SETTINGS[name])
    )
    plain = wb.TrainConfig(**beside) if name != "prompt_column" else wb.TrainConfig()
    changed = wb.TrainConfig(**{**beside, name: value})
    assert getattr(changed, name) == value != getattr(plain, name)
    said = [card(config, [], "adapter").partition("## Base model")[2] for config in (plain, changed)]
    assert (said[0] == said[1]) == (name in SAYS_NOTHING_OF_THE_RESULT)


def test_what_means_nothing_for_the_method_is_left_out() -> None:
    assert "norms_in_16_bits" in card(wb.TrainConfig(norms_in_16_bits=True), [], "adapter")
    assert "norms_in_16_bits" not in card(wb.TrainConfig(method="lora", norms_in_16_bits=True), [], "adapter")


def test_the_name_of_a_base_stays_in_its_cell() -> None:
    row = wb.OnBase("original", "original, 16 bits", 9, 0.1, (0.0, 0.2), 0.5, (0.4, 0.6), 2.0, 0.1, (0.0, 0.2))
    table = _bases([row, dataclasses.replace(row, base="/here/x.gguf", name=f"{HOSTILE}.gguf (Q4_K)")]).strip().splitlines()
    head, *_, hostile = table[4:]
    cells = re.split(r"(?<!\\)\|", hostile)[1:-1]
    assert len(table[4:]) == 4
    assert len(cells) == len(head.split("|")) - 2
    assert re.fullmatch(r" `[^`]+` ", cells[0])
    assert "/here" not in "".join(table)
