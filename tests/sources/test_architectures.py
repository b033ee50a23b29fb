"""The rule and the exact answer against transformers itself, over every causal language model that it has a class for.

The judge is transformers' own replacement of linear layers, on models without weights: which tensors a checkpoint has, and
which of them are a 4-bit layer's weight, is what its own saving makes of the parameters. Sizes cost nothing there, and counts
of layers and experts are cut.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import transformers
from packaging.version import parse

from tests.helpers import tiny
from workbench.sources.exact import describe_exactly
from workbench.sources.header import DTYPES, Entry
from workbench.sources.rule import describe

FEW = {
    **dict.fromkeys(("num_hidden_layers", "num_experts", "num_local_experts", "moe_num_experts", "num_routed_experts"), 4),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    "n_routed_experts": 8,
}
ROUTER_WAS_LINEAR = frozenset({"aria_text", "jamba"})
"""Types whose routers transformers 5.15 makes linear layers of, and 5.23 parameters: the rule goes by the later version."""
WHOLE = frozenset({"gemma3n_text", "gpt_neo", "prophetnet", "zamba", "zamba2"})
"""Types whose layers are of several kinds, or counted otherwise, and are not cut."""
GIVEN: dict[str, dict[str, Any]] = {  # what a configuration has no default for
    **{kind: {"head_dim": 32} for kind in ("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral")},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "nemotron": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "reformer": {"is_decoder": True},
}
UNBUILT = frozenset(
    (
        "cohere_compass_text", "dbrx", "gemma3n", "gemma4_assistant", "gemma4_unified_assistant", "musicgen",
        "musicgen_melody", "qwen4_exp", "qwen4_exp_text",
    )
)  # fmt: skip
"""Types that cannot be built from their default configuration, or without another package."""


@dataclass(frozen=True)
class Skeleton:
    """A model without weights: its checkpoint's tensors, its config.json, and what a 4-bit load makes of it."""

    entries: dict[str, Entry]
    config: dict[str, Any]
    layouts: dict[str, str] = field(default_factory=dict)
    """Tensor that becomes a 4-bit layer's weight → whether that is of a transposed one."""


def configuration(kind: str, tied: bool | None) -> Any:
    import transformers

    cls = transformers.CONFIG_MAPPING[kind]
    usual = cls()
    few = (
        {}
        if kind in WHOLE
        else {name: most for name, most in FEW.items() if isinstance(had := getattr(usual, name, None), int) and had > most}
    )
    config = cls(**few | GIVEN.get(kind, {}))
    for part in () if tied is None else (config, getattr(config, "text_config", config)):
        part.tie_word_embeddings = tied
    return config


def skeleton(kind: str, tied: bool | None = None) -> Skeleton:
    import torch
    import transformers
    from bitsandbytes.nn import Linear4bit
    from transformers import initialization
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.integrations import replace_with_bnb_linear
    from transformers.quantizers.base import HfQuantizer

    config = configuration(kind, tied)
    with torch.device("meta"), initialization.no_tie_weights():
        model = transformers.AutoModelForCausalLM.from_config(config)
    stored = {name: value for name, value in model.state_dict().items() if name not in model.all_tied_weights_keys}
    skipped = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    how = transformers.BitsAndBytesConfig(load_in_4bit=True)
    replaced = replace_with_bnb_linear(model, modules_to_not_convert=skipped, quantization_config=how)
    layouts = {}
    for name, module in replaced.named_modules():
        if isinstance(module, Linear4bit):
            weight = {f"{name}.weight": stored[f"{name}.weight"]}
            turned = "transposed" if module.source_cls is transformers.pytorch_utils.Conv1D else "as stored"
            layouts |= dict.fromkeys(revert_weight_conversion(model, weight), turned)
    saved = revert_weight_conversion(model, stored)
    entries = {name: entry(name, value) for name, value in saved.items()}
    return Skeleton(entries, {**json.loads(config.to_json_string()), "architectures": [type(model).__name__]}, layouts)


def entry(name: str, value: Any) -> Entry:
    dtype = DTYPES["BF16" if value.is_floating_point() else "I64"]
    return Entry(name, dtype, tuple(value.shape), 0, value.numel() * dtype.bits // 8)


@cache
def skeletons() -> dict[str, Skeleton]:
    """Model type → its skeleton, of every type with a causal language model that can be built."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    tiny.quiet()
    return {kind: skeleton(kind) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in UNBUILT}


def told(model: Skeleton, exact: bool) -> dict[str, str]:
    infos = describe_exactly(model.entries, model.config, "") if exact else describe(model.entries, model.config)
    return {info.name: info.layout.replace("split", "as stored") for info in infos if info.quantizable}


@pytest.mark.parametrize("exact", [False, True], ids=["rule", "exact"])
def test_every_causal_language_model_is_told_as_transformers_quantizes_it(exact: bool) -> None:
    found = {kind: told(model, exact) for kind, model in skeletons().items()}
    assert len(found) > 100
    if not exact and parse(transformers.__version__) < parse("5.20"):
        found = {kind: found[kind] for kind in found if kind not in ROUTER_WAS_LINEAR}
    assert not {
        k: sorted(found[k].items() ^ m.layouts.items())[:4]
        for k, m in skeletons().items()
        if found.get(k, m.layouts) != m.layouts
    }


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "kind", ["bloom", "ctrl", "gemma", "gpt2", "gpt_neox", "hy_v3", "llama", "olmo", "opt", "zamba", "zamba2"]
)
def test_a_head_is_tied_or_not_as_the_configuration_says(kind: str, tied: bool) -> None:
    model = skeleton(kind, tied)
    assert told(model, exact=False) == told(model, exact=True) == model.layouts


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("output.weight", [92_544, 2_048]),
        ("language_model.output.weight", [92_553, 2_048]),
        ("transformer.output_layer.weight", [65_024, 4_096]),
        ("model.transformer.ff_out.weight", [50_304, 2_048]),
        ("model.to_logits.weight", [32_000, 2_048]),
        ("backbone.table.weight", [32_064, 2_048]),
    ],
    ids=["internlm2", "internvl", "chatglm", "olmo-1", "by rows", "by padded rows"],
)
def test_heads_of_models_with_code_of_their_own_stay_in_16_bits(name: str, shape: list[int]) -> None:
    """Transformers' own functions skip the output embedding and the last parameter, whatever it is called."""
    layer = "model.layers.0.feed_forward.output.weight"  # a linear layer of that name inside of layers
    entries = {
        name: Entry(name, DTYPES["BF16"], tuple(size), 0, 2 * size[0] * size[1])
        for name, size in ((name, shape), (layer, [2_048, 8_192]))
    }
    config = {"model_type": "remote", "vocab_size": 32_000, "padded_vocab_size": 32_064}
    assert {info.name for info in describe(entries, config) if info.quantizable} == {layer}
