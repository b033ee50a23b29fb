"""What ``make gpu-check`` asks of the device itself; the steps that train are in ``test_training``.

Each test runs in a process of its own (``conftest``), and notes in ``facts`` what it finds.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
from typing import Any

import numpy as np
import pytest

from tests.gpu.step import MIB, Facts, blow_up

pytestmark = pytest.mark.gpu

_CONCURRENT_MANAGED_ACCESS = 89  # CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS
_NVML_SLACK = 64 * MIB  # what the driver may take beside an allocation
_LIBRARIES = ("torch", "bitsandbytes", "transformers", "peft", "accelerate", "nvidia-ml-py")


def test_environment(facts: Facts) -> None:
    """The device, its driver and the libraries."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    facts |= {
        "device": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "memory": properties.total_memory,
        "CUDA of torch": torch.version.cuda,
        "native bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        "devices": torch.cuda.device_count(),
    }
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[name] = importlib.metadata.version(name)
    with contextlib.suppress(Exception):  # NVML is checked in a step of its own
        import pynvml

        pynvml.nvmlInit()
        facts["driver"] = pynvml.nvmlSystemGetDriverVersion()
    facts["concurrent managed access"] = bool(_attribute(_CONCURRENT_MANAGED_ACCESS))
    assert facts["concurrent managed access"], "Without concurrent managed access prefetches do nothing, and nothing tells."


def _attribute(number: int) -> int:
    """An attribute of the current device, from the driver."""
    import torch

    torch.cuda.init()
    value, device = ctypes.c_int(), ctypes.c_int()
    driver = ctypes.CDLL("libcuda.so.1")
    assert driver.cuDeviceGet(ctypes.byref(device), torch.cuda.current_device()) == 0, "The driver knows no such device."
    assert driver.cuDeviceGetAttribute(ctypes.byref(value), number, device) == 0, "The driver does not tell its attributes."
    return int(value.value)


def test_collectors(facts: Facts) -> None:
    """CUPTI's unified-memory counters and NVML answer."""
    import torch

    from workbench.training.worker.cupti import open_cupti
    from workbench.training.worker.telemetry import CudaMemory

    torch.cuda.init()
    collector, cupti = open_cupti(True)
    if collector:
        collector.close()
    nvml = CudaMemory()
    facts |= {"CUPTI": cupti.why, "NVML": nvml.why or "answers"}
    assert cupti.works, f"CUPTI: {cupti.why}"
    assert not nvml.why, nvml.why


def test_quantize(facts: Facts) -> None:
    """Weights quantized on the GPU are those that the workbench computes."""
    import torch
    from bitsandbytes import functional

    import workbench as wb

    x = np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32)
    for name in ("nf4", "fp4"):
        ours = wb.quantize(x, wb.QuantSpec(name))
        packed, state = functional.quantize_4bit(torch.from_numpy(x).cuda(), blocksize=64, quant_type=name)
        high, low = (part.cpu().numpy().ravel() for part in (packed >> 4, packed & 15))
        codes, level = np.stack([high, low], axis=1).ravel(), ours.spec.definition.level_of_code
        facts[f"{name}: codes that differ"] = int((codes != ours.codes.ravel()).sum())  # FP4 has two zeros
        facts[f"{name}: levels that differ"] = differing = int((level[codes] != level[ours.codes.ravel()]).sum())
        assert not differing, f"{name}: {differing:,} of {codes.size:,} weights become another level."
        assert np.array_equal(state.absmax.cpu().numpy(), ours.absmax.ravel()), f"{name}: the absmax values differ."


def test_nvml(facts: Facts) -> None:
    """The allocator's bytes and NVML's agree; what the CUDA context takes."""
    import torch
    from bitsandbytes import functional

    from workbench.training.worker.telemetry import CudaMemory

    torch.cuda.init()
    gpu = CudaMemory()
    assert not gpu.why, gpu.why
    torch.ones(1, device="cuda")
    before = gpu.counters(0)
    held = torch.ones(min(1024 * MIB, torch.cuda.mem_get_info()[0] // 4), dtype=torch.uint8, device="cuda")
    after = gpu.counters(0)
    reserved, used = (int(after[k] or 0) - int(before[k] or 0) for k in ("reserved", "nvml_used"))
    facts |= {"reserved more": reserved, "NVML used more": used, "allocated": held.nbytes}
    facts["used beside the allocator"] = int(after["nvml_used"] or 0) - int(after["reserved"] or 0)
    state = functional.get_paged(64 * MIB, dtype=torch.float32, device=torch.device("cuda", 0))
    functional.fill(state, 1.0)
    torch.cuda.synchronize()
    facts["NVML used more for 256 MiB managed"] = int(gpu.counters(0)["nvml_used"] or 0) - int(after["nvml_used"] or 0)
    assert abs(used - reserved) <= _NVML_SLACK, "NVML and the allocator disagree: is another process using this GPU?"


def test_balloon(facts: Facts) -> None:
    """Memory pressure makes the driver evict managed pages, and CUPTI records it."""
    import torch
    from bitsandbytes import functional

    from workbench.training.worker.cupti import open_cupti

    torch.cuda.init()
    collector, capability = open_cupti(True)
    assert collector is not None, f"CUPTI: {capability.why}"
    state = functional.get_paged(64 * MIB, dtype=torch.float32, device=torch.device("cuda", 0))
    functional.fill(state, 1.0)
    torch.cuda.synchronize()
    facts["managed"] = state.nbytes
    held = blow_up(facts, state.nbytes // 2)
    held.clear()
    torch.cuda.empty_cache()
    functional.fill(state, 2.0)
    torch.cuda.synchronize()
    collector.close()
    moved: dict[str, int] = {}
    for event in collector.drain():
        name = f"{event['direction']} {event['cause']}".strip() if event["k"] == "page" else event["text"]
        moved[name] = moved.get(name, 0) + (event.get("bytes") or event.get("count", 1))
    facts |= moved
    assert moved.get("d2h eviction"), "The balloon evicted nothing that CUPTI recorded."
    assert any(name.startswith("h2d") for name in moved), "Nothing came back to the device."


def test_resume(facts: Facts) -> None:
    """An optimizer's paged state is paged again after a checkpoint was loaded."""
    resume(facts, "cuda")


def resume(facts: Facts, device: str) -> None:
    import torch

    from workbench.training.worker.optimizers import TracedAdamW, managed_bytes

    def optimizer() -> tuple[Any, Any]:
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(512, 512, device=device))
        return p, TracedAdamW([p], lr=0.01, optim_bits=32, is_paged=True)

    def step(p: Any, opt: Any) -> None:
        p.grad = torch.sin(p.detach())
        opt.step()

    p, first = optimizer()
    step(p, first)
    facts["managed after a step"] = managed_bytes()
    saved = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in first.state[p].items()}
    q, second = optimizer()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        q.copy_(p)
    loaded = second.state[q]
    assert torch.equal(loaded["state1"].cpu(), saved["state1"].cpu()), "The loaded state is another one."
    step(p, first)
    step(q, second)
    assert torch.equal(p, q), "The optimizer that was resumed goes another way."
    facts["managed after loading and a step"] = managed_bytes()
    for key in ("state1", "state2"):
        assert getattr(loaded[key], "is_paged", False), f"{key} is not paged again after loading."


def test_memory(facts: Facts) -> None:
    """Out of memory on the GPU has its own ending, and the process can go on."""
    import torch

    from workbench.training.watch.endings import ending_of

    fraction = 0.1
    torch.cuda.set_per_process_memory_fraction(fraction)
    limit = int(torch.cuda.get_device_properties(0).total_memory * fraction)
    try:
        torch.empty(2 * limit, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError as error:
        ending = ending_of(error, {"step": 7, "longest": 480})
    else:
        raise AssertionError("An allocation beyond the limit went through.")
    facts |= {"kind": ending.kind, "message": ending.message, "remedy": ending.remedy}
    assert ending.kind == "out_of_memory", "It has another ending."
    assert "The GPU ran out of memory at step 7" in ending.message, "It has another ending."
    assert int(torch.ones(1024, device="cuda").sum()) == 1024, "The device does not work any more."
