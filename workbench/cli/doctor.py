"""What this machine has and what works on it, to be pasted into a report: ``wb.doctor()``, and ``workbench doctor``.

Covers versions, the processor, GPUs and their driver, what the libraries that train find (``cli/probe.py``), and whether the
Hub answers. Every line is made of numbers, of names of products, and of sentences that stand here: no path, host, user or
address gets into it, nor the text of an error, which may hold one.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench._version import __version__
from workbench.cli.probe import QUESTIONS
from workbench.kernels import pool
from workbench.progress import Progress, reporting
from workbench.show import Line, Record, Shown, View
from workbench.text import columns, memory_size
from workbench.training.environment import without_secrets

_LIBRARIES = (
    "torch", "bitsandbytes", "transformers", "peft", "accelerate", "datasets", "huggingface-hub", "tokenizers", "safetensors",
    "numpy", "numba", "ml-dtypes", "nvidia-ml-py", "ipywidgets", "anywidget", "plotly", "ipykernel", "jupyterlab", "voila",
)  # fmt: skip
_CPUINFO = Path("/proc/cpuinfo")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
_PROBE = ("-m", "workbench.cli.probe")
_PROBED_IN = 180.0
"""Seconds: a first import of torch from a slow disk takes minutes."""
_HUB = "https://huggingface.co"


@dataclass(frozen=True, repr=False)
class Finding(Record):
    """One line of a check-up."""

    subject: str
    found: str
    works: bool | None = None
    """None where there is nothing to work, as of a version, or where it was not asked."""

    def _line_(self) -> Line:
        return {"subject": self.subject, "works": {True: "yes", False: "no", None: ""}[self.works], "found": self.found}


@dataclass(frozen=True, repr=False)
class Checkup(Shown):
    """What ``doctor`` found. ``print(checkup.text)`` gives all of it, to be pasted into an issue."""

    findings: tuple[Finding, ...]

    @property
    def text(self) -> str:
        """Every line, aligned, as plain text."""
        lines = [finding._line_() for finding in self.findings]
        return columns(list(lines[0]) if lines else (), [list(line.values()) for line in lines], texts=range(3))

    def _show_(self) -> View:
        return View(
            f"QLoRA Workbench {__version__} on this machine", lines=self.findings, note="All of it: print(checkup.text)"
        )


def doctor(progress: bool | Progress = True) -> Checkup:
    """Asks this machine what it has and what works: some ten seconds, most of them torch's import in a process of its own.

    ``progress``: a bar, none, or a callback that is given how many of the questions are answered. Nothing is sent but one
    request for the Hub's front page, with a limit of three seconds, and not in offline mode (``HF_HUB_OFFLINE``).

    Returns:
        The findings, a line a question: whether it works, where that can be said, and what was found. ``text`` is all of it to
        paste.

    >>> checkup = wb.doctor(progress=False)  # doctest: +SKIP
    >>> [finding.found for finding in checkup.findings if finding.subject == "Python"]  # doctest: +SKIP
    ['3.11.7']
    """
    parts: tuple[Callable[[], Iterator[Finding]], ...] = (_system, _versions, _gpus, _probed, _hub)
    found: list[Finding] = []
    with reporting(progress, "asked", "") as report:
        for done, part in enumerate(parts, 1):
            found += part()
            report(done, len(parts))
    return Checkup(tuple(found))


def _system() -> Iterator[Finding]:
    import psutil

    release = platform.release()
    kernel = re.match(r"[\d.]*\d", release)
    kind = " (WSL)" if "microsoft" in release.casefold() else ""
    yield Finding("system", f"{platform.system()} {kernel[0] if kernel else ''}{kind}, {platform.machine()}")
    where = [name for name, there in _SERVICES.items() if there in os.environ]
    yield Finding("service", ", ".join(where) or "none that is known here")
    yield Finding("processor", _processor())
    threads = os.environ.get("OMP_NUM_THREADS", "")
    limited = f"; OMP_NUM_THREADS={int(threads)}" if threads.isdecimal() else ""
    yield Finding("threads", f"{pool.usable_cores()} of {os.cpu_count()}{limited}")
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(os.curdir)
    yield Finding("memory", f"{memory_size(memory.available)} free of {memory_size(memory.total)}")
    yield Finding("disk", f"{memory_size(disk.free)} free of {memory_size(disk.total)}")


_SERVICES = {"Colab": "COLAB_RELEASE_TAG", "Kaggle": "KAGGLE_KERNEL_RUN_TYPE", "Binder": "BINDER_SERVICE_HOST"}
"""Services by a variable that they set."""


def _processor() -> str:
    """The maker's name of it, and which vector units it has of those that decide between kernels."""
    try:
        first = _CPUINFO.read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return platform.machine()
    lines = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", first, re.MULTILINE))
    flags = lines.get("flags", "").split()
    units = [name for name in _FLAGS if name in flags]
    return f"{lines.get('model name', platform.machine())}; {', '.join(units) or 'none of ' + ', '.join(_FLAGS)}"


def _versions() -> Iterator[Finding]:
    yield Finding("qlora-workbench", __version__)
    yield Finding("Python", platform.python_version())
    for name in _LIBRARIES:
        try:
            yield Finding(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "not installed")


def _gpus() -> Iterator[Finding]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield Finding("NVML, the driver", type(error).__name__.removeprefix("NVMLError_"), False)
        return
    try:
        cuda = pynvml.nvmlSystemGetCudaDriverVersion()
        yield Finding(
            "NVML, the driver", f"{pynvml.nvmlSystemGetDriverVersion()}, CUDA {cuda // 1000}.{cuda % 1000 // 10}", True
        )
        for i in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(i)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            sizes = f"{memory_size(memory.free)} free of {memory_size(memory.total)}"
            yield Finding(f"GPU {i}", f"{pynvml.nvmlDeviceGetName(handle)}, {sizes}")
    except pynvml.NVMLError as error:
        yield Finding("NVML, the GPUs", type(error).__name__.removeprefix("NVMLError_"), False)
    finally:
        pynvml.nvmlShutdown()


def _probed() -> Iterator[Finding]:
    """What the probe prints until it ends, and how it ended where it left questions open."""
    command, own = [sys.executable, *_PROBE], without_secrets()
    try:
        done = subprocess.run(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_PROBED_IN)
        printed, code = done.stdout, done.returncode
        ending = f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
    except subprocess.TimeoutExpired as late:
        printed, ending = late.stdout or b"", f"did not answer in {_PROBED_IN:.0f} seconds"
    answered = {}
    for line in printed.decode("utf-8", "replace").splitlines():
        try:
            answer = json.loads(line)
            answered[answer["name"]] = Finding(answer["name"], str(answer["found"]), answer["works"])
        except (ValueError, TypeError, KeyError):  # what a library prints at its import
            continue
    for name in QUESTIONS:
        yield answered.get(name) or Finding(name, f"the process that was asked {ending}", False)


def _hub() -> Iterator[Finding]:
    """Whether the Hub's front page answers, by its status alone."""
    from huggingface_hub import constants, get_session

    place = "huggingface.co" if constants.ENDPOINT == _HUB else "the mirror that HF_ENDPOINT names"
    if constants.HF_HUB_OFFLINE:
        yield Finding("Hub", "not asked: offline mode is on (HF_HUB_OFFLINE)")
        return
    try:
        code = get_session().head(constants.ENDPOINT, timeout=3.0).status_code
    except Exception as error:  # httpx's or requests', by the version of huggingface_hub
        yield Finding("Hub", f"{place} does not answer: {type(error).__name__}", False)
        return
    yield Finding("Hub", f"{place} answers with status {code}", code < 400)
