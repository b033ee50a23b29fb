"""How QLoRA's adapters may begin, in a race on the same rows: ``python benchmarks/beginnings.py [--model FOLDER] [--steps N]``.

The usual beginning (a product of zero), LoftQ, PiSSA and EVA, each in a run of its own that differs by nothing else: same rows,
same seed, same rate, and alpha = r, as LoftQ needs it. Of each, on the same held-out rows, what ``wb.repairs`` measures: before
the first step the median of the modules' output errors, and the model's KL divergence from 16 bits; the loss then, and after
the last step. It times nothing, and what it prints drifts with no machine's load.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from pathlib import Path

import workbench as wb

BEGINNINGS: dict[str, bool | str] = {"usual": True, "LoftQ": "loftq", "PiSSA": "pissa", "EVA": "eva"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, default=32, help="held-out ones that are measured on")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-4)
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores; {args.model}, {args.steps} steps, rank {args.rank}, rate {args.rate}")
    print(f"{'beginning':9}  {'output error':>12}  {'KL':>7}  {'95 % interval':>17}  {'loss':>7}  {'loss after':>10}")
    with tempfile.TemporaryDirectory(prefix="workbench-benchmark-") as name:
        for title, begin in BEGINNINGS.items():
            config = wb.TrainConfig(
                model=args.model, init_lora_weights=begin, lora_r=args.rank, lora_alpha=args.rank, max_steps=args.steps,
                learning_rate=args.rate, save_steps=0, max_eval_rows=args.rows, max_length=128, sample_prompts=(),
            )  # fmt: skip
            run = wb.launch(config, Path(name) / title)
            assert run.wait().state == "finished", run.status
            found = wb.repairs(run, max_rows=args.rows).run()
            first, last = found.models[0], found.models[-1]
            begun = 0 in found.steps  # with a product that is not zero
            errors = (row.error_adapted if begun else row.error_base for row in found.rows if row.step == min(found.steps))
            low, high = first.kl_interval
            print(
                f"{title:9}  {statistics.median(errors):12.2%}  {first.kl:7.4f}  {f'{low:.4f} … {high:.4f}':>17}  "
                f"{first.loss:7.4f}  {last.loss:10.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
