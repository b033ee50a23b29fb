"""Full fine-tuning, LoRA and QLoRA side by side: the same model, data, order of rows and seed, trained with each in turn.

Covers the runs, one after another in processes of their own, going on where an earlier comparison was left, and the table of
what each came to. One seed is one draw: differences no larger than those between seeds say nothing, and a learning rate that
suits adapters is often too high for every weight (``each``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import statistics
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cost.before import before_training
from workbench.cost.row_costs import RowCosts
from workbench.errors import ConfigError, RunError
from workbench.given import described, is_a, is_several, several
from workbench.memory.footprint import Plan, loaded, trained
from workbench.memory.ledger import BY_NAME, OF_TRAINING, SAVED, WEIGHTS
from workbench.progress import Cancelled, Progress, reporting
from workbench.show import Line, Record, Shown, View
from workbench.sources import open_model
from workbench.sources.packed import as_loaded
from workbench.surveys.resumable import Unfolding
from workbench.text import NONE, known_amount, known_memory_size, nats, percent
from workbench.training import data, model_files
from workbench.training.config import METHODS, OF_ADAPTERS, TrainConfig, as_config
from workbench.training.events import Event
from workbench.training.folder import ENDED, RunFolder
from workbench.training.launching import launch
from workbench.training.paths import absolute, default_dir, path_of
from workbench.training.results.receipt_meter import receipt
from workbench.training.results.receipts import Receipt
from workbench.training.runs import Run, attach

if TYPE_CHECKING:
    import pandas as pd

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
    from workbench.training.results.receipt_meter import ReceiptMeter

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


_LOOK = 0.1
"""Seconds between looks at the run under way."""


def compare_methods(
    config: TrainConfig,
    methods: Sequence[str] = ("full", "lora", "qlora"),
    folder: str | os.PathLike[str] | None = None,
    *,
    each: Mapping[str, Mapping[str, Any]] | None = None,
    progress: bool | Progress = False,
    cancelled: Cancelled | None = None,
) -> MethodComparison:
    """Trains a configuration with each of several methods, one after another, and compares what they come to.

    Args:
        config: The fine-tune.
        methods: The methods that it is trained with.
        folder: Gets a run's folder for each method. Where it holds them already, those that have finished are read and not run
            again, and the others go on from their last checkpoints. None: a new one under ``runs/``.
        each: Fields that differ by method, as ``{"full": {"learning_rate": 2e-4}}``; what only adapters or only 4 bits have
            (``use_dora``, ``llm_int8_skip_modules`` …) is left out by itself where a method lacks them.
        progress: True for a bar, or a function of the steps done, over all methods, and their total.
        cancelled: Once it says yes, the comparison is cancelled.

    Returns:
        An iterable of ``MethodResult`` as they finish. Nothing is trained before it is iterated, run, or asked for a table.

    Raises:
        ConfigError: With every fault of every method.
        RunError: Where ``config`` is no configuration, or ``folder`` holds a run of another one.
        ModelError: As ``launch`` does.
        DataError: As ``launch`` does.

    >>> list(wb.compare_methods(wb.TrainConfig(max_steps=10)).configs)
    ['full', 'lora', 'qlora']
    """
    configs = _configs(as_config(config, "compare_methods"), methods, each or {})
    data.check(config)
    model_files.check(source := open_model(config.model, config.model_revision))
    root = default_dir(config, source.path, "-methods") if folder is None else path_of(folder, "folder")
    return MethodComparison(root, configs, progress, cancelled)


class MethodComparison(Shown, Unfolding[MethodResult]):
    """The methods' results as they finish, and tables of them.

    Iterating does the work; iterating again gives what has finished and goes on. A run that fails is a result too. Cancelling
    has the run under way write a checkpoint and end; ``compare_methods`` with the same folder goes on from there.
    """

    def __init__(
        self,
        folder: Path,
        configs: Mapping[str, TrainConfig],
        progress: bool | Progress = False,
        cancelled: Cancelled | None = None,
    ) -> None:
        super().__init__(len(configs), cancelled)
        self.folder, self.configs, self._progress = folder, dict(configs), progress
        self._steps: int | None = None
        self.run_under_way: Run | None = None
        """The run that is training now, to be watched; None between runs."""
        for method in self.configs:
            self._known(method)

    @property
    def results(self) -> tuple[MethodResult, ...]:
        """The results that there are, in the order of the methods."""
        return self.rows

    def __getitem__(self, method: str) -> MethodResult:
        """A method's result. Raises KeyError where there is none yet."""
        for result in self._rows:
            if result.method == method:
                return result
        raise KeyError(method)

    def to_frame(self) -> pd.DataFrame:
        """One line a method: method, state, kl_before and flips_before (of its base, from 16 bits), loss_before and loss_after
        (nats a token, held out), seconds_per_step, seconds, tensor_bytes, peak_bytes, trained, share, saved_bytes; missing
        where not known.
        """
        import pandas as pd

        frame = pd.DataFrame([result.to_dict() for result in self._done()])
        return frame.astype({name: "Int64" for name in ("tensor_bytes", "peak_bytes", "saved_bytes")} if len(frame) else {})

    def receipts(self) -> pd.DataFrame:
        """The measured bytes: one line a category of the receipt, one column a method; missing where not measured."""
        import pandas as pd

        measured = {r.method: {row.category: row.measured for row in r.receipt.rows} for r in self._done()}
        return pd.DataFrame(measured, index=list(BY_NAME)).astype("Int64")

    @property
    def not_measured(self) -> str:
        """Why a KL before training is not known, in a sentence; empty where each one is."""
        return " ".join(f"KL before training, {row.method}: {row.not_measured}" for row in self.rows if row.not_measured)

    def _show_(self) -> View:
        note = "Measured; KL before training is that of the base from 16 bits; it and held-out losses are nats a token."
        return View(f"Methods compared: {self._so_far('methods')}", lines=self.rows, note=f"{note} {self.not_measured}".strip())

    def _done(self) -> tuple[MethodResult, ...]:
        if not self._rows:
            self.run()
        return self.results

    def _start(self) -> Generator[MethodResult, None, None]:
        with reporting(self._progress, "Training", "step") as report:
            for method in list(self.configs)[len(self._rows) :]:
                if self._stopped() or (result := self._trained(method, report)) is None:
                    return
                yield result

    def _trained(self, method: str, progress: Progress) -> MethodResult | None:
        """What the method came to; None where it was cancelled."""
        config = self.configs[method]
        try:
            run = self._begun(method)
        except ConfigError as error:  # of this method on this machine: the others may do
            return refused(config, self.folder / method, str(error), error.remedy)
        self.run_under_way = run
        try:
            if not self._followed(run, progress):
                return None
            quantized = method == "qlora"
            before = before_training(config, self.folder / "before", self._stopped) if quantized else (None, "")
            return result_of(run, config, *before)
        except BaseException:
            with contextlib.suppress(RunError):
                run.pause()
            raise
        finally:
            self.run_under_way = None

    def _known(self, method: str) -> Run | None:
        """The run that the folder holds of this method; ``RunError`` where it is of another configuration."""
        root, config = self.folder / method, self.configs[method]
        if not RunFolder(root).config.is_file():
            return None
        run = attach(root)
        if dataclasses.replace(run.config, dataset_revision=config.dataset_revision) != absolute(config):
            what = "the folder holds a run of another configuration."
            raise RunError(
                what, where=str(root), remedy="Name another folder, or give the configuration that it was begun with."
            )
        return run

    def _begun(self, method: str) -> Run:
        """The method's run: finished, going, going on, or new."""
        run = self._known(method)
        if run is None:
            return launch(self.configs[method], self.folder / method)
        if run.status.state not in ENDED and RunFolder(run.dir).requests():
            run.wait()  # it was asked to end
        return run if run.status.state not in ENDED or run.status.state == "finished" else run.resume()

    def _followed(self, run: Run, progress: Progress) -> bool:
        """Waits for the run's end; False where the comparison was cancelled first, and the run was paused for it."""
        reader, before, done = run.reader(), len(self._rows), 0
        while True:
            ended = run.status.state in ENDED
            for event in reader.poll():
                if event["k"] == "step":
                    done = event["n"]
                elif event["k"] == "dataset" and event["split"] == "train":
                    self._steps = event["steps"]
            if self._steps:
                progress(before * self._steps + done, len(self) * self._steps)
            if ended:
                return True
            if self._stopped():
                with contextlib.suppress(RunError):
                    run.pause()
                return run.wait().state == "finished"
            run.wait(_LOOK)


def _configs(config: TrainConfig, methods: Sequence[str], each: Mapping[str, Mapping[str, Any]]) -> dict[str, TrainConfig]:
    if not is_a(each, Mapping) or not all(is_a(fields, Mapping) for fields in each.values()):
        remedy = 'Give fields by method, as {"full": {"learning_rate": 2e-4}}.'
        raise ConfigError([f"each is {described(each)}."], where="compare_methods", remedy=remedy)
    faults = [
        f"method {method!r} is none of {', '.join(METHODS)}." for method in (*several(methods), *each) if method not in METHODS
    ]
    if not is_several(methods) or not methods or len(set(methods)) < len(methods):
        faults = ["methods must be some of " + ", ".join(METHODS) + ", each once."]
    found = {}
    for method in methods if not faults else ():
        fields: dict[str, Any] = {"method": method}
        if method == "full":
            fields |= OF_ADAPTERS
        if method != "qlora":
            fields["llm_int8_skip_modules"] = ()
            if config.init_lora_weights == "loftq":  # which makes up for 4 bits
                fields["init_lora_weights"] = True
        try:
            found[method] = TrainConfig.from_dict({**config.to_dict(), **fields, **each.get(method, {}), "method": method})
        except ConfigError as error:
            faults += [f"{method}: {fault}" for fault in error.faults]
    if faults:
        raise ConfigError(faults, where="compare_methods", remedy="Change these fields and try again.")
    return found
