"""What this machine has to say against a run before it starts: 4-bit kernels that would compute wrongly, what is not installed.

Covers the one fault of bitsandbytes' CPU kernels that ``workbench.quant.bnb.check_backend`` knows, from a model's headers
alone, and the options that need a package of their own. Imports no torch; of the kernels the worker asks
again, for the weights it has loaded and the torch it runs on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

from workbench.errors import ConfigError
from workbench.memory.footprint import Plan, in_four_bits
from workbench.memory.gpus import devices
from workbench.quant.bnb import check_backend
from workbench.sources.base import Source
from workbench.sources.packed import as_loaded
from workbench.training.config import TrainConfig

_TENSORBOARD = 'pip install "qlora-workbench[tensorboard]", or use report_to="none".'
_AVX512 = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "fma"}


def check_extras(config: TrainConfig) -> None:
    """Raises ``ConfigError`` for what cannot be done here: logs without their package."""
    if config.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(["the package tensorboard is not installed."], where="report_to", remedy=_TENSORBOARD)


def check_kernels(config: TrainConfig, source: Source, capability: str | None = None) -> None:
    """Raises ``ConfigError`` if a QLoRA run on this machine's CPU would dequantize weights of ``source`` wrongly.

    ``capability``: the CPU's, as torch names it; by default this machine's, and nothing is said where there is an NVIDIA GPU.
    """
    if config.method != "qlora" or (capability is None and devices()):
        return
    capability = capability or cpu_capability()
    plan = Plan.of(config, "cpu")
    tensors, own = as_loaded(source)
    block_size = own.block_size if own else config.block_size  # a checkpoint that is packed keeps its own
    for tensor in tensors:
        if not in_four_bits(tensor, plan):
            continue
        shape = tensor.shape[::-1] if tensor.layout == "transposed" else tensor.shape
        found = check_backend(shape, block_size, capability)
        if not found.right:
            raise ConfigError([f"{tensor.name}: {found.why}"], where="block_size", remedy=found.remedy)


def cpu_capability(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """``"AVX512"`` if torch would use it on this CPU, else ``""``: from the kernel's list of features and torch's variable."""
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        lines = cpuinfo.read_text("utf-8", "replace").splitlines()
        flags = set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
    lowered = os.environ.get("ATEN_CPU_CAPABILITY", "avx512") != "avx512"
    return "AVX512" if flags >= _AVX512 and not lowered else ""
