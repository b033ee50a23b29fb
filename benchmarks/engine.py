"""The engine beside bitsandbytes, on one 4096 × 11008 bfloat16 matrix, in one process: ``python benchmarks/engine.py``.

Times are medians of interleaved repetitions; ratios are what to quote, since absolute times drift with the machine. The peer
does what a user would write today: quantize, dequantize, and the same statistics in torch.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import workbench as wb  # before bitsandbytes, which would ask the Hub for code as it is imported

# isort: split
import bitsandbytes.functional as bnb
import ml_dtypes
import numpy as np
import torch

from workbench.kernels import pool
from workbench.quant.histogram import histogram

PEER = "bitsandbytes + torch"


def peer(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """bitsandbytes' round trip at block 64 and every statistic that ``wb.measure`` gives."""
    packed, state = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4")
    error = (x.float() - bnb.dequantize_4bit(packed, state).float()).view(-1, 64)
    square, magnitude = error.square(), error.abs()
    codes = torch.bincount(torch.cat([packed >> 4, packed & 15]).view(-1), minlength=16)
    rms = x.float().square().mean().sqrt()
    return (square.mean(1).sqrt(), magnitude.mean(1), magnitude.amax(1), state.absmax, codes, square.mean().sqrt(), rms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    x = (np.random.default_rng(0).standard_normal((args.rows, 11008), np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    tensor = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    nf4, int4, doubled = wb.QuantSpec("nf4"), wb.QuantSpec("int4"), wb.QuantSpec("nf4", double_quant=True)
    sizes = [wb.QuantSpec("nf4", size) for size in (32, 64, 128, 256, 512, 1024, 2048, 4096)]
    cores = pool.threads()
    torch.set_num_threads(cores)
    others = [wb.QuantSpec(name) for name in ("int8", "int4-asym", "mxfp4", "nvfp4", "iq4_nl")]

    wb.measure(x[:1], [nf4, *others])
    tracemalloc.start()
    stats = wb.measure(x, nf4)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    block_rmse, _, block_max, absmax, codes, rmse, _ = peer(tensor)
    assert np.array_equal(codes.numpy(), stats.occupancy)
    assert np.array_equal(absmax.numpy(), stats.block_absmax)
    np.testing.assert_allclose(block_rmse.numpy(), stats.block_rmse, rtol=0.02)
    np.testing.assert_allclose(float(rmse), stats.rmse, rtol=1e-3)
    assert block_max.numel() == stats.block_max.size

    rows: dict[str, Callable[[], object]] = {
        f"wb.measure, {cores} threads": lambda: wb.measure(x, nf4),
        "wb.measure, 1 thread": lambda: _alone(lambda: wb.measure(x, nf4)),
        "with double quantization": lambda: wb.measure(x, doubled),
        "a further format": lambda: wb.measure(x, [nf4, int4]),
        "eight block sizes": lambda: wb.measure(x, sizes),
        "a sample of 1/16": lambda: wb.measure(x, nf4, sample=1 / 16),
        "histogram": lambda: histogram(x),
        "wb.quantize": lambda: wb.quantize(x, nf4),
    }
    rows |= {spec.title: partial(wb.measure, x, spec) for spec in others}
    times: dict[str, list[float]] = {PEER: [], **{name: [] for name in rows}}
    for _ in range(args.repeat):
        times[PEER].append(_seconds(lambda: peer(tensor)))
        wb.measure(x, nf4)  # torch's threads go on spinning for a while after their work
        for _ in range(3):
            for name, work in rows.items():
                times[name].append(_seconds(work))
    median = {name: statistics.median(values) for name, values in times.items()}
    # Taken off repetition by repetition: the machine's pace changes less between neighbours than over the run.
    alone, together = times[f"wb.measure, {cores} threads"], times["a further format"]
    median["a further format"] = statistics.median(two - one for one, two in zip(alone, together, strict=True))
    single = median[f"wb.measure, {cores} threads"]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    print(f"{machine}; {x.shape} bfloat16, NF4, block 64")
    print(_fresh_process())
    print(f"memory of one measurement at its peak {peak:.0f} MB, beside an input of {x.nbytes / 2**20:.0f} MB")
    print(f"{'':28}{'ms':>9}{'peer / this':>14}{'this / one pass':>18}")
    for name, value in median.items():
        print(f"{name:28}{1e3 * value:9.1f}{median[PEER] / value:14.1f}{value / single:18.2f}")


def _fresh_process() -> str:
    """Seconds that a new process takes, the kernels compiled before."""
    script = """
import time
t = [time.perf_counter()]
import workbench as wb
t.append(time.perf_counter())
import numba, numpy as np
t.append(time.perf_counter())
wb.measure(np.ones(4096, np.float32), wb.QuantSpec("nf4"))
t.append(time.perf_counter())
print(*(b - a for a, b in zip(t, t[1:])))
"""
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout for _ in range(4)]
    package, numba, first = (
        statistics.median(column) for column in zip(*(map(float, run.split()) for run in runs[1:]), strict=True)
    )
    return f"a fresh process: import workbench {package:.3f} s, numba and numpy {numba:.2f} s, first measurement {first:.2f} s"


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _alone(work: Callable[[], object]) -> None:
    pool.set_threads(1)
    work()
    pool.set_threads(0)


if __name__ == "__main__":
    main()
