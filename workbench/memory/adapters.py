"""Which weights peft gives a LoRA adapter, and of what size: from a checkpoint's names and shapes, without loading anything.

Covers what ``get_peft_model`` of peft 0.21 builds on what transformers 5 makes of a checkpoint, for ``all-linear``, lists of
names and regular expressions, and for the model types in ``KNOWN``; the tests hold it against peft itself. For other types it
gives the fewest and the most adapters. Does not cover what peft refuses: such a run ends before it begins.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.sources.rule import is_transposed
from workbench.sources.tensor_info import EMBEDDINGS, HEADS, QUANTIZED, SKIPPED, Role, TensorInfo

ALL_LINEAR = "all-linear"
_KNOWN = """
    afmoe apertus arcee axk1 bamba beam bitnet bloom codegen cohere cohere2 cohere2_moe cwm dbrx deepseek_v2
    deepseek_v3 deepseek_v32 diffllama doge dots3_note_text ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_h1
    falcon_mamba flex_olmo flint fuyu gemma gemma2 gemma3 gemma3_text gemma4 gemma4_text gemma4_unified
    gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite glm_moe_dsa got_ocr2 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_oss
    gptj granite granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hunyuan_v1_dense
    hunyuan_v1_moe hyperclovax jais2 jetmoe kimi_linear kolibri1 lfm2 lfm2_moe llama llama4_text longcat_flash mamba
    mamba2 mellum mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral mpt
    nanochat nemotron olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3
    qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next recurrent_gemma seed_oss smollm3 solar_open stablelm starcoder2
    vaultgemma xglm youtu zaya
    """
KNOWN = frozenset(_KNOWN.split())
"""Model types, as config.json names them, whose adapters are known to the element. Jamba and Aria are not among them: their
routers are linear layers in some versions of transformers 5, and parameters in others."""

EXPERT = re.compile(r"^(?P<block>.+\.experts)\.\d+\.(?P<part>\w+)\.weight$")
"""The weight of one expert, where a checkpoint holds them one by one."""
_DOWN = frozenset({"w2", "down_proj"})
_STACKED = (".input_linear.weight", ".output_linear.weight")  # Granite's: all experts in one tensor

# transformers 5 has no linear layers for experts any more, but parameters that hold all experts of a block. For these types
# peft adapts the parameters when it is asked for the layers of old, with twice the rank where two layers became one. It goes by
# the last part of a name alone: a dense layer or a shared expert with such a name gets no adapter.
_MIXTRAL = {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
_QWEN2_MOE = {"gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
_LIKE_QWEN2_MOE = """
    afmoe beam cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5_moe exaone_moe flex_olmo glm4_moe glm4_moe_lite
    glm4v_moe glm_moe_dsa hunyuan_v1_moe longcat_flash mellum olmoe qwen3_moe qwen3_next qwen3_omni_moe qwen3_omni_moe_text
    qwen3_omni_moe_thinker solar_open
    """
MOVED: Mapping[str, Mapping[str, str]] = {
    **dict.fromkeys(("minimax", "minimax_m2", "mixtral"), _MIXTRAL),
    **dict.fromkeys(_LIKE_QWEN2_MOE.split(), _QWEN2_MOE),
}
"""Model type → the layers of old, by the last part of their names → the parameters that peft adapts in their place."""
_LINEAR_ROUTERS = frozenset({"llama4_text", "phimoe"})
"""Model types whose experts' router is a linear layer, by its class."""
_RENAMED = {
    "gpt_neox": (r"^embed_out$", "lm_head"),
    **dict.fromkeys(("fuyu", "gemma3", "got_ocr2"), (r"^language_model\.model\.", "model.language_model.")),
}
"""Model type → what a module's name has in the checkpoint alone, and once loaded."""

_LINEAR = QUANTIZED | SKIPPED | {Role.KEPT_LINEAR, Role.PACKED}
_NO_MODULE = frozenset({Role.ROUTER, Role.NORM, Role.PARAMETER, Role.FUSED_EXPERTS})


@dataclass(frozen=True)
class Adapter:
    """LoRA's two matrices on one weight: A (rank, in_features) and B (out_features, rank)."""

    name: str
    """The module's name, or that of the parameter that holds all experts."""
    tensors: tuple[str, ...]
    """The tensors of the checkpoint that hold the weight."""
    rank: int
    """Rows of A; where there are experts, those of all of them."""
    in_features: int
    """Columns of A; of a convolution, times its kernel's size."""
    out_features: int
    magnitudes: int
    """Elements of the vector that DoRA adds."""
    on_parameter: bool = False
    """Whether it is on a parameter (experts, their router) and no module: peft then takes neither dropout nor DoRA."""


def adapters(tensors: Sequence[TensorInfo], config: Mapping[str, Any], targets: str | Iterable[str], r: int) -> list[Adapter]:
    """Every adapter that peft adds to the model whose checkpoint has ``tensors`` and whose config.json is ``config``.

    ``tensors`` are those that take memory once loaded, ``targets`` and ``r`` as ``LoraConfig`` has them. Of a type that is not
    in ``KNOWN`` the experts are taken to get none, as peft does with types that it does not know either.
    """
    return [w.adapter(r * factor, bare) for w, factor, bare in _chosen(_weights(tensors, config), config, targets)]


def bounds(
    tensors: Sequence[TensorInfo], config: Mapping[str, Any], targets: str | Iterable[str], r: int
) -> tuple[list[Adapter], list[Adapter]] | None:
    """The fewest and the most adapters that there may be on a model whose type is not in ``KNOWN``; None where it is.

    The fewest: what is a linear layer by its name, without experts, routers, and the layers that peft takes for experts'. The
    most: these, and every expert as part of one parameter for all, gate and up in one.
    """
    if str(config.get("model_type")) in KNOWN:
        return None
    weights = _weights(tensors, config)
    most = {w.name: w.adapter(r * factor) for w, factor, _ in _chosen(weights, {}, targets)}
    fewest = list(most.values())
    if experts := {w.name.rpartition(".experts.")[0] for w in weights if w.experts}:
        moved = _MIXTRAL | _QWEN2_MOE
        fewest = [adapter for adapter in fewest if adapter.name.rpartition(".")[2] not in moved]
        asked = moved if isinstance(targets, str) else {target.rpartition(".")[2] for target in targets}
        for w in weights:
            block, leaf = w.name.rpartition(".")[::2]
            if (w.experts and asked & moved.keys()) or (block in experts and leaf in asked and leaf in ("gate", "router")):
                most[w.name] = w.adapter(r * (1 if leaf == "down_proj" else 2) if w.experts else r)
    return fewest, list(most.values())


@dataclass
class _Weight:
    name: str
    """The module's; or that of a parameter which holds several experts."""
    parameter: str
    tensors: list[str]
    in_features: int
    out_features: int
    experts: int = 0
    """How many a parameter holds; 0 for a module's weight."""
    module: bool = False
    """Whether peft adapts it as a module where that is named."""
    linear: bool = False
    """Whether ``all-linear`` means it."""
    magnitudes: int = 0

    def adapter(self, r: int, on_parameter: bool = False) -> Adapter:
        rank = r * max(1, self.experts)
        return Adapter(self.name, tuple(self.tensors), rank, self.in_features, self.out_features, self.magnitudes, on_parameter)


def _chosen(
    weights: list[_Weight], config: Mapping[str, Any], targets: str | Iterable[str]
) -> Iterator[tuple[_Weight, int, bool]]:
    """What gets an adapter, by how much its rank is above the others', and whether it is adapted as a parameter."""
    moved = MOVED.get(str(config.get("model_type")))
    if moved is None:
        for w in weights:
            if w.linear if targets == ALL_LINEAR else w.module and _matches(w.name, targets):
                yield w, 1, False
        return
    names = _last_parts(weights, targets, moved) if isinstance(targets, str) else targets
    new = {name: moved.get(name.rpartition(".")[2]) for name in names}
    modules = [name for name, parameter in new.items() if parameter is None]
    parameters = {parameter for parameter in new.values() if parameter is not None}
    for w in weights:
        bare = _matches(w.parameter, parameters)
        if bare or (w.module and _matches(w.name, modules)):
            doubled = "gate_up_proj" in parameters and w.name.endswith(".gate_up_proj")
            yield w, 2 if doubled else 1, bare


def _last_parts(weights: Iterable[_Weight], targets: str, moved: Mapping[str, str]) -> set[str]:
    """How peft reads a regular expression for the types in ``MOVED``: as the last parts of all names that it matches."""
    if targets == ALL_LINEAR:
        return {w.name.rpartition(".")[2] for w in weights if w.linear} | moved.keys()
    parameters = {w.parameter for w in weights}
    names = set(parameters)
    for parameter in parameters:
        parts = parameter.split(".")
        names.update(".".join(parts[:n]) for n in range(1, len(parts)))
    found = {name.rpartition(".")[2] for name in names if _matches(name, targets)}
    for old, new in moved.items():
        blocks = {parameter.removesuffix(f".{new}") for parameter in parameters if parameter.endswith(f".experts.{new}")}
        if any(_matches(f"{block}.{old}", targets) for block in blocks):
            found.add(old)
    return found


def _matches(name: str, targets: str | Iterable[str]) -> bool:
    """As peft does: a text is an expression for the whole name; of several texts each is a name, or its end after a dot."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _weights(tensors: Sequence[TensorInfo], config: Mapping[str, Any]) -> list[_Weight]:
    """What may get an adapter, as the loaded model has it: modules with a weight, and parameters that hold experts."""
    found: dict[str, _Weight] = {}
    for t in tensors:
        if (expert := EXPERT.match(t.name)) is not None and len(t.shape) == 2:
            down = expert["part"] in _DOWN
            name = f"{expert['block']}.{'down_proj' if down else 'gate_up_proj'}"
            w = found.setdefault(name, _Weight(name, name, [], t.shape[1], t.shape[0] * (1 if down else 2)))
            w.tensors.append(t.name)
            w.experts = len(w.tensors) if down else -(-len(w.tensors) // 2)
        elif len(t.shape) == 3 and (t.name.endswith(_STACKED) or not t.name.endswith(".weight")):
            found[t.name] = _Weight(t.name, t.name, [t.name], t.shape[2], t.shape[1], t.shape[0])
        elif len(t.shape) > 1 and t.name.endswith(".weight"):
            w = _of_module(t, config)
            found[w.name] = w
    if "lm_head" not in found and (head := _tied_head(found.values(), tensors)) is not None:
        found["lm_head"] = head
    return list(found.values())


def _of_module(t: TensorInfo, config: Mapping[str, Any]) -> _Weight:
    model_type, name = str(config.get("model_type")), t.name.removesuffix(".weight")
    if model_type in _RENAMED:
        name = re.sub(*_RENAMED[model_type], name)
    rows, columns = t.shape[0], math.prod(t.shape[1:])
    packed = t.role is Role.PACKED  # a Conv1D in 4 bits lies like any other linear layer
    turned = t.role in EMBEDDINGS or (is_transposed(t.name, config) and not packed)
    in_features, out_features = (rows, columns) if turned else (columns, rows)
    if t.role is Role.ROUTER and model_type in _LINEAR_ROUTERS:
        return _Weight(f"{name.rpartition('.')[0]}.router", t.name, [t.name], columns, rows, 0, True, True, rows)
    linear = len(t.shape) == 2 and t.role in _LINEAR
    return _Weight(name, t.name, [t.name], in_features, out_features, 0, t.role not in _NO_MODULE, linear, out_features)


def _tied_head(weights: Iterable[_Weight], tensors: Sequence[TensorInfo]) -> _Weight | None:
    """The output head of a checkpoint that holds none: its weight is the embedding's."""
    roles = {t.name: t.role for t in tensors}
    if not HEADS.isdisjoint(roles.values()):
        return None
    tables = [w for w in weights if roles[w.tensors[0]] in EMBEDDINGS]
    tied = [w for w in tables if roles[w.tensors[0]] is Role.TIED_EMBEDDING]
    table = max(tied or tables, key=lambda w: w.in_features, default=None)
    if table is None:
        return None
    rows, columns = table.in_features, table.out_features
    return _Weight("lm_head", "lm_head.weight", table.tensors, columns, rows, 0, True, False, rows)
