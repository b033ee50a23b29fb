"""What notebook 07 shows of the run that it trains: all its cells are run, and their numbers held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.notebook_runs import run_again


@pytest.mark.slow
def test_an_adapter_that_is_trained_again(tmp_path: Path) -> None:
    run_again("07_train_an_adapter", tmp_path, held)


def held(found: dict[str, Any]) -> None:
    """What comes of it."""
    run, config, src, ledger, receipt = (found[name] for name in ("run", "config", "src", "ledger", "receipt"))
    rows = [json.loads(line) for line in (src.path.parent / "data" / "train.jsonl").read_text("utf-8").splitlines()]
    for row, tokens in zip(rows, found["seen"].rows, strict=False):
        given, learnt = map("".join, found["parts"](tokens))
        assert given == "<s>" + row["prompt"]
        assert (row["completion"] + "</s>").startswith(learnt), "all of it, or what max_length leaves"
    assert found["counts"]["total"] == len(rows) == 741

    adapters = 16 * sum(sum(tensor.shape) for tensor in src.tensors() if tensor.quantizable)
    assert found["verdict"].verdict == "fits"
    assert ledger["adapters"] == 4 * adapters
    assert receipt["adapters"].measured == 4 * adapters
    for category in ("4-bit weights", "absmax scales", "second-level scales", "weights upcast to fp32", "optimizer state"):
        assert receipt[category].forecast == receipt[category].measured > 0, category

    assert found["status"].state == "finished"
    assert found["after"] < found["before"] - 0.3
    assert all(each["adapter"].text != each["base"].text for each in found["answers"].rows)
    assert np.isclose(found["base_loss"], found["before"], atol=1e-3), "plain peft comes to the same"
    assert np.isclose(found["adapter_loss"], found["after"], atol=1e-3)

    frame = found["frame"]
    assert len(frame) == 42
    assert frame["dequantized"].max() < 2**-8, "bfloat16 keeps 8 bits of a number"
    assert frame["original"].between(0.05, 0.12).all(), "NF4's error"
    assert (frame["requantized"] > 10 * frame["dequantized"]).all()
    assert abs(found["merged_loss"] - found["adapter_loss"]) < 0.01
    assert f"{found['after']:.4f}" in found["card"]
    assert run.config.max_steps == config.max_steps
