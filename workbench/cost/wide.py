"""A model whose weights are held in 16 bits and multiplied in float32: losses then differ by weights and not by rounding.

A difference of a ten-thousandth of a nat, as one quantized layer often makes, is lost in 16-bit activations. Holding the whole
model in float32 would take twice its size. Here every linear layer widens its own weight while it multiplies, some rows at a
time. Covers ``nn.Linear``, ``Conv1D`` and embeddings; what else a model has (norms, biases, fused experts) is held in float32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

_AT_ONCE = 1 << 22
"""Weights that are widened at a time: 16 MiB in float32."""


def widen(model: Any) -> None:
    """Changes the model in place; its outputs are then float32."""
    kept = set()
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.forward = functools.partial(_linear, module)
        elif type(module) is Conv1D:
            module.forward = functools.partial(_conv, module)
        elif isinstance(module, torch.nn.Embedding):
            module.register_forward_hook(lambda module, arguments, output: output.float())
        else:
            continue
        kept.add(id(module.weight))
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.float()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.float()


def times(x: torch.Tensor, weight: torch.Tensor, transposed: bool = False) -> torch.Tensor:
    """x · Wᵀ in float32, x (…, in) and W (out, in); or x · W with W (in, out), where ``transposed``."""
    x = x.float()
    outputs, step = weight.shape[transposed], max(1, _AT_ONCE // weight.shape[not transposed])
    parts = []
    for start in range(0, outputs, step):
        rows = weight[:, start : start + step].T if transposed else weight[start : start + step]  # (rows, in)
        parts.append(torch.nn.functional.linear(x, rows.float()))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _linear(module: Any, x: torch.Tensor) -> torch.Tensor:
    y = times(x, module.weight)
    return y if module.bias is None else y + module.bias


def _conv(module: Any, x: torch.Tensor) -> torch.Tensor:
    return times(x, module.weight, transposed=True) + module.bias
