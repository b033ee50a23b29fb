"""A step of ``make gpu-check``: a test in a process of its own, what it found, and the report for an issue.

Covers the process (a step that crashes or hangs takes no other along), its answer, the report, and the balloon that fills the
GPU's memory. ``python -m tests.gpu.step MODULE NAME`` carries a step out and answers with one line of JSON. Torch is imported
when the balloon is blown up, and not before.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import workbench

Facts = dict[str, Any]
"""What a step finds, for the report; what it found until something was wrong is reported too."""
MIB = 1 << 20
NO_CUDA = "No CUDA device: nothing was checked."
ROOT = Path(__file__).parents[2]
_LAST_WORDS = 1500


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for the time of a step."""
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def chunks(total: int, count: int = 64) -> Iterator[int]:
    """``total`` bytes in pieces of at least 64 MiB, the last one smaller: one large piece could fail whole."""
    size = max(64 * MIB, total // count)
    for at in range(0, total, size):
        yield min(size, total - at)


def blow_up(facts: Facts, beyond: int) -> list[Any]:
    """Tensors in all the memory that is free on the device and in ``beyond`` bytes more, which only eviction can make room for.

    They last as long as the list does. Where the device has no more, the balloon stays as large as it is, and ``facts`` say so.
    """
    import torch

    held: list[Any] = []
    try:
        for size in chunks(torch.cuda.mem_get_info()[0] + beyond):
            held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError as error:
        facts["the balloon stopped"] = str(error).splitlines()[0]
    facts["balloon"] = sum(t.nbytes for t in held)
    return held


@dataclass(frozen=True)
class Step:
    """One thing to check: the test ``name`` of ``module``."""

    module: str
    name: str
    shows: str
    """What it shows if it passes."""
    seconds: float = 300
    """Time after which it is ended."""


@dataclass(frozen=True)
class Outcome:
    """How a step went."""

    name: str
    shows: str
    passed: bool
    message: str
    """What was wrong; "" where nothing was."""
    facts: Facts = field(default_factory=dict)
    seconds: float = 0.0


def command(step: Step) -> list[str]:
    """The process of a step."""
    return [sys.executable, "-m", "tests.gpu.step", step.module, step.name]


def carry_out(step: Step, command: Callable[[Step], Sequence[str]] = command) -> Outcome:
    """Runs one step; whatever becomes of its process is an outcome."""
    began = time.monotonic()

    def outcome(passed: bool, message: str, facts: Facts | None = None) -> Outcome:
        name = step.name.removeprefix("test_")
        return Outcome(name, step.shows, passed, message, facts or {}, time.monotonic() - began)

    try:
        done = subprocess.run(
            list(command(step)), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=step.seconds, check=False, cwd=ROOT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return outcome(False, f"It did not end within {step.seconds:g} s.")
    except OSError as error:
        return outcome(False, f"It could not be started ({error}).")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        return outcome(bool(answer["passed"]) and done.returncode == 0, str(answer["message"]), dict(answer["facts"]))
    except (ValueError, LookupError, TypeError):
        words = (done.stderr or done.stdout).strip()[-_LAST_WORDS:]
        return outcome(False, f"It ended with code {done.returncode} and no answer. {words}".strip())


def answer(test: Callable[[Facts], None]) -> dict[str, Any]:
    """What a step found, and whether all of it is as it should be."""
    facts: Facts = {}
    try:
        test(facts)
    except AssertionError as failure:
        return {"passed": False, "message": str(failure), "facts": facts}
    except Exception as error:
        traceback.print_exc()
        return {"passed": False, "message": f"{type(error).__name__}: {error}", "facts": facts}
    return {"passed": True, "message": "", "facts": facts}


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
        *(f"| {o.name} | {'passed' if o.passed else 'FAILED'} | {o.seconds:.0f} | {o.shows} |" for o in outcomes),
    ]
    for o in outcomes:
        if o.message or o.facts:
            lines += ["", f"**{o.name}**" + (f": {_cell(o.message)}" if o.message else "")]
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


if __name__ == "__main__":
    found = answer(getattr(importlib.import_module(sys.argv[1]), sys.argv[2]))
    print(json.dumps(found, default=str))
    sys.exit(0 if found["passed"] else 1)
