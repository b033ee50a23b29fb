"""The process that trains: ``python -m workbench.training.worker RUN_DIR ATTEMPT SUPERVISOR_PID``.

Covers the order of things, from importing torch to the saved adapter, each in a marked phase, and how it ends. What happens in
a phase is in ``model``, ``data``, ``trainer`` and ``optimizers``; they and torch are imported only after the sampler runs, so
that importing is seen, and can be stopped, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import compat
from workbench.errors import WorkbenchError
from workbench.memory.footprint import Plan
from workbench.sources import open_model
from workbench.training import lineage, origins
from workbench.training.choices import NOT_ZERO
from workbench.training.config import TrainConfig
from workbench.training.events import EventWriter
from workbench.training.folder import RunFolder
from workbench.training.host import host_counters
from workbench.training.paging import Capability, HostFaults, before_torch, paged_state
from workbench.training.results import measured
from workbench.training.watch import endings
from workbench.training.worker import telemetry
from workbench.training.worker.cupti import open_cupti
from workbench.training.worker.saving import Trained, use_cache

if TYPE_CHECKING:
    import torch

    from workbench.training.watch.shortage import Shortage
    from workbench.training.worker.accounting import Account
    from workbench.training.worker.evaluator import Evaluator, Material
    from workbench.training.worker.head import LossWithoutLogits
    from workbench.training.worker.trainer import TracedTrainer

_SPARE = 1 << 23
"""Bytes kept for reporting a failure once memory has run out; never written to, they take address space only."""


class Worker:
    """One attempt at a run, inside its own process."""

    def __init__(self, folder: RunFolder, attempt: int, supervisor: int) -> None:
        self.folder, self.attempt, self.supervisor = folder, attempt, supervisor
        self.config = TrainConfig.from_dict(json.loads(folder.config.read_text("utf-8")))
        self.writer = EventWriter(folder.events(f"rank{os.environ.get('RANK', '0')}"), attempt)
        self.since = lineage.read(folder.root).extended_after
        self.where: dict[str, Any] = {}
        self.account: Account | None = None
        self.device = "cpu"
        later = before_torch()
        self.capabilities = {
            "cupti": later, "paged optimizer state": later, "prefetch requests": later, "nvml": later,
            "host faults": HostFaults.capability,
        }  # fmt: skip
        self.sampler = telemetry.Sampler(self.writer, self._watch)
        self._interruptible = True  # until there are adapters to save
        self._ending = threading.Lock()
        self._terminated = False
        self._spare = bytearray(_SPARE)

    def asked(self) -> str | None:
        """``"stop"``, ``"pause"`` or None. A supervisor that is gone is a stop: only it could record how the run ended."""
        if self._terminated or self.folder.asked("stop") or os.getppid() != self.supervisor:
            return "stop"
        return "pause" if self.folder.asked("pause") else None

    def _watch(self) -> None:
        """On the sampler's thread: before there is anything to save, a stop ends the process at once, whatever it is doing."""
        if self._interruptible and (asked := self.asked()):
            with self._ending:
                if self._interruptible:
                    code = endings.STOPPED if asked == "stop" else endings.PAUSED
                    with contextlib.suppress(OSError):
                        self.writer.emit("exit", code=code, state=endings.STATE_OF_CODE[code])
                    os._exit(code)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Marks a phase; an exception leaves it open, which shows where the run ended."""
        before = self.where.get("phase")
        self.where["phase"] = name
        self.writer.emit("phase", name=name, edge="begin")
        yield
        self.writer.emit("phase", name=name, edge="end")
        self.where["phase"] = before

    def hello(self) -> None:
        """Records the versions, the device, the clocks, and which collectors work; again when more is known."""
        self.writer.emit(
            "hello",
            capabilities={name: c.to_dict() for name, c in self.capabilities.items()},
            device=self.device,
            versions=telemetry.versions(),
            anchors=telemetry.anchors(self.sampler.cupti_clock),
        )

    def run(self) -> int:
        """Does the whole run; returns the exit code."""
        self.hello()
        self.sampler.collectors = (HostFaults(host_counters),)
        self.sampler.start()
        collector = None
        try:
            if self.attempt > 1 and os.environ.get("RANK", "0") == "0":
                with self.phase("check"):
                    origins.check_resumed(self.folder.root, self.config)
            with self.phase("import"):
                import torch

                from workbench.training.worker import trainer  # noqa: F401  (brings transformers, peft and bitsandbytes)
            self.writer.emit("memory", moment="libraries", rss=host_counters().get("rss"))
            cuda = torch.cuda.is_available()
            if cuda:
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
                torch.cuda.init()
                self.device = torch.cuda.get_device_name()
                self.sampler.gpu = telemetry.CudaMemory()
                self._mend_attention(torch.cuda.get_device_capability())
            nvml = self.sampler.gpu or telemetry.CudaMemory()
            self.capabilities["nvml"] = Capability(not nvml.why, nvml.why)
            collector, self.capabilities["cupti"] = open_cupti(cuda)
            if collector:
                self.sampler.collectors = (*self.sampler.collectors, collector)
                self.sampler.cupti_clock = collector.clock
            return self._train(cuda)
        except endings.OtherEnding:
            with contextlib.suppress(OSError):
                self.writer.emit("log", level="warning", text="Ended by SIGTERM.")
            return endings.STOPPED
        except BaseException as error:
            return self._failed(error)
        finally:
            if collector:
                collector.close()
            self.sampler.close()

    def _mend_attention(self, capability: tuple[int, int]) -> None:
        """Below compute capability 8 heads that share keys and values attend by turns, which is said."""
        if capability < (8, 0):
            compat.heads_by_turns()
            text = "Heads that share keys and values attend by turns: this GPU's fast attention takes none that are shared."
            self.writer.emit("log", level="info", text=text)

    def _failed(self, error: BaseException) -> int:
        """Records how the run failed, as far as memory and disk still permit; the exit code shows it in any case."""
        self._spare.clear()
        ending = endings.ending_of(error, self.where, self._shortage)
        with contextlib.suppress(OSError, MemoryError):
            text = traceback.format_exc()[-4000:]
            self.writer.emit("error", kind=ending.kind, message=ending.message, remedy=ending.remedy, text=text)
        with contextlib.suppress(OSError, MemoryError):
            traceback.print_exc()
        return endings.code_of(ending)

    def _shortage(self, where: Mapping[str, Any], asked: int | None) -> Shortage | None:
        return self.account.shortage(self.config, where, asked) if self.account else None

    def _train(self, cuda: bool) -> int:
        """Everything from loading the model to the last measurement; returns the exit code."""
        from workbench.training import data
        from workbench.training.worker import boards, distributed, evaluations, material, model
        from workbench.training.worker.evaluator import Evaluator

        dtype = model.compute_dtype(self.config)
        source = data.model_folder(self.config.model, origins.pinned(self.folder.root, self.config))
        with self.phase("dataset"):
            self.config, rows = material.prepare(self.config, source, self.writer.emit)
        checkpoints = self.folder.complete_checkpoints()  # without any the run begins, in whichever attempt
        net = self._adapted(self._loaded(source, dtype, cuda), cuda, begins=not checkpoints)
        material.check(rows, self.config, net, dtype, self.writer.emit, begins=not checkpoints)
        if self.config.init_lora_weights == "eva" and not checkpoints:  # which hold adapters that began so
            self._begin_with_eva(net, rows)
        board = boards.open_board(self.config, self.folder, checkpoints)
        evaluator = Evaluator(
            config=self.config, net=net, dtype=dtype, material=rows, phase=self.phase, asked=self.asked,
            writer=self.writer, board=board,
        )  # fmt: skip
        loop = self._loop(evaluator)
        self._learn(loop, evaluator, checkpoints)
        done = loop.state.global_step
        early = evaluations.out_of_patience(loop.state, self.config.early_stopping_patience, self.since)
        ends = early or done >= self.config.max_steps
        if ends and rows.held_out and evaluations.missed(loop.state, self.config):
            ends = distributed.agreed(self.asked()) != "pause"  # else the next attempt measures it: it may be the best
        if ends:
            if early and distributed.rank() == 0:
                self.writer.emit("early_stop", n=done, patience=self.config.early_stopping_patience)
            if not evaluations.of(loop.state, done):
                evaluator.evaluate(done)
            evaluator.sample("after")
            if distributed.rank() == 0:
                self._trained.describe()  # again, now that the last loss is known
        if board:
            board.close()
        if cuda and distributed.rank() == 0:
            with contextlib.suppress(OSError, WorkbenchError):  # for the next forecast: no part of this run
                measured.learn(self.folder.root)
        asked = distributed.agreed(self.asked())  # the others wait here for rank 0
        if ends:
            return endings.FINISHED
        return endings.PAUSED if asked == "pause" else endings.STOPPED

    def _loaded(self, source: Path, dtype: torch.dtype, cuda: bool) -> Any:
        """The base model on its device, in 4 bits where the method asks for it; from here on memory is accounted for."""
        from workbench.training import held
        from workbench.training.worker import accounting, distributed, model

        plan = dataclasses.replace(
            Plan.of(self.config, "cuda" if cuda else "cpu"),
            compute_dtype=str(dtype).removeprefix("torch."),
        )
        account = self.account = accounting.Account(plan, functools.partial(open_model, source), self.writer, self.sampler.gpu)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.phase("load"))
            account.forecast()
            account.context()

            def prepared() -> None:
                if self.config.method == "qlora":
                    stack.pop_all().close()
                    stack.enter_context(self.phase("quantize"))

            base = model.load_base(self.config, source, dtype, prepared)
            account.moment("load", base)
            if distributed.rank() == 0:
                held.held_by(base, [t.name for t in open_model(source).tensors()]).write(self.folder)
        return base

    def _adapted(self, base: Any, cuda: bool, begins: bool) -> Any:
        """The model as it is trained; what of its optimizer's state will be paged is known then, and recorded."""
        from workbench.training.worker import distributed, model

        assert self.account is not None
        with self.phase("attach"):
            net = model.attach_adapters(base, self.config, self.folder.first_adapter)
            self.account.moment("attach", net)
            if begins and distributed.rank() == 0 and self.config.init_lora_weights in NOT_ZERO:
                net.save_pretrained(str(self.folder.beginning))
        paged = paged_state(self.config, cuda, model.adapter_sizes(net))
        self.capabilities["paged optimizer state"] = paged
        self.capabilities["prefetch requests"] = Capability(paged.works, "" if paged.works else "no optimizer state is paged")
        self.hello()
        return net

    def _begin_with_eva(self, net: Any, rows: Material) -> None:
        """Adapters by what the modules are given on some of the rows; how many passes that took is reported meanwhile."""
        from workbench.training.worker import eva, material

        with self.phase("eva"):
            batches = eva.batches_of(rows, self.config)
            eva.begin_with_eva(net, self.config, batches, material.reporting("forward passes for EVA", self.writer.emit))

    def _loop(self, evaluator: Evaluator) -> TracedTrainer:
        """transformers' training loop, steered from here."""
        from workbench.training.worker import optimizers, packing, trainer

        assert self.account is not None
        steering = trainer.Steering(
            self.config, self.folder, self.writer, self.asked, self.where, evaluator.evaluate, self.since
        )
        use_cache(evaluator.net, False)
        if self.config.packing:
            with trainer.measuring(evaluator.net, evaluator.dtype):
                packing.check_packing(evaluator.net, evaluator.material.rows)
        steering.trainer = trainer.TracedTrainer(
            model=evaluator.net,
            args=trainer.training_arguments(self.config, self.folder, evaluator.dtype),
            train_dataset=trainer.RowSet(evaluator.material.rows),
            data_collator=evaluator.material.collator,
            callbacks=[steering, *(evaluator.board.callbacks() if evaluator.board else ())],
            optimizer_cls_and_kwargs=optimizers.optimizer_for(self.config, functools.partial(self.writer.emit, "prefetch_req")),
            phase=self.phase,
            where=self.where,
            account=self.account,
            without_logits=self._without_logits(evaluator),
            grouped=self.config.rows_a_step if self.config.group_by_length else 0,
        )
        self.sampler.managed = optimizers.managed_bytes
        return steering.trainer

    def _without_logits(self, evaluator: Evaluator) -> LossWithoutLogits | None:
        """The loss that makes a few logits at a time; None, said in an event, where the model's head does not allow it."""
        import torch

        from workbench.training.worker import head, trainer

        if not self.config.logits_at_once:
            return None
        loss = head.LossWithoutLogits(evaluator.net, self.config.logits_at_once)
        ids = torch.as_tensor(evaluator.material.rows[0].input_ids[:16])[None]
        with trainer.measuring(evaluator.net, evaluator.dtype):  # in which dropout draws no random numbers
            why = loss.refusal(evaluator.net, ids)
        if why:
            self.writer.emit("log", level="info", text=f"All logits are made at once: {why}.")
        return None if why else loss

    def _learn(self, loop: TracedTrainer, evaluator: Evaluator, checkpoints: Sequence[Path]) -> None:
        """Measures, trains from the last checkpoint on, and saves, also what there is when SIGTERM comes."""
        from workbench.training.worker import distributed

        with self._ending:
            self._interruptible = False
        signal.signal(signal.SIGTERM, self._terminate)
        try:
            if not checkpoints:
                evaluator.evaluate(0)
                evaluator.sample("before")
            last = checkpoints[-1] if checkpoints else None
            if last and evaluator.material.held_out and loop.missed(last, self.config):
                loop.restore(last)
                if (loss := distributed.from_first(evaluator.evaluate(loop.state.global_step))) is not None:
                    loop.note(loss, last)
            if not distributed.agreed(self.asked()):
                with self.phase("train"):
                    if last and loop.was_done(last, self.config, self.since):  # it ended between its last step and its end
                        loop.restore(last)
                    else:
                        loop.train(resume_from_checkpoint=str(last) if last else None)
        except endings.OtherEnding:
            self._save_what_is_new(loop, evaluator, checkpoints)
            raise
        self._save_what_is_new(loop, evaluator, checkpoints)

    def _save_what_is_new(self, loop: TracedTrainer, evaluator: Evaluator, checkpoints: Sequence[Path]) -> None:
        """Rank 0 saves, unless this is a resumed run that did nothing: it keeps what there was."""
        from workbench.training.worker import distributed

        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # nothing interrupts the saving
        kept = bool(checkpoints) or self._trained.path.exists()
        if distributed.rank() == 0 and (loop.state.global_step or not kept):
            with self.phase("save"):
                if best := self._trained.best:
                    loop.take_weights(best)
                self._trained.save(evaluator.net, evaluator.material.tokenizer, loop.state)

    @property
    def _trained(self) -> Trained:
        return Trained(self.folder, self.config)

    def _terminate(self, *_: Any) -> None:
        self._terminated = True
        raise endings.OtherEnding


def main(root: str, attempt: str, supervisor: str) -> None:
    """Runs one attempt and ends the process with its exit code. ``supervisor``: its pid, or 0 for the parent."""
    worker = Worker(RunFolder(Path(root)), int(attempt), int(supervisor) or os.getppid())
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.WARNING, handlers=[logging.StreamHandler(), telemetry.LogEvents(worker.writer)])
    code = worker.run()
    worker.writer.close()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # nothing is left to do, and a library's thread must not keep the process


if __name__ == "__main__":
    main(*sys.argv[1:4])
