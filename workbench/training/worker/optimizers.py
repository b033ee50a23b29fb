"""bitsandbytes' AdamW, reporting what it pages. Imported by the worker only (needs torch and bitsandbytes).

Covers which states are paged (``page_min_numel``), the bytes of each prefetch request, and paging again after a checkpoint was
loaded. Does not know whether a page moved: a prefetch is a request, and evictions are the driver's (``paging`` records those).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes import functional

from workbench.training.config import PAGE_MIN_NUMEL, TrainConfig

_PAGED_KEYS = ("state1", "state2")


def managed_bytes() -> int:
    """Bytes that bitsandbytes has allocated as managed memory in this process; they are never freed."""
    return sum(int(t.nbytes) for t in functional.GlobalPageManager.get_instance().paged_tensors)


class TracedAdamW(bnb.optim.AdamW):
    """AdamW whose ``get_state_buffer`` and ``prefetch_state`` are counted.

    ``emit(name=, bytes=, count=)`` is called after a step that requested states on the device. On a CPU nothing is paged.
    """

    def __init__(
        self, params: Any, *, page_min_numel: int = PAGE_MIN_NUMEL, emit: Callable[..., None] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(params, **kwargs)
        self.page_min_numel = page_min_numel
        self.emit = emit
        self._requested = [0, 0]  # bytes, tensors

    def pages(self, p: torch.Tensor) -> bool:
        """Whether the state of this parameter is (to be) in managed memory."""
        return bool(self.is_paged and p.device.type == "cuda" and p.numel() >= self.page_min_numel)

    def get_state_buffer(self, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A zeroed state for ``p``, managed from ``page_min_numel`` elements on (bitsandbytes itself: from 100,000)."""
        if not self.pages(p):
            return torch.zeros_like(p, dtype=dtype)
        if p.numel() >= PAGE_MIN_NUMEL:
            buffer: torch.Tensor = super().get_state_buffer(p, dtype=dtype)
        else:  # what the parent does, below its own bound
            buffer = functional.get_paged(*p.shape, dtype=dtype, device=p.device)
            functional.fill(buffer, 0)
            self.page_mng.paged_tensors.append(buffer)
        return buffer

    def prefetch_state(self, p: torch.Tensor) -> None:
        """Asks the driver to bring the state of ``p`` to the device, and counts what was asked for."""
        super().prefetch_state(p)
        state = self.state[p]
        if self.is_paged and getattr(state["state1"], "is_paged", False):
            self._requested[0] += sum(state[key].nbytes for key in _PAGED_KEYS if key in state)
            self._requested[1] += sum(key in state for key in _PAGED_KEYS)

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; afterwards reports what it requested."""
        result = super().step(closure)
        size, count = self._requested
        self._requested = [0, 0]
        if count and self.emit is not None:
            self.emit(name="optimizer", bytes=size, count=count)
        return result

    def load_state_dict(self, state_dict: Any, move_to_device: bool = True) -> None:
        """Loads a state and pages again what was paged: the parent leaves loaded states in ordinary device memory.

        https://github.com/bitsandbytes-foundation/bitsandbytes/pull/1344 discusses it; still so in bitsandbytes 0.50.
        """
        super().load_state_dict(state_dict, move_to_device)
        for p, state in self.state.items():
            for key in _PAGED_KEYS:
                if isinstance(p, torch.Tensor) and key in state and self.pages(p):
                    buffer = self.get_state_buffer(p, state[key].dtype)
                    buffer.copy_(state[key])
                    state[key] = buffer


def optimizer_for(config: TrainConfig, emit: Callable[..., None]) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Class and arguments for ``Trainer(optimizer_cls_and_kwargs=...)``."""
    common: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.adam_beta1, config.adam_beta2), "eps": 1e-8}
    if config.optim == "adamw_torch":
        return torch.optim.AdamW, common
    return TracedAdamW, {
        **common,
        "optim_bits": 8 if "8bit" in config.optim else 32,
        "is_paged": config.optim.startswith("paged_"),
        "page_min_numel": config.page_min_numel,
        "emit": emit,
    }
