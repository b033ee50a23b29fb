"""What the ranks of a run exchange: whether all stop now, that a file is written, and their sums. Worker only.

Covers data parallelism on one machine (DDP: gloo on CPUs, NCCL on GPUs [not yet run on several GPUs]), as torchrun's
environment describes it. Everything here is a no-op for a run of one process, and before the process group is there. The
gradients are Trainer's and DDP's own business.
"""

from __future__ import annotations

import math
import os

import torch
import torch.distributed as dist

_ASKED = (None, "pause", "stop")


def rank() -> int:
    """This process's number in the run; rank 0 reports, saves and measures."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Its number on this machine, which is also its GPU's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def agreed(asked: str | None) -> str | None:
    """The same answer on every rank: the strongest of what each has seen (stop before pause). All ranks must call it."""
    if not _together():
        return asked
    strongest = _tensor([_ASKED.index(asked)])
    dist.all_reduce(strongest, dist.ReduceOp.MAX)
    return _ASKED[int(strongest[0])]


def summed(values: list[int], largest: int) -> tuple[list[int], int]:
    """(sums, largest) over all ranks. All ranks must call it."""
    if not _together():
        return values, largest
    sums, most = _tensor(values), _tensor([largest])
    dist.all_reduce(sums)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return [int(value) for value in sums], int(most[0])


def from_first(value: float | None) -> float | None:
    """What rank 0 has, on every rank, to the last bit. All ranks must call it."""
    if not _together():
        return value
    held = _tensor([math.nan if value is None else value], torch.float64)
    dist.broadcast(held, 0)
    found = float(held[0])
    return None if math.isnan(found) else found


def wait() -> None:
    """Waits for the other ranks. All ranks must call it."""
    if _together():
        dist.barrier()


def _together() -> bool:
    return world_size() > 1 and dist.is_initialized()


def _tensor(values: list[int] | list[float], dtype: torch.dtype = torch.int64) -> torch.Tensor:
    device = torch.device("cuda", local_rank()) if dist.get_backend() == "nccl" else torch.device("cpu")
    return torch.tensor(values, dtype=dtype, device=device)
