"""What an adapter loses on other bases, held to what transformers, bitsandbytes and peft predict on the same rows."""

from __future__ import annotations

import dataclasses
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

import workbench as wb
from tests.helpers import in_process, tiny
from tests.helpers.cost_in_process import measuring
from tests.helpers.needed import needed_gguf
from tests.helpers.tiny_model import tiny_tokenizer, write_tiny_model
from workbench.cost import engine
from workbench.training import data
from workbench.training.results import on_bases
from workbench.training.worker.batches import Collator

needed_gguf()

ROWS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    """Its base and its adapter have random weights that are large enough to matter in every prediction."""
    model = write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))
    tiny.randomize(model / "model.safetensors", 0.1)
    run = in_process.train(in_process.config_of(model, max_steps=1, max_eval_rows=0), tmp_path_factory.mktemp("run"))
    tiny.randomize(run.dir / "adapter" / "adapter_model.safetensors", 0.05)
    return run


@pytest.fixture(scope="module")
def zeros(run: wb.Run, tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    """The same run with an adapter that does nothing: merged with it, a base is written as it is."""
    folder = tmp_path_factory.mktemp("zeros") / "run"
    shutil.copytree(run.dir, folder)
    tiny.randomize(folder / "adapter" / "adapter_model.safetensors", 0.0)
    return wb.attach(folder)


@pytest.fixture(scope="module")
def files(zeros: wb.Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The base as GGUF: the original in float32 and Q8_0, and what the run made of it in 4 bits."""
    root = tmp_path_factory.mktemp("gguf")
    for name, base, dtype in (("f32", "original", "float32"), ("q8", "original", "q8_0"), ("nf4", "dequantized", "float32")):
        wb.export(zeros, root / name, format="gguf", base=base, dtype=dtype)
    return {name: root / name / "model.gguf" for name in ("f32", "q8", "nf4")}


@pytest.fixture(scope="module")
def found(run: wb.Run, files: dict[str, Path]) -> dict[str, wb.OnBase]:
    with measuring():
        rows = wb.deployed(run, ["original", "nf4", "q8_0", "q4_0", *files.values()], max_rows=ROWS)
        return {row.base: row for row in rows}


def by_hand(run: wb.Run) -> tuple[float, float, float, float]:
    """(KL, share of flips, loss, loss of what was trained) of the adapter on the original, row by row in float32."""
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    load = AutoModelForCausalLM.from_pretrained
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    trained, original = load(run.config.model, dtype=torch.float32), load(run.config.model, dtype=torch.float32)
    for name, module in load(run.config.model, dtype=torch.float32, quantization_config=how).named_modules():
        if hasattr(held := getattr(module, "weight", None), "quant_state"):
            weight, into = dequantize_4bit(held.data, held.quant_state), trained.get_submodule(name)
            into.weight.data = weight.T if type(into).__name__ == "Conv1D" else weight
    models = [PeftModel.from_pretrained(model, str(run.adapter_dir)).eval() for model in (trained, original)]
    rows = data.load(run.config, AutoTokenizer.from_pretrained(run.config.model), data.held_out_files(run.config), ROWS).rows
    kl = flips = tokens = 0.0
    losses = [0.0, 0.0]
    for row in rows:
        batch = Collator(0).batch([row])
        labels = batch.pop("labels")[0, 1:]
        with torch.no_grad():
            p, q = (torch.log_softmax(model(**batch).logits[0, :-1].double(), -1)[labels >= 0] for model in models)
        wanted = labels[labels >= 0]
        kl += float((p.exp() * (p - q)).sum())
        flips += float((p.argmax(-1) != q.argmax(-1)).sum())
        losses = [total - float(each[range(len(wanted)), wanted].sum()) for total, each in zip(losses, (p, q), strict=True)]
        tokens += len(wanted)
    return kl / tokens, flips / tokens, losses[1] / tokens, losses[0] / tokens


def test_it_is_what_transformers_and_peft_predict(run: wb.Run, found: dict[str, wb.OnBase]) -> None:
    kl, flips, loss, trained = by_hand(run)
    row = found["original"]
    assert kl > 1e-4
    assert row.kl == pytest.approx(kl, rel=0.05)  # merged weights are held in bfloat16
    assert row.flipped == pytest.approx(flips, abs=4 / row.tokens)
    assert row.loss == pytest.approx(loss, abs=2e-3)
    assert row.loss_change == pytest.approx(loss - trained, abs=2e-3)
    assert row.kl_interval[0] < row.kl < row.kl_interval[1]
    assert row.loss_change_interval[0] < row.loss_change < row.loss_change_interval[1]


def test_on_the_base_that_was_trained_on_nothing_is_lost(found: dict[str, wb.OnBase], files: dict[str, Path]) -> None:
    assert (found["nf4"].kl, found["nf4"].flipped, found["nf4"].loss_change) == (0.0, 0.0, 0.0)
    assert abs(found[str(files["nf4"])].kl) < found["original"].kl / 1_000
    assert found[str(files["nf4"])].loss_change == pytest.approx(0, abs=1e-4)


def test_a_gguf_is_measured_as_the_type_that_it_is_in(found: dict[str, wb.OnBase], files: dict[str, Path]) -> None:
    assert found[str(files["f32"])].kl == pytest.approx(found["original"].kl, rel=1e-6)
    assert found[str(files["q8"])].kl == pytest.approx(found["q8_0"].kl, rel=1e-6)
    assert found[str(files["q8"])].name == "model.gguf (Q8_0)"
    assert found["q4_0"].kl > 1.2 * found["q8_0"].kl
    assert found["q8_0"].kl != found["original"].kl


def test_weights_are_put_into_memory_that_no_file_is_mapped_to(
    run: wb.Run, found: dict[str, wb.OnBase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint's file would be written to, where a system maps it so: Linux does not."""
    asked: list[Path] = []
    monkeypatch.setattr(engine, "_mapped_privately", lambda folder: bool(asked.append(folder)))
    with measuring():
        (row,) = wb.deployed(run, ["original"], max_rows=ROWS, folder=tmp_path / "kept")
        wb.repairs(run, max_rows=1).run()
    assert row == found["original"]
    assert asked == [Path(run.config.model)] * 2


BEGUN: dict[str, dict[str, Any]] = {
    "loftq": {"init_lora_weights": "loftq", "lora_alpha": 16},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
}


@pytest.mark.parametrize("begun", BEGUN)
def test_an_adapter_that_begins_with_a_product_is_measured_too(run: wb.Run, begun: str, tmp_path: Path) -> None:
    other = in_process.train(in_process.config_of(Path(run.config.model), max_steps=1, **BEGUN[begun]), tmp_path)
    with measuring():
        original, nf4 = wb.deployed(other, ["original", "nf4"], max_rows=2).run().rows
    assert original.kl > 0
    assert (nf4.kl == 0) == (begun == "loftq")  # of the others the base is another one, quantized anew


def test_transposed_weights_are_put_where_the_model_has_them(tmp_path: Path) -> None:
    """GPT-2's layers hold (in, out), some of them square; its names lack the first part, as on the Hub."""
    model = tiny.save(tmp_path / "gpt2", "gpt2", {**tiny.ARCHITECTURES["gpt2"][1], "vocab_size": 512})
    file = model / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    bare = {name.removeprefix("transformer."): value for name, value in weights.items()}
    safetensors.torch.save_file(bare, file, {"format": "pt"})
    tiny.randomize(file, 0.1)
    tiny_tokenizer().save_pretrained(model)
    (tmp_path / "run").mkdir()
    run = in_process.train(in_process.config_of(model, max_steps=1, max_eval_rows=0), tmp_path / "run")
    kl, _, loss, _ = by_hand(run)
    with measuring():
        original, nf4, q8_0 = wb.deployed(run, ["original", "nf4", "q8_0"], max_rows=ROWS).run().rows
    assert (original.kl, original.loss) == (pytest.approx(kl, rel=0.05), pytest.approx(loss, abs=2e-3))
    assert nf4.kl == 0
    assert q8_0.kl == pytest.approx(original.kl, rel=0.2)


def test_weights_that_are_loaded_fused_are_not_passed_over(tmp_path: Path) -> None:
    """A mixture's experts: as they are in what the run held, but not in a GGUF."""
    model = tiny.save(tmp_path / "mixtral", "mixtral", {**tiny.ARCHITECTURES["mixtral"][1], "vocab_size": 512})
    tiny_tokenizer().save_pretrained(model)
    (tmp_path / "run").mkdir()
    run = in_process.train(
        in_process.config_of(model, max_steps=1, max_eval_rows=0, target_modules=("q_proj",)), tmp_path / "run"
    )
    with measuring():
        assert wb.deployed(run, ["original", "nf4"], max_rows=2).run().complete
        with pytest.raises(wb.ModelError, match=r"experts\S+ into no parameter of its own"):
            wb.deployed(run, "q8_0", max_rows=2).run()


@pytest.mark.slow
def test_what_was_measured_is_kept_and_the_rest_goes_on(run: wb.Run, tmp_path: Path) -> None:
    """In a process of its own."""
    seen: list[tuple[int, int]] = []
    (first,) = wb.deployed(run, ["original"], max_rows=2, folder=tmp_path / "kept")
    again = wb.deployed(
        run, ["original", "q8_0"], max_rows=2, folder=tmp_path / "kept", progress=lambda *at: seen.append(at)
    ).run()
    assert again.rows[0] == first
    assert on_bases.read(run.dir, run.adapter_dir) == again.rows  # for cards, whatever folder was named
    assert again.complete
    assert seen[-1][0] == seen[-1][1] > 0
    frame = again.to_frame()
    assert list(frame["base"]) == ["original", "q8_0"]
    assert {"kl", "kl_low", "kl_high", "flipped_low", "loss_change_high"} <= set(frame)
    assert "loss − trained" in repr(again)
    with pytest.raises(wb.RunError, match="number of rows"):
        wb.deployed(run, max_rows=3, folder=tmp_path / "kept")
    cancelled = wb.deployed(run, ["original", "q4_0"], max_rows=2, cancelled=lambda: True).run()
    assert (cancelled.rows, cancelled.cancelled) == ((), True)


def test_what_cannot_be_measured_is_refused_at_once(
    run: wb.Run, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 20)
    asked: list[tuple[dict[str, Any], str]] = [
        ({"bases": ["q4_k_m"]}, "'q4_k_m' is no base"),
        ({"bases": [tmp_path / "model.bin"]}, "is no base"),
        ({"bases": tmp_path / "missing.gguf"}, "cannot be read"),
        ({"bases": [tmp_path / "broken.gguf"]}, "no whole GGUF file"),
        ({"max_rows": 0}, "max_rows is 0"),
    ]
    for how, told in asked:
        with pytest.raises(wb.WorkbenchError, match=told) as caught:
            wb.deployed(run, **how)
        assert caught.value.remedy
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert len(wb.deployed(run, ["original", "nf4"])) == 2
    for base in ("q8_0", files["f32"]):
        with pytest.raises(wb.RunError, match="needs the package gguf"):
            wb.deployed(run, [base])


def test_a_gguf_of_another_base_ends_it_with_its_reason(zeros: wb.Run, run: wb.Run, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(run.config.model, folder)
    tiny.randomize(folder / "model.safetensors", 0.2)
    (tmp_path / "run").mkdir()
    other = in_process.train(in_process.config_of(folder, max_steps=1, max_eval_rows=0), tmp_path / "run")
    wb.export(other, tmp_path / "out", format="gguf", base="original", dtype="float32")
    with measuring(), pytest.raises(wb.ModelError, match=r"another model of the same shape: blk"):
        wb.deployed(run, [tmp_path / "out" / "model.gguf"], max_rows=1).run()


def test_what_is_kept_belongs_to_one_adapter_and_number_of_rows(zeros: wb.Run, run: wb.Run, tmp_path: Path) -> None:
    row = wb.OnBase("original", "original, 16 bits", 9, 0.1, (math.nan, math.nan), 0.5, (0.4, 0.6), 2.0, 0.1, (0.0, 0.2))
    other = dataclasses.replace(row, base="q8_0")
    assert run.adapter_dir is not None
    digest = on_bases.adapter_digest(run.adapter_dir)
    for found in ([row], [other], [other]):
        on_bases.keep(tmp_path, digest, 8, found)
    first, second = on_bases.read(tmp_path, run.adapter_dir)
    assert (first.base, second) == ("original", dataclasses.replace(other, kl_interval=second.kl_interval))
    assert all(map(math.isnan, first.kl_interval))
    assert on_bases.read(tmp_path, zeros.adapter_dir) == on_bases.read(tmp_path, None) == ()
    on_bases.keep(tmp_path, digest, 9, [other])
    assert [each.base for each in on_bases.read(tmp_path, run.adapter_dir)] == ["q8_0"]
    (tmp_path / on_bases.FOLDER / "bases.json").write_text("{}")
    assert on_bases.read(tmp_path, run.adapter_dir) == ()
    flipped = "50.00 % (95 %: 40.00 % … 60.00 %) of next tokens flipped."
    assert row.said() == f"On original, 16 bits: KL 0.1000 nats a token, {flipped}"
    assert "KL 0.1000 (95 %: 0.0500 … 0.2000) nats" in dataclasses.replace(row, kl_interval=(0.05, 0.2)).said()
    assert row._line_()["flipped, 95 %"] == "40.00 % … 60.00 %"
