"""What each format does to the held-out loss: against models that transformers and bitsandbytes load themselves."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.helpers import tiny
from tests.helpers.tiny_model import tiny_tokenizer
from workbench.cost import divergence
from workbench.cost.assignments import Assignment
from workbench.cost.jobs import BATCH
from workbench.quant.formats import _formats

pytestmark = pytest.mark.usefixtures("measured_here")

ROWS = 12
NF4, NF4_DQ = wb.QuantSpec("nf4"), wb.QuantSpec("nf4", double_quant=True)
FP4, FP4_DQ = wb.QuantSpec("fp4"), wb.QuantSpec("fp4", double_quant=True)
SPECS = (NF4, NF4_DQ, FP4, FP4_DQ, wb.QuantSpec("int4-asym"), wb.QuantSpec("nvfp4"))


@pytest.fixture(scope="module")
def evaluated() -> wb.Evaluation:
    return wb.evaluate("builtin", SPECS, max_rows=ROWS, output_error=True).run()


def reference_losses(folder: Path, spec: wb.QuantSpec | None, config: wb.TrainConfig) -> tuple[float, float]:
    """The loss of the model as transformers loads it with bitsandbytes, and as bitsandbytes dequantizes that to 16 bits.

    All arithmetic is in fp32. bitsandbytes' own product in fp32 does not round weights to 16 bits, as one in bfloat16 does.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from workbench.training import data
    from workbench.training.worker import trainer

    tiny.quiet()
    tokenizer = data.open_tokenizer(folder)
    rows = data.load(config, tokenizer, data.held_out_files(config), config.max_eval_rows).rows

    def loss() -> float:
        with torch.inference_mode():
            found = trainer.held_out_loss(net, rows, trainer.Collator.of(tokenizer), 3, lambda: None)
        assert found is not None
        return found

    if spec is None:
        net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return loss(), loss()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=spec.format, bnb_4bit_use_double_quant=spec.double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=quantization).eval()
    net = prepare_model_for_kbit_training(net, use_gradient_checkpointing=False)
    linears = {name: module for name, module in net.named_modules() if isinstance(module, Linear4bit)}
    assert linears
    for module in linears.values():  # as in training: not the kernel that repacks weights and multiplies in bfloat16
        module.support_avx512bf16_for_cpu = False
    loaded = loss()
    for name, module in linears.items():
        weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert weight.dtype == torch.bfloat16
        plain = torch.nn.Linear(*weight.shape[::-1], bias=False)
        plain.weight, plain.bias = torch.nn.Parameter(weight.float()), module.bias
        net.set_submodule(name, plain)
    return loaded, loss()


# --- the loss is that of the model loaded in 4 bits ---------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [None, NF4, NF4_DQ, FP4, FP4_DQ], ids=lambda spec: spec.title if spec else "16 bits")
def test_the_loss_is_that_of_the_model_that_bitsandbytes_loads(evaluated: wb.Evaluation, spec: wb.QuantSpec | None) -> None:
    cost = next(row for row in evaluated.rows if row.spec == spec)
    folder = wb.open_model("builtin").path
    assert folder is not None
    loaded, dequantized = reference_losses(folder, spec, wb.TrainConfig(max_eval_rows=ROWS))
    assert cost.loss == pytest.approx(loaded, rel=5e-5)
    assert cost.loss == pytest.approx(dequantized, rel=2e-6)


@pytest.mark.parametrize("name", ["gpt2", "ctrl", "olmo-tied"])
def test_so_is_that_of_a_model_of_another_kind(name: str, tmp_path: Path) -> None:
    """Transposed weights, an embedding of another name than usual, a last parameter that is a linear's."""
    model_type, config, _ = tiny.ARCHITECTURES[name]
    folder = tiny.save(tmp_path / name, model_type, {**config, "vocab_size": 512})
    tiny_tokenizer().save_pretrained(folder)
    of_data = wb.TrainConfig(max_eval_rows=4, max_length=48)
    rows = wb.evaluate(folder, [NF4], data=of_data).run().rows
    assert [row.loss for row in rows] == pytest.approx([reference_losses(folder, s, of_data)[1] for s in (None, NF4)], rel=2e-6)


def test_a_process_without_torch_is_told_what_one_with_it_is_told(model: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from workbench.cost.jobs import job_of\n"
        "print(*job_of(sys.argv[1], None, None, None).weights, 'torch' in sys.modules, sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(model)], capture_output=True, text=True, check=True)
    exactly = [t.name.removesuffix(".weight") for t in wb.open_model(model).tensors(exact=True) if t.quantizable]
    assert done.stdout.split() == [*exactly, "False"]


def test_rotated_weights_are_those_that_quantize_makes(model: Path, tmp_path: Path) -> None:
    """A checkpoint of the rotated, quantized and rotated-back weights has the loss of the format with a rotation."""
    from safetensors.numpy import load_file, save_file

    spec, by_hand = wb.QuantSpec("nf4", 64, rotate="hadamard"), tmp_path / "by-hand"
    shutil.copytree(model, by_hand)
    source = wb.open_model(model)
    (file,) = by_hand.glob("*.safetensors")
    weights = load_file(file)
    for t in source.tensors(exact=True):
        if t.quantizable:
            weights[t.name] = wb.quantize(source.read(t.name), spec).dequantize().astype(weights[t.name].dtype)
    save_file(weights, file, metadata={"format": "pt"})
    rotated = wb.evaluate(model, [spec, NF4], max_rows=4, max_length=48).run().rows
    plain = wb.evaluate(by_hand, [NF4], max_rows=4, max_length=48).run().rows[0]
    assert rotated[1].loss == pytest.approx(plain.loss, abs=1e-7)
    assert abs(rotated[1].loss - rotated[2].loss) > 1e-6


def test_the_checkpoint_stays_as_it_was(evaluated: wb.Evaluation) -> None:
    # The model's weights are a mapping of this file, and were written to.
    folder = wb.open_model("builtin").path
    assert folder is not None
    done = subprocess.run(["git", "hash-object", "model.safetensors"], cwd=folder, capture_output=True, text=True, check=True)
    known = subprocess.run(["git", "rev-parse", "HEAD:./model.safetensors"], cwd=folder, capture_output=True, text=True)
    assert evaluated.complete
    if known.returncode == 0:  # in a checkout
        assert done.stdout == known.stdout


def test_large_states_lie_in_the_measuring_folder_and_not_beside_the_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's folder may be one that cannot be written to."""
    folders: list[Path] = []

    def noted(**how: Any) -> Any:
        folders.append(how["dir"])
        return tempfile.NamedTemporaryFile(**how)

    monkeypatch.setattr(divergence, "_IN_MEMORY", 0)
    monkeypatch.setattr(divergence, "tempfile", SimpleNamespace(NamedTemporaryFile=noted))
    assert wb.evaluate(model, [NF4], max_rows=2, max_length=16, folder=tmp_path / "kept").run().complete
    assert folders == [tmp_path / "kept"]


# --- rows ---------------------------------------------------------------------------------------------------------------------


def test_the_first_row_is_the_model_in_16_bits(evaluated: wb.Evaluation) -> None:
    first = evaluated.rows[0]
    assert (first.spec, first.name, first.bits_per_weight) == (None, "16 bits", 16)
    assert (first.increase, first.increase_interval, first.relative_rmse) == (0, (0, 0), 0)
    assert (first.kl, first.kl_interval, first.flips, first.flips_interval) == (0, (0, 0), 0, (0, 0))
    assert first.nbytes == 2 * sum(t.numel for t in wb.open_model("builtin").tensors())


def test_each_row_says_what_its_format_takes_and_errs(evaluated: wb.Evaluation) -> None:
    source = wb.open_model("builtin")
    surveyed = wb.survey(source, SPECS, progress=False).to_frame()
    for row, spec in zip(evaluated.rows[1:], SPECS, strict=True):
        own = surveyed[surveyed["spec"] == spec.title]
        numel = own["numel"].sum()
        assert row.nbytes == evaluated.rows[0].nbytes - 2 * numel + own["nbytes"].sum()
        assert row.bits_per_weight == pytest.approx(8 * own["nbytes"].sum() / numel)
        pooled = math.sqrt((own["rmse"] ** 2 * own["numel"]).sum() / (own["rms"] ** 2 * own["numel"]).sum())
        assert row.relative_rmse == pytest.approx(pooled, rel=1e-5)


def test_figures_are_means_over_the_same_rows(evaluated: wb.Evaluation) -> None:
    for row in evaluated.rows:
        tokens = sum(row.rows.tokens)
        assert len(row.rows.tokens) == len(row.rows.losses) == len(row.rows.kls) == len(row.rows.flipped) == ROWS
        assert (row.rows.tokens, row.loss) == (evaluated.rows[0].rows.tokens, pytest.approx(sum(row.rows.losses) / tokens))
        assert (row.kl, row.flips) == pytest.approx((sum(row.rows.kls) / tokens, sum(row.rows.flipped) / tokens))
        assert row.perplexity == pytest.approx(math.exp(row.loss))
        assert row.interval[0] < row.loss < row.interval[1]
        assert row.increase == pytest.approx(row.loss - evaluated.rows[0].loss)
    for row in evaluated.rows[1:]:
        assert 0 < row.kl_interval[0] < row.kl < row.kl_interval[1]
        assert 0 < row.flips_interval[0] < row.flips < row.flips_interval[1] < 1


def test_the_loss_calls_a_format_better_that_diverges_more(evaluated: wb.Evaluation) -> None:
    nf4, fp4 = (next(row for row in evaluated.rows if row.spec == spec) for spec in (NF4, FP4))
    loss, _ = fp4.rows.above(nf4.rows)
    assert loss < 0
    assert fp4.rows.further(nf4.rows)[0] > 0
    assert evaluated.ranks[fp4.name] > evaluated.ranks[nf4.name]


def test_differences_are_surer_than_losses(evaluated: wb.Evaluation) -> None:
    for row in evaluated.rows[1:]:
        assert np.diff(row.increase_interval)[0] < np.diff(row.interval)[0] / 3


def test_more_bits_diverge_less() -> None:
    specs = [f"int{bits}-sym" if bits < 8 else "int8" for bits in (2, 3, 4, 5, 6, 7, 8)]
    ev = wb.evaluate("builtin", specs, max_rows=4).run()
    kls = [row.kl for row in ev.rows[1:]]
    assert all(more > 2 * less for more, less in itertools.pairwise(kls))
    assert list(ev.ranks.values()) == [7, 6, 5, 4, 3, 2, 1]


def test_the_table_has_a_line_a_row(evaluated: wb.Evaluation) -> None:
    frame = evaluated.to_frame()
    assert list(frame["name"]) == [row.name for row in evaluated.rows]
    assert list(frame["increase_high"]) == [row.increase_interval[1] for row in evaluated.rows]
    assert list(frame["kl_low"]) == [row.kl_interval[0] for row in evaluated.rows]
    assert list(frame["rank"].dropna()) == list(evaluated.ranks.values())


def test_outputs_err_less_than_weights_where_errors_average_out(evaluated: wb.Evaluation) -> None:
    table = evaluated.output_errors()
    quantizable = [t.name for t in wb.open_model("builtin").tensors() if t.quantizable]
    assert len(table) == len(SPECS) * len(quantizable)
    nf4 = table[table["spec"] == NF4.title].set_index("module")
    assert (nf4["output_error"] > 0).all()
    # Activations are not white: what reaches these layers has few strong directions, in which the errors cancel out.
    assert (nf4["output_error"] < nf4["relative_rmse"]).all()


# --- which configurations -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stairs() -> Iterator[str]:
    """A format of one's own."""
    yield wb.register_format("stairs", np.linspace(-1, 1, 16)).name
    del _formats["stairs"]


def test_a_registered_format_is_measured_too(model: Path, stairs: str) -> None:
    rows = wb.evaluate(model, stairs, max_rows=4, max_length=32).run().rows
    assert [row.spec and row.spec.format for row in rows] == [None, "stairs"]


# --- broken off and gone on with ----------------------------------------------------------------------------------------------


def test_leaving_the_loop_stops_and_going_on_measures_only_the_rest(model: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"max_rows": 8, "max_length": 32, "folder": tmp_path / "kept"}
    begun = wb.evaluate(model, [NF4, FP4], **how)
    first = next(iter(begun))
    assert begun.rows[0] == first
    again = wb.evaluate(model, [NF4, FP4], **how).run()
    assert again.complete
    assert again.rows[0] == first
    told = (tmp_path / "kept" / "events-cost.jsonl").read_text()
    points = [json.loads(line)["point"] for line in told.splitlines() if '"sums"' in line]
    assert sorted(points) == sorted({Assignment().key, Assignment(NF4).key, Assignment(FP4).key})


def test_cancelled_it_keeps_what_it_has_and_tells_how_far_it_was(model: Path) -> None:
    at: list[tuple[int, int]] = []
    ev = wb.evaluate(model, [NF4, FP4], max_rows=8, max_length=32, progress=lambda done, total: at.append((done, total)))
    for _ in ev:
        ev.cancel()
    assert ev.cancelled
    assert [row.spec for row in ev.rows] == [None]
    assert not list(islice(ev, 1, None))
    assert at[-1][1] == 3 * 8 / BATCH
    assert "cancelled" in repr(ev)


def test_cancelled_from_outside_it_begins_nothing(model: Path) -> None:
    ev = wb.evaluate(model, [NF4], cancelled=lambda: True).run()
    assert (ev.cancelled, ev.rows, ev.memory) == (True, (), None)


# --- what cannot be measured --------------------------------------------------------------------------------------------------


def test_a_folder_holds_measurements_of_one_model_and_its_rows(model: Path, tmp_path: Path) -> None:
    wb.evaluate(model, folder=tmp_path / "kept")
    with pytest.raises(wb.RunError, match="another model"):
        wb.evaluate("builtin", folder=tmp_path / "kept")
    with pytest.raises(wb.RunError, match="another max_eval_rows"):
        wb.evaluate(model, max_rows=3, folder=tmp_path / "kept")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("…")
    with pytest.raises(wb.RunError, match="not empty"):
        wb.evaluate(model, folder=tmp_path / "mine")


# --- texts --------------------------------------------------------------------------------------------------------------------


def test_texts_are_named_and_measured_apart(model: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"max_rows": 4, "max_length": 32}
    found = {name: wb.evaluate(model, "nf4", data=name, **how).run() for name in ("builtin", "bible", "wordnet")}
    assert [ev.text for ev in found.values()] == [
        "held-out rows of The Devil's Dictionary", "held-out rows of the King James Bible",
        "held-out rows of WordNet's glosses",
    ]  # fmt: skip
    assert len({ev.rows[0].loss for ev in found.values()}) == 3
    assert "King James Bible" in repr(found["bible"])
    wb.evaluate(model, data="bible", folder=tmp_path / "kept")
    with pytest.raises(wb.RunError, match="another dataset"):
        wb.evaluate(model, data="wordnet", folder=tmp_path / "kept")


def test_measurements_of_an_earlier_form_are_made_anew(model: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"max_rows": 4, "max_length": 32, "folder": tmp_path / "kept"}
    wb.evaluate(model, [NF4], **how)
    file = tmp_path / "kept" / "events-cost.jsonl"
    earlier = {"t": 1, "attempt": 1, "src": "cost"}
    with file.open("a") as events:  # sums of batches, and no divergence
        for fields in (
            {"k": "data", "tokens": [9, 9], "digest": "0", "prefix": ""},
            {"k": "loss", "point": Assignment().key, "sums": [1.0, 1.0]},
        ):
            events.write(json.dumps(earlier | fields) + "\n")
    ev = wb.evaluate(model, [NF4], **how).run()
    assert len(ev.rows[0].rows.tokens) == 4
    assert ev.rows[0].loss > 1
    assert ev.rows[1].kl > 0


# --- assignments --------------------------------------------------------------------------------------------------------------


def test_points_are_known_by_what_they_are() -> None:
    assert Assignment(NF4, but=("a", "b")).key == Assignment(NF4, but=("b", "a")).key
    different = Assignment(), Assignment(NF4), Assignment(NF4, only=()), Assignment(NF4, but=("a",)), Assignment(FP4)
    assert len({assignment.key for assignment in different}) == 5
    assert Assignment.from_dict(json.loads(json.dumps(Assignment(NF4, but=("a",)).to_dict()))).assigned("ab") == {"b": NF4}
