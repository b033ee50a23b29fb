"""One method's run as a row of a comparison: losses, time, memory, what was trained, what it left on disk.

Covers reading that from a run's folder, whatever became of the run. Running them is ``methods``' part. Imports no torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.footprint import Plan, loaded, trained
from workbench.receipt_meter import receipt
from workbench.receipts import OF_TRAINING, SAVED, WEIGHTS, Receipt
from workbench.sources import open_model
from workbench.sources.packed import as_loaded
from workbench.training.config import TrainConfig
from workbench.training.events import Event
from workbench.training.runs import Run

Curve = tuple[tuple[int, float], ...]
"""(step, nats a token), in the order of the steps."""


@dataclass(frozen=True)
class MethodResult:
    """What one method came to: measured on the machine that trained; ``trained`` and ``parameters`` are counted."""

    method: str
    """``"full"``, ``"lora"`` or ``"qlora"``."""
    config: TrainConfig
    run_dir: Path
    """The run's folder, for ``wb.attach``."""
    state: str
    """As ``RunStatus.state``: ``"finished"``, or how else it ended; ``"refused"``: it could not be launched."""
    message: str
    """How it came to that state; with ``remedy``, what to do."""
    remedy: str
    losses: Curve
    """Training loss of each step."""
    held_out: Curve
    """Held-out loss where it was measured; the first at step 0, before training. Empty without held-out rows."""
    seconds_per_step: float | None
    """Median over the steps: forward, backward and optimizer, without checkpoints and evaluations."""
    seconds: float
    """The whole run on the clock, imports, loading and evaluations included, pauses between attempts left out."""
    receipt: Receipt
    """Every byte by category."""
    trained: int
    """Parameters that are trained."""
    parameters: int
    """The model's own parameters, without adapters."""
    saved_bytes: int | None
    """Bytes of the weights that the run left: of its adapter, or of the whole model. None where it left none."""

    @property
    def loss_before(self) -> float | None:
        """Held-out loss before training, of the model as the method holds it: with ``"qlora"`` in 4 bits."""
        return self.held_out[0][1] if self.held_out and self.held_out[0][0] == 0 else None

    @property
    def loss_after(self) -> float | None:
        """Held-out loss once all steps are done; None of a run that has not done them."""
        return self.held_out[-1][1] if self.state == "finished" and self.held_out else None

    @property
    def share(self) -> float:
        """Trained parameters as a share of the model's own: 1 with ``"full"``."""
        return self.trained / self.parameters

    @property
    def tensor_bytes(self) -> int | None:
        """Measured bytes of tensors at the peak: weights, adapters, gradients, optimizer state, activations.

        None before a step was measured. Interpreter and libraries, the same for each method, are not in it.
        """
        kept = [row.measured for row in self.receipt.rows if row.category in (*WEIGHTS, *OF_TRAINING, *SAVED)]
        return sum(size or 0 for size in kept) if self.receipt.step else None

    @property
    def peak_bytes(self) -> int | None:
        """The whole at its peak: of the process on the GPU, or on a CPU its resident memory."""
        return self.receipt.total

    def to_dict(self) -> dict[str, Any]:
        """The line of ``MethodComparison.to_frame``."""
        names = (
            "method", "state", "loss_before", "loss_after", "seconds_per_step", "seconds", "tensor_bytes", "peak_bytes",
            "trained", "share", "saved_bytes",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def result_of(run: Run, config: TrainConfig) -> MethodResult:
    """What the run came to so far."""
    status, events = run.status, run.events()
    return _result(config, run.dir, (status.state, status.message, status.remedy), events, receipt(run), _saved(run))


def refused(config: TrainConfig, run_dir: Path, message: str, remedy: str) -> MethodResult:
    """The row of a method that could not be launched."""
    from workbench.receipt_meter import ReceiptMeter

    return _result(config, run_dir, ("refused", message, remedy), [], ReceiptMeter().receipt(), None)


def _result(
    config: TrainConfig, run_dir: Path, ended: tuple[str, str, str], events: list[Event], memory: Receipt, saved: int | None
) -> MethodResult:
    steps = {event["n"]: event for event in events if event["k"] == "step"}  # of a step taken twice, the later attempt's
    evals = {event["n"]: float(event["loss"]) for event in events if event["k"] == "eval" and event["loss"] is not None}
    losses = {n: float(event["loss"]) for n, event in steps.items() if event["loss"] is not None}
    took = [float(event["seconds"]) for event in steps.values()]
    source = open_model(config.model)
    tensors = as_loaded(source)[0]
    return MethodResult(
        config.method, config, run_dir, *ended, tuple(sorted(losses.items())), tuple(sorted(evals.items())),
        statistics.median(took) if took else None, _seconds(events), memory,
        sum(trained(tensors, Plan.of(config, "cpu"), source.config).values()), sum(t.numel for t in loaded(tensors)), saved,
    )  # fmt: skip


def _seconds(events: Iterable[Event]) -> float:
    spans: dict[int, tuple[int, int]] = {}
    for event in events:
        first, last = spans.get(event["attempt"], (event["t"], event["t"]))
        spans[event["attempt"]] = min(first, event["t"]), max(last, event["t"])
    return sum(last - first for first, last in spans.values()) / 1e9


def _saved(run: Run) -> int | None:
    folder = run.adapter_dir or run.model_dir
    return None if folder is None else sum(path.stat().st_size for path in folder.glob("*.safetensors"))
