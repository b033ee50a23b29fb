"""What a method of training came to, gathered from its run's folder.

Covers the curves, the receipt, the counts, and what its base costs by itself. Training and comparing are ``methods``' part.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.cost.row_costs import RowCosts
from workbench.memory.footprint import Plan, loaded, trained
from workbench.memory.ledger import OF_TRAINING, SAVED, WEIGHTS
from workbench.show import Line, Record
from workbench.sources import open_model
from workbench.sources.packed import as_loaded
from workbench.text import NONE, known_amount, known_memory_size, nats, percent
from workbench.training.config import TrainConfig
from workbench.training.events import Event
from workbench.training.results.receipt_meter import ReceiptMeter, receipt
from workbench.training.results.receipts import Receipt
from workbench.training.runs import Run

Curve = tuple[tuple[int, float], ...]
"""(step, nats a token), in the order of the steps."""


@dataclass(frozen=True, repr=False)
class MethodResult(Record):
    """The result of one method: measured on the machine that trained; ``trained`` and ``parameters`` are counted."""

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
    before: RowCosts | None = None
    """The base as a QLoRA run holds it against the model in 16 bits, row by row before training; None where not measured."""
    not_measured: str = ""
    """Why ``before`` is not known, where it is of no such base or could not be measured."""

    @property
    def kl_before(self) -> float | None:
        """KL divergence of the base from the model in 16 bits on held-out rows before training, in nats a token.

        0 with ``"full"`` and ``"lora"``, whose base is that model; None where it was not measured.
        """
        return 0.0 if self.method != "qlora" else None if self.before is None else self.before.kl

    @property
    def flips_before(self) -> float | None:
        """The share of tokens before which that base holds another token for the most likely."""
        return 0.0 if self.method != "qlora" else None if self.before is None else self.before.flips

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

    def _line_(self) -> Line:
        before, after = (NONE if loss is None else f"{loss:.4f}" for loss in (self.loss_before, self.loss_after))
        step = NONE if self.seconds_per_step is None else f"{self.seconds_per_step:.3g} s"
        return {
            "method": self.method, "KL before": kl_and_interval(self), "held out before": before, "after": after,
            "a step": step, "in all": f"{self.seconds:.1f} s", "tensors": known_memory_size(self.tensor_bytes),
            "trained": f"{self.trained:,} ({percent(self.share)})", "saved": known_amount(self.saved_bytes),
            "state": self.state if self.state == "finished" else f"{self.state}: {self.message}",
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """The line of ``MethodComparison.to_frame``."""
        names = (
            "method", "state", "kl_before", "flips_before", "loss_before", "loss_after", "seconds_per_step", "seconds",
            "tensor_bytes", "peak_bytes", "trained", "share", "saved_bytes",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def kl_and_interval(result: MethodResult) -> str:
    """The KL before training as text, with its interval where it is measured; a dash where it is not known."""
    if result.before is None:
        return NONE if result.kl_before is None else nats(result.kl_before)
    low, high = result.before.kl_interval
    return f"{nats(result.before.kl)} ({nats(low)} … {nats(high)})"


def result_of(run: Run, config: TrainConfig, before: RowCosts | None = None, not_measured: str = "") -> MethodResult:
    """The run's result so far. ``before``: its base on held-out rows before training, or why it is not known."""
    status, events = run.status, run.events()
    ended = status.state, status.message, status.remedy
    result = _result(config, run.dir, ended, events, receipt(run), _saved(run))
    return dataclasses.replace(result, before=before, not_measured=not_measured)


def refused(config: TrainConfig, run_dir: Path, message: str, remedy: str) -> MethodResult:
    """The row of a method that could not be launched."""
    return _result(config, run_dir, ("refused", message, remedy), [], ReceiptMeter().receipt(), None)


def _result(
    config: TrainConfig, run_dir: Path, ended: tuple[str, str, str], events: list[Event], memory: Receipt, saved: int | None
) -> MethodResult:
    steps = {event["n"]: event for event in events if event["k"] == "step"}  # of a step taken twice, the later attempt's
    evals = {event["n"]: float(event["loss"]) for event in events if event["k"] == "eval" and event["loss"] is not None}
    losses = {n: float(event["loss"]) for n, event in steps.items() if event["loss"] is not None}
    took = [float(event["seconds"]) for event in steps.values()]
    source = open_model(config.model, config.model_revision)
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
