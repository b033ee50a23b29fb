"""How much of 4 bits' output error a trained adapter takes back, held to what torch, bitsandbytes and peft make of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.cost_in_process import measuring
from tests.helpers.tiny_model import write_tiny_model
from workbench.training import data
from workbench.training.worker.batches import Collator

pytestmark = pytest.mark.slow

ROWS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    """Six steps with a checkpoint every two; the last one is the final adapter, too. One kind is left in 16 bits."""
    config = in_process.config_of(
        model, max_steps=6, save_steps=2, save_total_limit=9, max_eval_rows=0, llm_int8_skip_modules=("o_proj",)
    )
    return in_process.train(config, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def seen() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def begun(run: wb.Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, wb.Repairs]:
    """In a process of its own, and left after the first row."""
    folder = tmp_path_factory.mktemp("repairs")
    found = wb.repairs(run, max_rows=ROWS, folder=folder)
    for _ in found:
        break
    return folder, found


@pytest.fixture(scope="module")
def repaired(run: wb.Run, begun: tuple[Path, wb.Repairs], seen: list[tuple[int, int]]) -> wb.Repairs:
    """And gone on with."""
    with measuring():
        return wb.repairs(run, max_rows=ROWS, folder=begun[0], progress=lambda *at: seen.append(at)).run()


def by_hand(run: wb.Run, adapter: Path) -> dict[str, tuple[float, ...]]:
    """Module → the error without and with the adapter, and how far it goes back along it, with both models loaded whole."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    model = run.config.model
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, quantization_config=four)
    adapted = PeftModel.from_pretrained(base, str(adapter)).base_model.model
    rows = data.load(run.config, AutoTokenizer.from_pretrained(model), data.held_out_files(run.config), ROWS).rows
    inputs: dict[str, Any] = {}
    names = [name for name, layer in adapted.named_modules() if hasattr(layer, "lora_A") and "o_proj" not in name]
    for name in names:
        plain.get_submodule(name).register_forward_hook(
            lambda _, given, out, at=name: inputs.setdefault(at, []).append(given[0][0])
        )
    with torch.no_grad():
        for row in rows:  # one by one, so that nothing is padding
            batch = Collator(0).batch([row])
            plain(input_ids=batch["input_ids"])
        found = {}
        for name in names:
            x, weight = torch.cat(inputs[name]), plain.get_submodule(name).weight
            layer = adapted.get_submodule(name)
            held = dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state).float()
            lora = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            whole = (x @ weight.T).norm()
            error, change = x @ (weight - held).T, x @ lora.T
            along = (error * change).sum() / (error * error).sum()
            found[name] = tuple(map(float, (error.norm() / whole, (error - change).norm() / whole, along)))
    return found


@pytest.mark.parametrize("step", [2, 6])
def test_the_errors_are_those_of_the_models_that_transformers_and_peft_load(
    run: wb.Run, repaired: wb.Repairs, step: int
) -> None:
    adapter = run.dir / "checkpoints" / "checkpoint-2" if step == 2 else run.adapter_dir
    expected = by_hand(run, adapter)
    rows = {row.name: row for row in repaired if row.step == step}
    assert sorted(rows) == sorted(expected)
    assert len(rows) == 2 * 6  # all linears but those left in 16 bits
    for name, (without, adapted, along) in expected.items():
        assert rows[name].error_base == pytest.approx(without, rel=1e-4)
        assert rows[name].error_adapted == pytest.approx(adapted, rel=1e-4)
        assert rows[name].along == pytest.approx(along, abs=1e-4)


def test_the_whole_models_stand_beside_their_modules(run: wb.Run, repaired: wb.Repairs) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    model = run.config.model
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    four = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["o_proj", "lm_head"],
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, quantization_config=four)
    rows = data.load(run.config, AutoTokenizer.from_pretrained(model), data.held_out_files(run.config), ROWS).rows

    def predictions(net: Any) -> list[Any]:
        with torch.no_grad():
            found = []
            for row in rows:
                batch = Collator(0).batch([row])
                logits = net(input_ids=batch["input_ids"]).logits[0, :-1]
                found.append(logits[batch["labels"][0, 1:] != -100].double().log_softmax(-1))
            return found

    p = predictions(plain)
    tokens = sum(map(len, p))
    assert [found.step for found in repaired.models] == [0, 2, 4, 6]
    in_4_bits, *_, last = repaired.models
    for found in (in_4_bits, last):
        if found is last:
            base = PeftModel.from_pretrained(base, str(run.adapter_dir))
        q = predictions(base)
        kl = sum(float((a.exp() * (a - b)).sum()) for a, b in zip(p, q, strict=True)) / tokens
        flips = sum(int((a.argmax(1) != b.argmax(1)).sum()) for a, b in zip(p, q, strict=True)) / tokens
        assert found.kl == pytest.approx(kl, rel=1e-2)
        assert found.flips == pytest.approx(flips, abs=1 / tokens)
        assert found.flips_interval[0] <= found.flips <= found.flips_interval[1]
        assert found.kl_interval[0] <= found.kl <= found.kl_interval[1]
    assert last.kl > in_4_bits.kl
    assert f"{last.loss:.4f}" in repr(repaired)


def test_every_checkpoint_is_measured_once_against_the_same_base(repaired: wb.Repairs) -> None:
    assert repaired.complete
    assert repaired.steps == (2, 4, 6)
    frame = repaired.to_frame()
    assert list(frame) == ["step", "name", "layer", "kind", "error_base", "error_adapted", "along", "taken_back"]
    assert (frame.groupby("name")["step"].apply(tuple) == (2, 4, 6)).all()
    assert (frame.groupby("name")["error_base"].nunique() == 1).all()
    assert frame["error_base"].between(0.02, 0.2).all()  # what NF4 does to outputs
    np.testing.assert_allclose(frame["taken_back"], 1 - frame["error_adapted"] / frame["error_base"])
    assert set(frame["kind"]) == {"q", "k", "v", "gate", "up", "down"}
    assert set(frame["layer"]) == {0, 1}


def test_what_was_measured_is_kept_and_not_measured_again(
    run: wb.Run, begun: tuple[Path, wb.Repairs], repaired: wb.Repairs, seen: list[tuple[int, int]]
) -> None:
    folder, found = begun
    assert len(found.rows) == 1
    assert not found.complete
    assert found.rows[0] == repaired.rows[0]
    assert seen == sorted(seen)
    lines = [json.loads(line) for line in (folder / "events-cost.jsonl").read_text("utf-8").splitlines()]
    told = [(line["name"], line["step"]) for line in lines if line["k"] == "repair"]
    assert len(told) == len(set(told)) == 12 * 3
    again = wb.repairs(run, max_rows=ROWS, folder=folder, cancelled=lambda: False)
    assert list(again) == list(repaired.rows)
    with pytest.raises(wb.RunError, match="measurements of another number of rows"):
        wb.repairs(run, max_rows=ROWS + 1, folder=folder)


def test_cancelling_starts_nothing(run: wb.Run) -> None:
    cut = wb.repairs(run, cancelled=lambda: True)
    assert list(cut) == []
    assert cut.cancelled
    assert not cut.complete


def test_what_cannot_be_repaired_is_refused(run: wb.Run, model: Path, tmp_path: Path) -> None:
    lora = in_process.train(in_process.config_of(model, method="lora", max_steps=1, max_eval_rows=0), tmp_path / "lora")
    with pytest.raises(wb.RunError, match="not in 4 bits"):
        wb.repairs(lora)
    with pytest.raises(wb.RunError, match="max_rows is 0"):
        wb.repairs(run.dir, max_rows=0)


@pytest.mark.parametrize("begin", ["loftq", "pissa"])
def test_an_adapter_that_begins_from_the_weights_takes_back_some_of_the_error_before_its_first_step(
    model: Path, begin: str, tmp_path: Path
) -> None:
    config = in_process.config_of(model, max_steps=1, max_eval_rows=0, init_lora_weights=begin, lora_r=16, lora_alpha=16)
    run = in_process.train(config, tmp_path)
    with measuring():
        found = wb.repairs(run, max_rows=ROWS).run()
    assert found.steps == (0, 1)
    assert [whole.step for whole in found.models] == [0, 1]
    before = [row for row in found if row.step == 0]
    assert len(before) == len(found.modules)
    assert all(row.taken_back > 0.05 for row in before)
    if begin == "loftq":  # a part of the error itself: what is left of it stands at right angles to what is taken
        assert all(row.along == pytest.approx(1 - (1 - row.taken_back) ** 2, abs=0.1) for row in before)
