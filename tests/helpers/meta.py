"""Models of any type, without weights: built on the meta device by transformers, and as checkpoints of names and shapes."""

from __future__ import annotations

from typing import Any

from tests.helpers import tiny
from tests.helpers.shapes import Shapes

_SMALL = {**tiny.LLAMA, "head_dim": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_neo": tiny.ARCHITECTURES["gpt-neo"][1],
    "hunyuan_v1_dense": _SMALL,
    "hunyuan_v1_moe": {**_SMALL, "num_experts": 4},
    "ministral": _SMALL,
    "nemotron": _SMALL,
    "lfm2_moe": {
        **tiny.LLAMA, "layer_types": ["conv", "full_attention"], "num_experts": 4, "moe_intermediate_size": 64,
        "num_dense_layers": 1,
    },
    "dbrx": {
        "d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 128,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10_000.0},
        "ffn_config": {"moe_num_experts": 4, "ffn_hidden_size": 128},
    },
}  # fmt: skip
"""Configurations of the types whose own defaults make no model."""
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def build(model_type: str, dtype: str = "bfloat16", **values: Any) -> Any:
    """A causal language model of the type on the meta device: its default configuration, with four layers at most."""
    import torch
    import transformers

    tiny.quiet()
    kind = transformers.CONFIG_MAPPING[model_type]
    values = values or CONFIGS.get(model_type, {})
    if not values:
        default = kind().to_dict()
        values = {name: 4 for name in _LAYERS if isinstance(default.get(name), int) and default[name] > 4}
        values = {name: n for name, n in values.items() if name in kind.__annotations__}
    try:
        config = kind(**values)
    except (TypeError, ValueError):  # where something else goes by the number of layers
        config = kind()
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def checkpoint(model: Any) -> Shapes:
    """The checkpoint that ``save_pretrained`` would write, as names and shapes."""
    from transformers.core_model_loading import revert_weight_conversion

    tied = getattr(model, "all_tied_weights_keys", None) or {}
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    shapes = {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, own).items()}
    config = model.config.to_dict()
    return Shapes(config.pop("model_type"), shapes, model_type=model.config.model_type, **config)


def in_4_bits(model: Any) -> Any:
    """The model with bitsandbytes' layers where a 4-bit load has them, still without weights."""
    import transformers
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import HfQuantizer

    skipped = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    how = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = replace_with_bnb_linear(model, modules_to_not_convert=skipped, quantization_config=how)
    model.is_loaded_in_4bit = True
    return model


def trainable(model: Any, targets: Any, r: int = 4, **how: Any) -> list[Any]:
    """The parameters that peft adds to the model."""
    import peft
    import torch

    config = peft.LoraConfig(
        r=r, target_modules=targets if isinstance(targets, str) else list(targets), task_type="CAUSAL_LM", **how
    )
    with torch.device("meta"):
        adapted = peft.get_peft_model(model, config)
    return [parameter for parameter in adapted.parameters() if parameter.requires_grad]
