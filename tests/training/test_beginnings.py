"""A run that begins from an adapter: its weights, its shape, its base, and what the card then says came before."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.live_runs import adapter_bytes, ended, of
from tests.helpers.preloaded import Forks
from tests.helpers.tiny_model import write_tiny_model
from workbench.training import beginnings, fingerprints, lineage, origins
from workbench.training.data import model_folder, training_files
from workbench.training.folder import RunFolder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


def begun(config: wb.TrainConfig, root: Path) -> wb.Run:
    """Launches and trains in this process: the folder is made as ``launch`` makes it."""
    root.mkdir()
    source = wb.open_model(model_folder(config.model))
    beginning = beginnings.begin(config, source)
    if beginning is not None:
        beginning.keep(RunFolder(root))
        config = beginning.config
    fingerprints.write(root, origins.take(config, source, training_files(config)))
    return in_process.ended(in_process.train(config, root))


@pytest.fixture(scope="module")
def first(model: Path, tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    """The run that others begin from; its shape is not the usual one."""
    config = in_process.config_of(
        model, lora_r=4, lora_alpha=12, target_modules=("q_proj", "down_proj"), use_rslora=True, max_steps=3
    )
    return begun(config, tmp_path_factory.mktemp("runs") / "first")


def copied(run: wb.Run, folder: Path) -> Path:
    """The adapter as someone else would have it: in a folder of its own, outside any run."""
    assert run.adapter_dir is not None
    return Path(shutil.copytree(run.adapter_dir, folder))


def with_setting(folder: Path, **settings: Any) -> Path:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | settings), "utf-8")
    return folder


def test_it_begins_with_the_weights_and_has_the_shape_of_the_adapter(model: Path, first: wb.Run, tmp_path: Path) -> None:
    config = in_process.config_of(model, init_adapter=first, learning_rate=1e-9, max_steps=1, lora_r=16, lora_dropout=0.0)
    run = begun(config, tmp_path / "second")
    taken = run.config
    assert (taken.lora_r, taken.lora_alpha, taken.use_rslora) == (4, 12, True)
    assert set(taken.target_modules) == {"q_proj", "down_proj"}
    ends, begins = of(first, "eval")[-1]["loss"], of(run, "eval")[0]["loss"]
    assert begins == pytest.approx(ends, abs=1e-6)
    assert begins < of(first, "eval")[0]["loss"]
    assert (run.dir / "first_adapter" / WEIGHTS).read_bytes() == adapter_bytes(first)

    from peft import AutoPeftModelForCausalLM

    AutoPeftModelForCausalLM.from_pretrained(run.adapter_dir)


def test_the_card_says_what_came_before_and_no_path(model: Path, first: wb.Run, tmp_path: Path) -> None:
    second = begun(in_process.config_of(model, init_adapter=first.dir, max_steps=1), tmp_path / "second")
    third = begun(in_process.config_of(model, init_adapter=second, max_steps=1), tmp_path / "third")
    assert [(one.name, one.begun) for one in lineage.read(third.dir).before] == [("first", "True"), ("second", "True")]
    assert third.adapter_dir is not None
    card = (third.adapter_dir / "README.md").read_text("utf-8")
    before = of(first, "eval")[-1]["loss"]
    told = f"3 steps; qlora; on builtin: what QLoRA Workbench embeds; learning rate 0.02; held-out loss {before:.4f}; base"
    assert f"| 1. adapter of `first` | `{told}" in card
    assert "| 2. adapter of `second` | `1 step; " in card
    for path in (tmp_path, first.dir, model.parent):
        assert str(path) not in card
    only = (first.dir / "adapter" / "README.md").read_text("utf-8")
    assert "What came before" not in only


def test_a_checkpoint_and_a_folder_of_peft_are_taken_too(model: Path, first: wb.Run, tmp_path: Path) -> None:
    alien = copied(first, tmp_path / "theirs")
    config = in_process.config_of(model, init_adapter=alien)
    found = beginnings.begin(config, wb.open_model(str(model)))
    assert found is not None
    assert (found.run, found.folder) == (None, alien)
    assert "only its shapes are known to fit" in found.warning
    assert beginnings.taken(config).lora_r == 4
    assert beginnings.taken(in_process.config_of(model)) == in_process.config_of(model)
    assert beginnings.begin(in_process.config_of(model), wb.open_model(str(model))) is None


def test_another_base_is_refused(model: Path, first: wb.Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    weights = other / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    config = in_process.config_of(other, init_adapter=first)
    with pytest.raises(wb.ConfigError, match=r"trained on another base.*model\.safetensors"):
        wb.launch(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    alien = copied(first, tmp_path / "theirs")
    with pytest.raises(wb.ConfigError, match="do not fit the weights"):
        wb.launch(wb.TrainConfig(init_adapter=alien), tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"target_modules": ".*proj"}, "target_modules"),
        ({"r": "4"}, "r='4'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_workbench_does_not_train_is_refused_by_name(
    model: Path, first: wb.Run, tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    folder = with_setting(copied(first, tmp_path / "odd"), **settings)
    with pytest.raises(wb.ConfigError, match=named) as caught:
        wb.launch(in_process.config_of(model, init_adapter=folder), tmp_path / "run")
    assert all(fault.startswith("init_adapter: ") for fault in caught.value.faults)


@pytest.mark.parametrize("odd", [{"learning_rate": "fast"}, {"steps": [1]}, {"name": None}, {"held_out": {}}], ids=str)
def test_a_lineage_that_no_card_could_show_is_refused_before_anything_is_trained(
    model: Path, first: wb.Run, odd: dict[str, Any], tmp_path: Path
) -> None:
    theirs = shutil.copytree(first.dir, tmp_path / "theirs")
    one = {"name": "zero", "sha256": "0" * 64, "base": "base", **odd}
    (theirs / "lineage.json").write_text(json.dumps({"before": [one], "extended": []}), "utf-8")
    with pytest.raises(wb.RunError, match=f"{next(iter(odd))} is "):
        wb.launch(in_process.config_of(model, init_adapter=theirs, max_steps=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_adapter_is_refused_at_launch(model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(wb.ConfigError, match="no adapter and no run"):
        wb.launch(in_process.config_of(model, init_adapter=empty), tmp_path / "run")
    (empty / CONFIG).write_text("{}", "utf-8")
    with pytest.raises(wb.ConfigError, match=WEIGHTS):
        wb.launch(in_process.config_of(model, init_adapter=empty), tmp_path / "run")
    (empty / CONFIG).write_text("[", "utf-8")
    with pytest.raises(wb.ConfigError, match="cannot be read"):
        wb.launch(in_process.config_of(model, init_adapter=empty), tmp_path / "run")
    with pytest.raises(wb.ConfigError, match="init_lora_weights"):
        wb.TrainConfig(init_adapter=empty, init_lora_weights="olora")
    with pytest.raises(wb.ConfigError, match="has no adapters"):
        wb.TrainConfig(init_adapter=empty, method="full")


def test_matrices_that_the_model_does_not_have_end_the_run_by_name(model: Path, first: wb.Run, tmp_path: Path) -> None:
    from workbench.errors import ModelError
    from workbench.training.worker.model import attach_adapters, compute_dtype, load_base

    folder = with_setting(copied(first, tmp_path / "less"), target_modules=["q_proj"])
    config = beginnings.taken(in_process.config_of(model, init_adapter=folder))
    base = load_base(config, model, compute_dtype(config), lambda: None)
    with pytest.raises(ModelError, match="not have the same matrices"):
        attach_adapters(base, config, folder)


@pytest.mark.slow
def test_a_model_of_one_s_own_is_trained_and_gone_on_from(forks: Forks, model: Path, first: wb.Run, tmp_path: Path) -> None:
    """An adapter is merged, the merged model is trained with a new one, which another run begins from and goes on with."""
    merged = wb.export(first, tmp_path / "merged").folder
    config = in_process.config_of(merged, max_steps=2, save_steps=2)
    with forks.ready():
        run = wb.launch(config, tmp_path / "run")
    ended(run, "finished")
    with pytest.raises(wb.ConfigError, match="another base"):
        wb.launch(dataclasses.replace(config, init_adapter=str(first.dir)), tmp_path / "none")
    with forks.ready():
        second = wb.launch(dataclasses.replace(config, init_adapter=str(run.dir)), tmp_path / "second")
    ended(second, "finished")
    assert of(second, "eval")[0]["loss"] == pytest.approx(of(run, "eval")[-1]["loss"], abs=1e-6)
    with forks.ready():
        second.extend(2)
    ended(second, "finished")
    assert second.adapter_dir is not None
    card = (second.adapter_dir / "README.md").read_text("utf-8")
    assert "| model | `merged` |" in card
    assert "| 1. adapter of `run` | `2 steps" in card
    assert "| this run, extended after 2 steps | `to 4 steps` |" in card


@pytest.mark.slow
def test_the_copied_cell_begins_with_the_same_weights(
    model: Path, first: wb.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its losses are those of the run, step by step."""
    config = in_process.config_of(model, init_adapter=first, max_steps=3, max_eval_rows=0, logits_at_once=0)
    run = begun(config, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    cell: dict[str, Any] = {}
    exec(compile(wb.as_code(config), "cell", "exec"), cell)
    alone = [entry["loss"] for entry in cell["trainer"].state.log_history if "loss" in entry]
    assert alone == [step["loss"] for step in of(run, "step")]
    assert len(alone) == 3
