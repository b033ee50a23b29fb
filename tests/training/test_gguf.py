"""What is exported as GGUF predicts in a real llama.cpp what transformers and peft predict: base, adapter, merged model."""

from __future__ import annotations

import functools
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
from click.testing import CliRunner

import workbench as wb
from tests.helpers import in_process, tiny
from tests.helpers.llama_cpp import LlamaCpp
from tests.helpers.tiny_model import tiny_tokenizer
from workbench.cli.main import cli
from workbench.training import data, fingerprints, origins
from workbench.training.lineage import Ancestor, Lineage
from workbench.training.results.gguf_files import Read
from workbench.training.results.loading import READ, RUN

SHAPE = {**tiny.LLAMA, "vocab_size": 512, "num_hidden_layers": 4, "max_position_embeddings": 256}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
GRANITE = {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**SHAPE, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {**SHAPE, "attention_bias": True, "mlp_bias": True}),
    "llama3": ("llama", {**SHAPE, "rope_parameters": LLAMA3}),
    "linear": ("llama", {**SHAPE, "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
    "mistral": ("mistral", {**SHAPE, "sliding_window": None}),
    "smollm3": ("smollm3", {**SHAPE, "pad_token_id": 0}),
    "granite": ("granite", {**SHAPE, **GRANITE}),
    "qwen2": ("qwen2", SHAPE),
    "qwen3": ("qwen3", {**SHAPE, "head_dim": 32}),
    "olmo2": ("olmo2", SHAPE),
    "phi3": ("phi3", {**SHAPE, "pad_token_id": 0}),
}
OTHERS = {"builtin", *MODELS} - {"llama", "qwen3", "phi3"}
AT_MOST = 1e-4
"""Between two programs that compute the same in float32; a forgotten permutation, or scaling, is off by a hundredth or more."""
IDS = [int(i) for i in np.random.default_rng(3).integers(5, 500, 40)]
Make = Callable[..., wb.Run]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A run on one of the models, whose weights and adapter are random and large enough to matter in every prediction."""
    models = tmp_path_factory.mktemp("models")

    @functools.cache
    def make(name: str, scale: float = 0.15, **fields: Any) -> wb.Run:
        folder = Path("builtin") if name == "builtin" else models / name
        if name != "builtin" and not folder.exists():
            tiny.save(folder, *MODELS[name])
            tiny_tokenizer().save_pretrained(folder)
            tiny.randomize(folder / "model.safetensors", 0.15)
        config = in_process.config_of(folder, **{"max_steps": 1, "max_eval_rows": 0, **fields})
        run = in_process.train(config, tmp_path_factory.mktemp("run"))
        if scale and run.adapter_dir is not None:
            tiny.randomize(run.adapter_dir / "adapter_model.safetensors", scale)
        return run

    return make


def of_peft(run: wb.Run, four_bits: bool = False, adapter: bool = True) -> np.ndarray[Any, Any]:
    """The log-probabilities of every token after ``IDS`` in transformers and peft, in float32.

    ``four_bits``: on the weights that bitsandbytes makes of its own 4 bits, since it may multiply by them in bfloat16.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = wb.open_model(run.config.model).path
    load, how = AutoModelForCausalLM.from_pretrained, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    model = load(folder, dtype=torch.float32)
    if four_bits:
        how |= {"bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
        held_in_4_bits = load(folder, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**how))
        for name, module in held_in_4_bits.named_modules():
            if hasattr(held := getattr(module, "weight", None), "quant_state"):
                model.get_submodule(name).weight.data = dequantize_4bit(held.data, held.quant_state)
    if adapter:
        model = PeftModel.from_pretrained(model, str(run.adapter_dir))
    with torch.no_grad():
        logits = model.eval()(torch.tensor([IDS])).logits[0, -1]
    found: np.ndarray[Any, Any] = torch.log_softmax(logits.float(), -1).numpy()
    return found


def off(model: Path, reference: np.ndarray[Any, Any], adapter: Path | None = None) -> float:
    """The largest difference of a log-probability in llama.cpp."""
    plain = Read(model).value("tokenizer.ggml.tokens").index("a")
    found = LlamaCpp(model, adapter).log_probabilities(IDS, len(reference), plain)
    assert not np.isnan(found).any()
    return float(np.abs(found - reference).max())


def base_as_gguf(run: wb.Run, folder: Path) -> Path:
    """The run's base by itself: merged with an adapter of zeros."""
    assert run.adapter_dir is not None
    shutil.copytree(run.dir, folder / "zeros")
    tiny.randomize(folder / "zeros" / "adapter" / "adapter_model.safetensors", 0.0)
    wb.export(folder / "zeros", folder / "base", format="gguf", base="original", dtype="float32")
    return folder / "base" / "model.gguf"


def patterns(run: wb.Run) -> None:
    """Gives some modules another alpha, and some another rank."""
    assert run.adapter_dir is not None
    config = json.loads((run.adapter_dir / "adapter_config.json").read_text())
    config |= {"alpha_pattern": {"q_proj": 5, "qkv_proj": 5}, "rank_pattern": {"down_proj": 4}}
    (run.adapter_dir / "adapter_config.json").write_text(json.dumps(config))
    file = run.adapter_dir / "adapter_model.safetensors"
    values = safetensors.torch.load_file(file)
    for name, value in values.items():
        if "down_proj" in name:
            values[name] = (value[:4] if "lora_A" in name else value[:, :4]).contiguous()
    safetensors.torch.save_file(values, file, {"format": "pt"})


@pytest.mark.parametrize(
    ("name", "fields", "patterned"),
    [
        ("llama", {"use_rslora": True}, False),
        ("qwen3", {}, True),
        ("phi3", {"use_rslora": True}, True),
        *(pytest.param(name, {"use_rslora": True}, True, marks=pytest.mark.slow) for name in sorted(OTHERS)),
    ],
)  # fmt: skip
def test_base_adapter_and_merged_model_predict_what_peft_predicts(
    make: Make, name: str, fields: dict[str, Any], patterned: bool, tmp_path: Path
) -> None:
    run = make(name, **fields, scale=0.15 if name != "builtin" else 0.03)
    if patterned:
        patterns(run)
    original, trained = of_peft(run, adapter=False), of_peft(run)
    assert np.abs(original - trained).max() > 0.1
    base = base_as_gguf(run, tmp_path)
    adapter = wb.export(run, tmp_path / "adapter", format="gguf-adapter").folder / "adapter.gguf"
    merged = wb.export(run, tmp_path / "merged", format="gguf", base="original", dtype="float32").folder / "model.gguf"
    assert off(base, original) < AT_MOST
    assert off(base, trained, adapter) < AT_MOST
    assert off(merged, trained) < AT_MOST
    dequantized = wb.export(run, tmp_path / "dequantized", format="gguf", dtype="float32")
    assert dequantized.base == "dequantized"
    assert off(dequantized.folder / "model.gguf", of_peft(run, four_bits=True)) < AT_MOST
    assert max(dequantized.errors.values()) == 0.0


@pytest.mark.parametrize(
    ("dtype", "error", "near", "bytes_a_weight"),
    [("float16", 2.0**-11, 0.05, 2.0), ("bfloat16", 2.0**-8, 0.5, 2.0), ("q8_0", 0.01, 2.0, 34 / 32)],
)
def test_smaller_types_are_as_near_as_they_say(
    make: Make, dtype: str, error: float, near: float, bytes_a_weight: float, tmp_path: Path
) -> None:
    run = make("llama")
    done = wb.export(run, tmp_path / "small", format="gguf", dtype=dtype)
    assert 0 < max(done.errors.values()) < error
    assert off(done.folder / "model.gguf", of_peft(run, four_bits=True)) < near
    written = Read(done.folder / "model.gguf")
    matrices = {name: written.tensors[name] for name in written.tensors if len(written.shape(name)) == 2}
    assert {tensor.n_bytes / tensor.n_elements for tensor in matrices.values()} == {bytes_a_weight}
    assert done.nbytes == sum(written.kinds.values())
    for tensor, differs in done.errors.items():
        name = f"blk.{tensor.split('.')[2]}.ffn_up.weight" if "up_proj" in tensor else ""
        if name:
            reference = Read(wb_float32(run, tmp_path)).read(name)
            assert np.linalg.norm(written.read(name) - reference) / np.linalg.norm(reference) == pytest.approx(
                differs, rel=1e-4
            )


def wb_float32(run: wb.Run, tmp_path: Path) -> Path:
    folder = tmp_path / "float32"
    if not folder.exists():
        wb.export(run, folder, format="gguf", dtype="float32")
    return folder / "model.gguf"


def test_keys_and_tokenizer_are_copied_from_a_gguf_of_the_same_base(make: Make, tmp_path: Path) -> None:
    run = make("llama3", method="lora")
    base = base_as_gguf(run, tmp_path)
    wb.export(run, tmp_path / "copied", format="gguf", dtype="float32", base_gguf=base)
    wb.export(run, tmp_path / "own", format="gguf", dtype="float32")
    copied, own = (Read(tmp_path / name / "model.gguf") for name in ("copied", "own"))
    assert copied.keys().keys() == own.keys().keys()
    assert {name: value for name, value in copied.keys().items() if own.keys()[name] != value} == {}
    for name in own.tensors:
        np.testing.assert_array_equal(copied.read(name), own.read(name), err_msg=name)
    assert off(tmp_path / "copied" / "model.gguf", of_peft(run)) < AT_MOST


def test_a_gguf_of_another_base_is_refused(make: Make, tmp_path: Path) -> None:
    run, of_another_kind = make("llama"), make("qwen2")
    (tmp_path / "other").mkdir()
    shutil.copytree(run.config.model, tmp_path / "other" / "model")
    file = tmp_path / "other" / "model" / "model.safetensors"
    tiny.randomize(file, 0.3)
    config = in_process.config_of(tmp_path / "other" / "model", max_steps=1, max_eval_rows=0)
    of_one_shape = in_process.train(config, tmp_path / "other" / "run")
    for other, told in (
        (of_another_kind, "of a qwen2"),
        (of_one_shape, "another model of the same shape"),
        (make("linear"), "output"),
    ):
        folder = tmp_path / told.replace(" ", "-")
        folder.mkdir()
        base = base_as_gguf(other, folder)
        if told == "output":  # a head of its own where the run's is tied: one model may be written both ways
            told = "another model of the same shape"
        with pytest.raises(wb.ModelError, match=told):
            wb.export(run, tmp_path / "no", format="gguf", base_gguf=base)
    with pytest.raises(wb.ModelError, match="cannot be read"):
        wb.export(run, tmp_path / "no", format="gguf", base_gguf=tmp_path / "missing.gguf")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("fields", "how", "told"),
    [
        ({"method": "lora", "use_dora": True}, {"format": "gguf-adapter"}, "DoRA"),
        ({"method": "lora", "init_lora_weights": "pissa"}, {"format": "gguf-adapter"}, "'pissa' belongs to a base"),
        ({"init_lora_weights": "pissa"}, {"format": "gguf-adapter"}, "'pissa' belongs to a base"),
        ({"init_lora_weights": "loftq", "lora_alpha": 16}, {"format": "gguf-adapter"}, "'loftq' makes up for what"),
        ({}, {"format": "gguf-adapter", "base": "original"}, "base is 'original'"),
        ({}, {"format": "gguf-adapter", "dtype": "q8_0"}, "dtype is 'q8_0'"),
        ({}, {"format": "gguf", "dtype": "q4_k_m"}, "dtype is 'q4_k_m'"),
        ({}, {"format": "gguf", "base": "merged"}, "base is 'merged'"),
        ({}, {"format": "onnx"}, "format is 'onnx'"),
        ({}, {"base_gguf": "model.gguf"}, "base_gguf is given"),
        ({}, {"format": "transformers", "dtype": "q8_0"}, "dtype is 'q8_0'"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_get_wrong_is_refused(
    make: Make, fields: dict[str, Any], how: dict[str, str], told: str, tmp_path: Path
) -> None:
    run = make("llama", scale=0.0, **fields)
    with pytest.raises(wb.RunError, match=told) as caught:
        wb.export(run, tmp_path / "out", **how)  # type: ignore[arg-type]
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_went_on_from_one_of_loftq_is_refused_like_it(make: Make, tmp_path: Path) -> None:
    run = make("llama", scale=0.0, seed=1)  # a run of its own
    Lineage((Ancestor("first", "0" * 64, "builtin", begun="loftq"),)).write(run.dir)
    with pytest.raises(wb.RunError, match="'loftq' makes up for what"):
        wb.export(run, tmp_path / "out", format="gguf-adapter")


def test_without_the_package_the_line_that_installs_it_is_told(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = make("llama", scale=0.0)
    monkeypatch.setitem(sys.modules, "gguf", None)
    for kind in ("gguf", "gguf-adapter"):
        with pytest.raises(wb.RunError, match="needs the package gguf") as caught:
            wb.export(run, tmp_path / "out", format=kind)
        assert "pip install" in caught.value.remedy


def test_a_cancelled_export_leaves_nothing_and_progress_ends_at_all_of_it(make: Make, tmp_path: Path) -> None:
    run = make("llama", scale=0.0)
    for kind in ("gguf", "gguf-adapter"):
        seen: list[tuple[int, int]] = []

        def progress(done: int, total: int, seen: list[tuple[int, int]] = seen) -> None:
            seen.append((done, total))

        with pytest.raises(InterruptedError):
            wb.export(run, tmp_path / "out", format=kind, progress=progress, cancelled=lambda seen=seen: len(seen) > 3)
        assert not list(tmp_path.iterdir())
        wb.export(run, tmp_path / kind, format=kind, progress=progress)
        assert seen[-1][0] == seen[-1][1] > 0
        shutil.rmtree(tmp_path / kind)


def test_the_folder_says_what_it_is_and_which_lines_were_run(make: Make, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    run = make("llama", scale=0.0)
    for kind, files, library in (
        ("gguf", {"README.md", "Modelfile", "model.gguf"}, "gguf"),
        ("gguf-adapter", {"README.md", "adapter.gguf"}, "gguf"),
        (
            "transformers",
            {"README.md", "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"},
            "transformers",
        ),
    ):
        folder = wb.export(run, tmp_path / kind, format=kind).folder
        assert files <= {file.name for file in folder.iterdir()}
        card = ModelCard.load(folder / "README.md")
        assert card.data.library_name == library
        loading = card.content.partition("## Loading")[2].partition("\n## ")[0]
        for program in ("transformers", "vLLM", "llama.cpp", "Ollama"):
            assert program in loading or (kind, program) == ("gguf-adapter", "transformers"), program
        assert RUN in loading
        assert READ in loading
        assert str(tmp_path) not in card.content
    assert (tmp_path / "gguf" / "Modelfile").read_text() == (
        'FROM ./model.gguf\nPARAMETER temperature 0\nTEMPLATE """{{ .Prompt }}"""\n'
    )
    assert "ADAPTER" not in (tmp_path / "gguf" / "Modelfile").read_text()


def test_the_lines_that_are_said_to_have_been_run_run(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = make("llama")
    shutil.copy(base_as_gguf(run, tmp_path), tmp_path / "base.gguf")
    said = []
    for kind in ("gguf", "gguf-adapter", "transformers"):
        base = {} if kind == "gguf-adapter" else {"base": "original"}
        folder = wb.export(run, tmp_path / kind, format=kind, **base).folder  # type: ignore[arg-type]
        shutil.copy(tmp_path / "base.gguf", folder)
        monkeypatch.chdir(folder)
        for block in re.findall(
            rf"\({re.escape(RUN)}\):\n\n```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL
        ):
            namespace: dict[str, Any] = {}
            exec(block.replace("this folder", str(folder)), namespace)
            if kind == "transformers":
                assert namespace["model"].num_parameters() > len(namespace["tokenizer"])
            else:
                said.append(namespace["answer"]["choices"][0]["text"])
    assert len(said) == 2
    assert all(said)


def test_keys_name_the_base_and_scale_by_nothing(make: Make, tmp_path: Path) -> None:
    run = make("llama", use_rslora=True, scale=0.0)
    there = Read(wb.export(run, tmp_path / "adapter", format="gguf-adapter", dtype="float16").folder / "adapter.gguf")
    expected = {
        "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 0.0,
        "general.base_model.count": 1, "general.base_model.0.name": "llama",
    }  # fmt: skip
    assert {name: there.value(name) for name in expected} == expected
    assert set(there.kinds) == {"F16"}
    assert set(there.tensors) >= {"blk.0.attn_q.weight.lora_a", "blk.3.ffn_down.weight.lora_b"}
    assert there.shape("blk.0.ffn_down.weight.lora_a") == (16, 128)


def test_a_base_that_is_another_one_by_now_is_refused_and_told_where_that_is_accepted(make: Make, tmp_path: Path) -> None:
    folder = shutil.copytree(make("llama").config.model, tmp_path / "model")
    (tmp_path / "run").mkdir()
    run = in_process.train(in_process.config_of(folder, max_steps=1, max_eval_rows=0), tmp_path / "run")
    fingerprints.write(run.dir, origins.take(run.config, wb.open_model(folder), data.check(run.config)))
    tiny.randomize(folder / "model.safetensors", 0.2)
    with pytest.raises(wb.RunError, match="has changed"):
        wb.export(run, tmp_path / "out", format="gguf-adapter")
    card = wb.export(run, tmp_path / "out", format="gguf-adapter", changed_ok=True).folder / "README.md"
    assert "not what the run was begun with: `base model: model.safetensors has other content`" in card.read_text("utf-8")


def test_an_adapter_of_a_base_in_4_bits_says_that_no_gguf_is_the_same(make: Make, tmp_path: Path) -> None:
    for fields, four_bits in (({}, True), ({"method": "lora"}, False)):
        run = make("llama", scale=0.0, **fields)
        folder = wb.export(run, tmp_path / str(four_bits), format="gguf-adapter").folder
        head = (folder / "README.md").read_text("utf-8").partition("## Loading")[0]
        assert ("wb.deployed" in head) == four_bits


def test_the_command_writes_it(make: Make, tmp_path: Path) -> None:
    run = make("llama", scale=0.0)
    done = CliRunner().invoke(
        cli, ["export", str(run.dir), str(tmp_path / "out"), "--format", "gguf", "--dtype", "q8_0", "--json"]
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["format"], told["dtype"], told["base"], len(told["errors"])) == ("gguf", "q8_0", "dequantized", 28)
    assert "merged into the dequantized base, in q8_0" in done.stderr
    assert (tmp_path / "out" / "model.gguf").stat().st_size > told["nbytes"]
    assert CliRunner().invoke(cli, ["export", str(run.dir), "--format", "gguf-adapter"]).exit_code == 2  # no folder
