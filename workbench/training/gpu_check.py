"""``make gpu-check``: runs, on a machine with a CUDA GPU, what was never run on one, and prints a report for an issue.

Covers the plan, a process of its own for each step (one that crashes or hangs takes no other along), the report, and the exit
code: 0 all passed, 1 something failed, 77 no CUDA device, so that nothing was checked. What each step does is in ``gpu_steps``.
Changes no setting of the driver. The balloon fills the GPU's memory: run it on a GPU that nobody else is using.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import workbench

PASSED, FAILED, NOTHING_CHECKED = 0, 1, 77
NO_CUDA = "No CUDA device: nothing was checked."
_LAST_WORDS = 1500


@dataclass(frozen=True)
class Step:
    """One thing to check."""

    name: str
    shows: str
    """What it shows if it passes."""
    seconds: float = 300
    """Time after which it is ended."""


PLAN = (
    Step("environment", "the device, its driver and the libraries"),
    Step("collectors", "CUPTI's unified-memory counters and NVML answer"),
    Step("quantize", "weights quantized on the GPU are those that the workbench computes"),
    Step("nvml", "the allocator's bytes and NVML's agree; what the CUDA context takes"),
    Step("balloon", "memory pressure makes the driver evict managed pages, and CUPTI records it"),
    Step("resume", "an optimizer's paged state is paged again after a checkpoint was loaded"),
    Step("run", "a run with paged state: eligible, allocated and requested agree, also after Pause and Resume", 900),
    Step("pressure", "a run whose state has too little room pages in every step; measured beside simulated", 900),
    Step("half", "a run in float16, as on a T4", 600),
    Step("merged", "an adapter trained on the GPU, exported to 16 bits, gives the run's held-out loss", 600),
    Step("processes", "a run on several GPUs (DDP); with one GPU nothing is checked", 900),
    Step("memory", "out of memory on the GPU has its own ending, and the process can go on"),
    Step("overhead", "what collecting and sampling cost a step", 600),
)


@dataclass(frozen=True)
class Outcome:
    """How a step went."""

    step: Step
    passed: bool
    told: str
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def command(step: Step) -> list[str]:
    """The process of a step."""
    return [sys.executable, "-m", "workbench.training.gpu_steps", step.name]


def carry_out(step: Step, command: Callable[[Step], Sequence[str]] = command) -> Outcome:
    """Runs one step; whatever becomes of its process is an outcome."""
    began = time.monotonic()

    def outcome(passed: bool, told: str, facts: dict[str, Any] | None = None) -> Outcome:
        return Outcome(step, passed, told, facts or {}, time.monotonic() - began)

    try:
        done = subprocess.run(
            list(command(step)), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=step.seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return outcome(False, f"It did not end within {step.seconds:g} s.")
    except OSError as error:
        return outcome(False, f"It could not be started ({error}).")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        return outcome(bool(answer["passed"]) and done.returncode == 0, str(answer["told"]), dict(answer["facts"]))
    except (ValueError, LookupError, TypeError):
        words = (done.stderr or done.stdout).strip()[-_LAST_WORDS:]
        return outcome(False, f"It ended with code {done.returncode} and no answer. {words}".strip())


def check(plan: Iterable[Step] = PLAN, command: Callable[[Step], Sequence[str]] = command) -> Iterable[Outcome]:
    """Every step of the plan in its order, whatever became of those before it."""
    for step in plan:
        yield carry_out(step, command)


def report(outcomes: Sequence[Outcome]) -> str:
    """Markdown to paste into an issue; names no folder and no user of this machine."""
    passed = sum(o.passed for o in outcomes)
    device = next((o.facts["device"] for o in outcomes if "device" in o.facts), "unknown device")
    lines = [
        f"### GPU check: {device}, qlora-workbench {workbench.__version__}",
        "",
        f"{passed} of {len(outcomes)} steps passed.",
        "",
        "| step | outcome | seconds | what it shows |",
        "|---|---|---:|---|",
        *(f"| {o.step.name} | {'passed' if o.passed else 'FAILED'} | {o.seconds:.0f} | {o.step.shows} |" for o in outcomes),
    ]
    for o in outcomes:
        if o.told or o.facts:
            lines += ["", f"**{o.step.name}**" + (f": {_cell(o.told)}" if o.told else "")]
            lines += [f"- {name}: {_cell(_shown(value))}" for name, value in o.facts.items()]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _cell(text: str) -> str:
    """One line, without this machine's folders."""
    folders = {str(Path(workbench.__file__).parent.parent): ".", sys.prefix: "<env>", str(Path.home()): "~"}
    for folder, name in sorted(folders.items(), key=lambda item: -len(item[0])):  # one may lie in another
        text = text.replace(folder, name)
    return " ".join(text.split())


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """The code that tells how it went."""
    return PASSED if outcomes and all(o.passed for o in outcomes) else FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gpu-check", description="Run on a CUDA GPU what was never run on one.")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"only these: {', '.join(s.name for s in PLAN)}")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report there too")
    options = parser.parse_args(arguments)
    if unknown := set(options.steps) - {s.name for s in PLAN}:
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    import torch

    if not torch.cuda.is_available():
        print(NO_CUDA)
        return NOTHING_CHECKED
    outcomes = []
    for outcome in check(s for s in PLAN if not options.steps or s.name in options.steps):
        outcomes.append(outcome)
        state = "passed" if outcome.passed else "FAILED"
        print(f"{outcome.step.name}: {state} ({outcome.seconds:.0f} s)", file=sys.stderr, flush=True)
    text = report(outcomes)
    print(text)
    if options.report:
        options.report.write_text(text, "utf-8")
    return exit_code(outcomes)


if __name__ == "__main__":
    sys.exit(main())
