"""The first calls people type: what stands for a specification, a GPU, a model or a run is taken, and all else is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from widgets.state import State
from workbench.memory.gpus import find
from workbench.quant.spec import as_spec, as_specs

NAME = "model.layers.0.mlp.down_proj.weight"
SRC = wb.open_model("builtin")
X = SRC.read(NAME)[:4]
CONFIG = wb.TrainConfig(max_steps=2)
LEDGER = wb.forecast(SRC, CONFIG)
STATS = wb.measure(X, "nf4")


def test_a_format_s_name_is_its_usual_specification() -> None:
    assert wb.measure(X, "nf4").rmse == wb.measure(X, wb.QuantSpec("nf4")).rmse
    assert [e.spec for e in wb.measure(X, ["nf4", "INT4"])] == [wb.QuantSpec("nf4"), wb.QuantSpec("int4")]
    assert wb.quantize(X, wb.FORMATS["fp4"]).spec == wb.QuantSpec("fp4")
    assert wb.survey(SRC, "NF4", NAME, progress=False).specs == (wb.QuantSpec("nf4"),)
    assert wb.outliers(X, "int8", 3).spec == wb.QuantSpec("int8")
    assert [point.score.spec for point in wb.pareto(X, ["nf4", "int4"]).points] == [wb.QuantSpec("nf4"), wb.QuantSpec("int4")]


def test_in_a_duel_a_format_s_name_is_all_that_it_has() -> None:
    named, listed = wb.duel(X, 4.25, "NF4"), wb.duel(X, 4.25, wb.configurations("nf4"))
    assert [score.spec for score in named.contenders] == [score.spec for score in listed.contenders]


@pytest.mark.parametrize("name", wb.FORMATS)
def test_a_format_is_found_in_any_spelling_and_by_its_title(name: str) -> None:
    for spelt in (name, name.upper(), f" {name} ", name.replace("-", " "), name.replace("-", "_"), wb.FORMATS[name].title):
        assert wb.QuantSpec(spelt).format == name
    assert wb.QuantSpec("INT4 (sym)").format == "int4-sym"


@given(st.sampled_from(wb.configurations()))
def test_the_title_of_a_specification_stands_for_it(spec: wb.QuantSpec) -> None:
    format_title, _, rest = spec.title.partition(", ")
    assert as_spec(spec.title) == as_spec(spec.title.lower()) == as_spec(f"{format_title} ({rest})") == spec


def test_a_nested_block_size_comes_back_from_the_title_too() -> None:
    spec = wb.QuantSpec("nf4", 128, double_quant=True, nested_block_size=64)
    assert as_spec(spec.title) == spec
    assert as_specs([spec, "nf4"]) == (spec, wb.QuantSpec("nf4"))


def test_numpy_s_whole_numbers_and_dtypes_become_python_s() -> None:
    spec = wb.QuantSpec("nf4", np.int64(64), np.dtype("float16"), np.False_)  # type: ignore[arg-type]
    assert spec == wb.QuantSpec("nf4", 64, "float16")
    assert [type(value) for value in spec.to_dict().values()] == [str, int, str, bool, int]


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("T4", "T4 16 GB"), ("t4", "T4 16 GB"), ("Tesla T4", "T4 16 GB"), ("nvidia t4", "T4 16 GB"), ("T4 (16 GB)", "T4 16 GB"),
        ("NVIDIA-T4-16GB", "T4 16 GB"), ("A100 40 GB", "A100 40 GB"), ("a100-40gb", "A100 40 GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80 GB"), ("A100 PCIe 40GB", "A100 40 GB"), ("H100", "H100 80 GB"),
        ("NVIDIA H100 80GB HBM3", "H100 80 GB"), ("NVIDIA GeForce RTX 4090", "RTX 4090 24 GB"), ("rtx4090", "RTX 4090 24 GB"),
        ("4090", "RTX 4090 24 GB"), ("GeForce RTX 3060", "RTX 3060 12 GB"), ("L4", "L4 24 GB"),
    ],
)  # fmt: skip
def test_a_gpu_is_found_as_drivers_and_people_name_it(spelt: str, name: str) -> None:
    assert find(spelt) == wb.GPUS[name]
    assert wb.fit(LEDGER, spelt) == wb.fit(LEDGER, wb.GPUS[name])


@pytest.mark.parametrize("other", ["RTX 3060 Ti", "RTX 4090 Laptop GPU", "L40", "L4 48 GB", "H100 NVL", "T4G", "T", ""])
def test_a_gpu_with_another_memory_is_not_taken_for_one_that_is_known(other: str) -> None:
    with pytest.raises(wb.ConfigError, match="no GPU known here"):
        find(other)


def test_a_gpu_that_comes_in_two_sizes_must_say_which() -> None:
    with pytest.raises(wb.ConfigError, match="A100 40 GB or A100 80 GB"):
        find("NVIDIA A100")


def test_every_verb_takes_a_model_by_name_folder_and_source() -> None:
    assert SRC.path is not None
    for model in ("builtin", SRC.path, str(SRC.path), SRC):
        assert wb.forecast(model, CONFIG).total == LEDGER.total
        assert wb.forecast_methods(model, CONFIG)[0].total == wb.forecast_methods(SRC, CONFIG)[0].total
        assert wb.ways_to_fit(model, CONFIG, "T4") == ()
        assert wb.double_quant_savings(model).saved == wb.double_quant_savings(SRC).saved
        assert wb.simulate_paging(model, CONFIG, "t4").budget == wb.simulate_paging(model, CONFIG, 15633680957.0).budget
        assert wb.paging_truth(CONFIG, src=model) == wb.paging_truth(CONFIG, src=SRC)
        assert np.array_equal(wb.weights(model, NAME)[:4], X)


def test_lists_scalars_and_every_torch_dtype_are_arrays_of_weights() -> None:
    x = X.astype(np.float32)
    assert wb.measure(x.tolist(), "nf4").rmse == wb.measure(x, "nf4").rmse
    assert wb.measure(1.5, "nf4").numel == 1
    for dtype, same in ((torch.bfloat16, ml_dtypes.bfloat16), (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn)):
        assert wb.measure(torch.from_numpy(x).to(dtype), "nf4").rmse == wb.measure(x.astype(same), "nf4").rmse


def test_choices_of_a_config_are_taken_in_any_case() -> None:
    config = wb.TrainConfig(method="QLoRA", quant_type="NF4", optim="AdamW_8bit", compute_dtype="BFloat16")
    assert (config.method, config.quant_type, config.optim, config.compute_dtype) == ("qlora", "nf4", "adamw_8bit", "bfloat16")


def test_numpy_s_numbers_in_a_config_become_python_s() -> None:
    given: dict[str, Any] = {"lora_r": np.int64(8), "learning_rate": np.float64(0.1), "use_dora": np.True_, "seed": np.array(3)}
    config = wb.TrainConfig(**given, target_modules=np.array(["q_proj"]))  # type: ignore[arg-type]
    same = wb.TrainConfig(lora_r=8, learning_rate=0.1, use_dora=True, seed=3, target_modules=("q_proj",))
    assert json.dumps(config.to_dict()) == json.dumps(same.to_dict())
    for wrong in ({"max_steps": np.float64(7)}, {"seed": np.array([1, 2])}, {"learning_rate": 10**400}):
        with pytest.raises(wb.ConfigError):
            wb.TrainConfig(**wrong)  # type: ignore[arg-type]


def test_the_app_s_state_takes_the_same_names() -> None:
    state = State(formats=("NF4", "INT4 (sym)"), gpu="t4", mix_gpu="h100", block=np.int64(3))  # type: ignore[arg-type]
    assert state == State(formats=("nf4", "int4-sym"), gpu="T4 16 GB", mix_gpu="H100 80 GB", block=3)
    assert State(formats="NF4").formats == ("nf4",)  # type: ignore[arg-type]
    wrong: dict[str, Any] = {"formats": ("nf4", "NF4"), "gpu": ["t4"], "tab": ["Model"], "train": None, "target_modules": None}
    for name, value in wrong.items():
        with pytest.raises(wb.ConfigError):
            State(**{name: value})


def test_a_path_names_a_model_or_a_dataset() -> None:
    config = wb.TrainConfig(model=Path("m"), dataset=Path("d.jsonl"))  # type: ignore[arg-type]
    assert (config.model, config.dataset) == ("m", "d.jsonl")


@pytest.mark.parametrize("path", ["~nouser-here/x.jsonl", "x" * 5_000 + ".jsonl", "a\0b.jsonl"])
def test_a_path_that_can_lead_nowhere_is_said_like_any_other_that_does_not(path: str, tmp_path: Path) -> None:
    config = wb.TrainConfig(dataset=path)
    for call in (lambda: wb.preview(config), lambda: wb.launch(config), lambda: wb.open_model(path), lambda: wb.attach(path)):
        with pytest.raises(wb.WorkbenchError):
            call()
    assert wb.runs(path) == []
    if not path.startswith("~"):
        with pytest.raises(wb.RunError):
            wb.launch(wb.TrainConfig(max_steps=1), tmp_path / path)


def test_a_misspelt_field_is_said_with_the_nearest() -> None:
    with pytest.raises(wb.ConfigError, match="Did you mean 'learning_rate'"):
        wb.TrainConfig(learnig_rate=1e-3)  # type: ignore[call-arg]
    with pytest.raises(wb.FormatError, match="Did you mean 'block_size'"):
        wb.QuantSpec("nf4", blocksize=64)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: wb.QuantSpec("nf5"), wb.FormatError, "Did you mean 'nf4'"),
        (
            lambda: wb.preview(wb.TrainConfig(dataset="nope")),
            wb.DataError,
            "no such file or",
        ),
        (lambda: wb.preview(wb.TrainConfig(dataset="bultin")), wb.DataError, "Did you mean 'builtin'"),
        (lambda: wb.open_model("Builtin"), wb.ModelError, "Near it: builtin"),
        (lambda: wb.survey(SRC, "nf4", "layers.0.mlp.down_proj"), wb.ModelError, f"Did you mean '{NAME}'"),
        (lambda: wb.sensitivity(SRC, modules=NAME), wb.ModelError, "Did you mean 'model.layers.0.mlp.down_proj'"),
        (lambda: find("RTX 4080"), wb.ConfigError, "Did you mean 'RTX 4090"),
        (lambda: wb.PublishedShapes("Qwen3-0.6B"), wb.ModelError, "Did you mean 'Qwen/Qwen3-0.6B'"),
    ],
)
def test_a_name_that_is_almost_one_is_said_with_the_nearest(call: Callable[[], Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        call()


NOTHING: tuple[Any, ...] = (None, 5, 1.5, b"builtin", ["a", None], {"a": 1}, object(), X)
WRONG: dict[str, Callable[[Any], Any]] = {
    "open_model": wb.open_model,
    "forecast a model": lambda it: wb.forecast(it, CONFIG),
    "survey a model": lambda it: wb.survey(it, "nf4"),
    "weights": lambda it: wb.weights(it, NAME),
    "evaluate": wb.evaluate,
    "read": SRC.read,
    "QuantSpec": wb.QuantSpec,
    "measure by": lambda it: wb.measure(X, it),
    "quantize by": lambda it: wb.quantize(X, it),
    "survey by": lambda it: wb.survey(SRC, it),
    "duel of": lambda it: wb.duel(X, 4.5, [it]),
    "pareto of": lambda it: wb.pareto(X, [it]),
    "block size": lambda it: wb.QuantSpec("nf4", it),
    "scale dtype": lambda it: wb.QuantSpec("nf4", scale_dtype=it),
    "double quant": lambda it: wb.QuantSpec("nf4", double_quant=it),
    "histogram by": lambda it: wb.histogram(X, it),
    "bins": lambda it: wb.histogram(X, 64, it),
    "bin_errors": lambda it: wb.bin_errors(X, it),
    "inspect_block": lambda it: wb.inspect_block(X, it, 0),
    "which block": lambda it: wb.inspect_block(X, STATS, it),
    "double_quantize": wb.double_quantize,
    "fit of": lambda it: wb.fit(it, "T4"),
    "fit on": lambda it: wb.fit(LEDGER, it),
    "shortlist": wb.shortlist,
    "forecast by": lambda it: wb.forecast(SRC, it),
    "device": lambda it: wb.forecast(SRC, CONFIG, it),
    "launch": wb.launch,
    "as_code": wb.as_code,
    "preview": wb.preview,
    "compare_methods": wb.compare_methods,
    "paging_truth": wb.paging_truth,
    "attach": wb.attach,
    "runs": wb.runs,
    "receipt": wb.receipt,
    "merge_errors": wb.merge_errors,
    "export": lambda it: wb.export(it, "merged"),
    "repairs": wb.repairs,
    "deployed": wb.deployed,
    "mix": lambda it: wb.mix(it, 5),
    "write_report": lambda it: wb.write_report(it, "report.html"),
    "executor": lambda it: wb.survey(SRC, "nf4", executor=it),
}

FITS: dict[str, tuple[type, ...]] = {
    "scale dtype": (type(None),), "executor": (type(None),), "bins": (int,), "which block": (int,),
    "double_quantize": (float, np.ndarray),
}  # fmt: skip
"""What of ``NOTHING`` is right there after all."""


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_said_with_a_remedy(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for it in NOTHING:
        if isinstance(it, FITS.get(name, ())):
            continue
        with pytest.raises(wb.WorkbenchError) as caught:
            WRONG[name](it)
        assert caught.value.what
        assert caught.value.remedy, f"{name}({type(it).__name__}): {caught.value}"


@pytest.mark.parametrize(
    "array",
    [
        None, "builtin", Path("builtin"), SRC, [[1.0], [1.0, 2.0]], [1, 2, 3], ["a"], {"a": 1}, [], np.zeros((2, 0)),
        np.zeros(2, complex), np.zeros(2, bool), torch.arange(4), torch.empty(4, device="meta"), torch.eye(4).to_sparse(),
        torch.nn.Linear(4, 4),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_array_of_weights_is_said_with_a_remedy(array: Any) -> None:
    for call in (lambda: wb.measure(array, "nf4"), lambda: wb.quantize(array, "nf4"), lambda: wb.histogram(array)):
        with pytest.raises(wb.FormatError) as caught:
            call()
        assert caught.value.remedy


def workbench(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workbench", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_terminal_takes_the_same_names(tmp_path: Path) -> None:
    done = workbench("forecast", "builtin", "--gpu", "tesla t4", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "T4 16 GB" in done.stdout
    named = workbench("survey", "builtin", "--formats", "NF4,INT4 Symmetric", "--double-quant", "No", folder=tmp_path)
    assert named.returncode == 0, named.stderr
    assert named.stdout == workbench("survey", "builtin", "--formats", "nf4,int4-sym", folder=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("forecast", "builtin", "--gpu", "A100"), 2, "A100 40 GB or A100 80 GB"),
        (("forecast", "bultin"), 1, "builtin"),
        (("cost", "builtin", "--data", "nope"), 1, "no such file or folder"),
        (("survey", "builtin", "--formats", "nf5"), 2, "Did you mean 'nf4'"),
        (("sensitivity", "builtin", "--format", "int5"), 2, "Did you mean 'int"),
        (("export", "nope"), 1, "no run in this folder"),
    ],
)
def test_the_terminal_says_what_is_wrong(arguments: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    done = workbench(*arguments, folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
