"""``make gpu-check`` as far as it goes without a GPU: steps that fail in every way, the report, the exit code."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import workbench as wb
from tests.gpu import test_device, test_t4, test_training
from tests.gpu.step import MIB, NO_CUDA, ROOT, Facts, Outcome, Step, answer, carry_out, chunks, command, report
from tests.helpers import random_weights
from tests.helpers.stretches import ratio_of
from workbench.memory.shortlist import config_of

STEPS = {
    name.removeprefix("test_"): step
    for module in (test_device, test_training, test_t4)
    for name, step in vars(module).items()
    if name.startswith("test_")
}


def test_every_step_can_be_carried_out_and_says_what_it_shows() -> None:
    assert list(STEPS) == [
        "environment", "collectors", "quantize", "nvml", "balloon", "resume", "memory", "run", "pressure", "half", "merged",
        "processes", "overhead", "an_8b_in_a_t4s_memory", "heads_by_turns",
    ]  # fmt: skip
    assert all(step.__doc__ for step in STEPS.values())
    step = Step("tests.gpu.test_device", "test_nvml", "")
    assert command(step)[1:] == ["-m", "tests.gpu.step", "tests.gpu.test_device", "test_nvml"]


def test_a_model_of_published_shapes_with_random_weights_trains(tmp_path: Path) -> None:
    """What the step with an 8B does, with a model that a CPU trains in seconds."""
    shapes = wb.PublishedShapes("small", config_of("llama", 64, 128, 2, 4, 2, 4_096, False))
    rows = test_t4.long_rows(tmp_path / "rows.jsonl", 4, 10)
    config = wb.TrainConfig(
        model=str(random_weights.write(tmp_path / "model", shapes)), dataset=str(rows), text_column="text", max_length=64,
        per_device_train_batch_size=1, max_steps=1, save_steps=0, max_eval_rows=0, sample_prompts=(),
    )  # fmt: skip
    status, peak = test_t4.capped(config, tmp_path / "run", None)
    assert (status.state, peak) == ("finished", 0)


def pytest_without_devices(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    started = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", "-m", "gpu", *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(started, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)


def test_without_cuda_it_says_so_in_a_line_and_in_its_code() -> None:
    done = pytest_without_devices("tests/gpu")
    assert "needs a CUDA GPU" in done.stdout
    assert f"{len(STEPS)} skipped" in done.stdout
    assert NO_CUDA in done.stdout.splitlines()
    assert done.returncode == 77


def test_an_unknown_step_is_a_mistake() -> None:
    assert pytest_without_devices("tests/gpu", "-k", "ballon").returncode == pytest.ExitCode.NO_TESTS_COLLECTED


MADE_UP = '''
import os
import pytest

pytestmark = pytest.mark.gpu

def test_works(facts):
    """That it works."""
    facts["device"] = "Some GPU"

def test_crashes(facts):
    os.kill(os.getpid(), 9)

@pytest.mark.gpu(seconds=60)
def test_fails(facts):
    facts["managed"] = 4096
    assert not facts, "nothing was evicted"
'''


def test_each_step_runs_in_a_process_of_its_own_and_the_report_comes_last(tmp_path: Path) -> None:
    (tmp_path / "test_made_up.py").write_text(MADE_UP)
    (tmp_path / "conftest.py").write_text("from tests.gpu.conftest import *")
    found = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    done = pytest_without_devices(tmp_path, "-rN", PYTHONPATH=found)
    assert done.returncode == 1
    text = done.stdout.partition("### GPU check: Some GPU")[2]
    assert "1 of 3 steps passed." in text
    assert re.search(r"\| works \| passed \| \d+ \| That it works \|", text)
    assert "**crashes**: It ended with code -9 and no answer." in text
    assert "**fails**: nothing was evicted\n- managed: 4,096\n" in text


GOOD = json.dumps({"passed": True, "message": "", "facts": {"device": "Some GPU", "bytes": 4096}})
BAD = json.dumps({"passed": False, "message": "nothing was evicted", "facts": {"managed": 1}})
SCRIPTS = {
    "works": f"print('noise'); print('{GOOD}')",
    "fails": f"print('{BAD}'); raise SystemExit(1)",
    "crashes": "import os; print('half an ans', end='', flush=True); os.kill(os.getpid(), 9)",
    "raises": "raise RuntimeError('no kernel image')",
    "hangs": "import threading; threading.Event().wait()",
    "lies": f"print('{GOOD}'); raise SystemExit(3)",
    "babbles": "print('[1, 2]')",
    "still works": f"print('{GOOD}')",
}


def script(step: Step) -> Sequence[str]:
    return [sys.executable, "-c", SCRIPTS[step.name]]


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return [carry_out(Step("", name, f"that it {name}", 2 if name == "hangs" else 60), script) for name in SCRIPTS]


def test_whatever_becomes_of_a_step_is_an_outcome(outcomes: list[Outcome]) -> None:
    assert [o.name for o in outcomes] == list(SCRIPTS)
    assert [o.name for o in outcomes if o.passed] == ["works", "still works"]
    message = {o.name: o.message for o in outcomes}
    assert message["fails"] == "nothing was evicted"
    assert message["crashes"].startswith("It ended with code -9 and no answer.")
    assert "no kernel image" in message["raises"]
    assert message["hangs"] == "It did not end within 2 s."
    assert "no answer" in message["babbles"]


def test_a_step_that_cannot_be_started_is_an_outcome_too(tmp_path: Path) -> None:
    outcome = carry_out(Step("", "x", "y"), lambda _: [str(tmp_path / "no such program")])
    assert not outcome.passed
    assert "could not be started" in outcome.message


def test_the_report_can_be_pasted(outcomes: list[Outcome]) -> None:
    text = report(outcomes)
    lines = text.splitlines()
    assert lines[0].startswith("### GPU check: Some GPU, qlora-workbench ")
    assert "2 of 8 steps passed." in lines
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 1 + len(outcomes)
    assert all(row.count("|") == 5 for row in rows)
    assert "| works | passed |" in text
    assert "| hangs | FAILED |" in text
    assert "**fails**: nothing was evicted" in lines
    assert "- bytes: 4,096" in lines


def test_the_report_names_no_folder_of_this_machine() -> None:
    message = f"File {ROOT}/workbench/x.py, {sys.prefix}/lib/y.py,\n  {Path.home()}/z"
    text = report([Outcome("x", "y", False, message)])
    assert "File ./workbench/x.py, <env>/lib/y.py, ~/z" in text


# The steps, as far as they do not need the device.


def test_an_answer_holds_what_was_found_until_something_was_wrong() -> None:
    def step(facts: Facts) -> None:
        facts["found"] = 1
        assert facts, "that is there"
        assert not facts, "that is not"

    assert answer(step)["message"].startswith("that is not")
    assert answer(step)["facts"] == {"found": 1}
    assert answer(lambda facts: facts.update(found=2)) == {"passed": True, "message": "", "facts": {"found": 2}}


WITHOUT_DEVICE = """
import json
from tests.gpu.step import answer
from tests.gpu.test_report import STEPS
names = "environment", "collectors", "nvml", "balloon", "pressure", "memory", "overhead"
print(json.dumps([answer(STEPS[name]) for name in names]))
"""


def test_without_the_device_every_step_answers_and_none_passes() -> None:
    no_devices = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    started = [sys.executable, "-c", WITHOUT_DEVICE]
    done = subprocess.run(started, env=no_devices, capture_output=True, text=True, check=False, cwd=ROOT)
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == 7
    assert all(not found["passed"] and found["message"] for found in answers)


def test_the_check_of_a_resume_finds_the_same_way_and_no_paging_on_a_cpu() -> None:
    facts: Facts = {}
    with pytest.raises(AssertionError, match="state1 is not paged again"):
        test_device.resume(facts, "cpu")
    assert facts == {"managed after a step": 0, "managed after loading and a step": 0}


@pytest.mark.parametrize("total", [1, 64 * MIB, 64 * MIB + 1, 80 * 1024 * MIB])
def test_a_balloon_is_blown_up_in_pieces(total: int) -> None:
    pieces = list(chunks(total))
    assert sum(pieces) == total
    assert len(pieces) <= 65
    assert min(pieces) > 0


def test_the_ratio_of_stretches_has_an_interval_around_it() -> None:
    off = [[1.0, 1.1, 0.9]] * 8
    on = [[1.02 * t for t in stretch] for stretch in off]
    assert ratio_of(on, off) == pytest.approx((1.02, 1.02, 1.02))
    ratio, low, high = ratio_of([[1.0], [1.1], [1.2], [1.0]], [[1.0]] * 4)
    assert low <= ratio <= high
    assert low < high
