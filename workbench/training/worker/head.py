"""The loss without the logits: a model's head applied to a few positions at a time, and only where a loss is taken.

Covers finding the head and what a model does to its logits, the loss in training with its gradient, and the loss alone. The
logits of a whole batch, tokens × vocabulary in float32 and their gradient besides, are what most memory goes to otherwise.
Worker only (needs torch).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional

IGNORED = -100
"""The label of a position where no loss is taken."""
_AT_A_TIME = 256
"""Positions whose logits are made at a time where only the loss is wanted."""
_NEAR = 0.01
"""How far a model's own logits may be from the head's, of the largest: some cap them in 16 bits."""


class Head:
    """What a model does with its last hidden states: a product, a scale, a soft cap."""

    def __init__(self, model: Any) -> None:
        self.module: Any = model.get_output_embeddings()
        config = model.config.get_text_config()
        self.scale = float(getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1))
        self.cap = float(getattr(config, "final_logit_softcapping", None) or 0)

    @property
    def frozen(self) -> bool:
        """Whether it is a plain linear layer that is not trained and has no adapter."""
        return type(self.module) is torch.nn.Linear and not any(p.requires_grad for p in self.module.parameters())

    @contextlib.contextmanager
    def caught(self, before_casts: bool = False) -> Iterator[list[torch.Tensor]]:
        """While it is open the head sees one position of each row; what it would have seen is put into the list.

        ``before_casts``: as the last norm answers it, and not in the dtype that the head takes it in.
        """
        seen: list[torch.Tensor] = []

        def look(module: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(given[0])
            return (given[0][:, :1], *given[1:])

        hook = self.module.register_forward_pre_hook(look, prepend=before_casts)
        try:
            yield seen
        finally:
            hook.remove()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, hidden) → (…, vocabulary) in float32, as the model gives them."""
        logits = self.module.forward(hidden).float()
        if self.scale != 1:
            logits = logits * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits

    def agrees(self, seen: list[torch.Tensor], logits: torch.Tensor) -> bool:
        """Whether the model's own ``logits`` (rows, 1, vocabulary) are those of the first position that the head saw."""
        if len(seen) != 1 or seen[0].ndim != 3 or logits.shape[1] != 1:
            return False
        own, given = self.logits(seen[0][:, :1]), logits.float()
        return bool((own - given).abs().amax() <= _NEAR * given.abs().amax())

    def summed_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy in nats of (n, hidden) against (n,) labels, summed; some positions at a time, without a gradient."""
        total = hidden.new_zeros((), dtype=torch.float32)
        for at in range(0, len(labels), _AT_A_TIME):
            some = slice(at, at + _AT_A_TIME)
            total += functional.cross_entropy(self.logits(hidden[some]), labels[some], reduction="sum")
        return total


def labelled(hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, length, hidden) and (rows, length) → the (n, hidden) positions that predict a label, and those (n,) labels."""
    after = labels[:, 1:]  # position t predicts token t + 1
    bear = after != IGNORED
    return hidden[:, :-1][bear], after[bear]


class LossWithoutLogits:
    """The loss function of a Trainer whose model has a frozen head: ``around`` each forward pass, then called with its result.

    Equal to the plain loss but for the order of sums.
    """

    def __init__(self, model: Any, at_a_time: int) -> None:
        self.head, self.at_a_time = Head(model), at_a_time
        self._seen: list[torch.Tensor] = []

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Around the forward pass."""
        with self.head.caught(before_casts=True) as self._seen:
            yield
        self._seen = []

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """The mean over ``num_items_in_batch`` labels, or over this batch's."""
        (hidden,) = self._seen
        hidden, wanted = labelled(hidden, labels.to(hidden.device))
        weight, bias = self.head.module.weight, self.head.module.bias
        total = _ChunkedLoss.apply(hidden, weight, bias, wanted, self.head.scale, self.head.cap, self.at_a_time)
        return total / (num_items_in_batch if num_items_in_batch is not None else len(wanted))

    def refusal(self, model: Any, ids: torch.Tensor) -> str:
        """Why the plain loss must be taken; empty where it need not. ``ids`` (rows, length) are tried on the model as it is."""
        if not self.head.frozen:
            return "the head is trained, or is no plain linear layer"
        with self.head.caught() as seen:
            logits = model(input_ids=ids.to(model.device)).logits
        return "" if self.head.agrees(seen, logits) else "the model does more to its logits than is known here"


class _ChunkedLoss(torch.autograd.Function):
    """The summed loss of labelled positions, its gradient computed on the way: the head is frozen, so that no more is needed.

    The gradient is that of the sum: divided by the labels' number only in the backward pass, since float16 would flush it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, labels: Any, scale: float, cap: float, at_a_time: int) -> Any:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        up = 256.0 if weight.dtype is torch.float16 else 1.0  # keeps small probabilities out of float16's subnormals
        for at in range(0, len(labels), at_a_time):
            some, wanted = slice(at, at + at_a_time), labels[at : at + at_a_time, None]
            z = functional.linear(hidden[some].to(weight.dtype), weight, bias).float().mul_(scale)
            bent = None
            if cap:
                bent = z.div_(cap).tanh_().clone()
                z.mul_(cap)
            right, most = z.gather(1, wanted), z.amax(1, keepdim=True)
            mass = z.sub_(most).exp_().sum(1, keepdim=True)
            total += (mass.log() + most - right).sum()
            if gradient is not None:
                z.div_(mass).scatter_add_(1, wanted, -torch.ones_like(right))  # softmax − one-hot
                if bent is not None:
                    z.mul_(1 - bent * bent)
                gradient[some] = (z.mul_(up * scale).to(weight.dtype) @ weight).to(gradient.dtype).div_(up)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *of_total: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * of_total[0], *[None] * 6
