"""Full, LoRA and QLoRA on the same rows: what each came to, told alike, and never trained twice."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers.cost_in_process import measuring
from tests.helpers.in_process import config_of
from tests.helpers.live_runs import files_of
from tests.helpers.preloaded import Forks
from tests.helpers.tiny_model import write_tiny_model
from workbench.cost.before import before_training
from workbench.cost.method_results import refused
from workbench.sources.local import LocalSource

METHODS = ("full", "lora", "qlora")
STEPS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> wb.TrainConfig:
    model = write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))
    return config_of(
        model, max_steps=STEPS, eval_steps=3, learning_rate=0.004, use_dora=True, llm_int8_skip_modules=("down_proj",)
    )


@pytest.fixture(scope="module")
def told() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("methods")


@pytest.fixture(scope="module")
def begun(config: wb.TrainConfig, folder: Path, forks: Forks) -> wb.MethodComparison:
    """Cancelled as soon as there is a run to be cancelled."""
    comparison = wb.compare_methods(config, METHODS, folder, cancelled=lambda: comparison.run_under_way is not None)
    with forks.ready(phase="dataset", hang=True):
        assert list(comparison) == []
    return comparison


@pytest.fixture(scope="module")
def compared(
    begun: wb.MethodComparison, config: wb.TrainConfig, folder: Path, forks: Forks, told: list[tuple[int, int]]
) -> wb.MethodComparison:
    """And gone on with."""
    comparison = wb.compare_methods(config, METHODS, folder, progress=lambda *at: told.append(at))
    with forks.ready(), measuring():
        assert [result.method for result in comparison] == list(METHODS)
    return comparison


def test_cancelling_pauses_the_run_under_way(begun: wb.MethodComparison, folder: Path) -> None:
    assert begun.cancelled
    assert not begun.complete
    assert begun.run_under_way is None
    assert "0 of 3 methods, cancelled" in repr(begun)
    assert not (folder / "lora").exists()


def test_an_interrupt_pauses_the_run_under_way_too(config: wb.TrainConfig, tmp_path: Path, forks: Forks) -> None:
    def interrupt() -> bool:
        if comparison.run_under_way is not None:
            raise KeyboardInterrupt
        return False

    comparison = wb.compare_methods(config, ("lora",), tmp_path, cancelled=interrupt)
    with forks.ready(phase="dataset", hang=True), pytest.raises(KeyboardInterrupt):
        comparison.run()
    assert wb.attach(tmp_path / "lora").wait(300).state == "paused"
    assert comparison.results == ()


def test_all_at_once_they_come_to_the_same_and_are_cancelled_together(
    compared: wb.MethodComparison, config: wb.TrainConfig, tmp_path: Path, forks: Forks
) -> None:
    methods = ("full", "lora")
    left = wb.compare_methods(config, methods, tmp_path, at_once=True, cancelled=lambda: left.run_under_way is not None)
    with forks.ready(phase="dataset", hang=True):
        assert list(left) == []
    assert [wb.attach(tmp_path / method).wait(300).state for method in methods] == ["paused", "paused"]
    with forks.ready():
        found = wb.compare_methods(config, methods, tmp_path, at_once=True).run()
    assert [(row.method, row.losses, row.held_out) for row in found] == [
        (method, compared[method].losses, compared[method].held_out) for method in methods
    ]
    steps = [[event["t"] for event in wb.attach(row.run_dir).events() if event["attempt"] == 2] for row in found]
    assert max(map(min, steps)) < min(map(max, steps)), "the second began before the first had ended"


def test_what_4_bits_cost_before_training_is_what_evaluating_the_base_gives(
    compared: wb.MethodComparison, config: wb.TrainConfig
) -> None:
    full, lora, qlora = compared
    assert (full.kl_before, full.flips_before, lora.kl_before) == (0, 0, 0)
    with measuring():
        modules = [f"model.layers.{n}.mlp.down_proj" for n in (0, 1)]  # what the configuration leaves out
        sens = wb.sensitivity(config.model, data=config, modules=modules).run()
        mix = wb.mix(sens, 10**9)
        mix.modules_left_out = tuple(modules)
        mix.measure()
    assert qlora.before is not None
    assert qlora.before == sens.measurements.rows[mix.point.key]
    assert qlora.kl_before == qlora.before.kl > 0
    assert list(compared.to_frame()["kl_before"]) == [0, 0, qlora.kl_before]


@pytest.mark.parametrize("begun", ["loftq", "pissa", "olora"])
def test_a_base_that_its_adapter_is_a_part_of_is_not_measured_alone(config: wb.TrainConfig, begun: str, tmp_path: Path) -> None:
    fields = {"use_dora": False, "lora_alpha": config.lora_r, "init_lora_weights": begun}
    found, why = before_training(dataclasses.replace(config, **fields), tmp_path, lambda: False)  # type: ignore[arg-type]
    assert found is None
    assert "wb.repairs measures them together" in why


def test_why_nothing_was_measured_before_training_is_said(config: wb.TrainConfig, tmp_path: Path) -> None:
    alone = dataclasses.replace(config, max_eval_rows=0)
    found, why = before_training(alone, tmp_path, lambda: False)
    assert (found, "no held-out rows" in why) == (None, True)
    comparison = wb.compare_methods(alone, ("qlora",), tmp_path / "methods")
    row = dataclasses.replace(refused(alone, tmp_path / "qlora", "", ""), not_measured=why)
    comparison._rows.append(row)
    assert row.kl_before is None
    assert "KL before training, qlora: data: the configuration has no held-out rows" in repr(comparison)


def test_every_method_sees_the_same_rows_in_the_same_order(compared: wb.MethodComparison) -> None:
    assert compared.complete
    seen = [[(e["n"], e["tokens"], e["longest"]) for e in wb.attach(r.run_dir).events() if e["k"] == "step"] for r in compared]
    assert len(seen[0]) == STEPS
    assert seen[0] == seen[1] == seen[2]
    first = [result.losses[0][1] for result in compared]
    assert first[0] == pytest.approx(first[1], abs=1e-4)  # before the first step an adapter adds nothing
    assert 0 < abs(first[2] - first[1]) < 0.1  # but 4 bits do


def test_the_held_out_loss_begins_where_the_method_begins(compared: wb.MethodComparison) -> None:
    full, lora, qlora = compared
    assert [n for n, _ in full.held_out] == [0, 3, STEPS]
    assert full.loss_before == pytest.approx(lora.loss_before, abs=1e-6)
    assert qlora.loss_before != pytest.approx(lora.loss_before, abs=1e-6)
    for result in compared:
        assert result.loss_after < result.loss_before


def test_what_is_trained_and_left_on_disk_is_counted(compared: wb.MethodComparison) -> None:
    full, lora, qlora = compared
    assert full.share == 1
    assert full.trained == full.parameters == lora.parameters
    assert full.saved_bytes > lora.saved_bytes > 0
    for result in (lora, qlora):
        saved = LocalSource(wb.attach(result.run_dir).adapter_dir).tensors()
        assert result.trained == sum(tensor.numel for tensor in saved)
        assert 0 < result.share < 0.5
    assert not full.config.use_dora  # it has no adapters
    assert lora.config.use_dora
    assert (lora.config.llm_int8_skip_modules, qlora.config.llm_int8_skip_modules) == ((), ("down_proj",))


def test_memory_is_the_receipts_by_category(compared: wb.MethodComparison) -> None:
    receipts = compared.receipts()
    assert list(receipts) == list(METHODS)
    for result in compared:
        assert receipts[result.method].dropna().to_dict() == {
            row.category: row.measured for row in wb.receipt(result.run_dir).rows if row.measured is not None
        }
        assert 0 < result.tensor_bytes < result.peak_bytes
    assert receipts.loc["4-bit weights", "qlora"] > 0 == receipts.loc["4-bit weights", "lora"]
    assert receipts.loc["gradients", "full"] > receipts.loc["gradients", "lora"]


def test_the_table_has_a_line_a_method(compared: wb.MethodComparison) -> None:
    frame = compared.to_frame().set_index("method")
    assert list(frame.index) == list(METHODS)
    assert (frame["state"] == "finished").all()
    assert (frame["seconds"] > STEPS * frame["seconds_per_step"]).all()
    assert frame.loc["lora", "loss_after"] == compared["lora"].loss_after
    assert repr(compared).splitlines()[2].startswith("full ")


def test_progress_counts_the_steps_of_all_methods(compared: wb.MethodComparison, told: list[tuple[int, int]]) -> None:
    assert told == sorted(told)
    assert told[-1] == (3 * STEPS, 3 * STEPS)


def test_what_has_finished_is_read_and_not_run_again(
    compared: wb.MethodComparison, config: wb.TrainConfig, folder: Path
) -> None:
    before = files_of(folder)
    again = wb.compare_methods(config, METHODS, folder)
    assert again.to_frame().equals(compared.to_frame())
    assert files_of(folder) == before


def test_a_run_of_another_configuration_is_not_taken_for_this_one(
    compared: wb.MethodComparison, config: wb.TrainConfig, folder: Path
) -> None:
    with pytest.raises(wb.RunError, match="another configuration"):
        wb.compare_methods(config, METHODS, folder, each={"lora": {"lora_r": 2}})


def test_a_method_that_fails_is_a_line_too_and_the_next_goes_on(
    compared: wb.MethodComparison, config: wb.TrainConfig, folder: Path, tmp_path: Path, forks: Forks
) -> None:
    shutil.copytree(folder / "lora", tmp_path / "lora")  # which is read, and not trained once more
    with forks.ready():
        comparison = wb.compare_methods(config, ("full", "lora"), tmp_path, each={"full": {"learning_rate": 1e30}}).run()
    assert [result.state for result in comparison] == ["failed", "finished"]
    full = comparison["full"]
    assert "no longer a number" in full.message
    assert full.remedy
    assert full.loss_after is None
    assert full.loss_before is not None
    assert "failed" in repr(comparison)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"methods": ("full", "dora")}, "method 'dora' is none of qlora, lora, full."),
        ({"methods": ()}, "each once"),
        ({"methods": "lora"}, "each once"),
        ({"each": {"lora": {"lora_r": 0}, "full": {"optim": "sgd"}}}, "full: optim is 'sgd'.*lora: lora_r is 0"),
    ],
)
def test_all_faults_are_told_before_anything_is_trained(config: wb.TrainConfig, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(wb.ConfigError, match=said):
        wb.compare_methods(config, **arguments)


def test_it_takes_a_config_alone() -> None:
    with pytest.raises(wb.RunError, match="takes a TrainConfig"):
        wb.compare_methods({"max_steps": 2})  # type: ignore[arg-type]


def test_loftq_is_left_out_where_there_are_no_4_bits_to_make_up_for(tmp_path: Path) -> None:
    found = wb.compare_methods(wb.TrainConfig(init_lora_weights="loftq", lora_alpha=16), folder=tmp_path)
    assert {method: config.init_lora_weights for method, config in found.configs.items()} == {
        "full": True, "lora": True, "qlora": "loftq",
    }  # fmt: skip
