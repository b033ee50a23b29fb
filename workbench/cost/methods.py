"""Full fine-tuning, LoRA and QLoRA side by side: the same model, data, order of rows and seed, trained with each.

Covers the runs, one after another or all at once in processes of their own, going on where an earlier comparison was left, and
the table of what each came to (``method_results``). One seed is one draw: differences no larger than those between seeds say
nothing, and a learning rate that suits adapters is often too high for every weight (``each``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cost.before import before_training
from workbench.cost.method_results import MethodResult, refused, result_of
from workbench.errors import ConfigError, RunError
from workbench.given import described, is_a, is_several, several
from workbench.memory.ledger import BY_NAME
from workbench.progress import Cancelled, Progress, reporting
from workbench.show import Shown, View
from workbench.sources import open_model
from workbench.surveys.resumable import Unfolding
from workbench.training import data, model_files
from workbench.training.config import METHODS, OF_ADAPTERS, TrainConfig, as_config
from workbench.training.disk import DiskBudget, check_disk, disk_budget
from workbench.training.folder import ENDED, RunFolder
from workbench.training.launching import launch
from workbench.training.paths import absolute, default_dir, path_of
from workbench.training.runs import Run, attach

if TYPE_CHECKING:
    import pandas as pd

_LOOK = 0.1
"""Seconds between looks at the run under way."""


def compare_methods(
    config: TrainConfig,
    methods: Sequence[str] = ("full", "lora", "qlora"),
    folder: str | os.PathLike[str] | None = None,
    *,
    each: Mapping[str, Mapping[str, Any]] | None = None,
    at_once: bool = False,
    progress: bool | Progress = False,
    cancelled: Cancelled | None = None,
) -> MethodComparison:
    """Trains a configuration with each of several methods, and compares what they come to.

    Args:
        config: The fine-tune.
        methods: The methods that it is trained with.
        folder: Gets a run's folder for each method. Where it holds them already, those that have finished are read and not run
            again, and the others go on from their last checkpoints. None: a new one under ``runs/``.
        each: Fields that differ by method, as ``{"full": {"learning_rate": 2e-4}}``; what only adapters or only 4 bits have
            (``use_dora``, ``llm_int8_skip_modules`` …) is left out by itself where a method lacks them.
        at_once: True trains them at the same time instead of one after another. They share processors and memory, so the
            whole is sooner done where starting takes much of it, and a run's seconds say little.
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
    return MethodComparison(root, configs, progress, cancelled, at_once)


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
        at_once: bool = False,
    ) -> None:
        super().__init__(len(configs), cancelled)
        self.folder, self.configs, self._progress, self._at_once = folder, dict(configs), progress, at_once
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
        ahead, begun = list(self.configs)[len(self._rows) :], dict[str, Run | MethodResult]()
        if self._at_once:
            self._check_disk([method for method in ahead if self._known(method) is None])
        try:
            with reporting(self._progress, "Training", "step") as report:
                for method in ahead:
                    for each in ahead if self._at_once else [method]:
                        if not self._stopped() and each not in begun:
                            begun[each] = self._begun(each)
                    if self._stopped() or (result := self._result(method, begun[method], report)) is None:
                        break
                    yield result
        finally:
            runs = [run for run in begun.values() if isinstance(run, Run)]
            for run in runs:
                with contextlib.suppress(RunError):  # it has ended
                    run.pause()
        for run in runs:
            run.wait()

    def _check_disk(self, methods: Sequence[str]) -> None:
        """Raises ``RunError`` where these runs do not fit the disk together: each alone would count the same free bytes."""
        budgets = [disk_budget(self.configs[method], self.folder / method) for method in methods]
        uses = tuple(use for budget in budgets for use in budget.uses)
        free = {folder: size for budget in budgets for folder, size in budget.free.items()}
        disks = {folder: disk for budget in budgets for folder, disk in budget.disks.items()}
        check_disk(DiskBudget(uses, free, disks), str(self.folder))

    def _result(self, method: str, run: Run | MethodResult, progress: Progress) -> MethodResult | None:
        """What the method came to, once its run has ended; None where it was cancelled."""
        if isinstance(run, MethodResult):
            return run
        self.run_under_way, config = run, self.configs[method]
        try:
            if not self._followed(run, progress):
                return None
            before = before_training(config, self.folder / "before", self._stopped) if method == "qlora" else (None, "")
            return result_of(run, config, *before)
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

    def _begun(self, method: str) -> Run | MethodResult:
        """The method's run, finished, going, going on, or new; or what it comes to where it cannot be launched."""
        config, folder = self.configs[method], self.folder / method
        try:
            if (run := self._known(method)) is None:
                return launch(config, folder)
            if run.status.state not in ENDED and RunFolder(run.dir).requests():
                run.wait()  # it was asked to end
            return run if run.status.state not in ENDED or run.status.state == "finished" else run.resume()
        except ConfigError as error:  # of this method on this machine: the others may do
            return refused(config, folder, str(error), error.remedy)

    def _followed(self, run: Run, progress: Progress) -> bool:
        """Waits for the run's end; False where the comparison was cancelled first."""
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
                return False
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
