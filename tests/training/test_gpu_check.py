"""``make gpu-check`` as far as it goes without a GPU: the plan, steps that fail in every way, the report, the exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from workbench.training import gpu_check
from workbench.training.gpu_answer import MIB, CheckFailed, answer, chunks, expect
from workbench.training.gpu_check import PLAN, Outcome, Step, carry_out, check, exit_code, report
from workbench.training.gpu_runs import ratio_of
from workbench.training.gpu_steps import STEPS, resume


def test_every_step_of_the_plan_can_be_carried_out() -> None:
    assert {step.name for step in PLAN} == set(STEPS)
    assert gpu_check.command(PLAN[0])[1:] == ["-m", "workbench.training.gpu_steps", "environment"]


def test_without_cuda_it_says_so_in_a_line_and_in_its_code() -> None:
    no_devices = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "workbench.training.gpu_check"], env=no_devices, capture_output=True, text=True, check=False
    )
    assert done.stdout == "No CUDA device: nothing was checked.\n"
    assert done.returncode == 77


def test_an_unknown_step_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_check.main(["ballon"])
    assert ended.value.code == 2
    assert "no such step: ballon" in capsys.readouterr().err


GOOD = json.dumps({"passed": True, "told": "", "facts": {"device": "Some GPU", "bytes": 4096}})
BAD = json.dumps({"passed": False, "told": "nothing was evicted", "facts": {"managed": 1}})
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
    return list(check([Step(name, f"that it {name}", 2 if name == "hangs" else 60) for name in SCRIPTS], script))


def test_a_step_that_fails_does_not_stop_the_rest(outcomes: list[Outcome]) -> None:
    assert [o.step.name for o in outcomes] == list(SCRIPTS)
    assert [o.step.name for o in outcomes if o.passed] == ["works", "still works"]
    told = {o.step.name: o.told for o in outcomes}
    assert told["fails"] == "nothing was evicted"
    assert told["crashes"].startswith("It ended with code -9 and no answer.")
    assert "no kernel image" in told["raises"]
    assert told["hangs"] == "It did not end within 2 s."
    assert "no answer" in told["babbles"]
    assert exit_code(outcomes) == 1
    assert exit_code([outcomes[0]]) == 0
    assert exit_code([]) == 1


def test_a_step_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    outcome = carry_out(Step("x", "y"), lambda _: [str(tmp_path / "no such program")])
    assert not outcome.passed
    assert "could not be started" in outcome.told


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
    root = Path(gpu_check.__file__).parents[2]
    told = f"File {root}/workbench/x.py, {sys.prefix}/lib/y.py,\n  {Path.home()}/z"
    text = report([Outcome(Step("x", "y"), False, told)])
    assert "File ./workbench/x.py, <env>/lib/y.py, ~/z" in text


# The steps, as far as they do not need the device.


def test_an_answer_holds_what_was_found_until_something_was_wrong() -> None:
    def step(facts: dict[str, Any]) -> None:
        facts["found"] = 1
        expect(facts, "that is there")
        expect(False, "that is not")

    assert answer(step) == {"passed": False, "told": "that is not", "facts": {"found": 1}}
    assert answer(lambda facts: facts.update(found=2)) == {"passed": True, "told": "", "facts": {"found": 2}}


WITHOUT_DEVICE = """
import json
from workbench.training.gpu_answer import answer
from workbench.training.gpu_steps import STEPS
names = "environment", "collectors", "nvml", "balloon", "pressure", "memory", "overhead"
print(json.dumps([answer(STEPS[name]) for name in names]))
"""


def test_without_the_device_every_step_answers_and_none_passes() -> None:
    no_devices = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", WITHOUT_DEVICE], env=no_devices, capture_output=True, text=True, check=False)
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == 7
    assert all(not told["passed"] and told["told"] for told in answers)


def test_the_check_of_a_resume_finds_the_same_way_and_no_paging_on_a_cpu() -> None:
    facts: dict[str, Any] = {}
    with pytest.raises(CheckFailed, match="state1 is not paged again"):
        resume(facts, "cpu")
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


# On a GPU: the steps themselves.


@pytest.mark.gpu
@pytest.mark.parametrize("step", PLAN, ids=lambda step: step.name)
def test_on_a_gpu(step: Step) -> None:
    outcome = carry_out(step)
    assert outcome.passed, report([outcome])
