"""A model of published shapes with random weights, as transformers saves it: ``write(folder, name)``. The tokenizer is the
embedded model's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

import workbench as wb

_BUILTIN = Path(wb.__file__).parent / "builtin" / "model"
_SPREAD = 0.02
"""Standard deviation of the weights, as most models begin."""


def write(folder: Path, model: wb.PublishedShapes) -> Path:
    """Writes a file a layer, so that no more than a layer, or the embedding, is in memory."""
    folder.mkdir(parents=True)
    files: dict[str, list[wb.TensorInfo]] = {}
    for info in model.tensors():
        parts = info.name.split(".")
        files.setdefault(f"layer-{parts[2]}" if parts[1] == "layers" else parts[-2], []).append(info)
    where: dict[str, str] = {}
    for stem, infos in files.items():
        tensors = {}
        for i, info in enumerate(infos):
            generator = torch.Generator().manual_seed(1000 * len(where) + i)
            is_norm = len(info.shape) == 1
            made = torch.ones(info.shape) if is_norm else torch.empty(info.shape).normal_(0, _SPREAD, generator=generator)
            tensors[info.name] = made.to(torch.bfloat16)
        save_file(tensors, folder / f"{stem}.safetensors", {"format": "pt"})
        where |= dict.fromkeys(tensors, f"{stem}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", **model.config}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(_BUILTIN / name, folder)
    return folder
