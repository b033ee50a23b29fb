"""Loading, quantizing and adapting the model. Imported by the worker only (needs torch, transformers, peft).

Covers the compute dtype, the 4-bit base with any of bitsandbytes' block sizes, and the adapters. Does not train.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    get_peft_model,
    load_peft_weights,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

from workbench import compat
from workbench.errors import ConfigError, ModelError
from workbench.quant.bnb import check_backend
from workbench.training.config import TrainConfig
from workbench.training.dataset_files import on_hub
from workbench.training.loaded_checks import check_complete, check_targets, linear_names
from workbench.training.worker.beginnings import FROM_ORIGINAL, begin_with_loftq, begin_with_pissa
from workbench.training.worker.distributed import local_rank
from workbench.training.worker.health import rescale_mlps
from workbench.training.worker.preparation import answer_in, prepare


def compute_dtype(config: TrainConfig) -> torch.dtype:
    """The dtype of activations; see ``TrainConfig.compute_dtype``.

    Raises ``ConfigError`` for float16 without a GPU.
    """
    if config.compute_dtype == "auto":
        if not torch.cuda.is_available():
            return torch.float32
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float32 if config.method == "full" else torch.float16  # float16 weights cannot take small steps
    dtype: torch.dtype = getattr(torch, config.compute_dtype)
    if dtype is torch.float16 and not torch.cuda.is_available():
        raise ConfigError(
            ["compute_dtype float16 needs a CUDA device."], where="TrainConfig", remedy='Use "auto", "float32" or "bfloat16".'
        )
    return dtype


def load_base(config: TrainConfig, folder: Path, dtype: torch.dtype, prepared: Callable[[], None]) -> Any:
    """The model on the training device, quantized where the method asks for it.

    ``prepared`` is called between building the model and reading its weights; transformers quantizes each weight as it is read.
    """
    arguments: dict[str, Any] = {
        "dtype": dtype, "local_files_only": True, "use_safetensors": True, "output_loading_info": True,
    }  # fmt: skip
    if torch.cuda.is_available():
        arguments["device_map"] = {"": local_rank()}
    try:
        if config.method != "qlora":
            prepared()
            model, loading = AutoModelForCausalLM.from_pretrained(str(folder), **arguments)
            check_complete(loading["missing_keys"], folder)
            return model
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=config.quant_type,
            bnb_4bit_use_double_quant=config.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
        with compat.four_bit_loading(config.block_size, config.llm_int8_skip_modules, prepared):
            model, loading = AutoModelForCausalLM.from_pretrained(str(folder), **arguments)
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError, AttributeError, ImportError, TypeError) as error:
        if "out of memory" in str(error) or "allocate memory" in str(error):
            raise
        remedy = "Check the model's files."
        raise ModelError(f"the model cannot be loaded ({error}).", where=str(folder), remedy=remedy) from error
    check_complete(loading["missing_keys"], folder)
    _check_quantized(model, config)
    return model


def _check_quantized(model: Any, config: TrainConfig) -> None:
    """Checks that the base is as asked for, and keeps bitsandbytes' CPU kernels on the paths that are right."""
    from bitsandbytes.nn import Linear4bit

    linears = {name: m for name, m in model.named_modules() if isinstance(m, Linear4bit)}
    if not linears:
        remedy = 'Use method="lora", or leave fewer modules out of 4 bits.'
        raise ModelError("no linear layer of this model was quantized.", where=config.model, remedy=remedy)
    for name, linear in linears.items():
        if linear.weight.quant_state.blocksize != config.block_size:
            raise ModelError(
                f"{name} was quantized in blocks of {linear.weight.quant_state.blocksize}, not {config.block_size}.",
                where=config.model,
                remedy="Use block_size=64, or a model that is not quantized yet.",
            )
        if linear.weight.device.type == "cpu":
            shape = linear.weight.quant_state.shape
            backend = check_backend(shape, config.block_size)
            if not backend.right:
                raise ConfigError([f"{name}: {backend.why}"], where="block_size", remedy=backend.remedy)
        compat.never_repack(linear)


def attach_adapters(model: Any, config: TrainConfig, first: Path | None = None) -> Any:
    """The model as it is trained: with fp32 LoRA adapters, or itself for method ``full``; seeded by ``config.seed``.

    With the usual beginning B is zero, so that it computes what the base computes. ``first``: the folder of an adapter whose
    weights they begin with instead. LoftQ and PiSSA on a 4-bit base read the model's files again; EVA, which takes rows, is
    ``eva``'s part. Raises ``ModelError`` where the weights are not all that there are.
    """
    if config.method == "full":
        set_seed(config.seed)
        if config.rescale_mlp:
            rescale_mlps(model, config.rescale_mlp)
        return model
    if config.method == "qlora":
        dtype = model.dtype  # before anything is made float32
        if config.upcast_to_fp32:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        else:
            prepare(model, model.dtype)
        if config.norms_in_16_bits:
            answer_in(model, dtype)
    set_seed(config.seed)
    check_targets(model, config)
    targets = config.target_modules
    on_original = config.method == "qlora" and config.init_lora_weights in FROM_ORIGINAL
    later = on_original or config.init_lora_weights == "eva"
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        init_lora_weights=True if later else config.init_lora_weights,
    )
    try:
        adapted = get_peft_model(model, lora)
    except ValueError as error:
        remedy = f"Name modules of a kind that peft adapts: {linear_names(model)}."
        raise ConfigError([f"target_modules does not fit this model: {error}"], where="TrainConfig", remedy=remedy) from error
    if config.init_adapter is not None and first is not None:
        _begin_with(adapted, first)
    if on_original and config.init_lora_weights == "loftq":
        begin_with_loftq(adapted, Path(model.config._name_or_path))
    elif on_original:
        begin_with_pissa(adapted, Path(model.config._name_or_path), lora)
        lora.init_lora_weights = "pissa"  # whoever loads the adapter must take the same out of the base
    if config.rescale_mlp:
        rescale_mlps(adapted, config.rescale_mlp)
    if on_hub(config.model):  # named so that the adapter finds its base on any machine, at the same commit
        snapshot = Path(model.config._name_or_path)
        lora.base_model_name_or_path = config.model
        lora.revision = snapshot.name if snapshot.parent.name == "snapshots" else None
    return adapted


def _begin_with(adapted: Any, folder: Path) -> None:
    """Puts the weights of an adapter that was saved in the place of fresh ones."""
    remedy = "Begin from an adapter of this very base, saved by peft."
    try:
        result = set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device="cpu"))
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"the adapter does not fit the model ({error}).", where="init_adapter", remedy=remedy) from error
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    odd = [*result.unexpected_keys, *(name for name in result.missing_keys if name in trained)]
    if odd:
        what = f"the adapter and the model do not have the same matrices ({', '.join(odd[:3])})."
        raise ModelError(what, where="init_adapter", remedy=remedy)


def adapter_sizes(model: Any) -> list[int]:
    """Elements of every trained matrix."""
    return [p.numel() for p in model.parameters() if p.requires_grad and p.ndim == 2]
