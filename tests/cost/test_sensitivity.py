"""What single modules cost: against models changed by hand, in any order, and after the measuring process was killed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import workbench as wb
from tests.helpers.cost_in_process import measuring
from tests.helpers.tiny_model import write_tiny_model
from workbench.cost.engine import CALIBRATION
from workbench.training.environment import PATIENT

SPEC = wb.QuantSpec("nf4", double_quant=True)
USUAL: dict[str, Any] = {"max_rows": 16, "max_length": 32}
UP, K = "model.layers.0.mlp.up_proj", "model.layers.1.self_attn.k_proj"


@pytest.fixture(scope="module")
def sens(model: Path) -> wb.Sensitivity:
    with measuring():
        return wb.sensitivity(model, **USUAL).run()


class Reference:
    """The model in fp32, with weights put in by hand, and its loss and activations on the same rows."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from workbench.training import data
        from workbench.training.worker import trainer

        config = wb.TrainConfig(max_eval_rows=USUAL["max_rows"], max_length=USUAL["max_length"])
        tokenizer = data.open_tokenizer(folder)
        self.rows = data.load(config, tokenizer, data.held_out_files(config), config.max_eval_rows).rows
        self.collator = trainer.Collator.of(tokenizer)
        self.net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.source = wb.open_model(folder)

    def quantized(self, module: str) -> np.ndarray[Any, Any]:
        q = wb.quantize(self.source.read(f"{module}.weight"), SPEC)
        return q.dequantize("bfloat16").astype(np.float32)

    def loss(self, modules: set[str]) -> float:
        import torch

        from workbench.training.worker import trainer

        kept = {}
        for module in modules:
            weight = self.net.get_submodule(module).weight
            kept[module], weight.data = weight.data, torch.from_numpy(self.quantized(module))
        with torch.inference_mode():
            found = trainer.held_out_loss(self.net, self.rows, self.collator, 4, lambda: None)
        for module, data in kept.items():
            self.net.get_submodule(module).weight.data = data
        assert found is not None
        return found

    def kl(self, modules: set[str]) -> float:
        """In float64 on whole logits, a row at a time."""
        import torch

        def predictions() -> list[Any]:
            with torch.inference_mode():
                found = []
                for row in self.rows:
                    ids = torch.tensor(np.array([row.input_ids]))
                    bears = torch.tensor(np.array(row.loss))[1:]
                    found.append(self.net(input_ids=ids).logits[0, :-1][bears].double().log_softmax(-1))
                return found

        base, kept = predictions(), {}
        for module in modules:
            weight = self.net.get_submodule(module).weight
            kept[module], weight.data = weight.data, torch.from_numpy(self.quantized(module))
        ours = predictions()
        for module, data in kept.items():
            self.net.get_submodule(module).weight.data = data
        total = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(base, ours, strict=True))
        return total / sum(len(p) for p in base)

    def output_error(self, module: str) -> float:
        import torch

        seen: list[Any] = []
        hook = self.net.get_submodule(module).register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        batch = self.collator.batch(self.rows[:CALIBRATION])
        with torch.inference_mode():
            self.net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        hook.remove()
        x = seen[0][batch["attention_mask"].bool()].numpy()  # (tokens, in)
        exact = self.source.read(f"{module}.weight").astype(np.float32)
        return float(np.linalg.norm(x @ (self.quantized(module) - exact).T) / np.linalg.norm(x @ exact.T))


@pytest.fixture(scope="module")
def reference(model: Path) -> Reference:
    return Reference(model)


def modules_of(folder: Path) -> list[str]:
    return [t.name.removesuffix(".weight") for t in wb.open_model(folder).tensors() if t.quantizable]


# --- what a row says ----------------------------------------------------------------------------------------------------------


def test_the_losses_are_those_of_models_with_one_weight_changed_and_with_all_but_one(
    sens: wb.Sensitivity, reference: Reference, model: Path
) -> None:
    everything = set(modules_of(model))
    assert sens.loss_16bit == pytest.approx(reference.loss(set()), rel=2e-6)
    assert sens.loss_4bit == pytest.approx(reference.loss(everything), rel=2e-6)
    for name in (UP, K):
        row = next(row for row in sens.rows if row.name == name)
        assert row.loss_only == pytest.approx(reference.loss({name}), rel=2e-6)
        assert row.loss_all_but == pytest.approx(reference.loss(everything - {name}), rel=2e-6)


def test_the_divergence_is_that_of_the_whole_distributions(sens: wb.Sensitivity, reference: Reference, model: Path) -> None:
    everything = set(modules_of(model))
    assert sens.quantized is not None
    assert sens.quantized.kl == pytest.approx(reference.kl(everything), rel=1e-3)
    for name in (UP, K):
        row = next(row for row in sens.rows if row.name == name)
        assert row.kl_only == pytest.approx(reference.kl({name}), rel=1e-2, abs=1e-8)
        assert row.kl_gain == pytest.approx(sens.quantized.kl - reference.kl(everything - {name}), rel=1e-2, abs=1e-8)
        assert row.share == (row.kl_only + row.kl_gain) / 2
        assert row.share_interval[0] < row.share < row.share_interval[1]


def test_an_input_channel_that_stands_out_is_named(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_tiny_model(tmp_path)
    net = AutoModelForCausalLM.from_pretrained(folder)
    net.model.layers[1].post_attention_layernorm.weight.data[[7, 30]] = net.model.layers[
        1
    ].post_attention_layernorm.weight.new_tensor([20, 9])
    net.save_pretrained(folder)
    with measuring():
        rows = wb.sensitivity(folder, modules=["model.layers.1.mlp.up_proj", "model.layers.0.mlp.up_proj"], **USUAL).run().rows
    assert [channel.number for channel in rows[0].channels] == [7, 30]
    assert [channel.times for channel in rows[0].channels] == pytest.approx([20, 9], rel=0.3)
    assert rows[1].channels == ()


def test_differences_are_to_the_two_ends(sens: wb.Sensitivity) -> None:
    assert sens.loss_16bit is not None
    assert sens.loss_4bit is not None
    for row in sens.rows:
        assert row.increase_only == row.loss_only - sens.loss_16bit
        assert row.decrease_all_but == sens.loss_4bit - row.loss_all_but
        assert row.loss_share == pytest.approx((row.increase_only + row.decrease_all_but) / 2)


def test_every_module_has_a_row_in_the_order_of_the_checkpoint(sens: wb.Sensitivity, model: Path) -> None:
    assert sens.complete
    assert [row.name for row in sens.rows] == modules_of(model)
    assert {(row.layer, row.kind) for row in sens.rows} == {
        (layer, kind) for layer in (0, 1) for kind in ("q", "k", "v", "o", "gate", "up", "down")
    }


def test_errors_of_outputs_and_weights_and_bytes_are_the_modules_own(sens: wb.Sensitivity, reference: Reference) -> None:
    for row in sens.rows:
        weight = reference.source.read(f"{row.name}.weight")
        assert row.relative_rmse == pytest.approx(wb.measure(weight, SPEC).relative_rmse, rel=1e-5)
        assert (row.nbytes_4bit, row.nbytes_16bit) == (wb.quantize(weight, SPEC).nbytes, weight.nbytes)
        assert row.saved_bytes == row.nbytes_16bit - row.nbytes_4bit
    for name in (UP, K):
        row = next(row for row in sens.rows if row.name == name)
        assert row.output_error == pytest.approx(reference.output_error(name), rel=1e-4)


def test_the_table_has_a_line_a_module(sens: wb.Sensitivity) -> None:
    frame = sens.to_frame()
    assert list(frame["name"]) == [row.name for row in sens.rows]
    assert list(frame["share"]) == [row.share for row in sens.rows]


def test_modules_that_there_are_not_are_refused(model: Path) -> None:
    with pytest.raises(wb.ModelError, match="no module 'lm_head'"):
        wb.sensitivity(model, modules=["lm_head"])
    with pytest.raises(wb.ModelError, match=r"no module \['lm_head'\]"):
        wb.sensitivity(model, modules=[["lm_head"]])  # type: ignore[list-item]
    with pytest.raises(wb.FormatError, match="one format"):
        wb.sensitivity(model, ["nf4", "fp4"])  # type: ignore[arg-type]


# --- in any order, and however it was broken off ------------------------------------------------------------------------------


def test_the_numbers_do_not_depend_on_the_order_of_modules(sens: wb.Sensitivity, model: Path) -> None:
    shuffled = list(np.random.default_rng(0).permutation(modules_of(model)))
    with measuring():
        other = wb.sensitivity(model, modules=shuffled, **USUAL).run()
    assert [row.name for row in other.rows] == shuffled
    assert sorted(other.rows, key=lambda row: row.name) == sorted(sens.rows, key=lambda row: row.name)


# What Python runs as it starts: the measuring process notes its environment, and kills itself before it writes its third loss.
KILLED_AT_THE_THIRD_LOSS = """
import json, os, signal, sys
from pathlib import Path
from workbench.training.events import EventWriter

emit, losses = EventWriter.emit, []

def emit_or_die(writer, k, /, **fields):
    Path(__file__).with_name("environment.json").write_text(json.dumps(dict(os.environ)))
    losses.extend([k] if k == "sums" else [])
    if len(losses) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    emit(writer, k, **fields)

EventWriter.emit = emit_or_die
"""


@pytest.mark.slow
def test_killed_and_gone_on_with_it_gives_the_same_numbers_and_no_secret_reaches_its_process(
    sens: wb.Sensitivity, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, hook, secret = tmp_path / "kept", tmp_path / "hook", "hf_abcdefghijklmnop"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(KILLED_AT_THE_THIRD_LOSS, "utf-8")
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("PYTHONPATH", str(hook), prepend=os.pathsep)
    with pytest.raises(wb.RunError, match="killed, possibly out of memory") as told:
        wb.sensitivity(model, folder=folder, **USUAL).run()
    monkeypatch.setenv("PYTHONPATH", "")
    assert "goes on from there" in told.value.remedy
    assert secret not in json.loads((hook / "environment.json").read_text("utf-8")).values()
    events = folder / "events-cost.jsonl"
    assert events.read_text().count('"k":"sums"') == 2
    with events.open("a") as torn:
        torn.write('{"k": "sums", "point": "0123')  # as a kill in the middle of a line leaves it
    with measuring():
        again = wb.sensitivity(model, folder=folder, **USUAL).run()
    assert again.rows == sens.rows
    assert not [path for path in folder.rglob("*") if path.is_file() and secret in path.read_text("utf-8", "replace")]


def test_a_process_whose_parent_is_gone_ends(tmp_path: Path) -> None:
    start = "import os, subprocess, sys; print(subprocess.Popen([*sys.argv[1:], str(os.getpid())], stdout=2).pid)"
    worker = [sys.executable, "-m", "workbench.cost.worker", str(tmp_path)]
    environment = {**os.environ, **PATIENT, "PYTHONPATH": str(Path(wb.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", start, *worker], env=environment, capture_output=True, text=True, check=True)
    with contextlib.suppress(psutil.NoSuchProcess):  # gone already
        assert not psutil.wait_procs([psutil.Process(int(done.stdout))], timeout=60)[1]
    told = tmp_path / "events-cost.jsonl"
    assert not told.exists() or '"error"' not in told.read_text()
