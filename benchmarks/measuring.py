"""How long a second measurement takes: ``python benchmarks/measuring.py [--model FOLDER] [--pairs N]``.

``wb.evaluate`` of one format on few rows, its process forked from one with torch and transformers loaded, and started anew, in
turn; each time the whole of it on the clock, into a folder of its own. The first measurement, which loads the libraries for the
others, is not counted.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time

import workbench as wb
from workbench.cost import fork_server


def seconds(model: str, forked: bool) -> float:
    """Seconds of one measurement."""
    fork_server.devices = lambda: int(not forked)  # beside a GPU it would start anew
    began = time.perf_counter()
    wb.evaluate(model, ["nf4"], max_rows=4).run()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    seconds(args.model, True)
    pairs = [(seconds(args.model, True), seconds(args.model, False)) for _ in range(args.pairs)]
    ratios = sorted(anew / forked for forked, anew in pairs)
    forked, anew = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{platform.machine()}, {os.cpu_count()} cores; {args.model}: forked {forked:.2f} s, started anew {anew:.2f} s")
    print(f"started anew takes {statistics.median(ratios):.2f} times as long, from {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
