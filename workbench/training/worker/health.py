"""How a run fares in float16: the scale of its loss, the steps that were skipped, and which module overflows. Worker only.

Gradients that overflow leave a step out and halve the scale; one or two such steps at the start are as it should be. Covers
counting them, finding the first module that answers with what is no number, and the rescale of gated MLPs that keeps them from
it. Tried on a CPU with float16's kernels; not yet run on a GPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from workbench.errors import ConfigError

SKIPS = 3
"""Skipped steps in a row that are no beginning any more."""
_GATED = ("gate_proj", "up_proj", "down_proj")


class Health:
    """Counts skipped steps of an accelerator (accelerate's), whose scaler is None where no loss is scaled."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator
        self.in_a_row = 0

    @property
    def scale(self) -> float | None:
        """What the loss is multiplied by; None where it is not scaled."""
        scaler = getattr(self._accelerator, "scaler", None)
        return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else None

    def step(self) -> dict[str, Any]:
        """After an optimizer's step, once: what its event says of it."""
        if (scale := self.scale) is None:
            return {}
        skipped = bool(self._accelerator.optimizer_step_was_skipped)
        self.in_a_row = self.in_a_row + 1 if skipped else 0
        return {"scale": scale, "skipped": skipped}


def overflowing(model: Any, loss: Callable[[], torch.Tensor], scale: float) -> str:
    """The first module that answers with what is no number, or else, in the backward pass, has such a gradient; "" if none.

    ``loss()`` computes the batch's loss anew; it is called twice where the forward pass is finite. Gradients are spoilt.
    """
    names = {module: name for name, module in model.named_modules() if not any(module.children())}
    found: list[str] = []

    def note(module: Any, *values: Any) -> None:
        if not found and not _finite(values):
            found.append(names[module])

    hooks = [module.register_forward_hook(lambda m, given, answer: note(m, answer)) for module in names]
    try:
        with torch.no_grad():
            loss()
    finally:
        _remove(hooks)
    if not found:
        hooks = [module.register_full_backward_hook(lambda m, made, given: note(m, made, given)) for module in names]
        try:
            with warnings.catch_warnings():  # of modules whose input takes no gradient, as the first adapter's
                warnings.simplefilter("ignore", UserWarning)
                (loss() * scale).backward()
        except RuntimeError:  # a module that changes its answer in place takes no such hooks
            pass
        finally:
            _remove(hooks)
    return found[0].removeprefix("base_model.model.").removesuffix(".base_layer") if found else ""


def _remove(hooks: list[Any]) -> None:
    for hook in hooks:
        hook.remove()


def _finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, tuple | list) else True


def rescale_mlps(model: Any, power: int) -> None:
    """Has up projections of gated MLPs answer 2^-power of what they do, and down projections make up for it in float32.

    down(act(gate) · up) is linear in up: with powers of two the result is the same but for subnormal numbers. Raises
    ``ConfigError`` where no module has such projections, or down has a bias.
    """
    gated = [module for module in model.modules() if all(hasattr(module, name) for name in _GATED)]
    if not gated or any(getattr(module.down_proj, "bias", None) is not None for module in gated):
        why = "adds a bias in its down projections" if gated else f"has no modules {', '.join(_GATED)} beside each other"
        what = f"rescale_mlp is {power}, and this model {why}."
        raise ConfigError(
            [what], where="TrainConfig", remedy='Set rescale_mlp to 0; compute_dtype "float32" does not overflow.'
        )
    for module in gated:
        module.up_proj.register_forward_hook(lambda m, given, answer: answer * 2.0**-power)
        module.down_proj.register_forward_hook(lambda m, given, answer: answer.float() * 2.0**power)
