"""Whole runs with real processes and signals, on a tiny model: trained, watched, stopped, killed, resumed, picked up again."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.helpers.live_runs import files_of, first, is_step, of, until
from tests.helpers.preloaded import Forks
from tests.helpers.tiny_model import write_tiny_model
from workbench.training.folder import ENDED
from workbench.training.host import create_time
from workbench.training.previews import preview

Launch = Callable[..., wb.Run]
STEPS = 12
SECRET = "thisIsNoRealToken0123456789"
SECRETS = {
    "HF_TOKEN": f"hf_{SECRET}", "WANDB_API_KEY": SECRET, "KAGGLE_KEY": SECRET, "GITHUB_PAT": SECRET, "DB_PASSWORD": SECRET,
    "AWS_SECRET_ACCESS_KEY": SECRET, "HTTPS_PROXY": f"http://user:{SECRET}@127.0.0.1:9", "AN_ENDPOINT": f"https://:{SECRET}@hub",
    "ANOTHER_NAME": f"hf_{SECRET}",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="module")
def launch(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Launches runs of the tiny model; whatever still runs at the end is stopped."""
    started: list[wb.Run] = []

    def launch(**fields: Any) -> wb.Run:
        usual = {
            "model": str(model), "max_steps": STEPS, "save_steps": 3, "max_length": 48, "learning_rate": 0.01,
            "max_eval_rows": 8, "sample_max_new_tokens": 8, "save_total_limit": 10,
        }  # fmt: skip
        started.append(wb.launch(wb.TrainConfig(**{**usual, **fields}), tmp_path_factory.mktemp("runs") / "run"))
        return started[-1]

    yield launch
    for run in started:
        if run.status.state not in ENDED:
            run.stop(patience=0.1)
            run.wait(30)


# One run to its end, looked at from all sides.


@pytest.fixture(scope="module")
def finished(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    with pytest.MonkeyPatch.context() as here:
        for name, value in SECRETS.items():
            here.setenv(name, value)
        talkative = tmp_path_factory.mktemp("talkative")  # every Python process tells its log what it was given
        (talkative / "sitecustomize.py").write_text("import os, sys\nprint(dict(os.environ), file=sys.stderr)\n", "utf-8")
        here.setenv("PYTHONPATH", str(talkative), prepend=os.pathsep)
        run = launch()
    assert run.status.state in ("starting", "running")  # launch does not wait
    status = run.wait(300)
    assert status.state == "finished", f"{status}\n{run.log.read_text('utf-8')}"
    return run


def test_every_step_is_told_in_order(finished: wb.Run) -> None:
    steps = of(finished, "step")
    assert [s["n"] for s in steps] == list(range(1, STEPS + 1))
    for step in steps:
        assert step["loss"] > 0
        assert step["grad_norm"] > 0
        assert step["seconds"] > 0
        assert step["longest"] <= 48
        assert step["tokens"] + step["padded"] == 4 * step["longest"]
        assert step["peak"] is None  # no GPU, so no device memory to speak of
    assert [s["lr"] for s in steps] == [0.0] + [0.01] * (STEPS - 1)  # one step of warm-up, then constant


def test_phases_follow_one_another(finished: wb.Run) -> None:
    begun = [e["name"] for e in of(finished, "phase") if e["edge"] == "begin"]
    ended = [e["name"] for e in of(finished, "phase") if e["edge"] == "end"]
    assert sorted(begun) == sorted(ended)
    expected = ["import", "dataset", "load", "quantize", "attach", "evaluate", "sample", "train", "first_forward"]
    assert begun[: len(expected)] == expected
    assert begun[-3:] == ["save", "evaluate", "sample"]


def test_memory_is_sampled_from_inside_and_from_outside(finished: wb.Run) -> None:
    for source in ("worker", "supervisor"):
        samples = [e for e in of(finished, "sample") if e["source"] == source]
        assert len(samples) > 10
        assert all(e["rss"] > 0 for e in samples)
        assert max(e["rss"] for e in samples) > 100e6  # torch alone takes more
        assert all(a["minflt"] <= b["minflt"] for a, b in itertools.pairwise(samples))
        assert "allocated" not in samples[-1]


def test_capabilities_are_told_and_honest(finished: wb.Run) -> None:
    hello = of(finished, "hello")[-1]
    can = hello["capabilities"]
    assert hello["device"] == "cpu"
    at_once = of(finished, "hello")[0]  # the worker's very first event says what there is to see
    assert at_once["seq"] == 0
    assert at_once["capabilities"]["host faults"] == can["host faults"]
    assert set(at_once["capabilities"]) == set(can)
    assert all(c["why"] for c in at_once["capabilities"].values())
    assert can["host faults"] == {"works": True, "why": "host page faults (OS), not GPU paging"}
    assert can["cupti"] == {"works": False, "why": "no CUDA device"}
    assert not can["paged optimizer state"]["works"]
    assert "no CUDA device" in can["paged optimizer state"]["why"]
    assert (
        "largest adapter matrix has 2,048 elements; the smallest lora_r that would page is 782"
        in (can["paged optimizer state"]["why"])
    )
    assert {e["source"] for e in of(finished, "page")} == {"host faults"}
    assert not of(finished, "prefetch_req")
    assert hello["versions"]["torch"]
    assert hello["anchors"]["monotonic_ns"] > 0


def test_the_truth_of_a_run_on_a_cpu_is_that_nothing_can_page(finished: wb.Run) -> None:
    truth = wb.paging_truth(finished.config, finished.events())
    assert [reason.name for reason in truth.reasons] == ["cuda", "rule"]
    assert truth.smallest_rank == 782
    assert [truth[what] for what in ("eligible to page", "allocated as managed", "prefetch requested")] == [0, 0, 0]
    assert truth["evicted"] is None  # nobody could have seen it
    assert [step.n for step in truth.steps] == list(range(1, STEPS + 1))


def test_the_adapter_lowers_held_out_loss_and_changes_what_is_written(finished: wb.Run) -> None:
    before, after = of(finished, "eval")
    assert (before["n"], after["n"]) == (0, STEPS)
    assert after["loss"] < before["loss"]
    texts = {stage: [e["text"] for e in of(finished, "generated") if e["stage"] == stage] for stage in ("before", "after")}
    assert len(texts["before"]) == len(texts["after"]) == 3
    assert texts["before"] != texts["after"]


def test_the_adapter_loads_in_plain_peft_and_changes_the_logits(finished: wb.Run, model: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert finished.adapter_dir == finished.dir / "adapter"
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        plain = base(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(base, str(finished.adapter_dir))
        assert (adapted(input_ids=ids).logits - plain).abs().max() > 0.01
        with adapted.disable_adapter():
            assert torch.equal(adapted(input_ids=ids).logits, plain)
    saved = json.loads((finished.adapter_dir / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(model)
    assert {name.rpartition(".")[2] for name in saved["target_modules"]} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_no_secret_of_the_environment_reaches_a_file(finished: wb.Run) -> None:
    log = finished.log.read_text("utf-8")
    assert log.count("'PYTHONPATH': ") >= 2  # both processes told what they were given
    assert [name for name in SECRETS if name in log] == []
    for name, data in files_of(finished.dir).items():
        assert SECRET.encode() not in data, name


def test_a_run_is_found_again_with_all_its_history(finished: wb.Run) -> None:
    (run,) = wb.runs(finished.dir.parent)
    assert run.status == finished.status
    assert run.config == finished.config
    assert run.events() == finished.events()
    assert wb.attach(finished.dir).adapter_dir == finished.adapter_dir


def test_what_has_ended_cannot_be_steered(finished: wb.Run) -> None:
    with pytest.raises(wb.RunError, match="already ended"):
        finished.stop()
    with pytest.raises(wb.RunError, match="finished"):
        finished.resume()
    with pytest.raises(wb.RunError, match="not empty"):
        wb.launch(finished.config, finished.dir)


# Stop, in every phase, from anywhere.


@pytest.mark.slow
def test_stop_from_another_process_leaves_an_adapter_that_loads(launch: Launch, forks: Forks, model: Path) -> None:
    with forks.ready():
        run = launch(max_steps=100_000, save_steps=0, method="lora", optim="adamw_torch", text_column="text", sample_prompts=())
    first(run, is_step(2))
    script = (
        "import sys, workbench as wb\n"
        "run = wb.attach(sys.argv[1])\n"
        "assert run.status.state == 'running', run.status\n"
        "assert any(e['k'] == 'step' for e in run.events())\n"
        "run.stop()\n"
        "print(run.wait(300).state)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(run.dir)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "stopped", done.stderr
    status = run.wait(300)
    assert (status.state, status.exit_code) == ("stopped", 10)
    assert "the adapter is saved" in status.message
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert run.adapter_dir == run.dir / "adapter"
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(run.adapter_dir))


def test_stop_while_importing(launch: Launch) -> None:
    run = launch()
    first(run, lambda e: e["k"] == "phase" and e["name"] == "import")
    run.stop()
    assert run.wait(300).state == "stopped"
    assert run.adapter_dir is None
    assert not any(e["k"] == "step" for e in run.events())


def test_a_worker_that_does_not_answer_is_made_to_stop(launch: Launch) -> None:
    run = launch()
    until(run, lambda r: r.status.worker_pid is not None)
    assert run.status.worker_pid is not None
    os.kill(run.status.worker_pid, signal.SIGSTOP)
    run.stop(patience=0.2)
    status = run.wait(300)
    assert status.state == "stopped"
    assert "SIGKILL" in status.message
    assert any(e["k"] == "log" and "SIGKILL" in e["text"] for e in run.events())


def test_a_killed_supervisor_is_noticed_on_both_sides(launch: Launch) -> None:
    run = launch()
    until(run, lambda r: r.status.worker_pid is not None)
    worker = run.status.worker_pid
    assert run.pid is not None
    assert worker is not None
    os.kill(run.pid, signal.SIGKILL)
    until(run, lambda r: r.status.state == "killed")
    assert "supervisor was killed" in run.status.message
    until(run, lambda r: create_time(worker) is None)  # the worker does not go on alone


# What can be told before anything starts is told by launch.


@pytest.mark.parametrize(
    ("fields", "error", "told"),
    [
        ({"model": "/no/such/model"}, wb.ModelError, "/no/such/model"),
        ({"dataset": "/no/such/rows.jsonl"}, wb.DataError, "no such file"),
        ({"text_column": "txt"}, wb.DataError, "no column 'txt'; it has 'prompt', 'completion', 'text'"),
    ],
)
def test_launch_tells_what_is_wrong_at_once(
    fields: dict[str, str], error: type[wb.WorkbenchError], told: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        wb.launch(wb.TrainConfig(**{"model": str(model), **fields}), tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_truncated_model_is_refused_at_once(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / "model.safetensors").open("r+b") as handle:
        handle.truncate(1000)
    with pytest.raises(wb.ModelError, match=r"model\.safetensors"):
        wb.launch(wb.TrainConfig(model=str(tmp_path)), tmp_path / "run")


def test_rows_can_be_looked_at_before_anything_starts(model: Path) -> None:
    shown = preview(wb.TrainConfig(model=str(model), max_length=12), rows=2, scan=2)
    tokens, learnt = zip(*shown.rows[0], strict=True)
    assert "".join(tokens).startswith("<s>abasement, n. A")
    assert learnt == tuple(sorted(learnt))  # first the prompt, without loss, then the completion
    assert "".join(t for t, bears_loss in shown.rows[0] if not bears_loss) == "<s>abasement, n."
    assert (shown.counts["total"], shown.counts["truncated"]) == (2, 2)


def test_attach_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(wb.RunError, match="no run in this folder"):
        wb.attach(tmp_path)
    assert wb.runs(tmp_path) == []
