"""transformers' Trainer, reporting each step, obeying Stop and Pause, and the measurements before and after. Worker only.

Covers the step events, checkpoints that say when they are complete, and held-out loss.
The loop, accumulation, mixed precision, clipping, schedule and checkpoints are Trainer's own, so that a run here is the run
that the same settings give in a plain script.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler

from workbench.atomic import replacing
from workbench.training.config import TrainConfig
from workbench.training.events import EventWriter
from workbench.training.folder import RunFolder
from workbench.training.loaded_checks import diverged, overflowed
from workbench.training.results.card import write_card
from workbench.training.rows.tokens import TokenRow, lengths_of
from workbench.training.worker import distributed, evaluations
from workbench.training.worker.accounting import Account
from workbench.training.worker.batches import Collator, summed_loss
from workbench.training.worker.head import LossWithoutLogits
from workbench.training.worker.health import SKIPS, Health, overflowing
from workbench.training.worker.packing import tokens_of

Phase = Callable[[str], contextlib.AbstractContextManager[None]]
Asked = Callable[[], str | None]


class ByLength(LengthGroupedSampler):
    """Rows of like lengths together, the longest first.

    Each epoch has an order of its own, which a resumed run and every process take too.
    """

    def __init__(self, lengths: Sequence[int], together: int, seed: int, epoch: Callable[[], float | None]) -> None:
        super().__init__(together, lengths=list(lengths))
        self._seed, self._epoch = seed, epoch

    def __iter__(self) -> Any:
        self.generator = torch.Generator().manual_seed(self._seed + int(self._epoch() or 0))
        return super().__iter__()


class RowSet(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows as Trainer wants them."""

    def __init__(self, rows: Sequence[TokenRow]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"row": self.rows[i]}


def training_arguments(config: TrainConfig, folder: RunFolder, dtype: torch.dtype) -> TrainingArguments:
    """Trainer's arguments, with the names that the installed transformers gives to checkpointing of activations."""
    known = {f.name for f in dataclasses.fields(TrainingArguments)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return TrainingArguments(
        output_dir=str(folder.checkpoints),
        max_steps=config.max_steps,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="steps" if config.save_steps else "no",
        save_steps=config.save_steps or 1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False if distributed.world_size() > 1 else None,
        ddp_backend="gloo" if distributed.world_size() > 1 and not torch.cuda.is_available() else None,
        **{checkpointing: config.gradient_checkpointing, f"{checkpointing}_kwargs": {"use_reentrant": False}},
    )


class TracedTrainer(Trainer):
    """Trainer that counts each batch's rows, measures its memory, and marks the first forward pass and every save."""

    def __init__(
        self,
        *args: Any,
        phase: Phase,
        where: dict[str, Any],
        account: Account,
        without_logits: LossWithoutLogits | None,
        grouped: int,
        **kwargs: Any,
    ) -> None:
        """``grouped``: rows a step, where those of like lengths are to come together; 0: rows come at random."""
        self._grouped = grouped
        super().__init__(*args, compute_loss_func=without_logits, **kwargs)
        self._around = without_logits.around if without_logits else contextlib.nullcontext
        self.remove_callback(PrinterCallback)  # Steering prints one line a step instead
        self._phase, self._where = phase, where
        self.account = account
        self.health = Health(self.accelerator)
        self._last: dict[str, torch.Tensor] = {}
        self._first = True
        self.batches: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Trainer's own; then the rate is that of the schedule as it is now: a shorter one may have ended at zero."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            schedule = self.lr_scheduler
            rates = [
                base * factor(schedule.last_epoch) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            ]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            schedule._last_lr = rates

    def restore(self, checkpoint: Path) -> None:
        """Puts the weights and the count of steps of a checkpoint in place, without a step: ``train`` takes one at least."""
        self.take_weights(checkpoint)
        self.state = _state_of(checkpoint)

    def note(self, loss: float, checkpoint: Path) -> None:
        """Notes the held-out loss after a checkpoint's step, which ``restore`` put in place, in its state on the disk too."""
        evaluations.record(self.state, loss)
        if distributed.rank() == 0:
            with replacing(checkpoint / TRAINER_STATE_NAME) as draft:
                self.state.save_to_json(str(draft))
        distributed.wait()

    def take_weights(self, checkpoint: Path) -> None:
        """Puts the weights of a checkpoint in place of those that there are."""
        self._load_from_checkpoint(str(checkpoint))

    @staticmethod
    def missed(checkpoint: Path, config: TrainConfig) -> bool:
        """Whether the evaluation after a checkpoint's step was broken off."""
        return evaluations.missed(_state_of(checkpoint), config)

    @staticmethod
    def was_done(checkpoint: Path, config: TrainConfig, since: int) -> bool:
        """Whether no step is left after a checkpoint: all are taken, or patience, counted ``since`` a step, had run out."""
        state = _state_of(checkpoint)
        out = evaluations.out_of_patience(state, config.early_stopping_patience, since)
        return out or state.global_step >= config.max_steps

    def _get_train_sampler(self, *given: Any, **named: Any) -> Any:
        if not self._grouped:
            return super()._get_train_sampler(*given, **named)
        return ByLength(lengths_of(self.train_dataset.rows).tolist(), self._grouped, self.args.seed, lambda: self.state.epoch)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Counts on the device; the figures are waited for only when the step is reported."""
        mask = tokens_of(inputs)
        self.batches.append((mask.numel(), mask.sum(1).max(), mask.sum()))
        self._where |= {"rows": mask.shape[0], "longest": mask.shape[1]}  # a batch is padded to its longest row
        self._last = dict(inputs)
        with self.account.batch(self.model, mask):
            result: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        return result

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's own, the first one as a phase: lazy allocations fall into it."""
        first = self._phase("first_forward") if self._first else contextlib.nullcontext()
        with first, self.account.forward(), self._around():
            self._first = False
            return super().compute_loss(*args, **kwargs)

    def overflow(self) -> str | None:
        """The module that overflows when the last batch is repeated, "" if none does; None where no loss is scaled."""
        if (scale := self.health.scale) is None:
            return None

        def loss() -> Any:
            with self._around():
                return super(TracedTrainer, self).compute_loss(self.model, dict(self._last))

        return overflowing(self.model, loss, 2 * scale)  # a skipped step has halved it

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._phase("save"):
            super()._save_checkpoint(*args, **kwargs)


def _state_of(checkpoint: Path) -> TrainerState:
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


class Steering(TrainerCallback):
    """Reports each step and ends training when it is asked to, when the loss is lost, or when it is done."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        writer: EventWriter,
        asked: Asked,
        where: dict[str, Any],
        evaluate: Callable[[int], float | None],
        since: int,
    ) -> None:
        """``since``: the step after which patience is counted."""
        self.config, self.folder, self.writer, self.asked, self.where = config, folder, writer, asked, where
        self.evaluate, self.since = evaluate, since
        self.trainer: TracedTrainer
        self._began = time.monotonic()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the step's clock and its memory peak."""
        self._began = time.monotonic()
        self.where |= {"step": state.global_step + 1, "longest": None, "rows": None}
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop need not wait for the other batches of a step; Pause does, so that a resumed run takes the same step."""
        if distributed.agreed(self.asked()) == "stop":
            control.should_training_stop = True

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures the gradients and the optimizer's state while there are both."""
        self.trainer.account.step(state.global_step + 1, self.trainer.model, self.trainer.optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks for Stop and Pause; Pause writes a checkpoint."""
        asked = distributed.agreed(self.asked())
        if asked:
            control.should_training_stop = True
            control.should_save = control.should_save or asked == "pause"

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Reports the step; raises ``Diverged`` if its loss is no number."""
        if not logs or "loss" not in logs:
            return
        batches, self.trainer.batches = self.trainer.batches, []
        size, tokens = sum(b[0] for b in batches), sum(int(b[2]) for b in batches)
        (size, tokens), longest = distributed.summed([size, tokens], max(int(b[1]) for b in batches))
        loss, n = float(logs["loss"]), state.global_step
        health = self.trainer.health.step()
        self.writer.emit(
            "step",
            n=n,
            loss=loss,
            lr=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            longest=longest,
            padded=size - tokens,
            tokens=tokens,
            seconds=time.monotonic() - self._began,
            peak=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
            **health,
        )
        if distributed.rank() == 0:
            print(f"step {n} of {self.config.max_steps}: loss {loss:.4f}, {tokens} tokens", flush=True)
        if not math.isfinite(loss):
            raise diverged(self.trainer.model, self.config, n, loss, self.trainer.overflow())
        norm = logs.get("grad_norm")
        if health.get("skipped"):
            self._skipped(n, health["scale"])
        elif norm is not None and not math.isfinite(norm):
            text = f"Step {n}'s gradients have a norm that is no finite number, though its loss is: the next loss may be lost."
            self.writer.emit("log", level="warning", text=text)
        if evaluations.due(self.config, n):
            self._evaluate(state, control)

    def _evaluate(self, state: Any, control: Any) -> None:
        """Measures; the best so far is saved, and patience that has run out ends training: on all ranks alike.

        What a Pause breaks off is measured by the next attempt, before it takes a step: so this one ends here.
        """
        loss = distributed.from_first(self.evaluate(state.global_step))
        if loss is None:
            if distributed.agreed(self.asked()) == "pause":
                control.should_save = control.should_training_stop = True
            return
        if evaluations.record(state, loss) and self.config.keeps_best:
            control.should_save = True
        if evaluations.out_of_patience(state, self.config.early_stopping_patience, self.since):
            control.should_training_stop = True
            control.should_save = control.should_save or self.config.save_steps > 0  # to be gone on from

    def _skipped(self, n: int, scale: float) -> None:
        """Says that a step was left out; raises ``Overflowed`` once there were too many in a row."""
        in_a_row = self.trainer.health.in_a_row
        text = f"Step {n} was skipped: its gradients overflow in float16. The loss's scale is {scale:,.0f} from here on."
        self.writer.emit("log", level="info" if in_a_row < SKIPS else "warning", text=text)
        if in_a_row >= SKIPS:
            what = f"{in_a_row} steps in a row, up to step {n}, were skipped: their gradients overflow in float16."
            raise overflowed(self.config, what, self.trainer.overflow() or "")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Marks the checkpoint as complete: a process killed while it writes leaves one without this mark.

        Older ones go only now. Trainer's own save_total_limit removes them before, and the newest by file times, which a clock
        that is set back misleads.
        """
        distributed.wait()  # each rank writes a part of its own
        if distributed.rank() != 0:
            return
        checkpoint = self.folder.checkpoint(state.global_step)
        write_card(self.folder.root, checkpoint, "model" if self.config.method == "full" else "adapter")
        self.folder.mark_complete(state.global_step, self.config.save_total_limit)
        self.writer.emit("checkpoint", n=state.global_step)


@contextlib.contextmanager
def measuring(model: Any, dtype: torch.dtype) -> Any:
    """Evaluation mode, no gradients, mixed precision as in training; afterwards the mode is what it was."""
    was_training = model.training
    model.eval()
    mixed = torch.autocast(model.device.type, dtype) if dtype is not torch.float32 else contextlib.nullcontext()
    try:
        with torch.no_grad(), mixed:
            yield
    finally:
        model.train(was_training)


def held_out_loss(model: Any, rows: Sequence[TokenRow], collator: Collator, size: int, asked: Asked) -> float | None:
    """Mean cross-entropy in nats over all tokens that bear a loss; None if it was broken off."""
    total, count = 0.0, 0
    for at in range(0, len(rows), size):
        if asked():
            return None
        summed, tokens = summed_loss(model, collator.batch(rows[at : at + size]))
        total, count = total + summed, count + tokens
    return total / max(count, 1)
