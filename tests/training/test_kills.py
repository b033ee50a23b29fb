"""kill -9 at random points, of worker, supervisor and both: resumed, a run ends as one that was never interrupted.

Processes are launched as a user's are. ``make kills`` kills 20 times (KILLS); a failure tells its KILLS_SEED.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import workbench as wb
from tests.helpers import in_process
from tests.helpers.live_runs import adapter_bytes, complete, ended, first, is_step, report_of, sequence_gaps, until, until_gone
from tests.helpers.tiny_model import ROWS, write_tiny_model
from workbench.training.events import latest_steps
from workbench.training.folder import steps_of

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("KILLS_SEED", secrets.randbelow(10**6)))
APART = 7
"""Steps between two kills, at most: a step more is often taken before the signal comes, hardly ever two."""
STEPS = (APART + 3) * (KILLS + 1)
LAUNCHED_BY_ONE_THAT_DIES = """
import json, os, signal, sys
import workbench as wb
wb.launch(wb.TrainConfig.from_dict(json.loads(sys.argv[1])), sys.argv[2])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> wb.TrainConfig:
    """Everything that has a state: dropout, batches gathered, rows in another order each time round, moments, a schedule."""
    folder = tmp_path_factory.mktemp("kills")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(ROWS.read_text("utf-8").splitlines(True)[:50]), "utf-8")
    return in_process.config_of(
        write_tiny_model(folder / "model"), max_steps=STEPS, save_steps=1, save_total_limit=2, max_eval_rows=0,
        dataset=str(rows), prompt_column="prompt", completion_column="completion", lora_dropout=0.2,
        gradient_accumulation_steps=2, optim="paged_adamw_32bit", lr_scheduler_type="cosine",
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(config: wb.TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> wb.Run:
    """The run that is never interrupted."""
    return in_process.train(config, tmp_path_factory.mktemp("whole"))


def kill_somewhere(run: wb.Run, attempt: int, chance: random.Random) -> str:
    """Kills one process of the run, or both, at a random point of this attempt; says what it did."""
    victim = ("worker", "supervisor", "both")[attempt % 3]
    if chance.random() < 0.2:
        until(run, lambda r: r.status.attempt == attempt and r.status.worker_pid is not None)
        moment = chance.uniform(0, 5)  # while it imports and loads
    else:
        begun = first(run, lambda e: e["k"] == "step" and e["attempt"] == attempt)["n"]
        first(run, is_step(begun + chance.randrange(APART), attempt))
        moment = chance.uniform(0, 0.1)  # within a step, or while a checkpoint is written
    run.wait(moment)
    status = run.status
    assert status.state == "running", report_of(run)
    assert status.pid is not None
    assert status.worker_pid is not None
    for pid in {"worker": [status.worker_pid], "supervisor": [status.pid], "both": [status.pid, status.worker_pid]}[victim]:
        os.kill(pid, signal.SIGKILL)
    now = ended(run, "killed")
    until_gone(run, status.worker_pid)
    assert now.kind == "killed"
    assert "Resume" in now.remedy
    if victim == "worker":
        assert now.exit_code == -signal.SIGKILL
        assert "worker was killed" in now.message
        assert "possibly out of memory" in now.message
        assert re.search(r"It last held [\d.]+ .iB of memory \([\d.]+ .iB at most\), with .* available", now.message)
    else:
        assert "The supervisor was killed" in now.message
    if complete(run):  # the last word on what was learnt is the checkpoint's, or the adapter that a lone worker saved
        assert run.adapter_dir is not None
        assert steps_of(run.adapter_dir) >= steps_of(run.dir / complete(run)[-1])
    return f"{victim} {moment:.3f} s after its mark"


def test_killed_anywhere_and_resumed_it_ends_with_the_same_weights(
    config: wb.TrainConfig, whole: wb.Run, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    launcher = [sys.executable, "-c", LAUNCHED_BY_ONE_THAT_DIES, json.dumps(config.to_dict()), str(tmp_path / "run")]
    assert subprocess.run(launcher, check=False).returncode == -signal.SIGKILL
    run = wb.attach(tmp_path / "run")
    reader, seen, done = run.reader(), [], []
    for attempt in range(1, KILLS + 1):
        done.append(kill_somewhere(run, attempt, chance))
        seen += reader.poll()
        run = wb.attach(run.dir).resume()
    assert ended(run, "finished", 10 * STEPS).attempt == KILLS + 1, (SEED, done)  # many steps may be left for the last attempt

    assert adapter_bytes(run) == adapter_bytes(whole), (SEED, done)
    steps, expected = (latest_steps(r.events()) for r in (run, whole))
    assert [(s["n"], s["loss"]) for s in steps] == [(s["n"], s["loss"]) for s in expected], (SEED, done)
    kept = {json.dumps(event) for event in run.events()}
    assert {json.dumps(event) for event in seen} <= kept, (SEED, done)
    assert sequence_gaps(run) == [], (SEED, done)
    assert complete(run) == [f"checkpoint-{STEPS - 1}", f"checkpoint-{STEPS}"], (SEED, done)
    assert sorted(p.name for p in (run.dir / "checkpoints").iterdir()) == sorted(complete(run))
    assert {p.name for p in run.dir.iterdir() if p.name.startswith(".")} == {".lock"}, (SEED, done)
