"""Adapters that begin from what the modules are given on the run's own rows: EVA. Needs torch and peft.

Covers which rows are taken, peft's own ``initialize_lora_eva_weights`` on them, and what keeps that from never ending: it goes
over its batches until every direction has settled, which some may never do. Does not cover beginnings from the weights
(``beginnings``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import EvaConfig, initialize_lora_eva_weights

from workbench.errors import ConfigError
from workbench.text import listed
from workbench.training.choices import EVA_ROWS, EVA_TOKENS_A_RANK
from workbench.training.config import TrainConfig
from workbench.training.worker.evaluator import Material
from workbench.training.worker.head import IGNORED, Head

PASSES = 512
"""Forward passes after which directions that have not settled count as such that never will."""
_ELSE = "Or give another init_lora_weights."

Batch = dict[str, torch.Tensor]


def batches_of(material: Material, config: TrainConfig) -> list[Batch]:
    """The batches: ``EVA_ROWS`` rows drawn with the run's seed, in batches of the run's size.

    Drawn, because the run's own order may begin with its longest rows. A batch is left out that has fewer tokens that bear a
    loss than ``EVA_TOKENS_A_RANK`` for each of the rank; ConfigError where none is left.
    """
    size, least = config.per_device_train_batch_size, EVA_TOKENS_A_RANK * config.lora_r
    drawn = torch.randperm(len(material.rows), generator=torch.Generator().manual_seed(config.seed))[:EVA_ROWS].tolist()
    made = [material.collator.batch([material.rows[i] for i in drawn[at : at + size]]) for at in range(0, len(drawn), size)]
    batches = [batch for batch in made if (batch["labels"] != IGNORED).sum() >= least]
    if not batches:
        most = max(int((batch["labels"] != IGNORED).sum()) for batch in made)
        raise _refused(
            f"a batch must have {least:,} tokens that bear a loss, two for each of lora_r, and the fullest of {size} rows has "
            f"{most:,}",
            "Make lora_r smaller or per_device_train_batch_size larger.",
        )
    return batches


def begin_with_eva(adapted: Any, config: TrainConfig, batches: list[Batch], said: Callable[[int], object]) -> None:
    """Gives each A the directions in which its module's input varies most over the batches; B stays zero.

    They are the right singular vectors of the centred inputs at tokens that bear a loss (EVA, arXiv 2410.07170), as
    many as the rank: with ρ = 1 no rank is moved from one module to another, so that forecast, merge and export know every
    shape beforehand. ``said`` is called with the number of forward passes after each. ConfigError where there are not so many
    directions. What is saved says nothing of EVA, so that it loads without rows.
    """
    narrow = {
        name.rpartition(".")[2]: module.in_features
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A") and module.in_features < EVA_TOKENS_A_RANK * config.lora_r
    }
    if narrow:
        least = EVA_TOKENS_A_RANK * config.lora_r
        what = f"a module must have {least:,} inputs, two for each of lora_r, and there are fewer in {listed(sorted(narrow))}"
        raise _refused(what, f"Make lora_r {min(narrow.values()) // EVA_TOKENS_A_RANK} or smaller.")
    lora, passes = adapted.peft_config["default"], 0
    targets = lora.target_modules

    def forward(model: Any, batch: Batch) -> None:
        """One pass, without the logits and the loss, which are not used."""
        nonlocal passes
        if passes >= PASSES:
            what = f"the directions of some module's inputs have not settled in {passes} passes: these rows may vary in fewer"
            raise _refused(what, "Make lora_r smaller, or take more varied rows.")
        with Head(model).caught():
            model(**{name: values for name, values in batch.items() if name != "labels"}, use_cache=False)
        passes += 1
        said(passes)

    lora.init_lora_weights, lora.eva_config = "eva", EvaConfig(rho=1.0)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="the following layers were initialized with init_lora_weights=True")
            initialize_lora_eva_weights(
                adapted, batches, forward_fn=forward, gather_distributed_inputs=False, show_progress_bar=False
            )
    except (ValueError, IndexError, TypeError, UserWarning, torch.linalg.LinAlgError) as error:
        raise _refused(f"peft cannot take it from this model ({error})", "") from error
    lora.init_lora_weights, lora.eva_config, lora.target_modules = True, None, targets


def _refused(what: str, remedy: str) -> ConfigError:
    return ConfigError([f'init_lora_weights "eva": {what}.'], where="TrainConfig", remedy=f"{remedy} {_ELSE}".strip())
