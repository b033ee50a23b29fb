"""What the operating system knows of processes and of the machine: the one reader of /proc. Imports no torch.

Covers a process's memory and faults, its identity over time, what it has mapped, and the kernel's count of processes killed for
want of memory. Does not interpret any of it, and records nothing.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

MAPS, VMSTAT = Path("/proc/self/maps"), Path("/proc/vmstat")
_SAME = 0.005  # seconds: half of the kernel's tick


def host_counters(pid: int | None = None) -> dict[str, int | None]:
    """``rss`` in bytes, and minor and major page faults since the process began; {} if it is gone or not yet begun.

    These are the operating system's faults on host memory, not GPU paging. On systems without /proc another process's faults
    are not known: None.
    """
    own = pid is None or pid == os.getpid()
    try:
        if Path("/proc/self/statm").exists():
            folder = f"/proc/{'self' if own else pid}"
            rss = int(Path(folder, "statm").read_bytes().split()[1]) * resource.getpagesize()
            fields = _stat(folder)
            return {"rss": rss, "minflt": int(fields[7]), "majflt": int(fields[9])} if rss else {}
        rss = psutil.Process(pid).memory_info().rss
    except (OSError, psutil.Error, IndexError, ValueError):
        return {}
    usage = resource.getrusage(resource.RUSAGE_SELF) if own else None
    return {"rss": rss, "minflt": usage.ru_minflt if usage else None, "majflt": usage.ru_majflt if usage else None}


def _stat(folder: str) -> list[bytes]:
    """The fields of proc_pid_stat(5) after the name, which may hold spaces: the first of them is field 3."""
    return Path(folder, "stat").read_bytes().rpartition(b")")[2].split()


def peak_rss() -> int:
    """The most resident memory this program had, in bytes. ``getrusage`` would count what the process was before it."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def mappings(maps: Path = MAPS) -> Iterator[tuple[str, str]]:
    """Permissions (as ``r-xp``: p is private, s shared) and path of every file that this process has mapped.

    Raises OSError where there is no such list.
    """
    for line in maps.read_text("utf-8", "replace").splitlines():
        _, permissions, *_, path = [*line.split(maxsplit=5), ""][:6]
        if path:
            yield permissions, path


def oom_kills(vmstat: Path = VMSTAT) -> int | None:
    """Processes that Linux has killed for want of memory since it started, in containers too; None where it has no count."""
    try:
        lines = vmstat.read_text("ascii").splitlines()
    except (OSError, ValueError):
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def create_time(pid: int) -> float | None:
    """When the process began, in seconds; None if there is none, or only its zombie.

    Comparable only with itself. On Linux it is the kernel's own count since the machine started, which no setting of the
    clock changes (psutil's seconds since the epoch move with the clock).
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if Path(f"/proc/{pid}/stat").exists():  # field 22
            return int(_stat(f"/proc/{pid}")[19]) / os.sysconf("SC_CLK_TCK")
        return float(process.create_time())
    except (psutil.Error, OSError, IndexError, ValueError):
        return None


def alive(pid: int | None, began: float | None) -> bool:
    """Whether this very process lives: a later process that was given the same pid began at another time."""
    now = create_time(pid) if pid is not None else None
    return now is not None and began is not None and abs(now - began) < _SAME
