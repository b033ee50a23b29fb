"""Faults of this machine that stop a run before it starts: 4-bit kernels that would compute wrongly, what is not installed.

Covers the one fault of bitsandbytes' CPU kernels that ``workbench.quant.bnb.check_backend`` knows, from a model's headers
alone, and the options that need a package of their own. The worker checks the kernels again, for the weights it has loaded
and the torch it runs on.
"""

from __future__ import annotations

import importlib.util

from workbench.errors import ConfigError
from workbench.memory.footprint import Plan, in_four_bits
from workbench.memory.gpus import devices
from workbench.quant.bnb import backend_remedy, check_backend
from workbench.sources.base import Source
from workbench.sources.packed import as_loaded
from workbench.training.config import TrainConfig
from workbench.training.data import held_out_files

_TENSORBOARD = 'pip install "qlora-workbench[tensorboard]", or use report_to="none".'


def check_extras(config: TrainConfig) -> None:
    """Raises ``ConfigError`` for what cannot be done here: logs without their package, the best of no evaluations."""
    if (config.load_best_model_at_end or config.early_stopping_patience) and held_out_files(config) is None:
        what = "load_best_model_at_end and early_stopping_patience go by the held-out loss, and no rows are held out."
        raise ConfigError([what], where="eval_dataset", remedy="Name eval_dataset, or eval_split.")
    if config.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(["the package tensorboard is not installed."], where="report_to", remedy=_TENSORBOARD)


def check_kernels(config: TrainConfig, source: Source, capability: str | None = None) -> None:
    """Raises ``ConfigError`` if a QLoRA run on this machine's CPU would dequantize weights of ``source`` wrongly.

    bitsandbytes is asked here (and torch loaded) only for weights that some processor's kernel would give back wrongly; with
    ``capability``, the rule for such processors. Nothing is said where there is an NVIDIA GPU, unless a capability is given.
    """
    if config.method != "qlora" or (capability is None and devices()):
        return
    plan = Plan.of(config, "cpu")
    tensors, own = as_loaded(source)
    block_size = own.block_size if own else config.block_size  # a checkpoint that is packed keeps its own
    held = [tensor for tensor in tensors if in_four_bits(tensor, plan)]
    shapes = {t.name: t.shape[::-1] if t.layout == "transposed" else t.shape for t in held}
    for name, shape in shapes.items():
        found = check_backend(shape, block_size, capability)
        if not found.right:
            remedy = backend_remedy(set(shapes.values()), capability)
            remedy = f"Start from the model in 16 bits. {remedy}" if own else remedy
            raise ConfigError([f"{name}: {found.why}"], where="block_size", remedy=remedy)
