"""A survey of a synthetic Llama checkpoint beside safetensors + bitsandbytes: ``python benchmarks/survey.py [--size GiB]``.

The checkpoint (4 GiB of bfloat16 by default) is made in a temporary folder from one block of random weights written
again and again, and deleted at the end. Everything runs with the page cache warm, in turns; times are medians, and ratios are
what to quote. The peer reads each tensor with safe_open and does what a user would write today: bitsandbytes' round trip and
the same statistics in torch, kurtosis included. It is given one layer only, and compared by the byte.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from engine import peer
from safetensors import safe_open

import workbench as wb
from workbench.kernels import pool

HIDDEN, INNER, KEYS = 4096, 11008, 1024
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INNER, HIDDEN), "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}  # fmt: skip
MEMORY = """
import sys, workbench as wb
def memory(of):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(of)) / 1024
folder, small = sys.argv[1:]
wb.survey(folder, wb.QuantSpec(), [small], progress=False).run()
base = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
survey = wb.survey(folder, wb.QuantSpec(), progress=False).run()
assert survey.done and not survey.errors
print(base, memory("VmHWM") - base)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=float, default=4.0, help="GiB of the checkpoint")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="workbench-benchmark-") as folder:
        free = shutil.disk_usage(folder).free
        if free < 1.2 * args.size * 2**30:
            sys.exit(f"{folder} has {free / 2**30:.1f} GiB free; {args.size:g} are needed: set TMPDIR, or give --size.")
        compare(Path(folder), make(Path(folder), args.size), args.repeat)


def make(folder: Path, size: float) -> list[str]:
    """Writes a checkpoint of at least ``size`` GiB; returns the names of the first layer's tensors."""
    header: dict[str, object] = {}
    at = layer = 0
    while at < size * 2**30:
        for part, shape in SHAPES.items():
            nbytes = 2 * shape[0] * shape[1]
            header[f"model.layers.{layer}.{part}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + nbytes]}
            at += nbytes
        layer += 1
    text = json.dumps(header).encode()
    block = (np.random.default_rng(0).standard_t(5, 30_000_000).astype(np.float32) * 0.02).astype(ml_dtypes.bfloat16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, at, len(block)):
            file.write(block[: at - start])
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return list(header)[: len(SHAPES)]


def compare(folder: Path, layer: list[str], repeat: int) -> None:
    torch.set_num_threads(pool.threads())
    source = wb.open_model(folder)
    nf4, int4, doubled = wb.QuantSpec("nf4"), wb.QuantSpec("int4"), wb.QuantSpec("nf4", double_quant=True)
    sizes = {info.name: info.nbytes for info in source.tensors()}
    total, part = sum(sizes.values()), sum(sizes[name] for name in layer)
    path = folder / "model.safetensors"
    runs: dict[str, tuple[int, Callable[[], wb.Survey | None]]] = {
        "reading alone (preadv, one thread)": (total, lambda: read(path)),
        "wb.survey, NF4": (total, lambda: wb.survey(source, nf4, progress=False).run()),
        "NF4 and INT4 together": (total, lambda: wb.survey(source, [nf4, int4], progress=False).run()),
        "NF4 double quantized (reads twice)": (total, lambda: wb.survey(source, doubled, progress=False).run()),
        "safetensors + bitsandbytes + torch": (part, lambda: by_hand(path, layer)),
    }
    wb.survey(source, [nf4, int4, doubled], layer[:1], progress=False).run()
    check(wb.survey(source, nf4, layer, progress=False), by_hand(path, layer))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, (_, work) in runs.items():
            began = time.perf_counter()
            done = work()
            seconds[name].append(time.perf_counter() - began)
            if name == "wb.survey, NF4":
                survey = done
    rate = {name: nbytes / statistics.median(seconds[name]) / 1e9 for name, (nbytes, _) in runs.items()}
    theirs = rate["safetensors + bitsandbytes + torch"]
    print(f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {pool.threads()} threads")
    print(f"{len(sizes)} tensors, {total / 2**30:.1f} GiB of bfloat16, page cache warm; {part / 2**30:.1f} GiB for the peer")
    print(f"{'':36}{'s':>8}{'GB/s':>8}{'times the peer':>16}")
    for name, (nbytes, _) in runs.items():
        print(f"{name:36}{nbytes / rate[name] / 1e9:8.2f}{rate[name]:8.2f}{rate[name] / theirs:16.1f}")
    assert survey is not None
    print(
        f"the survey's last run: reading {survey.seconds_reading:.2f} s on a thread of its own, beside computing "
        f"{survey.seconds_computing:.2f} s"
    )
    if Path("/proc/self/clear_refs").exists():  # Linux reports and resets a process's peak memory
        fresh = [sys.executable, "-c", MEMORY, folder, layer[1]]
        base, more = map(float, subprocess.run(fresh, capture_output=True, text=True, check=True).stdout.split())
        print(f"memory at its peak {more:.0f} MB over the {base:.0f} MB of a process with its libraries and kernels loaded")


def read(path: Path) -> None:
    """The whole file through one buffer."""
    buffer = memoryview(bytearray(8 << 20))
    descriptor, at = os.open(path, os.O_RDONLY), 0
    while got := os.preadv(descriptor, [buffer], at):
        at += got
    os.close(descriptor)


def by_hand(path: Path, names: list[str]) -> dict[str, tuple[float, float, list[int]]]:
    """Tensor name → RMSE, kurtosis and occupancy, among the other statistics that ``peer`` computes."""
    found = {}
    with safe_open(path, "pt") as file:
        for name in names:
            x = file.get_tensor(name)
            *_, codes, rmse, _ = peer(x)
            squares = (x.float() - x.float().mean()).square()
            kurtosis = squares.square().mean() / squares.mean().square()
            found[name] = (float(rmse), float(kurtosis), codes.tolist())
    return found


def check(survey: wb.Survey, expected: dict[str, tuple[float, float, list[int]]]) -> None:
    """Both compute the same."""
    for row in survey:
        rmse, kurtosis, codes = expected[row.tensor.name]
        np.testing.assert_allclose((row.totals[0].rmse, row.kurtosis), (rmse, kurtosis), rtol=1e-3)
        assert row.totals[0].occupancy.tolist() == codes


if __name__ == "__main__":
    main()
