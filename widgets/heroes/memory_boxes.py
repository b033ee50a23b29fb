"""``MemoryBoxes``: what full fine-tuning, LoRA and QLoRA keep in memory, as boxes in proportion to bytes, beside a GPU's."""

from __future__ import annotations

from typing import Any

import workbench as wb
from widgets.heroes.hero import Hero, among, hero_script
from workbench.memory import ledger

MODELS = (
    "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-4B", "meta-llama/Llama-3.2-1B-Instruct",
)  # fmt: skip
RANKS = (4, 8, 16, 32, 64, 128, 256)
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "LoRA": {"method": "lora"},
    "QLoRA": {"method": "qlora"},
    "QLoRA, fp32 head": {"method": "qlora", "upcast_to_fp32": True},
}
"""The last as peft's ``prepare_model_for_kbit_training`` has it: all that stays out of 4 bits goes to fp32."""
BATCH: dict[str, Any] = {"per_device_train_batch_size": 1, "max_length": 512}
PARTS = {
    "4-bit weights": (ledger.FOUR_BIT,),
    "scales": ledger.GROUPS[ledger.SCALES],
    "16-bit weights": (ledger.FULL_WEIGHTS,),
    "weights in fp32": (ledger.UPCAST,),
    "adapters": ledger.GROUPS[ledger.ADAPTERS],
    "gradients": ledger.GROUPS[ledger.GRADIENTS],
    "optimizer state": ledger.GROUPS[ledger.OPTIMIZER],
    "activations": ledger.GROUPS[ledger.LIVE],
}
"""The boxes, by the forecast's categories; whatever else there is becomes ``the rest``."""
REST = "the rest"


class MemoryBoxes(Hero):
    """A forecast as boxes: the model, the method, the rank and the GPU are the reader's.

    Every figure is ``wb.forecast``'s for one row of 512 tokens, computed from published shapes; nothing was measured.

    Args:
        model: The model's id on the Hub, at first.
        method: The method, at first.
        rank: LoRA's rank, at first.
        gpu: The GPU's name, at first.

    Raises:
        FormatError: For a method, rank or GPU that it does not have.
        ModelError: For a model whose shapes are not known here.

    >>> widgets.MemoryBoxes(rank=64)
    MemoryBoxes(model='meta-llama/Llama-3.1-8B-Instruct', method='QLoRA', rank=64, gpu='T4 16 GB')
    """

    _esm = hero_script("memory_boxes")

    def __init__(self, model: str = MODELS[0], method: str = "QLoRA", rank: int = 16, gpu: str = "T4 16 GB") -> None:
        among(rank, RANKS, "rank")
        among(method, METHODS, "method")
        among(gpu, wb.GPUS, "GPU")
        data = {
            "models": [self._forecasts(name) for name in dict.fromkeys((model, *MODELS))], "ranks": list(RANKS),
            "gpus": [{"name": name, "usable": found.usable} for name, found in wb.GPUS.items()],
            "parts": [*PARTS, REST], "methods": list(METHODS),
        }  # fmt: skip
        super().__init__(data, {"model": model, "method": method, "rank": rank, "gpu": gpu})

    @staticmethod
    def _forecasts(name: str) -> dict[str, Any]:
        """Of one model, by method and rank: the bytes of each part, the total, and the verdict for each GPU."""
        shapes = wb.PublishedShapes(name)
        found = {}
        for method, fields in METHODS.items():
            for rank in RANKS if method != "full" else RANKS[:1]:
                forecast = wb.forecast(shapes, wb.TrainConfig(**fields, **BATCH, lora_r=rank))
                parts = [sum(forecast.at_peak.get(each, 0) for each in names) for names in PARTS.values()]
                verdicts = [wb.fit(forecast, gpu).verdict for gpu in wb.GPUS]
                found[f"{method} {rank}"] = {
                    "parts": [*parts, forecast.total - sum(parts)], "total": forecast.total, "verdicts": verdicts,
                }  # fmt: skip
        return {"name": name, "found": found}
