"""A run on two processes is the run of one with twice the batch; it stops as one, and ends by name when a rank is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.numpy

import workbench as wb
from tests.helpers import in_process
from tests.helpers.live_runs import adapter_bytes, complete, ended, first, is_step, of, until_gone
from tests.helpers.tiny_model import write_tiny_model
from workbench.training.events import EventReader, read_events
from workbench.training.folder import ENDED, RunFolder, write_json
from workbench.training.watch.ranks import Ranks

STEPS = 4
FIELDS: dict[str, Any] = {
    "max_steps": STEPS, "save_steps": 2, "max_length": 48, "max_eval_rows": 8, "lora_dropout": 0.0, "learning_rate": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    """One process, batches of 4."""
    return in_process.train(in_process.config_of(model, **FIELDS), tmp_path_factory.mktemp("alone"))


@pytest.fixture
def two(model: Path, tmp_path: Path) -> Iterator[wb.TrainConfig]:
    """Two processes, batches of 2 each."""
    yield in_process.config_of(model, **FIELDS, nproc_per_node=2, per_device_train_batch_size=2)
    for run in wb.runs(tmp_path):
        if run.status.state not in ENDED:
            run.stop(patience=0.1)
            run.wait(60)


def same_steps(events: list[Any], alone: wb.Run) -> None:
    """Loss, gradient norm and tokens of each step, over both processes, are those of one process."""
    told = [event for event in events if event["k"] == "step"]
    wanted = of(alone, "step")
    assert [step["n"] for step in told] == [step["n"] for step in wanted] == list(range(1, STEPS + 1))
    for step, reference in zip(told, wanted, strict=True):
        assert step["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        assert step["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-4)
        assert (step["tokens"], step["longest"]) == (reference["tokens"], reference["longest"])


def test_two_processes_take_the_steps_of_one_with_twice_the_batch(two: wb.TrainConfig, alone: wb.Run, tmp_path: Path) -> None:
    run = wb.launch(two, tmp_path / "run")
    ended(run, "finished")
    same_steps(run.events(), alone)
    losses = [event["loss"] for event in of(run, "eval")]
    assert losses == pytest.approx([event["loss"] for event in of(alone, "eval")], rel=1e-5)
    assert [event["n"] for event in of(run, "checkpoint")] == [2, 4]
    assert len(list((run.dir / "checkpoints" / "checkpoint-4").glob("rng_state_*.pth"))) == 2
    # Each rank has a file of its own; rank 0's tells the run, and only rank 0 saves and measures.
    assert {path.name for path in run.dir.glob("events-*.jsonl")} == {
        "events-rank0.jsonl", "events-rank1.jsonl", "events-supervisor.jsonl",
    }  # fmt: skip
    everything = EventReader(run.dir, every_rank=True).poll()
    for kind, times in (("step", 2), ("eval", 1), ("checkpoint", 1)):
        assert sum(event["k"] == kind for event in everything) == times * len(of(run, kind)), kind
    assert run.adapter_dir is not None
    assert alone.adapter_dir is not None
    ours, theirs = (
        safetensors.numpy.load_file(folder / "adapter_model.safetensors") for folder in (run.adapter_dir, alone.adapter_dir)
    )
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-4), name
    assert "| processes | `2` |" in (run.adapter_dir / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_two_processes_agree_on_the_best_and_on_when_patience_is_out(two: wb.TrainConfig, tmp_path: Path) -> None:
    """A learning rate that is far too high: the first evaluation is the best, and the second runs out of patience."""
    config = replace(
        two, max_steps=100, learning_rate=10.0, eval_steps=1, save_steps=50, save_total_limit=1, early_stopping_patience=2,
        load_best_model_at_end=True, max_grad_norm=0, sample_prompts=(),
    )  # fmt: skip
    run = wb.launch(config, tmp_path / "run")
    message = ended(run, "finished").message
    losses = {event["n"]: event["loss"] for event in of(run, "eval") if event["n"]}
    best, last = min(losses, key=lambda n: losses[n]), max(losses)
    assert last == best + 2 < 100
    assert message.startswith(f"Finished early, after {last} steps")
    assert run.best_dir == run.dir / "checkpoints" / f"checkpoint-{best}"
    assert complete(run) == [f"checkpoint-{best}", f"checkpoint-{last}"]
    assert adapter_bytes(run) == (run.best_dir / "adapter_model.safetensors").read_bytes()
    everything = EventReader(run.dir, every_rank=True).poll()
    assert sum(event["k"] == "eval" for event in everything) == len(losses) + 1  # rank 0 alone measures
    assert {event["n"] for event in everything if event["k"] == "step"} == set(range(1, last + 1))


@pytest.mark.slow
def test_the_same_worker_runs_under_torchrun(two: wb.TrainConfig, alone: wb.Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.control.mkdir(parents=True)
    write_json(folder.config, two.to_dict())
    home = str(Path(wb.__file__).parent.parent)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "workbench.training.worker.worker", str(folder.root), "1", "0"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": home}, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    same_steps(read_events(folder.root), alone)


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_by_name_and_stop_ends_all_of_them(two: wb.TrainConfig, tmp_path: Path) -> None:
    config = wb.TrainConfig.from_dict({**two.to_dict(), "max_steps": 100_000, "max_eval_rows": 0})
    run = wb.launch(config, tmp_path / "run")
    first(run, lambda event: event["k"] == "checkpoint")
    assert run.pid is not None
    ranks = [child.pid for child in psutil.Process(run.pid).children()]
    assert run.status.worker_pid in ranks
    (other,) = set(ranks) - {run.status.worker_pid}
    os.kill(other, signal.SIGKILL)
    status = ended(run, "killed")
    assert (status.kind, status.exit_code) == ("killed", -signal.SIGKILL)
    for pid in ranks:
        until_gone(run, pid)

    run.resume()
    step = first(run, is_step(3, attempt=2))
    ranks = [child.pid for child in psutil.Process(run.pid).children()]
    run.stop()
    assert ended(run, "stopped").exit_code == 10
    assert run.adapter_dir == run.dir / "adapter"
    last = max(event["n"] for event in of(run, "step"))
    assert last >= step["n"]
    assert json.loads((run.adapter_dir / "trainer_state.json").read_text())["global_step"] == last
    for pid in ranks:
        until_gone(run, pid)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 10", 10),
        ("[ $RANK = 1 ] && kill -KILL $$; sleep 0.5; exit 1", -signal.SIGKILL),  # rank 0 fails for want of rank 1
        ("[ $RANK = 1 ] && exit 1; exec sleep 600", 1),  # rank 0 would wait for ever
        ("[ $RANK = 0 ] && exit 3; sleep 0.5; exit 0", 3),
        ('[ "$WORLD_SIZE $LOCAL_WORLD_SIZE $LOCAL_RANK $MASTER_ADDR" = "2 2 $RANK 127.0.0.1" ] || exit 1', 0),
    ],
)
def test_one_exit_code_for_all_ranks(script: str, code: int) -> None:
    before = psutil.Process().children()
    ranks = Ranks(["sh", "-c", script], 2, {**os.environ, "RANK": "7"}, grace=1.0)
    started = set(psutil.Process().children()) - set(before)
    while (found := ranks.poll()) is None:
        pass
    assert found == code
    assert len(started) == 2
    assert not any(psutil.pid_exists(process.pid) for process in started)


def test_one_process_knows_of_no_ranks() -> None:
    ranks = Ranks(["sh", "-c", "env | grep -E '^(RANK|WORLD_SIZE|MASTER_)'"], 1, {**os.environ, "RANK": "7", "WORLD_SIZE": "9"})
    while (found := ranks.poll()) is None:
        pass
    assert found == 1  # grep found nothing


def test_a_folder_from_when_there_were_settings_for_fsdp_still_attaches(tmp_path: Path) -> None:
    config = wb.TrainConfig(nproc_per_node=2)
    write_json(RunFolder(tmp_path).config, config.to_dict() | {"fsdp": "", "bnb_4bit_quant_storage": "uint8"})
    assert wb.attach(tmp_path).config == config


def test_the_script_for_several_processes_says_how_it_is_started() -> None:
    code = wb.as_code(wb.TrainConfig(nproc_per_node=4))
    assert "# torchrun --nproc_per_node 4 train.py" in code.splitlines()
    assert "    model.save_pretrained" in code  # by one of them


def test_epochs_are_counted_over_all_processes() -> None:
    config = wb.TrainConfig(num_train_epochs=1, per_device_train_batch_size=4, nproc_per_node=2)
    assert config.for_rows(100).max_steps == 13
