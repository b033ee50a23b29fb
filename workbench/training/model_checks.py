"""Faults of a run that the model's own files show, raised by ``launch`` before anything is loaded, all of them together.

Covers what config.json and the headers show: whether the model is a causal language model, how many positions it has, how a
checkpoint that is packed can be trained, and which modules can be adapted or left out of 4 bits. Token ids are ``vocabulary``'s
part. Imports no torch and runs no code of the model's; what only the loaded model shows is ``loaded_checks``' part.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError
from workbench.memory.adapters import adapters
from workbench.memory.footprint import Plan, in_four_bits, leaves_out
from workbench.memory.gpus import capability, devices
from workbench.sources.base import Source
from workbench.sources.header import shown
from workbench.sources.packed import as_loaded
from workbench.sources.packed_names import Packing
from workbench.sources.rule import is_input_embedding, is_output_head
from workbench.sources.tensor_info import TensorInfo
from workbench.sources.weight_chunks import packings_of
from workbench.text import listed
from workbench.training.checks import schedule_faults
from workbench.training.config import TrainConfig
from workbench.training.vocabulary import vocabulary_fault

_WITHOUT_HEAD = ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING", "MULTIPLE_CHOICE")
_OTHER_KINDS = ("MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT")
_CAUSAL = "CAUSAL_LM"

_PADDED_POSITIONS = {
    "camembert", "data2vec-text", "prophetnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Types that count positions from the one after the padding token's id on."""
_POSITIONS = _PADDED_POSITIONS | {
    "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "biogpt", "blenderbot", "blenderbot-small", "codegen",
    "ctrl", "electra", "ernie", "git", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "marian", "mbart", "megatron-bert",
    "mpt", "mvp", "openai-gpt", "opt", "pegasus", "plbart", "rembert", "roc_bert", "roformer", "trocr", "xlm",
}  # fmt: skip
"""Types whose positions come from a table, learned or computed once: a token beyond it is an index out of range."""
_POSITION_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len")

_MAMBA, _MAMBA_2 = frozenset({"out_proj", "conv1d", "dt_proj"}), frozenset({"out_proj", "conv1d"})
_NOT_ADAPTED = {
    "mamba": _MAMBA, "falcon_mamba": _MAMBA, "mamba2": _MAMBA_2, "falcon_h1": _MAMBA_2, "nemotron_h": _MAMBA_2,
}  # fmt: skip
"""Modules of state-space models that peft refuses, or (dt_proj) whose weight the model takes past its adapter."""
OVERFLOWING = {
    "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gpt_oss", "qwen3_5", "qwen3_5_text",
    "qwen3_5_moe", "qwen3_moe", "glm4_moe", "t5",
}  # fmt: skip
"""Model types that are known to overflow in float16: those that Unsloth computes in float32, and T5."""
_ON_8_BITS = "llm.int8"
_LISTED = 12


def check_model(config: TrainConfig, source: Source) -> None:
    """Raises ``ConfigError`` with every fault that the model's files, and the length of the run, show."""
    if faults := model_faults(config, source):
        raise ConfigError(faults, where=config.model, remedy="Change these fields and try again.")


def model_faults(config: TrainConfig, source: Source) -> list[str]:
    """Every fault in a sentence that begins with its field; [] where there is none."""
    faults = schedule_faults(config)
    if fault := causal_fault(source.config):
        return [*faults, f"model: {fault}. Choose a causal language model."]
    faults += position_faults(config, source.config)
    if in_float16(config):
        faults += float16_faults(config, source.config)
    if fault := vocabulary_fault(source, chats=config.chats):
        faults.append(f"model: {fault}")
    packings = packings_of(source)
    packed = _packing_faults(config, source, packings)
    faults += packed or _four_bit_faults(config, source)
    return [*faults, *_target_faults(config, source), *_expert_faults(config, source)]


# --- what kind of model it is -------------------------------------------------------------------------------------------------


@cache
def auto_mappings() -> Mapping[str, Mapping[str, str]]:
    """transformers' own tables, model type → class, by their task (``CAUSAL_LM`` …); ``""`` has the plain models'.

    Read from its source, as importing it would load torch; empty where transformers is not installed.
    """
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(_transformers_source("models", "auto", "modeling_auto.py")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(args=[ast.List(elts=pairs)])):
                if task := re.fullmatch(r"MODEL_(?:FOR_(\w+)_)?MAPPING_NAMES", name):
                    literal = [pair for pair in pairs if not isinstance(pair, ast.Starred)]
                    found[task[1] or ""] = dict(map(ast.literal_eval, literal))
    return found


def causal_fault(config: Mapping[str, Any]) -> str | None:
    """Why the model of this config.json is no causal language model that can be loaded here; None where it is one."""
    mappings = auto_mappings()
    kind = config.get("model_type")
    if not mappings:
        return None
    if not isinstance(kind, str):
        return "its config.json names no model_type"
    if kind not in mappings[_CAUSAL]:
        code = config.get("auto_map")
        if isinstance(code, dict) and "AutoModelForCausalLM" in code:
            return f"its type, {shown(kind, 60)}, comes with code of its own, which is never run here"
        cls = next((mappings[task][kind] for task in (*_OTHER_KINDS, "") if kind in mappings.get(task, {})), None)
        if cls is None:
            return f"the installed transformers has no causal language model of its type, {shown(kind, 60)}"
        return f"its type, {shown(kind, 60)} ({cls}), is no causal language model"
    if config.get("is_encoder_decoder") is True:
        return f"it is an encoder with a decoder ({shown(kind, 60)}), no causal language model"
    decodes = config.get("is_decoder") is True or config.get("causal") is True
    if kind in mappings.get("MASKED_LM", {}) and not decodes:
        return f"it is an encoder ({shown(kind, 60)}, is_decoder is not set), in which a token sees those that follow it"
    saved = config.get("architectures")
    saved = saved[0] if isinstance(saved, list) and saved and isinstance(saved[0], str) else ""
    if any(saved in mappings.get(task, {}).values() for task in _WITHOUT_HEAD):
        return f"it was saved as {saved}, which has no output head over the vocabulary"
    if config.get("tie_word_embeddings") is False and saved in mappings.get("", {}).values():
        return f"it was saved as {saved}, without an output head, which would begin at random"
    return None


def positions(config: Mapping[str, Any]) -> int | None:
    """Tokens that a row may have in a model of this config.json; None where its positions do not end."""
    kind = config.get("model_type")
    limit = next((v for name in _POSITION_FIELDS if type(v := config.get(name)) is int and v > 0), None)
    if kind not in _POSITIONS or limit is None:
        return None
    pad = config.get("pad_token_id")
    return limit - (pad if type(pad) is int else 1) - 1 if kind in _PADDED_POSITIONS else limit


def position_faults(config: TrainConfig, of_model: Mapping[str, Any]) -> list[str]:
    """Rows, or a sample's new tokens, that are longer than the model has positions."""
    faults, limit = [], positions(of_model)
    if limit is not None and config.max_length > limit:
        faults.append(f"max_length is {config.max_length:,}; this model has positions for {limit:,} tokens: use that at most.")
    if limit is not None and config.sample_max_new_tokens >= limit and config.sample_prompts != ():
        new = config.sample_max_new_tokens
        faults.append(f"sample_max_new_tokens is {new:,}; with a prompt this model has positions for {limit - 1:,} at most.")
    return faults


# --- float16 ------------------------------------------------------------------------------------------------------------------


def in_float16(config: TrainConfig) -> bool:
    """Whether a run here will compute in float16: it is asked for, or this machine's GPU has no bfloat16."""
    if config.compute_dtype == "auto" and config.method != "full":
        return (found := capability()) is not None and found < (8, 0)
    return config.compute_dtype == "float16"


def float16_faults(config: TrainConfig, of_model: Mapping[str, Any]) -> list[str]:
    """That norms are to answer in float16 in a model whose type is known to overflow there."""
    known = _known_to_overflow(of_model)
    if not known or not config.norms_in_16_bits:
        return []
    remedy = 'leave it False, or set compute_dtype to "bfloat16" where the GPU has it.'
    return [f"norms_in_16_bits is True, and {known}: {remedy}"]


def float16_warning(of_model: Mapping[str, Any]) -> str:
    """What is to be said before a run in float16 of a model whose type is known to overflow there; "" of any other."""
    known = _known_to_overflow(of_model)
    remedy = 'if this one does, rescale_mlp=6 may keep it within, and compute_dtype="float32" will.'
    return f"{known[0].upper()}{known[1:]}: {remedy}" if known else ""


def _known_to_overflow(of_model: Mapping[str, Any]) -> str:
    text = of_model.get("text_config")
    kinds = {str(own.get("model_type")) for own in (of_model, text) if isinstance(own, dict)} & OVERFLOWING
    return f"models of the type {min(kinds)} are known to overflow in float16" if kinds else ""


# --- a checkpoint that is packed ----------------------------------------------------------------------------------------------


def _packing_faults(config: TrainConfig, source: Source, packings: Mapping[str, Packing]) -> list[str]:
    """What cannot be done with weights that are packed already, and what can."""
    if not packings:
        return []
    scheme = next((p.scheme for p in packings.values() if p.scheme not in ("nf4", "fp4")), None)
    title = next(p.title for p in packings.values() if scheme in (None, p.scheme))
    how = source.config.get("quantization_config")
    if isinstance(how, dict) and how.get("quant_method") == "compressed-tensors" and not _installed("compressed_tensors"):
        return [f"model: its weights are packed in {title} by compressed-tensors, a package that is not installed."]
    if config.method == "qlora" and scheme is not None:
        lora = {
            _ON_8_BITS: 'method "lora" trains adapters on the 8-bit weights',
            "mxfp4": 'method "lora" has transformers unpack them to 16 bits',
            "fp8": 'method "lora" with compute_dtype "bfloat16" has transformers unpack them to 16 bits, on a CPU at least',
        }.get(scheme)
        other = f"{lora}; or " if lora else ""
        what = f'method "qlora" packs 16-bit weights in 4 bits itself, and this checkpoint\'s are packed in {title}: '
        return [f"{what}{other}choose the model in 16 bits."]
    if config.method == "full" and scheme in (None, _ON_8_BITS):
        other = "lora" if scheme else "qlora"
        return [f'method "full" trains no packed weights, and this checkpoint\'s are in {title}: use "{other}".']
    if scheme == "fp8" and config.compute_dtype in ("auto", "float32") and not devices():
        return [
            f'compute_dtype is "{config.compute_dtype}"; this checkpoint\'s weights are packed in {title}, and on a CPU '
            'transformers unpacks them to bfloat16: use "bfloat16".'
        ]
    return _kept_faults(config, source) if config.method == "qlora" else []


def _kept_faults(config: TrainConfig, source: Source) -> list[str]:
    """Fields that ask for another 4-bit packing than the one that a checkpoint has and keeps."""
    own = as_loaded(source)[1]
    if own is None:
        return []
    asked = {"quant_type": own.format, "block_size": own.block_size, "double_quant": own.double_quant}
    begin = config.init_lora_weights
    no_original = f'init_lora_weights is "{begin}", and this checkpoint is in 4 bits itself: there is no weight to begin from.'
    return ([no_original] if begin in ("loftq", "pissa") else []) + [
        f"{name} is {getattr(config, name)!r}; this checkpoint's weights are packed with {value!r}, and are kept so."
        for name, value in asked.items()
        if getattr(config, name) != value
    ]


def _four_bit_faults(config: TrainConfig, source: Source) -> list[str]:
    """Patterns that leave nothing, or everything, out of 4 bits."""
    if config.method != "qlora":
        return []
    tensors, plan = as_loaded(source)[0], Plan.of(config, "cpu")
    modules = {t.name.rpartition(".")[0] for t in tensors}
    faults = [
        f"llm_int8_skip_modules names {name!r}, which is no module of this model; {_near(name, modules)}."
        for name in config.llm_int8_skip_modules
        if not is_output_head(name) and not any(re.search(name, module) or leaves_out([name], module) for module in modules)
    ]
    if not any(in_four_bits(t, plan) for t in tensors):
        if any(t.quantizable for t in tensors):
            faults.append("llm_int8_skip_modules leaves every module out of 4 bits: name fewer.")
        else:
            faults.append('method "qlora" would hold none of this model\'s layers in 4 bits: use "lora".')
    return faults


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


# --- modules to adapt ---------------------------------------------------------------------------------------------------------


def _target_faults(config: TrainConfig, source: Source) -> list[str]:
    """Names of which the model has no module, or only such as no adapter fits on."""
    if config.method == "full":
        return []
    tensors = as_loaded(source)[0]
    refused = _NOT_ADAPTED.get(str(source.config.get("model_type")), frozenset())
    matrices = [t for t in tensors if len(t.shape) == 2 and "." in t.name and not is_input_embedding(t.name)]
    linear = sorted({t.name.split(".")[-2] for t in [t for t in matrices if t.quantizable] or matrices} - refused)
    takes = f"use {named(linear)}."
    if isinstance(config.target_modules, str):
        return [f'target_modules is "all-linear", which this model does not take: {takes}'] if refused else []
    ranks: dict[str, int] = {}
    for t in tensors:
        module, _, leaf = t.name.rpartition(".")
        ranks[module] = max(ranks.get(module, 0), len(t.shape) if leaf == "weight" else 0)
    faults = []
    for name in config.target_modules:
        found = [rank for module, rank in ranks.items() if module == name or module.endswith(f".{name}")]
        if name.rpartition(".")[2] in refused:
            faults.append(f"target_modules names {name!r}, which is not adapted in this model: {takes}")
        elif found and max(found) == 1:
            faults.append(f"target_modules names {name!r}, whose weight is a vector, as a norm's: {takes}")
        elif not found and any(f".{name}." in f".{module}." for module in ranks):
            faults.append(f"target_modules names {name!r}, which is a block of modules and no linear layer: {takes}")
        elif not found and not is_output_head(name) and not _converted(str(source.config.get("model_type")), tensors):
            faults.append(f"target_modules names {name!r}, which is no module of this model; {_near(name, ranks)}.")
    return faults


def _expert_faults(config: TrainConfig, source: Source) -> list[str]:
    """What peft does not do where it adapts experts as the one parameter that holds them all."""
    asked = [name for name in ("lora_dropout", "use_dora") if getattr(config, name)]
    if config.method == "full" or not asked:
        return []
    found = adapters(as_loaded(source)[0], source.config, config.target_modules, config.lora_r)
    bare = sorted({adapter.name.rpartition(".")[2] for adapter in found if adapter.on_parameter})
    return [
        f"{name} is {getattr(config, name)!r}; peft has none on the parameters ({named(bare)}) that hold this model's "
        f"experts: set {False if name == 'use_dora' else 0}, or name target_modules without them."
        for name in asked
        if bare
    ]


def _converted(kind: str, tensors: Iterable[TensorInfo]) -> bool:
    """Whether loading may change the names of modules: then only the loaded model knows them."""
    return any(".experts." in t.name for t in tensors) or f'"{kind}"' in _conversions()


@cache
def _conversions() -> str:
    """transformers' own table of what loading changes, by model type, as its source says it."""
    return _transformers_source("conversion_mapping.py")


def _transformers_source(*parts: str) -> str:
    """A file of the installed transformers, which is not imported; "" where there is none."""
    spec = importlib.util.find_spec("transformers")
    places = spec.submodule_search_locations if spec else None
    file = Path(places[0], *parts) if places else Path()
    return file.read_text("utf-8") if file.is_file() else ""


def _near(name: str, modules: Collection[str]) -> str:
    near = near_leaves(name, modules)
    return f"near it: {named(near)}" if near else f"it has {named(leaves_of(modules))}"


def near_leaves(name: str, modules: Iterable[str]) -> list[str]:
    """The last names of modules that are spelt much like that of ``name``: three at most."""
    return difflib.get_close_matches(name.rpartition(".")[2], leaves_of(modules), 3)


def leaves_of(modules: Iterable[str]) -> list[str]:
    """The last names of modules, each once, in order; numbers are none."""
    return sorted({leaf for module in modules if (leaf := module.rpartition(".")[2]) and not leaf.isdigit()})


def named(names: Sequence[str]) -> str:
    """Names in words; of very many the first."""
    return listed([shown(name) for name in names[:_LISTED]]) + (" …" if len(names) > _LISTED else "")
