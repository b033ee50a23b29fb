"""Adapters that begin with what 4 bits have lost of the weights: LoftQ, on a base that stays as it is. Needs torch and peft.

Covers the arithmetic of peft's ``replace_lora_weights_loftq`` on the device that the weights are on, where peft asks for a GPU,
and on every checkpoint that the workbench reads, such as GPT-2's, whose weights lie transposed. Does not cover the beginnings
that peft makes itself (``init_lora_weights`` of ``LoraConfig``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit
from peft.tuners.lora.bnb import Linear4bit

from workbench.errors import ConfigError
from workbench.sources import open_model
from workbench.sources.packed import weights

_PREFIX = "base_model.model."


@torch.no_grad()
def begin_with_loftq(adapted: Any, folder: Path) -> None:
    """Gives each adapter of a 4-bit module the best product of its rank for what the module has lost.

    With W as ``folder`` holds it, in float32, and W₄ as the module multiplies by it, W − W₄ = U Σ Vᵀ and
    A = √Σᵣ Vᵣᵀ, B = Uᵣ √Σᵣ: of all products of rank r, B A leaves the least of W − W₄ (LoftQ, arXiv 2310.08659, with the one
    step that leaves W₄ as it is). ConfigError where the checkpoint has no weight of its own for an adapted module.
    """
    source = open_model(folder)
    infos = {info.name: info for info in source.tensors()}
    for name, module in adapted.named_modules():
        if not isinstance(module, Linear4bit):
            continue
        path = name.removeprefix(_PREFIX)
        # A checkpoint of the bare model has names without the first part.
        info = infos.get(f"{path}.weight") or infos.get(f"{path.partition('.')[2]}.weight")
        if info is None:
            what = f'init_lora_weights "loftq": the checkpoint has no weight of its own for {path} (tied, fused or renamed).'
            raise ConfigError(
                [what], where="TrainConfig", remedy="Leave this module out of target_modules, or begin otherwise."
            )
        weight = module.get_base_layer().weight
        original = torch.from_numpy(np.asarray(weights(source, info.name, info.layout), np.float32)).to(weight.device)
        lost = original - dequantize_4bit(weight.data, weight.quant_state).float()
        for adapter, a in module.lora_A.items():
            b = module.lora_B[adapter]
            left, values, right = torch.linalg.svd(lost, full_matrices=False)
            r = min(a.weight.shape[0], values.numel())  # a rank above the matrix's own has nothing left to do
            roots = values[:r].sqrt()
            a.weight.zero_()[:r] = roots[:, None] * right[:r]
            b.weight.zero_()[:, :r] = left[:, :r] * roots
