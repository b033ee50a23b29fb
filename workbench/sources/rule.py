"""Which tensors of a checkpoint a QLoRA load holds in 4 bits: the fast rule, by name, shape and model type.

Covers what transformers 5 with bitsandbytes does: every ``nn.Linear`` and ``Conv1D`` becomes 4-bit, except the output head,
what is tied to it, what a model keeps in fp32, and what is no longer a linear layer once the checkpoint has been converted
(fused experts). A checkpoint names tensors, not modules, so the rule goes by the names that models give;
``tensors(exact=True)`` asks the model class itself. The tests hold the rule against real loads of tiny models.

A checkpoint that is quantized already is not quantized further: its packed weights say what they are in, and the rest stays.
And ``left_in_16_bits`` adds up what all of that costs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workbench.sources.header import Entry
from workbench.sources.packed_names import Packing, find_packings
from workbench.sources.tensor_info import QUANTIZED, SKIPPED, Role, TensorInfo

AS_STORED, TRANSPOSED, FUSED, SPLIT = "as stored", "transposed", "fused", "split"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D = re.compile(r"\.(?:c_attn|c_proj|c_fc|q_attn)\.weight$")
# Model type → the class of linear layer that is its own, and how the weights end that are of it.
_OWN_LINEAR = {"falcon": ("FalconLinear", ".weight"), "deepseek_v4": ("DeepseekV4GroupedLinear", ".wo_a.weight")}
# Model type → how the weights end that the model keeps in fp32.
_KEPT_FP32: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_words("t5 mt5 umt5 udop pop2piano"), (".wo.weight",)),
    **dict.fromkeys(_words("deepseek_v32 glm_moe_dsa mistral_large4 mistral_large4_text axk2"), (".weights_proj.weight",)),
    "deepseek_v4": (".compressor.wgate.weight", ".compressor.wkv.weight", ".weights_proj.weight"),
}
# Model type → the block that layers share, unless the configuration ties no weights at all.
_SHARED = {"zamba": ".shared_transf.", "zamba2": ".shared_transformer."}
# The input embedding, to which an output head may be tied; and other tables: pos_embed, query_embeddings, input_embeds_layer …
_INPUTS = _words(
    "embed_tokens wte embed_in word_embeddings embeddings embedding embed shared tok_embeddings tokens_embed token_embedding "
    "word_embedding"
)
_TABLES = _words(
    "wpe relative_attention_bias bias_values embed_tokens_per_layer embed_positions embed_text_tokens audio_bos_eos_token"
)
_LINEAR_TABLE = "relative_pos_embeddings"  # ProphetNet's, a linear layer
_TABLE = re.compile(r"(?:^|(?<!patch|inear)_)(?:emb|embed|embeds|embedding|embeddings|embedder)(?:_layers?|_table)?$")
_HEADS = _words("lm_head embed_out vocab_projector score output_projection lm_prediction_head generator_lm_head unembed")
_OUTER_HEADS = _words("output output_layer ff_out")  # heads outside of layers; inside they are linear layers like others
_HEAD_PATHS = (["lm_head", "decoder"], ["head"])
_EXPERT = re.compile(r"^(?P<block>.+)\.experts\.\d+\.(?P<part>\w+)\.weight$")
_EXPERTS = re.compile(r"^(?P<block>.+)\.experts\.")
_ROUTERS = frozenset({"gate", "router"})
_ROUTER_OF = {"hy_v3": ".mlp.router.gate.weight"}
_CLIP = _words("clip chinese_clip altclip clipseg metaclip_2 owlvit owlv2 blip aimv2")
_IN_PROJ = ".in_proj_weight"
# What is multiplied like a linear layer's weight and stays in 16 bits all the same.
_UNEXPECTED = SKIPPED | {Role.EXPERT, Role.FUSED_EXPERTS, Role.OTHER_MODULE, Role.KEPT_LINEAR}


def describe(entries: Mapping[str, Entry], config: Mapping[str, Any]) -> list[TensorInfo]:
    """A ``TensorInfo`` for every entry, by the fast rule."""
    text = config.get("text_config")
    tied = config.get("tie_word_embeddings") is True or (isinstance(text, dict) and text.get("tie_word_embeddings") is True)
    blocks = frozenset(m["block"] for name in entries if (m := _EXPERTS.match(name)))
    packings = find_packings(entries, config)
    attentions = frozenset(name.removesuffix(_IN_PROJ) for name in entries if name.endswith(_IN_PROJ))
    configs = (config, text if isinstance(text, dict) else {})
    sizes = (part.get(size) for part in configs for size in ("vocab_size", "padded_vocab_size"))
    vocabulary = frozenset(size for size in sizes if isinstance(size, int))
    model_type = str(config.get("model_type", ""))
    shared = None if config.get("tie_word_embeddings") is False else _SHARED.get(model_type)
    rule = _Rule(model_type, tied, blocks, attentions, packings, vocabulary, shared)
    return [info(entry, *rule.judge(entry)) for entry in entries.values()]


def is_transposed(name: str, config: Mapping[str, Any]) -> bool:
    """Whether the tensor ``name`` is the weight of a Conv1D, which is transposed before it is quantized."""
    return str(config.get("model_type")) in _CONV1D_MODELS and _CONV1D.search(name) is not None


def is_input_embedding(name: str) -> bool:
    """Whether the tensor ``name`` is, by the names that models give, the table that token ids are looked up in."""
    return name.endswith(".weight") and name.split(".")[-2] in _INPUTS


def is_output_head(module: str) -> bool:
    """Whether a module is, by the names that models give, the output head; where it is tied, no file holds it."""
    return module.rpartition(".")[2] in _HEADS


@dataclass(frozen=True)
class LeftOut:
    """Weights that a QLoRA load leaves in 16 bits for one reason."""

    reason: str
    tensors: int
    numel: int
    nbytes: int
    """Bytes that they take, at two a weight."""
    extra: int
    """Bytes more than in NF4, blocks of 64, double quantized."""
    unexpected: bool
    """Whether a user may have expected them in 4 bits: they are matrices that are multiplied, like a linear layer's."""


def left_in_16_bits(tensors: Iterable[TensorInfo]) -> list[LeftOut]:
    """What stays in 16 bits, by reason, the largest first; integers and what is packed already are no part of it."""
    from workbench.quant.spec import QuantSpec

    groups: dict[tuple[Role, str], list[int]] = {}
    for t in tensors:
        if not t.quantizable and t.numel and t.dtype.startswith(("F", "BF")) and t.role not in (Role.PACKED, Role.PACKED_PART):
            groups.setdefault((t.role, t.reason), []).append(t.numel)
    spec = QuantSpec("nf4", 64, double_quant=True)
    found = []
    for (role, reason), sizes in groups.items():
        numel, in_4_bits = sum(sizes), sum(map(spec.nbytes, sizes))
        found.append(LeftOut(reason, len(sizes), numel, 2 * numel, 2 * numel - in_4_bits, role in _UNEXPECTED))
    return sorted(found, key=lambda left: -left.nbytes)


def info(entry: Entry, role: Role, reason: str, layout: str) -> TensorInfo:
    """The ``TensorInfo`` of an entry with a judgement."""
    nbytes = entry.end - entry.begin
    numel = nbytes * 8 // entry.dtype.bits
    return TensorInfo(entry.name, entry.shape, entry.dtype.name, numel, nbytes, role in QUANTIZED, reason, layout, role)


class _Rule:
    def __init__(
        self, model_type: str, tied: bool, expert_blocks: frozenset[str], attentions: frozenset[str],
        packings: Mapping[str, Packing], vocabulary: frozenset[int], shared: str | None,
    ) -> None:  # fmt: skip
        self.model_type, self.tied, self.packings = model_type, tied, packings
        self.expert_blocks, self.attentions, self.vocabulary, self.shared = expert_blocks, attentions, vocabulary, shared
        self.parts = {part: codes for codes, packing in packings.items() for part in packing.parts.values()}

    def judge(self, entry: Entry) -> tuple[Role, str, str]:
        """(role, reason, layout)."""
        role, detail = self._role(entry)
        layout = TRANSPOSED if role is Role.CONV1D else AS_STORED
        if role not in QUANTIZED | {Role.PACKED, Role.PACKED_PART} and _EXPERT.match(entry.name):
            layout = FUSED
        return role, role.sentence(detail), layout

    def _role(self, entry: Entry) -> tuple[Role, str]:
        """The role, and what its sentence says besides."""
        if (packing := self.packings.get(entry.name)) is not None:
            return Role.PACKED, f"{packing.bits} bits: {packing.title}"
        if entry.name in self.parts:
            return Role.PACKED_PART, self.parts[entry.name]
        if (left := self._left_out(entry)) is not None:
            return left, _OWN_LINEAR[self.model_type][0] if left is Role.OWN_LINEAR else entry.dtype.name
        if self.packings:
            return Role.KEPT_LINEAR, next(iter(self.packings.values())).title
        return Role.CONV1D if is_transposed(entry.name, {"model_type": self.model_type}) else Role.LINEAR, ""

    def _left_out(self, entry: Entry) -> Role | None:
        name, rank = entry.name, len(entry.shape)
        parts = name.split(".")
        module = parts[-2] if len(parts) > 1 else ""
        if not entry.dtype.floating:
            return Role.NOT_FLOATING
        if 0 in entry.shape:
            return Role.EMPTY
        if rank == 2 and self.tied and module in _INPUTS:
            return Role.TIED_EMBEDDING
        if rank == 2 and (module in _INPUTS or _is_table(parts)):
            return Role.EMBEDDING
        if rank < 2:
            return Role.VECTOR
        if rank > 2:
            return Role.FUSED_EXPERTS if _EXPERTS.match(name) else Role.HIGH_RANK
        if _EXPERT.match(name):
            return Role.EXPERT
        if parts[-1] != "weight":
            return Role.PARAMETER
        return self._special_linear(entry, parts, module)

    def _special_linear(self, entry: Entry, parts: list[str], module: str) -> Role | None:
        name, outside = entry.name, not any(part.isdigit() for part in parts)
        if (
            module in _HEADS
            or parts[-4:-1] == ["cls", "predictions", "decoder"]
            or parts[:-1] in _HEAD_PATHS
            or (outside and module in _OUTER_HEADS)
        ):
            return Role.TIED_HEAD if self.tied else Role.HEAD
        if outside and len(parts) < 5 and entry.shape[0] in self.vocabulary:
            return Role.EMBEDDING_OR_HEAD
        block = ".".join(parts[:-2])
        if (
            (module in _ROUTERS and block in self.expert_blocks)
            or block.endswith(".block_sparse_moe.router")
            or name.endswith(_ROUTER_OF.get(self.model_type, ()))
        ):
            return Role.ROUTER
        if "norm" in module.lower():
            return Role.NORM
        if self.model_type in _OWN_LINEAR and name.endswith(_OWN_LINEAR[self.model_type][1]):
            return Role.OWN_LINEAR
        if name.endswith(_KEPT_FP32.get(self.model_type, ())):
            return Role.FP32_LINEAR
        if self.shared and self.shared in name:
            return Role.SHARED_LINEAR
        if module == "out_proj" and block in self.attentions:
            return Role.ATTENTION_LINEAR
        if self.model_type in _CLIP and parts == ["text_projection", "weight"]:
            return Role.LAST_LINEAR
        return None


def _is_table(parts: list[str]) -> bool:
    """Whether the names belong to an embedding; in a list of them the name stands before the number."""
    named = next((part for part in reversed(parts[:-1]) if not part.isdigit()), "")
    return parts[-1] == "weight" and named != _LINEAR_TABLE and (named in _TABLES or _TABLE.search(named) is not None)
