"""The evaluations of a run so far: which is the best, and whether patience has run out. Worker only.

They stand in Trainer's own state, which every checkpoint holds: a resumed run goes on as one that was never interrupted.
The evaluation before the first step is none of them: there is no checkpoint to go back to. Measuring is ``evaluator``'s part.
"""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerState

from workbench.training.config import TrainConfig

_LOSS = "eval_loss"


def record(state: TrainerState, loss: float) -> bool:
    """Notes the held-out loss after the present step; whether it is lower than every one before."""
    state.log_history.append({_LOSS: loss, "step": state.global_step})
    if not loss < (math.inf if state.best_metric is None else state.best_metric):
        return False
    state.best_metric, state.best_global_step = loss, state.global_step
    return True


def of(state: TrainerState, step: int) -> bool:
    """Whether there was an evaluation after this step."""
    return any(entry["step"] == step for entry in _found(state))


def missed(state: TrainerState, config: TrainConfig) -> bool:
    """Whether the evaluation that is due after the present step is not there: a Pause or Stop broke it off."""
    step = state.global_step
    return due(config, step) and not of(state, step)


def due(config: TrainConfig, step: int) -> bool:
    """Whether an evaluation follows a step, of those that stand in the state."""
    return config.eval_steps > 0 and step > 0 and (step % config.eval_steps == 0 or step >= config.max_steps)


def out_of_patience(state: TrainerState, patience: int, since: int = 0) -> bool:
    """Whether as many evaluations as ``patience`` came after the best one, and after step ``since``; never where it is 0."""
    best = max(state.best_global_step or 0, since)
    return 0 < patience <= sum(int(entry["step"]) > best for entry in _found(state))


def _found(state: TrainerState) -> list[dict[str, Any]]:
    return [entry for entry in state.log_history if _LOSS in entry]
