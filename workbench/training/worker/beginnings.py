"""Adapters that begin from the original weights on a 4-bit base: LoftQ and PiSSA (QPiSSA). Needs torch and peft.

Covers what peft does for LoftQ in ``replace_lora_weights_loftq``, on the device that the weights are on, where peft asks for a
GPU; and in one step, a module at a time, what it documents for PiSSA: begin on the 16-bit model, save what is left of it, and
load that in 4 bits. Both take every checkpoint that the workbench reads, such as GPT-2's, whose weights lie transposed. Does
not cover the beginnings that peft makes on any base (``init_lora_weights`` of ``LoraConfig``).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, PeftModel
from peft.tuners.lora.bnb import Linear4bit

from workbench.errors import ConfigError
from workbench.sources import open_model
from workbench.sources.packed import weights

FROM_ORIGINAL = ("loftq", "pissa")
"""The beginnings that are made here where the base is in 4 bits."""
_PREFIX = "base_model.model."


@torch.no_grad()
def begin_with_loftq(adapted: Any, folder: Path) -> None:
    """Gives each adapter of a 4-bit module the best product of its rank for what the module has lost.

    With W as ``folder`` holds it, in float32, and W₄ as the module multiplies by it, W − W₄ = U Σ Vᵀ and
    A = √Σᵣ Vᵣᵀ, B = Uᵣ √Σᵣ: of all products of rank r, B A leaves the least of W − W₄ (LoftQ, arXiv 2310.08659, with the one
    step that leaves W₄ as it is). ConfigError where the checkpoint has no weight of its own for an adapted module.
    """
    for module, original in _originals(adapted, folder):
        weight = module.get_base_layer().weight
        lost = original.float() - dequantize_4bit(weight.data, weight.quant_state).float()
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        left, values, right = torch.linalg.svd(lost, full_matrices=False)
        r = min(len(a), values.numel())  # a rank above the matrix's own has nothing left to do
        roots = values[:r].sqrt()
        a.zero_()[:r] = roots[:, None] * right[:r]
        b.zero_()[:, :r] = left[:, :r] * roots


@torch.no_grad()
def begin_with_pissa(adapted: Any, folder: Path, config: LoraConfig, *, adapters: bool = True) -> None:
    """Puts the largest singular values of each original weight into its adapter, and what is left of it into 4 bits.

    With W as ``folder`` holds it, in the dtype that the base was loaded in, peft's own ``pissa_init`` makes A, B and the
    residual W − s·B A, which is quantized as the base was (PiSSA, arXiv 2404.02948). ``adapters``: whether A and B are taken
    too, or are kept as they are: those of a run that began so. ConfigError as above.
    """
    for module, original in _originals(adapted, folder):
        layer = module.get_base_layer()
        root = torch.nn.Module()
        root.linear = torch.nn.Linear(*original.shape[::-1], bias=False, device="meta")
        root.linear.weight = torch.nn.Parameter(original.to(layer.weight.quant_state.dtype), requires_grad=False)
        alone = LoraConfig(
            r=config.r, lora_alpha=config.lora_alpha, use_rslora=config.use_rslora, target_modules={"linear"},
            init_lora_weights="pissa",
        )  # fmt: skip
        begun = PeftModel(root, alone).base_model.model.linear
        if adapters:
            for mine, made in ((module.lora_A, begun.lora_A), (module.lora_B, begun.lora_B)):
                mine["default"].weight.copy_(made["default"].weight)
        layer.weight = _quantized_like(layer.weight, begun.get_base_layer().weight)


def _originals(adapted: Any, folder: Path) -> Iterator[tuple[Any, torch.Tensor]]:
    """The adapted 4-bit modules, each with its weight (out, in) as the checkpoint holds it, on the module's device."""
    source = open_model(folder)
    infos = {info.name: info for info in source.tensors()}
    for name, module in adapted.named_modules():
        if not isinstance(module, Linear4bit):
            continue
        path = name.removeprefix(_PREFIX)
        # A checkpoint of the bare model has names without the first part.
        info = infos.get(f"{path}.weight") or infos.get(f"{path.partition('.')[2]}.weight")
        if info is None:
            what = (
                f"the checkpoint has no weight of its own for {path} (tied, fused or renamed), which adapters could begin from."
            )
            remedy = "Leave this module out of target_modules, or give another init_lora_weights."
            raise ConfigError([what], where="TrainConfig", remedy=remedy)
        stored = np.asarray(weights(source, info.name, info.layout), np.float32)
        yield module, torch.from_numpy(stored).to(module.get_base_layer().weight.device)


def _quantized_like(weight: Any, value: torch.Tensor) -> Any:
    """``value`` in 4 bits as ``weight`` is: format, block size, double quantization and device."""
    return type(weight)(
        value.contiguous(), requires_grad=False, quant_type=weight.quant_type, blocksize=weight.quant_state.blocksize,
        compress_statistics=weight.compress_statistics, quant_storage=weight.quant_storage, module=weight.module,
    ).to(weight.device)  # fmt: skip
