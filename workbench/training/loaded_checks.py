"""Faults of a run that only a loaded model shows, named before the first batch. Worker only, imports torch.

Covers weights that the checkpoint lacks, names of modules, token ids beyond the embedding, and rows longer than the model has
positions; and, once a loss is no number, where that comes from. What the files alone show is ``model_checks``' part, at launch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from transformers.pytorch_utils import Conv1D

from workbench.errors import ConfigError, DataError, ModelError
from workbench.sources import open_model
from workbench.sources.finite import not_finite
from workbench.sources.header import shown
from workbench.text import listed
from workbench.training.checks import schedule_faults
from workbench.training.config import TrainConfig
from workbench.training.data import model_folder
from workbench.training.model_checks import leaves_of, named, near_leaves, position_faults
from workbench.training.rows.tokens import TokenRow
from workbench.training.watch.endings import Diverged, Overflowed


def check_complete(missing: Collection[str], folder: Path) -> None:
    """Raises ``ModelError`` where transformers filled weights at random that the checkpoint lacks, as a classifier's head."""
    if missing:
        names = sorted(missing)
        missing = listed([shown(name) for name in names[:3]]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        what = f"the checkpoint lacks {missing}, which would be random: it was not saved as a causal language model."
        raise ModelError(what, where=str(folder), remedy="Choose a causal language model, saved whole.")


def check_targets(model: Any, config: TrainConfig) -> None:
    """Raises ``ConfigError`` with every name in ``target_modules`` that no module has: peft passes over it where others fit."""
    if isinstance(config.target_modules, str):
        return
    modules = [name for name, _ in model.named_modules()]
    faults = []
    for name in config.target_modules:
        if not any(module == name or module.endswith(f".{name}") for module in modules):
            near = near_leaves(name, modules)
            hint = f" Near it: {listed(near)}." if near else ""
            faults.append(f"target_modules names {name!r}, which is no module of the loaded model.{hint}")
    if faults:
        raise ConfigError(faults, where="TrainConfig", remedy=f"It has {linear_names(model)}.")


def linear_names(model: Any) -> str:
    """The last names of a model's linear layers, in words."""
    head = model.get_output_embeddings()
    linear = torch.nn.Linear | Conv1D
    return named(leaves_of(name for name, module in model.named_modules() if isinstance(module, linear) and module is not head))


def check_length(model: Any, config: TrainConfig, begins: bool) -> None:
    """Raises ``ConfigError`` for rows longer than the positions of the model's class, and a warm-up longer than the run.

    ``begins``: whether the run has no checkpoint yet; one that was begun so may go on.
    """
    faults = [*position_faults(config, model.config.to_dict()), *schedule_faults(config)]
    if faults and begins:
        raise ConfigError(faults, where="TrainConfig", remedy="Change these fields and launch again.")


def check_ids(model: Any, tokenizer: Any, rows: Iterable[TokenRow], pad: int, where: str) -> None:
    """Raises ``DataError`` for a token of a row, or of padding, that is beyond the embedding or the output head."""
    head = getattr(model.get_output_embeddings(), "out_features", None)
    most = min(size for size in (int(model.get_input_embeddings().weight.shape[0]), head) if size)
    remedy = (
        "Use the tokenizer that belongs to the model, or save the model with an embedding that is large enough "
        "(resize_token_embeddings)."
    )
    of_rows = ((int(row.input_ids.max()), f"row {n:,} of those that are used") for n, row in enumerate(rows, 1))
    for token, place in ((pad, "padding"), *of_rows):
        if token >= most:
            name = shown(str(tokenizer.convert_ids_to_tokens(token)), 60)
            what = f"the token {name} in {place} has id {token:,}, and the model has {most:,} tokens."
            raise DataError(what, where=where, remedy=remedy)


def overflowed(config: TrainConfig, what: str, module: str) -> Overflowed:
    """The error for numbers beyond float16, with the first module that has them ("": not found): no rate mends that."""
    place = (
        f"The first to overflow when the batch was repeated is {shown(module, 200)}."
        if module
        else "Repeated, the batch did not overflow."
    )
    remedy = 'Set compute_dtype to "bfloat16" where the GPU has it, or else to "float32", which takes more memory and time.'
    if "mlp" in module.lower() and not config.rescale_mlp:
        remedy = f"Set rescale_mlp to 6: the same function, within what float16 holds. Or else: {remedy}"
    return Overflowed(f"{what} float16 holds numbers up to 65,504. {place}", remedy=remedy)


def diverged(model: Any, config: TrainConfig, step: int, loss: float, overflow: str | None = None) -> Diverged:
    """The error for a loss that is no number: the weights are looked at first, as a rate has done nothing before step 2.

    ``overflow``: of a run in float16 the module that overflows, as ``overflowed`` takes it; None: another dtype.
    """
    what = f"The loss is no longer a number ({loss}) at step {step}."
    found = None
    with contextlib.suppress(ModelError, OSError):  # the files may be gone by now
        found = next(not_finite(open_model(model_folder(config.model, config.model_revision))), None)
    if found:
        remedy = "Fetch the checkpoint again, or choose another: no setting of the run mends it."
        return Diverged(f"{what} It comes from the model's own weights: {found}.", remedy=remedy)
    if config.use_dora and (module := _zero_row(model)):
        what = (
            f"{what} It comes from DoRA, which divides by the length of each output's weights: {module} has an output of zeros."
        )
        return Diverged(what, remedy="Set use_dora to False, or name target_modules without that one.")
    if weight := _overflown(model):
        what = f"{what} It comes from {weight}, which has values beyond what its dtype holds, though the checkpoint has none."
        return Diverged(what, remedy='Set compute_dtype to "bfloat16" or "float32".')
    if overflow is not None:
        return overflowed(config, what, overflow)
    if step == 1:
        what = f"{what} Nothing was learnt until then, and the model's weights are finite: its activations are too large."
        return Diverged(what, remedy='Set compute_dtype to "bfloat16" or "float32", or look at the rows of the first batch.')
    remedy = f"Lower learning_rate (it is {config.learning_rate:g}) or raise warmup_steps; checkpoints from before are intact."
    return Diverged(what, remedy=remedy)


@torch.no_grad()
def _zero_row(model: Any) -> str:
    """The first adapted module whose frozen weight, as it is held, has an output of zeros; "" where none has."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and getattr(module, "lora_magnitude_vector", None):
            weight = dequantize_module_weight(module.get_base_layer())
            outputs = weight.T if getattr(module, "fan_in_fan_out", False) else weight  # (out, in)
            if (outputs.flatten(1) == 0).all(1).any():
                return shown(name.removeprefix("base_model.model."), 200)
    return ""


def _overflown(model: Any) -> str:
    """The first frozen weight that is not finite; "" where there is none. Trained ones are spoilt by the step itself."""
    for name, weight in model.named_parameters():
        if not weight.requires_grad and weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            return shown(name.removeprefix("base_model.model."), 200)
    return ""
