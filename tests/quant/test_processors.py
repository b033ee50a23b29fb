"""What holds whatever the processor: the kernels that numba compiles for less than is here, and imports that fetch nothing.

Each test runs where its processor is asked for by a variable, in a process of its own; what bitsandbytes' kernels do on which
processor is in ``test_bnb``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ON_GENERIC = {"NUMBA_CPU_NAME": "generic"}
"""As on clusters of mixed nodes: neither AVX2's permutation, nor F16C's conversion, nor fused multiply-add."""


def printed(script: str, *arguments: str, **variables: str) -> Any:
    """What a script prints as JSON; nothing may be printed beside it."""
    environment = os.environ | variables
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [variables.get("PYTHONPATH"), str(ROOT)]))
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


MEASURED = """
import hashlib, json, sys
import ml_dtypes, numpy as np, workbench as wb
found = {}
for dtype in ("float32", "float16", ml_dtypes.bfloat16):
    x = (np.random.default_rng(0).standard_t(4, 20_003) * 0.02).astype(dtype)
    e = wb.measure(x, spec := wb.QuantSpec("fp4", 32))
    q = wb.quantize(x, spec)
    digest = hashlib.sha256(q.codes.tobytes() + q.absmax.tobytes()).hexdigest()
    found[x.dtype.name] = {"equal": [e.max, e.occupancy.tolist(), digest], "near": [e.rmse, e.mae]}
print(json.dumps(found))
"""


def test_compiled_for_any_processor_the_kernels_find_the_same_numbers() -> None:
    """Sums differ in their last bits, since a fused multiply-add rounds once where a product and a sum round twice."""
    here, generic = printed(MEASURED), printed(MEASURED, **ON_GENERIC)
    assert list(generic) == ["float32", "float16", "bfloat16"]
    for dtype, found in generic.items():
        assert found["equal"] == here[dtype]["equal"]
        assert found["near"] == pytest.approx(here[dtype]["near"], rel=1e-6)


HALVES = """
import json, sys
import numpy as np
from numba import njit
from workbench.kernels.bits import decode
from workbench.kernels.simd import load, store
halves = np.arange(65536, dtype=np.uint16).view(np.int16)
one, eight = np.empty(65536, np.float32), np.empty(65536, np.float32)

@njit
def convert(halves, one, eight):
    for i in range(0, halves.size, 8):
        store(eight, i, load(halves, i))
        for j in range(i, i + 8):
            one[j] = decode(halves[j])

convert(halves, one, eight)
right = halves.view(np.float16).astype(np.float32)
print(json.dumps([np.array_equal(found.view(np.uint32)[~np.isnan(right)], right.view(np.uint32)[~np.isnan(right)])
                  and bool(np.isnan(found[np.isnan(right)]).all()) for found in (one, eight)]))
"""


@pytest.mark.parametrize("variables", [{}, ON_GENERIC], ids=["this processor", "generic"])
def test_every_float16_value_is_read_to_the_bit(variables: dict[str, str]) -> None:
    """All 65,536, infinities and subnormal numbers with them, against NumPy's conversion."""
    assert printed(HALVES, **variables) == [True, True]


ASKED = """
import json, os, sys
import workbench as wb
wb.check_backend((4, 96), 64)
import torch
print(json.dumps([torch.backends.cpu.get_cpu_capability()]
                 + [wb.check_backend((40, 128), size).right for size in wb.FORMATS["nf4"].block_sizes]))
"""


def test_bitsandbytes_chooses_its_kernel_by_the_processor_and_not_by_what_torch_uses() -> None:
    """So that ATEN_CPU_CAPABILITY is no remedy. On processors without AVX-512 every block size is right with any."""
    import torch

    capability, *lowered = printed(ASKED, ATEN_CPU_CAPABILITY="default")
    _, *own = printed(ASKED)
    assert capability == "DEFAULT"
    assert lowered[:-2] == own[:-2]
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        assert lowered == own  # with blocks of 2048 and 4096 the kernel is left aside where torch, too, uses AVX-512


# A C library that says that any processor multiplies in bfloat16, as those do for which bitsandbytes asks the Hub for a kernel.
WITH_BF16 = """
import ctypes, json, sys
class Library(ctypes.CDLL):
    def has_avx512bf16_cpu(self):
        return True
ctypes.cdll = ctypes.LibraryLoader(Library)
"""
STAND_IN = """
from pathlib import Path
calls = Path(__file__).with_name("calls.txt")
calls.write_text(calls.read_text() + "imported\\n")
def get_kernel(*names, **options):
    calls.write_text(calls.read_text() + "fetched\\n")
    raise RuntimeError("this would fetch code and run it")
"""


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    """A folder with a package ``kernels`` that notes what it is asked for."""
    (tmp_path / "kernels.py").write_text(STAND_IN, "utf-8")
    (tmp_path / "calls.txt").write_text("")
    return tmp_path


def test_without_the_workbench_bitsandbytes_asks_the_hub_for_code_as_it_is_imported(kernels: Path) -> None:
    """What is prevented: so the next test cannot pass for nothing."""
    script = WITH_BF16 + "import bitsandbytes.functional as F; assert F.has_avx512bf16()"
    environment = os.environ | {"PYTHONPATH": str(kernels)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert "this would fetch code and run it" in done.stderr
    assert (kernels / "calls.txt").read_text().splitlines() == ["imported", "fetched"]


@pytest.mark.parametrize(
    "statement",
    [
        "import workbench, bitsandbytes",
        "import widgets, bitsandbytes",
        "import workbench.training.worker.trainer, bitsandbytes",
        "from workbench.cost import worker; import bitsandbytes",
        "import workbench, bitsandbytes.nn, transformers.quantizers.quantizer_bnb_4bit",
    ],
)
def test_in_our_processes_nothing_is_fetched_and_nothing_printed(kernels: Path, statement: str) -> None:
    """transformers looks whether the package is there, and asks it for nothing."""
    script = f"{WITH_BF16}{statement}; import bitsandbytes.functional as F; print(json.dumps(F.has_avx512bf16()))"
    assert printed(script, PYTHONPATH=str(kernels)) is True
    assert "fetched" not in (kernels / "calls.txt").read_text()


def test_on_a_mac_nothing_is_fetched_either(kernels: Path) -> None:
    """Run here, with a version of macOS that asks the Hub: the module is Python alone."""
    script = """
import json, platform
platform.mac_ver = lambda: ("26.1", ("", "", ""), "arm64")
import workbench
from bitsandbytes.backends.mps import ops
print(json.dumps([ops._macos_major, ops._get_kernel()]))
"""
    assert printed(script, PYTHONPATH=str(kernels)) == [26, None]
    assert not (kernels / "calls.txt").read_text()


def test_kernels_stays_what_it_is_for_others(kernels: Path) -> None:
    script = "import json, kernels, workbench, bitsandbytes, sys; print(json.dumps(sys.modules['kernels'] is kernels))"
    assert printed(script, PYTHONPATH=str(kernels)) is True
    assert (kernels / "calls.txt").read_text().splitlines() == ["imported"]
