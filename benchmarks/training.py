"""What watching a run costs: ``python benchmarks/training.py [--model FOLDER | --smollm2] [--steps N]``.

1. Beside plain code. The cell that "Copy as code" writes (transformers, peft and bitsandbytes alone) and ``wb.launch`` train
   the same from the same seed, in turns, each in a fresh process. Losses must be equal, step by step; the time of a step is
   the median distance between the ends of two.
2. The instrumentation by itself: sampler, collectors, accounting and step events switched on and off on alternate short
   stretches of steps of one run, in the order on-off, off-on, so that a machine which slows down or speeds up slows both.
   The ratio is the median over pairs of neighbouring stretches, with a 95 % bootstrap interval; its upper end is to stay
   below 1.03.
3. The lean ways. The defaults beside peft's preparation and whole logits, on rows of one length, in turns: what the memory
   that they save costs in time. The aim is 1.02 at most.
4. Lengths. One pass over rows of skewed lengths: real tokens a second of plain code with rows at random, and of
   ``wb.launch`` with rows at random, grouped by length, and packed. The aim is twice the plain code's with the defaults.

In 1 to 3 all rows are cut to one length, so that steps differ by nothing but noise. On a busy machine the intervals widen;
ratios are what to quote.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import workbench as wb
from tests.helpers.stretches import ratio_of
from workbench.training.folder import RunFolder, write_json

# As the supervisor sets them for a worker: for the plain code too, and for the worker in this process, before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

AIM = 1.03
WARM_UP = 8
SMOLLM2 = Path(".models/SmolLM2-135M-Instruct")
CLOCK = """
import json, sys, time
import transformers

class Clock(transformers.TrainerCallback):
    ends = []
    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.ends.append(time.monotonic_ns())

cell = open(sys.argv[1], encoding="utf-8").read()
assert cell.count("trainer.train()") == 1
exec(compile(cell.replace("trainer.train()", "trainer.add_callback(Clock())\\ntrainer.train()"), "cell", "exec"))
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
json.dump({"losses": losses, "ends": Clock.ends}, open(sys.argv[2], "w"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--smollm2", action="store_true", help=f"the model that `make smollm2` puts in {SMOLLM2}, or SMOLLM2")
    parser.add_argument("--steps", type=int, default=240, help="of the run with the switch, at least 200")
    parser.add_argument("--stretch", type=int, default=4, help="steps between two switches; 1 where a step takes seconds")
    parser.add_argument("--plain-steps", type=int, default=25, help="of each run beside plain code")
    parser.add_argument("--lean-steps", type=int, default=40, help="of each run beside the ways that take more memory")
    parser.add_argument("--repeat", type=int, default=2, help="pairs of runs beside plain code, and beside those ways")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64, help="tokens of each row")
    parser.add_argument("--rows", type=int, default=192, help="of skewed lengths; 0: leave the third part out")
    args = parser.parse_args()
    model = os.environ.get("SMOLLM2", str(SMOLLM2)) if args.smollm2 else args.model
    if args.steps < 200:
        print(f"{args.steps} steps: too few to quote; 200 are the least.")
    with tempfile.TemporaryDirectory(prefix="workbench-benchmark-") as name:
        folder = Path(name)
        config = wb.TrainConfig(
            model=model, dataset=str(rows(folder / "rows.jsonl", args.length)), text_column="text", max_length=args.length,
            per_device_train_batch_size=args.batch, max_steps=args.plain_steps or 1, save_steps=0, max_eval_rows=0,
            sample_prompts=(), learning_rate=1e-3, lr_scheduler_type="constant",
        )  # fmt: skip
        print(f"{platform.machine()}, {os.cpu_count()} cores; {model}, {args.batch} rows of {args.length} tokens, QLoRA")
        if args.plain_steps:
            beside_plain_code(config, folder, args.repeat)
        if args.steps:
            switched(wb.TrainConfig.from_dict({**config.to_dict(), "max_steps": args.steps}), folder / "switched", args.stretch)
        if args.lean_steps:
            lean_ways(wb.TrainConfig.from_dict({**config.to_dict(), "max_steps": args.lean_steps}), folder, args.repeat)
        if args.rows:
            skewed = {"dataset": str(skewed_rows(folder / "skewed.jsonl", args.rows)), "max_length": 512, "max_steps": -1}
            shape = {"num_train_epochs": 1.0, "per_device_train_batch_size": 8}
            by_lengths(wb.TrainConfig.from_dict({**config.to_dict(), **skewed, **shape}), folder)


def rows(path: Path, length: int) -> Path:
    """A dataset whose rows all have more tokens than ``length``: the embedded one's, several to a row."""
    source = Path(wb.__file__).parent / "builtin" / "data" / "train.jsonl"
    texts = [json.loads(line)["text"] for line in source.read_text("utf-8").splitlines()]
    together = max(length // 4, 1)  # no entry has fewer than four tokens
    joined = ("\n".join((texts * 2)[i : i + together]) for i in range(len(texts)))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in joined), "utf-8")
    return path


def skewed_rows(path: Path, count: int) -> Path:
    """A dataset whose rows are some short and few long: as many of the embedded one's entries together as chance has it."""
    source = Path(wb.__file__).parent / "builtin" / "data" / "train.jsonl"
    texts = iter([json.loads(line)["text"] for line in source.read_text("utf-8").splitlines()] * 4)
    together = np.random.default_rng(0).lognormal(0.7, 0.9, count).clip(1, 14).astype(int)
    joined = ["\n".join(next(texts) for _ in range(n)) for n in together]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in joined), "utf-8")
    return path


def by_lengths(config: wb.TrainConfig, folder: Path) -> None:
    """Real tokens a second over one pass, the first step left out, each way of batching in a run of its own.

    Rows at random have all their logits at once, as plain code has, so that the losses are equal.
    """
    ways = {"at random": {"group_by_length": False, "logits_at_once": 0}, "grouped by length": {}, "packed": {"packing": True}}
    plain, padding = 0.0, {}
    for way, fields in ways.items():
        chosen = wb.TrainConfig.from_dict({**config.to_dict(), **fields})
        run = wb.launch(chosen, folder / way)
        assert run.wait().state == "finished", run.status
        steps = [event for event in run.events() if event["k"] == "step"]
        tokens = sum(step["tokens"] for step in steps[1:])
        padding[way] = sum(step["padded"] for step in steps) / sum(step["padded"] + step["tokens"] for step in steps)
        if not plain:
            (folder / "cell.py").write_text(wb.as_code(chosen), "utf-8")
            (folder / "clock.py").write_text(CLOCK, "utf-8")
            alone = _plain(folder, 0)
            assert [step["loss"] for step in steps] == alone["losses"], "the losses are not the same"
            plain = tokens / (alone["ends"][-1] - alone["ends"][0]) * 1e9
            print(f"skewed rows, plain code, at random: {plain:,.0f} real tokens a second")
        speed = tokens / (steps[-1]["t"] - steps[0]["t"]) * 1e9
        print(
            f"skewed rows, wb.launch, {way}: {speed:,.0f} real tokens a second, {speed / plain:.2f} × plain code's, "
            f"{100 * padding[way]:.0f} % padding"
        )


def lean_ways(config: wb.TrainConfig, folder: Path, repeat: int) -> None:
    """Steps with the defaults, beside steps that take the memory which the defaults save."""
    former = {"upcast_to_fp32": True, "logits_at_once": 0, "group_by_length": False}
    ratios = []
    for i in range(repeat):
        seconds = {}
        for way, fields in ("former", former), ("lean", {}):
            run = wb.launch(wb.TrainConfig.from_dict({**config.to_dict(), **fields}), folder / f"{way}-{i}")
            assert run.wait().state == "finished", run.status
            seconds[way] = _between([event["t"] for event in run.events() if event["k"] == "step"])
        ratios.append(seconds["lean"] / seconds["former"])
        former_ms, lean_ms = 1e3 * seconds["former"], 1e3 * seconds["lean"]
        print(f"a step: whole logits {former_ms:.1f} ms, lean {lean_ms:.1f} ms, ratio {ratios[-1]:.3f}")
    print(f"lean ways beside those that take more memory: ratio {statistics.median(ratios):.3f} (median of {repeat})")


def beside_plain_code(config: wb.TrainConfig, folder: Path, repeat: int) -> None:
    (folder / "cell.py").write_text(wb.as_code(config), "utf-8")
    (folder / "clock.py").write_text(CLOCK, "utf-8")
    ratios = []
    for i in range(repeat):
        plain = _plain(folder, i)
        run = wb.launch(config, folder / f"run-{i}")
        status = run.wait()
        assert status.state == "finished", status
        steps = [event for event in run.events() if event["k"] == "step"]
        assert [step["loss"] for step in steps] == plain["losses"], "the losses are not the same"
        seconds = [_between(plain["ends"]), _between([step["t"] for step in steps])]
        ratios.append(seconds[1] / seconds[0])
        print(f"a step: plain code {1e3 * seconds[0]:.1f} ms, wb.launch {1e3 * seconds[1]:.1f} ms, ratio {ratios[-1]:.3f}")
    print(f"beside plain code, {config.max_steps} equal losses: ratio {statistics.median(ratios):.3f} (median of {repeat})")


def _plain(folder: Path, i: int) -> dict[str, Any]:
    out = folder / f"plain-{i}.json"
    command = [sys.executable, str(folder / "clock.py"), str(folder / "cell.py"), str(out)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    found: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return found


def _between(ends: list[int]) -> float:
    """Median seconds between the ends of two steps, the first few left out."""
    return float(np.median(np.diff(ends)[3:])) / 1e9


def switched(config: wb.TrainConfig, root: Path, stretch: int) -> None:
    times = _train_switched(config, root, stretch)  # (steps, 2): on, seconds
    on, seconds = times[WARM_UP:, 0], times[WARM_UP:, 1]
    whole = len(on) // (2 * stretch) * 2 * stretch
    medians = np.median(seconds[:whole].reshape(-1, 2, stretch), axis=2)  # (pairs, 2): in order of time
    first_on = on[:whole].reshape(-1, 2, stretch)[:, 0, 0] == 1
    pairs = np.where(first_on[:, None], medians, medians[:, ::-1])  # (pairs, 2): on, off
    ratio, low, high = ratio_of([[with_it] for with_it, _ in pairs], [[without] for _, without in pairs], 10_000)
    step = 1e3 * float(np.median(seconds))
    print(
        f"instrumentation on / off: {ratio:.4f} [{low:.4f}, {high:.4f}], {whole} steps of {step:.1f} ms in "
        f"{len(pairs)} pairs of stretches; upper bound {'within' if high <= AIM else 'above'} {AIM}"
    )


def _train_switched(config: wb.TrainConfig, root: Path, length: int) -> Any:
    """Runs the worker in this process; (steps, 2): whether the instrumentation was on, and seconds from begin to begin."""
    from workbench.training.worker import trainer
    from workbench.training.worker.worker import Worker

    begun: list[tuple[float, float]] = []
    state = {"on": True}

    class Switched(trainer.Steering):
        """Flips the switch where a stretch ends; off, it writes no events and watches nothing."""

        def on_step_begin(self, args: Any, progress: Any, control: Any, **kwargs: Any) -> None:
            begun.append((time.perf_counter(), float(state["on"])))
            stretch, within = divmod(max(progress.global_step - WARM_UP, 0), length)
            if within == 0:
                state["on"] = stretch % 4 in (0, 3)  # on off, off on
                begun[-1] = begun[-1][0], float(state["on"])
            if state["on"]:
                super().on_step_begin(args, progress, control, **kwargs)

    class Quiet(trainer.TracedTrainer):
        """While off, it does what transformers' own trainer does."""

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            return (super() if state["on"] else super(trainer.TracedTrainer, self)).training_step(*args, **kwargs)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return (super() if state["on"] else super(trainer.TracedTrainer, self)).compute_loss(*args, **kwargs)

    def only_on(method: Any) -> Any:
        return lambda *args, **kwargs: method(*args, **kwargs) if state["on"] else None

    for name in ("on_optimizer_step", "on_substep_end", "on_step_end", "on_log"):
        setattr(Switched, name, only_on(getattr(trainer.Steering, name)))
    trainer.Steering, trainer.TracedTrainer = Switched, Quiet
    folder = RunFolder(root)
    write_json(folder.config, config.to_dict())
    folder.control.mkdir()
    worker = Worker(folder, 1, os.getppid())
    worker.sampler.sample = only_on(worker.sampler.sample)
    with folder.log.open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        code = worker.run()
    assert code == 0, folder.events("rank0").read_text("utf-8")[-2000:]
    at, on = np.array(begun).T
    return np.stack([on[:-1], np.diff(at)], axis=1)


if __name__ == "__main__":
    main()
